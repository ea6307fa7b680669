"""What is written down of a trial agrees, wherever its sweep was killed."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from optuna.trial import TrialState

from core.errors import UserError
from orchestrator.search.ledger import Assignment, Ledger
from orchestrator.search.retries import Ends
from orchestrator.spec import Sweep, parse
from orchestrator.store import disk
from orchestrator.store.checkpoints import TrialFolder
from orchestrator.store.folder import SweepFolder
from orchestrator.store.study import create_study
from orchestrator.sweep import resume
from orchestrator.sweep.resume import end_runs, settle
from orchestrator.tracking.notes import NOTE
from orchestrator.tracking.record import SweepRecord
from orchestrator.trial.outcome import ADVICE, TrialOutcome
from tests.orchestrator.conftest import RecordedOutbox, keep, report_at

OUT = TrialOutcome


@pytest.fixture
def sweep() -> Sweep:
    search = {"shift_scale": {"float": [0.5, 2.0]}}
    objectives = [{"identifiability": "max"}, {"fidelity_kid": "min"}]
    data: dict[str, Any] = {"name": "a", "model": "toyfaces", "train": {"iterations": 100}, "search": search}
    return parse(data | {"objectives": objectives, "recovery": {"keep_trials": 2}})


@pytest.fixture
def record(sweep: Sweep, tmp_path: Path) -> SweepRecord:
    folder = SweepFolder(tmp_path, "a")
    folder.create(sweep, "weights")
    folder.add(experiment_id="1", parent_run="parent")
    create_study(sweep, folder.study_file)
    return opened(sweep, folder)


def opened(sweep: Sweep, folder: SweepFolder) -> SweepRecord:
    """As the next start opens them."""
    return SweepRecord(sweep, folder, Ledger(sweep, folder.study_file, "weights"), cast(Any, RecordedOutbox()))


def again(record: SweepRecord) -> SweepRecord:
    return opened(record.sweep, record.folder)


def calls(record: SweepRecord) -> list[tuple[Any, ...]]:
    return cast(RecordedOutbox, record.outbox).calls


def begin(record: SweepRecord) -> Assignment:
    given = record.ledger.next_attempt()
    assert given is not None
    return given


def trial_of(record: SweepRecord, given: Assignment) -> TrialFolder:
    return record.folder.trial(given.trial_id)


def states(record: SweepRecord) -> list[TrialState]:
    return [row.state for row in record.ledger.study.trials]


def test_mlflow_is_told_first_and_then_the_ledger(record: SweepRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a kill between the two leaves a row that is running, which the next start puts right."""
    given = begin(record)
    record.started(given.trial_id, given.parameters, 1)
    keep(trial_of(record, given), 50, report_at(50))
    ledger = cast(Any, record.ledger)
    for name in ("reported", "end"):
        monkeypatch.setattr(ledger, name, lambda *_, name=name, **__: calls(record).append((f"ledger.{name}", None)))
    record.reported(given.trial_id, report_at(50))
    record.ended(given.trial_id, OUT.COMPLETED, "", report_at(100), final=True)
    told = ["start", "metrics", "tags", "folder", "image", "ledger.reported", "start", "image", "end", "ledger.end"]
    assert [call[0] for call in calls(record)] == told


def test_a_reason_is_without_secrets_wherever_it_is_put_down(record: SweepRecord) -> None:
    data = record.sweep.resolved()
    data["tracking"]["uri"], data["study"]["uri"] = "http://anna:ge_heim@host", "postgresql://anna:sesame@host/db"
    record = replace(record, sweep=parse(data))
    given = begin(record)
    record.started(given.trial_id, given.parameters, 1)
    record.ended(given.trial_id, OUT.FAILED, "neither ge_heim nor sesame opens http://anna:ge_heim@host", final=True)
    [tags] = [call[3] for call in calls(record) if call[0] == "end"]
    assert tags["reason"] == "neither *** nor *** opens http://***@host"
    assert tags[NOTE].endswith("neither \\*\\*\\* nor \\*\\*\\* opens http://\\*\\*\\*@host")
    [row] = record.ledger.study.trials
    assert tags["reason"] in row.user_attrs.values()


def test_a_report_is_put_down_once(record: SweepRecord) -> None:
    given = begin(record)
    checkpoint = keep(trial_of(record, given), 50, report_at(50, 0.7))
    assert record.reported(given.trial_id, report_at(50, 0.7))
    assert not record.reported(given.trial_id, report_at(50, 0.7)), "a trial that goes on repeats its last report"
    metrics, tags, folder, image = calls(record)
    values = {"step": 50, "identifiability": 0.7, "fidelity_kid": 0.1, "find_seconds": 2.0}
    assert metrics == ("metrics", given.trial_id, [values, {"step": 50, "training/loss": 1.0}], 1050)
    assert tags == ("tags", given.trial_id, {"micro_batch": "2"})
    assert folder == ("folder", given.trial_id, checkpoint / "directions", "directions")
    assert image == ("image", given.trial_id, checkpoint / "traversal.png", "traversal", 50, 1050)
    assert record.ledger.reports(given.trial_id) == {"50": {"value": 0.7, "stopped": False}}


def test_mlflow_is_told_the_objectives_before_all_other_metrics(sweep: Sweep, record: SweepRecord) -> None:
    """MLflow's comparison of runs opens on the metric that they had first."""
    report = report_at(50)
    ends = {"identifiability/low": 0.4, "identifiability/high": 0.6}
    report = replace(report, metrics={"globality": 0.5, **ends, **dict(reversed(report.metrics.items()))})
    record.reported(begin(record).trial_id, report)
    names = [name for point in calls(record)[0][2] for name in point if name != "step"]
    assert names == [*sweep.objective_names, "globality", *ends, "find_seconds", "training/loss"]


def test_what_an_attempt_is_recorded_with(record: SweepRecord) -> None:
    given = begin(record)
    searched = {name: given.parameters[name] for name in ("shift_scale",)}
    record.started(given.trial_id, searched, 3)
    [(what, trial_id, parameters, tags, inputs)] = calls(record)
    assert (what, trial_id, parameters) == ("start", given.trial_id, searched)
    told = {"sweep": "a", "method": "learned", "attempt": "3", "on_front": "false", "outcome": "running"}
    assert tags == told and [each["context"] for each in inputs] == ["model", "training", "evaluation"]


@pytest.mark.parametrize(("metric", "value"), [(None, 0.7), ("fidelity_kid", 0.1), ("coverage", None)])
def test_a_trial_is_compared_by_what_asha_compares(
    sweep: Sweep, tmp_path: Path, metric: str | None, value: float
) -> None:
    """By default the first objective; None where a report has no such metric."""
    asha = {"grace": 50} | ({} if metric is None else {"metric": metric})
    sweep = parse(sweep.resolved() | {"scheduler": {"asha": asha}})
    folder = SweepFolder(tmp_path, "a")
    folder.create(sweep, "weights")
    create_study(sweep, folder.study_file)
    record = opened(sweep, folder)
    given = begin(record)
    assert record.reported(given.trial_id, report_at(50, 0.7), stopped=True)
    assert record.ledger.reports(given.trial_id) == {"50": {"value": value, "stopped": True}}


def test_a_report_is_put_down_where_its_checkpoint_has_been_damaged_since(record: SweepRecord) -> None:
    """The trial will say so itself. What a report does not hold is not told."""
    given = begin(record)
    report = replace(report_at(50), memory={}, usage=[{"system/cpu": 1.0}])
    (keep(trial_of(record, given), 50, report) / "state.json").write_text("")
    assert record.reported(given.trial_id, report)
    assert [call[:1] + call[2:] for call in calls(record)][1:] == [("usage", report.usage)]
    assert list(record.ledger.reports(given.trial_id)) == ["50"]


def test_a_full_disk_is_waited_for(record: SweepRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_RETRY_S", 0.0)
    fails = [OSError(28, "No space left on device"), OSError(28, "No space left on device")]

    def start(*_: object, **__: object) -> None:
        if fails:
            raise fails.pop()

    monkeypatch.setattr(record.outbox, "start", start, raising=False)
    record.started("t", {}, 1)
    assert not fails


@pytest.mark.parametrize(
    ("outcome", "final", "status", "goes_on"),
    [
        (OUT.COMPLETED, False, "FINISHED", None),
        (OUT.PRUNED, False, "FINISHED", None),
        (OUT.DIVERGED, False, "FAILED", None),
        (OUT.FAILED, False, "KILLED", Ends(crashes=1)),
        (OUT.FAILED, True, "FAILED", None),
        (OUT.PREEMPTED, False, "KILLED", Ends(preemptions=1)),
        (OUT.PREEMPTED, True, "KILLED", None),
        (OUT.OUT_OF_MEMORY, False, "KILLED", Ends(out_of_memory=1)),
        (OUT.OUT_OF_MEMORY, True, "FAILED", None),
    ],
)
def test_how_an_attempt_ends(
    record: SweepRecord, outcome: TrialOutcome, final: bool, status: str, goes_on: Ends | None
) -> None:
    given = begin(record)
    assert record.ended(given.trial_id, outcome, "why", report_at(100), final) == goes_on
    [start, (what, trial_id, told, tags, _)] = calls(record)
    assert start[:2] == ("start", given.trial_id), "MLflow may not know of it yet"
    assert (what, trial_id, told) == ("end", given.trial_id, status)
    assert (tags["outcome"], tags["reason"]) == (outcome, "why")
    assert "identifiability" in tags["mlflow.note.content"]
    assert record.ledger.has_work() and (TrialState.WAITING in states(record)) == (goes_on is not None)


def test_an_attempt_that_ended_before_it_began_is_recorded_as_the_one_that_it_was(record: SweepRecord) -> None:
    given = begin(record)
    for _ in range(2):
        record.ended(given.trial_id, OUT.FAILED, "why")
        begin(record)
    starts = [call for call in calls(record) if call[0] == "start"]
    assert [call[3]["attempt"] for call in starts] == ["1", "2"]
    record.reported(given.trial_id, report_at(50))
    record.ended(given.trial_id, OUT.FAILED, "why", report_at(50))
    assert len([call for call in calls(record) if call[0] == "start"]) == 2, "it had reported, so it is known"


def test_a_trial_that_runs_loses_nothing_to_better_ones(record: SweepRecord) -> None:
    running = begin(record)
    checkpoint = keep(trial_of(record, running), 50, report_at(50))
    for value in (0.9, 0.8, 0.7):
        given = begin(record)
        keep(trial_of(record, given), 100, report_at(100, value))
        record.ended(given.trial_id, OUT.COMPLETED, "", report_at(100, value))
    assert (checkpoint / "engines").is_dir()


def test_the_best_keep_their_sets_and_nobody_the_state_of_networks(record: SweepRecord) -> None:
    trials = []
    for value in (0.5, 0.9, 0.7):
        given = begin(record)
        trials.append(trial_of(record, given))
        keep(trials[-1], 100, report_at(100, value))
        record.reported(given.trial_id, report_at(100, value))
        record.ended(given.trial_id, OUT.COMPLETED, "", report_at(100, value))
    worst, best, second = trials
    assert not list(worst.path.glob("checkpoint_*"))
    for each in (best, second):
        assert each.result().name == "checkpoint_00000100" and not (each.result() / "engines").exists()


def test_the_whole_front_keeps_its_sets_even_beyond_keep_trials(record: SweepRecord) -> None:
    """Three trials that nothing beats, and one that is beaten, where two may be kept."""
    trials = []
    for value, kid in ((0.5, 0.1), (0.7, 0.3), (0.6, 0.9), (0.9, 0.5)):
        given = begin(record)
        trials.append(trial_of(record, given))
        report = report_at(100, value, kid)
        keep(trials[-1], 100, report)
        record.reported(given.trial_id, report)
        record.ended(given.trial_id, OUT.COMPLETED, "", report)
    kept = [bool(list(each.path.glob("checkpoint_*"))) for each in trials]
    assert kept == [True, True, False, True]


def test_one_that_goes_on_keeps_what_it_needs(record: SweepRecord) -> None:
    given = begin(record)
    checkpoint = keep(trial_of(record, given), 50, report_at(50))
    record.ended(given.trial_id, OUT.FAILED, "", report_at(50))
    assert (checkpoint / "engines").is_dir()


def settled(record: SweepRecord) -> SweepRecord:
    """Settling twice leaves what settling once leaves."""
    record = again(record)
    settle(record)
    before = [(row.number, row.state, row.values) for row in record.ledger.study.trials]
    later = again(record)
    assert settle(later) == [] and calls(later) == []
    assert [(row.number, row.state, row.values) for row in later.ledger.study.trials] == before
    return record


def test_a_trial_that_had_finished_and_was_not_told(record: SweepRecord) -> None:
    given = begin(record)
    keep(trial_of(record, given), 100, report_at(100, 0.8, 0.2))
    after = settled(record)
    [row] = after.ledger.study.trials
    assert (row.state, row.values) == (TrialState.COMPLETE, [0.8, 0.2])
    assert cast(RecordedOutbox, after.outbox).kinds(given.trial_id) == [
        "metrics",
        "tags",
        "folder",
        "image",
        "image",
        "end",
    ]
    assert not (trial_of(after, given).result() / "engines").exists()


def test_one_whose_last_report_is_known_is_only_ended(record: SweepRecord) -> None:
    given = begin(record)
    keep(trial_of(record, given), 100, report_at(100))
    record.reported(given.trial_id, report_at(100))
    after = settled(record)
    assert states(after) == [TrialState.COMPLETE] and cast(RecordedOutbox, after.outbox).kinds(given.trial_id) == [
        "image",
        "end",
    ]


def test_a_trial_that_had_been_stopped(record: SweepRecord) -> None:
    given = begin(record)
    keep(trial_of(record, given), 50, report_at(50))
    record.reported(given.trial_id, report_at(50), stopped=True)
    after = settled(record)
    assert states(after) == [TrialState.PRUNED]
    picture, end = calls(after)
    where = trial_of(after, given).result() / "traversal.png"
    assert picture == ("image", given.trial_id, where, "result", 0), "where the view of all trials looks for it"
    assert end[2] == "FINISHED" and (end[3]["outcome"], end[3]["reason"]) == (OUT.PRUNED, ADVICE[OUT.PRUNED])


@pytest.mark.parametrize("kept", [None, 30, 50])
def test_a_trial_on_its_way_goes_on(record: SweepRecord, kept: int | None) -> None:
    """Without a checkpoint, with one between two reports, with one of a report."""
    given = begin(record)
    if kept:
        keep(trial_of(record, given), kept, report_at(50) if kept == 50 else None)
    after = settled(record)
    assert states(after) == [TrialState.FAIL, TrialState.WAITING]
    next_one = begin(after)
    assert (next_one.trial_id, next_one.ends) == (given.trial_id, Ends(preemptions=1))
    assert trial_of(after, given).latest().step == (kept or 0)


@pytest.mark.parametrize(("preemptions", "goes_on"), [(None, True), (0, False)])
def test_who_goes_on_is_told(sweep: Sweep, record: SweepRecord, preemptions: int | None, goes_on: bool) -> None:
    """An interruption of the sweep counts as one of the trial."""
    recovery = sweep.recovery.model_copy(update={"preemptions": preemptions})
    record = opened(sweep.model_copy(update={"recovery": recovery}), record.folder)
    given = begin(record)
    assert settle(record) == ([given.trial_id] if goes_on else [])
    assert [call[:3] for call in calls(record)][1:] == [("end", given.trial_id, "KILLED")]
    assert states(record) == [TrialState.FAIL, *([TrialState.WAITING] if goes_on else [])]


def test_what_still_makes_an_attempt_is_ended_before_its_checkpoints_are_read(
    record: SweepRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may save one more until then."""
    given = begin(record)
    folder = trial_of(record, given)
    keep(folder, 50, report_at(50))
    ended: list[Path] = []

    def end_process(path: Path) -> None:
        ended.append(path)
        keep(folder, 100, report_at(100))

    monkeypatch.setattr(resume, "end_process", end_process)
    assert settle(record) == [] and ended == [folder.path]
    assert states(record) == [TrialState.COMPLETE]


def test_a_checkpoint_that_is_set_aside_on_the_way_is_told(record: SweepRecord) -> None:
    given = begin(record)
    keep(trial_of(record, given), 50, report_at(50))
    (keep(trial_of(record, given), 75, None) / "state.json").write_text("")
    assert settle(record) == [given.trial_id]
    [(what, text), *_] = calls(record)
    assert what == "tell" and text.startswith(f"trial {given.trial_id}  note  checkpoint_00000075 is damaged (")


def test_a_trial_whose_checkpoints_are_damaged_is_not_lost_here(record: SweepRecord) -> None:
    """It will say so itself when it goes on."""
    given = begin(record)
    (keep(trial_of(record, given), 100, report_at(100)) / "state.json").write_text("")
    assert states(settled(record)) == [TrialState.FAIL, TrialState.WAITING]


def test_a_kill_between_its_end_and_its_row(record: SweepRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    given = begin(record)
    keep(trial_of(record, given), 100, report_at(100))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(record.ledger.study, "tell", killed)
        with pytest.raises(KeyboardInterrupt):
            record.ended(given.trial_id, OUT.COMPLETED, "", report_at(100))
    assert states(settled(record)) == [TrialState.COMPLETE]


def test_a_kill_between_its_row_and_its_folder(record: SweepRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    given = begin(record)
    keep(trial_of(record, given), 100, report_at(100))
    monkeypatch.setattr(SweepRecord, "tidy", lambda *_: None)
    record.ended(given.trial_id, OUT.COMPLETED, "", report_at(100))
    monkeypatch.undo()
    assert not (trial_of(settled(record), given).result() / "engines").exists()


def test_a_report_that_asha_has_not_seen_is_left_for_it(record: SweepRecord) -> None:
    """The trial repeats it when it goes on. In the books already, it would never be compared."""
    given = begin(record)
    keep(trial_of(record, given), 50, report_at(50))
    after = settled(record)
    assert after.ledger.history("learned")[given.trial_id] == []


def test_when_the_time_is_up_nothing_goes_on(record: SweepRecord) -> None:
    """Neither what runs, with a report that is not in the books yet or without, nor what waits."""
    running, new, waiting = begin(record), begin(record), begin(record)
    record.ended(waiting.trial_id, OUT.FAILED, "")
    keep(trial_of(record, running), 50, report_at(50))
    calls(record).clear()
    assert settle(record, "the hours are over") == []
    rows = record.ledger.begun()
    assert {row.state for row in rows.values()} == {TrialState.PRUNED} and len(rows) == 3
    assert {row.user_attrs["reason"] for row in rows.values()} == {"the hours are over"}
    assert cast(RecordedOutbox, record.outbox).kinds(running.trial_id) == [
        "metrics",
        "tags",
        "folder",
        "image",
        "image",
        "end",
    ]
    assert rows[running.trial_id].user_attrs["global_step"] == 50 and rows[new.trial_id].user_attrs["global_step"] == 0


class Store:
    """As much of a tracking store as `end_runs` asks."""

    def __init__(self, running: list[str], parent: str) -> None:
        self.trials, self.parent = running, parent

    def running(self, experiment: str, parent: str) -> list[tuple[str, str]]:
        assert (experiment, parent) == ("1", "parent")
        return [(f"run of {trial}", trial) for trial in self.trials]

    def status(self, run: str) -> str:
        return self.parent


@pytest.mark.parametrize(
    ("running", "parent", "ended"),
    [(["t1", "t2"], "RUNNING", ["t1", "t2", None]), (["t1"], "KILLED", ["t1"]), ([], "FINISHED", [])],
)
def test_runs_that_nobody_runs_are_ended(
    record: SweepRecord, running: list[str], parent: str, ended: list[str]
) -> None:
    assert end_runs(record, cast(Any, Store(running, parent))) == len(ended)
    assert [call[:3] for call in calls(record)] == [("end", trial, "KILLED") for trial in ended]


def test_a_store_that_does_not_answer_ends_nothing(record: SweepRecord) -> None:
    def away(*_: object) -> None:
        raise UserError("it does not answer")

    assert end_runs(record, cast(Any, SimpleNamespace(running=away))) == 0 and calls(record) == []
