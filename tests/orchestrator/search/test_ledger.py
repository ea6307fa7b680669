"""The book of a sweep is true, whatever was killed on the way, and what comes next does not depend on that."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from orchestrator.search import ledger as module
from orchestrator.search.ledger import Assignment, Ledger
from orchestrator.search.retries import Ends
from orchestrator.spec import Sweep, parse
from orchestrator.store.study import create_study
from orchestrator.trial.outcome import ADVICE, TrialOutcome
from orchestrator.trial.state import Report
from tests.orchestrator.conftest import report_at

OUT = TrialOutcome


def sweep_with(**sections: Any) -> Sweep:
    base: dict[str, Any] = {"name": "searched", "model": "toyfaces", "train": {"iterations": 100}}
    search = {"directions": {"choice": [8, 16]}, "shift_scale": {"float": [0.5, 2.0]}}
    objectives = [{"identifiability": "max"}, {"fidelity_kid": "min"}]
    return parse(base | {"search": search, "objectives": objectives} | sections)


@pytest.fixture
def sweep() -> Sweep:
    return sweep_with()


def opened(sweep: Sweep, folder: Path) -> Ledger:
    """The ledger as every start of a sweep opens it."""
    create_study(sweep, folder / "study.db")
    ledger = Ledger(sweep, folder / "study.db", "weights")
    ledger.close_strays()
    return ledger


def assigned(ledger: Ledger) -> Assignment:
    given = ledger.next_attempt()
    assert given is not None
    return given


def interrupt(ledger: Ledger, trial_id: str) -> None:
    """As `settle` does with a trial that was running when its sweep was killed."""
    ledger.end(trial_id, OUT.PREEMPTED, "", again=ledger.ends_for_retry(trial_id, OUT.PREEMPTED))


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (OUT.COMPLETED, TrialState.COMPLETE),
        (OUT.PRUNED, TrialState.PRUNED),
        (OUT.FAILED, TrialState.FAIL),
        (OUT.DIVERGED, TrialState.FAIL),
        (OUT.OUT_OF_MEMORY, TrialState.FAIL),
        (OUT.PREEMPTED, TrialState.FAIL),
    ],
)
def test_states(sweep: Sweep, tmp_path: Path, outcome: TrialOutcome, state: TrialState) -> None:
    ledger = opened(sweep, tmp_path)
    given = assigned(ledger)
    assert {"method", "directions", "shift_scale"} <= given.parameters.keys()
    assert list(ledger.running()) == [given.trial_id]
    ledger.end(given.trial_id, outcome, "why", report_at(100, 0.9, 0.2))
    [row] = opened(sweep, tmp_path).study.trials
    assert row.state == state
    assert row.values == ([0.9, 0.2] if outcome == OUT.COMPLETED else None)  # Optuna learns from whole trials only
    told = {name: row.user_attrs[name] for name in (module.OUTCOME, module.REASON, module.STEP, module.SECONDS)}
    assert list(told.values()) == [outcome, "why", 100, 2.0]
    assert row.user_attrs[module.METRICS] == {"identifiability": 0.9, "fidelity_kid": 0.2}
    assert row.user_attrs[module.MEMORY] == {"micro_batch": 2}
    assert not ledger.running()


@pytest.mark.parametrize(
    ("report", "outcome", "reason"),
    [
        (report_at(100), OUT.COMPLETED, ADVICE[OUT.COMPLETED]),
        (report_at(99), OUT.PRUNED, ADVICE[OUT.PRUNED]),
        (report_at(30), OUT.PRUNED, ADVICE[OUT.PRUNED]),
        (
            replace(report_at(100), metrics={"identifiability": 0.9, "fidelity_kid": 0.1, "fid": math.nan}),
            OUT.COMPLETED,  # what is no objective may be what it likes
            ADVICE[OUT.COMPLETED],
        ),
        (report_at(100, kid=math.nan), OUT.DIVERGED, "fidelity_kid is nan at iteration 100"),
        (report_at(30, math.inf), OUT.DIVERGED, "identifiability is inf at iteration 30"),
        (report_at(100, -math.inf), OUT.DIVERGED, "identifiability is -inf at iteration 100"),
        (
            Report(100, 0.0, {"identifiability": 0.9}),
            OUT.DIVERGED,
            "fidelity_kid is None at iteration 100",
        ),
        (Report(0, 0.0, {}), OUT.DIVERGED, "identifiability is None at iteration 0"),
    ],
)
def test_a_trial_is_whole_where_every_objective_is_a_number(
    sweep: Sweep, tmp_path: Path, report: dict[str, Any], outcome: TrialOutcome, reason: str
) -> None:
    found, why = opened(sweep, tmp_path).judge(report)
    assert found == outcome and why.startswith(reason)


def test_a_trial_is_known_by_its_whole_configuration_and_the_weights(sweep: Sweep, tmp_path: Path) -> None:
    given = assigned(opened(sweep, tmp_path))
    assert given.parameters["start"] == "slopes", "constants are part of it"
    assert given.trial_id == sweep.trial_key(given.parameters, "weights")[:10]
    assert given.ends == Ends() and given.ends.attempt == 1


FINITE: dict[str, Any] = {
    "method": {"choice": ["learned", "pca"]},
    "search": {"seed": {"choice": [0, 1]}, "start": {"choice": ["pca", "random"]}, "pca.samples": 64},
}
ALL = [
    *(("learned", seed, start) for seed in (0, 1) for start in ("pca", "random")),
    *(("pca", seed, None) for seed in (0, 1)),
]


def test_a_finite_space_is_run_through_once_in_order(tmp_path: Path) -> None:
    sweep = sweep_with(**FINITE)
    ledger = opened(sweep, tmp_path)
    given = [assigned(ledger) for _ in ALL]
    assert [(each.parameters["method"], each.parameters["seed"], each.parameters.get("start")) for each in given] == ALL
    assert ledger.next_attempt() is None and ledger.has_work(), "they are running"
    for each in given:
        ledger.end(each.trial_id, OUT.COMPLETED, "", report_at(100))
    assert ledger.next_attempt() is None and not ledger.has_work()
    assert len({each.trial_id for each in given}) == len(ledger.study.trials) == 6


def test_a_finite_space_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed once with a configuration enqueued and not asked for, and once asked for and without an id."""
    sweep = sweep_with(**FINITE)
    ledger = opened(sweep, tmp_path)
    assigned(ledger)
    ledger._enqueue_next()
    with monkeypatch.context() as broken:
        broken.setattr(module, "suggest", _killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.next_attempt()
    ledger = opened(sweep, tmp_path)
    given = [assigned(ledger).parameters for _ in ALL[1:]]
    assert [(each["method"], each["seed"], each.get("start")) for each in given] == ALL[1:]


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("outcome", "attempts"),
    [(OUT.FAILED, 2), (OUT.OUT_OF_MEMORY, 3), (OUT.PREEMPTED, 4), (OUT.DIVERGED, 1), (OUT.PRUNED, 1)],
)
def test_what_ends_before_its_time_goes_on_as_often_as_the_sweep_says(
    tmp_path: Path, outcome: TrialOutcome, attempts: int
) -> None:
    ledger = opened(sweep_with(recovery={"crashes": 1, "out_of_memory": 2, "preemptions": 3}), tmp_path)
    given = [assigned(ledger)]
    while (again := ledger.ends_for_retry(given[0].trial_id, outcome)) is not None:
        ledger.end(given[0].trial_id, outcome, "", again=again)
        assert [row.state for row in ledger.study.trials[-2:]] == [TrialState.FAIL, TrialState.WAITING]
        given.append(assigned(ledger))
    assert [each.ends.attempt for each in given] == list(range(1, attempts + 1))
    assert {(each.trial_id, str(each.parameters)) for each in given} == {(given[0].trial_id, str(given[0].parameters))}
    assert len(ledger.begun()) == 1 and len(ledger.study.trials) == attempts


@pytest.mark.parametrize("outcome", [OUT.FAILED, OUT.OUT_OF_MEMORY, OUT.PREEMPTED])
def test_a_budget_of_nought_allows_no_other_attempt_and_takes_nothing_from_the_others(
    tmp_path: Path, outcome: TrialOutcome
) -> None:
    names = {OUT.FAILED: "crashes", OUT.OUT_OF_MEMORY: "out_of_memory", OUT.PREEMPTED: "preemptions"}
    ledger = opened(sweep_with(recovery={names[outcome]: 0}), tmp_path)
    trial_id = assigned(ledger).trial_id
    assert ledger.ends_for_retry(trial_id, outcome) is None
    for other in names.keys() - {outcome}:
        assert ledger.ends_for_retry(trial_id, other) == Ends(**{names[other]: 1})
    assert ledger.ends_for_retry(trial_id, OUT.COMPLETED) is None


def test_by_default_interruptions_are_not_counted(sweep: Sweep, tmp_path: Path) -> None:
    ledger = opened(sweep, tmp_path)
    for attempt in range(1, 8):
        given = assigned(ledger)
        assert given.ends == Ends(preemptions=attempt - 1)
        interrupt(ledger, given.trial_id)
    assert ledger.has_work()


def test_each_cause_has_a_budget_of_its_own(sweep: Sweep, tmp_path: Path) -> None:
    ledger = opened(sweep, tmp_path)
    for outcome in (OUT.FAILED, OUT.OUT_OF_MEMORY, OUT.FAILED, OUT.PREEMPTED):
        given = assigned(ledger)
        ledger.end(given.trial_id, outcome, "", again=ledger.ends_for_retry(given.trial_id, outcome))
    given = assigned(ledger)
    assert given.ends == Ends(crashes=2, out_of_memory=1, preemptions=1) and given.ends.attempt == 5
    assert ledger.ends_for_retry(given.trial_id, OUT.FAILED) is None
    assert ledger.ends_for_retry(given.trial_id, OUT.OUT_OF_MEMORY) == Ends(2, 2, 1)


def test_a_sweep_is_over_when_nothing_runs_or_waits_or_is_still_to_begin(tmp_path: Path) -> None:
    ledger = opened(sweep_with(budget={"trials": 1}), tmp_path)
    assert ledger.has_work(), "none has begun"
    given = assigned(ledger)
    ledger.exhausted = True
    assert ledger.has_work() and ledger.next_attempt() is None, "one runs"
    interrupt(ledger, given.trial_id)
    assert ledger.has_work() and not ledger.running(), "one waits"
    ledger.take_waiting()
    assert list(ledger.running()) == [given.trial_id] and ledger.has_work()
    ledger.end(given.trial_id, OUT.COMPLETED, "", report_at(100))
    assert not ledger.has_work()


def test_trials_stay_in_the_order_in_which_they_began(sweep: Sweep, tmp_path: Path) -> None:
    """And of each the newest attempt counts, with what the others had reported."""
    ledger = opened(sweep, tmp_path)
    first, second = assigned(ledger), assigned(ledger)
    ledger.reported(first.trial_id, 10, 0.5, stopped=False)
    interrupt(ledger, first.trial_id)
    assert list(ledger.begun()) == [first.trial_id, second.trial_id] and list(ledger.running()) == [second.trial_id]
    assert assigned(ledger).trial_id == first.trial_id, "what waits goes on before anything new begins"
    assert [row.number for row in ledger.begun().values()] == [2, 1]
    assert ledger.progress() == 1


def test_a_kill_between_the_next_attempt_and_the_end_of_this_one(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(sweep, tmp_path)
    given = assigned(ledger)
    ledger.reported(given.trial_id, 50, 0.4, stopped=False)
    monkeypatch.setattr(ledger.study, "tell", _killed)
    with pytest.raises(KeyboardInterrupt):
        interrupt(ledger, given.trial_id)
    assert [row.state for row in ledger.study.trials] == [TrialState.RUNNING, TrialState.WAITING]
    ledger = opened(sweep, tmp_path)
    assert [row.state for row in ledger.study.trials] == [TrialState.FAIL, TrialState.WAITING]
    again = assigned(ledger)
    assert (again.trial_id, again.parameters, again.ends.attempt) == (given.trial_id, given.parameters, 2)
    assert list(ledger.reports(given.trial_id)) == ["50"]


def test_what_was_carried_over_is_not_lost_with_a_trial_killed_before_it_had_an_id(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(sweep, tmp_path)
    best = {"directions": 8, "shift_scale": 1.25}
    ledger.study.enqueue_trial(best, user_attrs={module.CARRIED: "another"})
    with monkeypatch.context() as broken:
        broken.setattr(sweep.__class__, "trial_key", _killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.next_attempt()
    ledger = opened(sweep, tmp_path)
    assert [row.state for row in ledger.study.trials] == [TrialState.FAIL, TrialState.WAITING]
    given = assigned(ledger)
    assert {name: given.parameters[name] for name in best} == best
    assert ledger.running()[given.trial_id].user_attrs[module.CARRIED] == "another"


@pytest.mark.parametrize("count", [0, 6])
def test_a_trial_killed_before_it_had_an_id_is_proposed_again(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    (tmp_path / "other").mkdir()
    ledger, other = opened(sweep, tmp_path), opened(sweep, tmp_path / "other")
    for _ in range(count):
        assert _finish(ledger) == _finish(other)
    with monkeypatch.context() as broken:
        broken.setattr(sweep.__class__, "trial_key", _killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.next_attempt()
    ledger = opened(sweep, tmp_path)
    assert ledger.study.trials[-1].state == TrialState.FAIL
    assert assigned(ledger).parameters == assigned(other).parameters


def _finish(ledger: Ledger, interruptions: int = 0) -> str:
    """Run the next trial to its end; what it comes to follows from its parameters."""
    given = assigned(ledger)
    for _ in range(interruptions):
        interrupt(ledger, given.trial_id)
        assert assigned(ledger).trial_id == given.trial_id
    scale = float(given.parameters["shift_scale"])
    ledger.end(given.trial_id, OUT.COMPLETED, "", report_at(100, scale, abs(scale - 1)))
    return given.trial_id


@pytest.mark.slow
def test_what_is_proposed_does_not_depend_on_interruptions(tmp_path: Path) -> None:
    """The first five are drawn at random, those after them follow from what the others came to."""
    search = {"shift_scale": {"float": [0.5, 2.0]}, "directions": {"int": [4, 40]}}
    sweep = sweep_with(search=search)
    for name in ("plain", "interrupted"):
        (tmp_path / name).mkdir()
    plain = opened(sweep, tmp_path / "plain")
    expected = [_finish(plain) for _ in range(9)]
    found = []
    for n in range(9):
        ledger = opened(sweep, tmp_path / "interrupted")
        found.append(_finish(ledger, interruptions=n % 3))
    assert found == expected and len(set(expected)) == 9


def _samplers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, dict[str, Any]]]:
    """What the samplers are made with from now on: (class, seed, the rest)."""
    made: list[tuple[str, int, dict[str, Any]]] = []
    for name in ("TPESampler", "RandomSampler"):

        def sampler(seed: int, name: str = name, **rest: Any) -> object:
            made.append((name, seed, rest))
            return object()

        monkeypatch.setattr(module.optuna.samplers, name, sampler)
    return made


def test_every_proposal_has_a_seed_of_its_own(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows from the sweep's seed, how many trials have begun, and how often was asked: from nothing else."""
    ledger = opened(sweep, tmp_path)
    made = _samplers(monkeypatch)
    asked = [(seed, begun, again) for seed in (0, 1, 11) for begun in (0, 1, 11) for again in (0, 1, 11, 12)]
    for seed, begun, again in asked * 2:
        ledger.sweep = sweep.model_copy(update={"seed": seed})
        ledger._sampler(begun, again)
    seeds = [seed for _, seed, _ in made]
    assert seeds[: len(asked)] == seeds[len(asked) :] and len(set(seeds)) == len(asked)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_what_is_there_already_is_asked_for_again_and_then_drawn_by_chance(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(sweep, tmp_path)
    monkeypatch.setattr(ledger, "_take", lambda: None)
    made = _samplers(monkeypatch)
    assert ledger.next_attempt() is None and ledger.exhausted and not ledger.has_work()
    names = [name for name, _, _ in made[1:]]  # the first is for what waits
    assert names == ["TPESampler"] * 10 + ["RandomSampler"] * 40


@pytest.mark.parametrize(("parallel", "drawn"), [(1, 5), (2, 5), (3, 6), (8, 16)])
def test_before_it_learns_chance_fills_the_places_twice(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: int, drawn: int
) -> None:
    create_study(sweep, tmp_path / "study.db")
    ledger = Ledger(sweep, tmp_path / "study.db", "weights", parallel)
    made = _samplers(monkeypatch)
    ledger._sampler(0, 0)
    [(_, _, rest)] = made
    assert rest == {"multivariate": True, "group": True, "constant_liar": True, "n_startup_trials": drawn}


@pytest.mark.slow
def test_no_configuration_is_run_twice(tmp_path: Path) -> None:
    """There are nine; after the fifth trial Optuna itself would repeat the best."""
    search = {"directions": {"choice": [4, 8, 16]}, "start": {"choice": ["pca", "random", "slopes"]}}
    ledger = opened(sweep_with(search=search, budget={"trials": 8}), tmp_path)
    assert not ledger.listed
    ids = []
    while (given := ledger.next_attempt()) is not None and len(ids) < 20:
        ledger.end(given.trial_id, OUT.COMPLETED, "", report_at(100, float(given.parameters["directions"])))
        ids.append(given.trial_id)
    assert len(ids) == len(set(ids)) == 8 and not ledger.has_work()
    repeated = [row for row in ledger.study.trials if module.SAME_AS in row.user_attrs]
    assert all(row.state == TrialState.FAIL and row.user_attrs[module.SAME_AS] in ids for row in repeated)


@pytest.mark.slow
def test_a_space_with_nothing_new_in_it_ends_the_search(tmp_path: Path) -> None:
    """Of a range that holds two numbers nobody knows that before."""
    search = {"shift_scale": {"float": [1.0, math.nextafter(1.0, 2.0)]}}
    ledger = opened(sweep_with(search=search, budget={"trials": 9}), tmp_path)
    ids = list(_all_of(ledger))
    assert 1 <= len(ids) <= 2 and ledger.exhausted and not ledger.has_work()


def _all_of(ledger: Ledger) -> Iterator[str]:
    while (given := ledger.next_attempt()) is not None:
        ledger.end(given.trial_id, OUT.COMPLETED, "", report_at(100))
        yield given.trial_id


def test_a_waiting_configuration_that_is_there_already_is_passed_over(sweep: Sweep, tmp_path: Path) -> None:
    """Of a sweep that was forked, say."""
    ledger = opened(sweep, tmp_path)
    for _ in range(2):
        ledger.study.enqueue_trial({"directions": 8, "shift_scale": 1.0})
    first, second = assigned(ledger), ledger.next_attempt()
    assert second is not None and second.trial_id != first.trial_id


def test_what_a_waiting_configuration_leaves_open_follows_from_the_seed(sweep: Sweep, tmp_path: Path) -> None:
    drawn = []
    for name in "ab":
        (tmp_path / name).mkdir()
        ledger = opened(sweep, tmp_path / name)
        ledger.study.enqueue_trial({"directions": 8})
        drawn.append(assigned(ledger).parameters)
    assert drawn[0] == drawn[1]


def test_reports_are_the_history(sweep: Sweep, tmp_path: Path) -> None:
    ledger = opened(sweep, tmp_path)
    given = assigned(ledger)
    before = ledger.progress()
    for step, value in ((50, 0.5), (10, 0.1), (20, None), (5, 0.0)):
        ledger.reported(given.trial_id, step, value, stopped=step == 50)
    history = {given.trial_id: [(5, 0.0), (10, 0.1), (50, 0.5)]}
    assert opened(sweep, tmp_path).history("learned") == history
    assert ledger.reports(given.trial_id)["50"] == {"value": 0.5, "stopped": True}
    assert ledger.reports(given.trial_id)["10"] == {"value": 0.1, "stopped": False}
    assert ledger.progress() == before + 4
    ledger.end(given.trial_id, OUT.PRUNED, "")
    assert ledger.progress() == before + 5
    assert ledger.history("learned") == history, "of trials that have ended, too"
    [row] = ledger.study.trials
    assert (row.user_attrs[module.STEP], row.user_attrs[module.METRICS]) == (0, {}), "it left no report behind"


def test_each_method_has_a_history_of_its_own(tmp_path: Path) -> None:
    ledger = opened(sweep_with(**FINITE), tmp_path)
    given = [assigned(ledger) for _ in ALL]
    for i, each in enumerate(given):
        ledger.reported(each.trial_id, 10, float(i), stopped=False)
    assert list(ledger.history("learned").values()) == [[(10, float(i))] for i in range(4)]
    assert list(ledger.history("pca").values()) == [[(10, 4.0)], [(10, 5.0)]]
    assert list(ledger.history("learned", "pca").values()) == [[(10, float(i))] for i in range(6)]


def test_the_time_spent_adds_up_over_starts(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    for before in (0.0, 90.0):
        ledger = opened(sweep, tmp_path)
        assert ledger.spent() == before
        for passed in (30.0, 60.0):  # kept once a minute
            clock[0] += passed
            ledger.count_time()
    ledger = opened(sweep, tmp_path)
    assert ledger.spent() == 180.0
    clock[0] += 60.0  # a minute is enough
    ledger.count_time()
    clock[0] += 1.0
    ledger.count_time()
    assert module.spent_s(ledger.study) == 240.0
    ledger.count_time(at_least=0.0)  # at the end of a sweep
    assert module.spent_s(ledger.study) == 241.0
