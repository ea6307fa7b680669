"""What a trial does when: it is measured, saved, asked to end, out of memory. Nothing is learned or drawn here."""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch

from core import DirectionSet
from core.chain.gradient import CheckpointSteps
from core.chain.schedule import Schedule
from core.errors import NonFiniteError
from core.methods import METHODS, learned, supervised
from core.metrics import Evaluation, Traversals
from core.metrics.bootstrap import Figure, flat, of_mean
from core.model.denoiser import Denoiser
from core.randomness import SELECT_SEEDS
from orchestrator.spec import Sweep, parse
from orchestrator.store.checkpoints import TrialFolder
from orchestrator.trial import attempt as attempts
from orchestrator.trial import run as module
from orchestrator.trial.attempt import Attempt
from orchestrator.trial.engine import Engines
from orchestrator.trial.engine_state import Snapshot
from orchestrator.trial.memory import Case
from orchestrator.trial.model import TrialModel
from orchestrator.trial.outcome import Preempted
from orchestrator.trial.ranks import Ranks
from orchestrator.trial.run import TrialContext, run_trial

LEARNED: dict[str, Any] = {"method": "learned", "directions": 2}
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory")
WHOLE_STEPS = {"policy": "checkpoint_steps"}


def sweep_with(**sections: Any) -> Sweep:
    base: dict[str, Any] = {"name": "a", "model": "toyfaces", "search": {}, "budget": {"trials": 1}}
    base |= {"train": {"iterations": 7, "batch": 8, "micro_batch": 8}, "evaluate": {"every": 3, "seeds": 6}}
    base |= {"objectives": [{"identifiability": "max"}]}
    return parse(base | {"sampler": {"steps": 2}, "recovery": {"checkpoint_every": 2}} | sections)


def _first(case: Case, device: int) -> Attempt:
    """The attempt that fits, as if all did that the sweep asks for."""
    assert device == 1 << 30
    return Attempt(replace(case.settings, gradient=CheckpointSteps()), "checkpoint_steps", case.sweep.sampler.batch)


def the_same(value: float) -> Figure:
    """A figure of samples that all have this value."""
    return of_mean(torch.full((8,), value))


@dataclass
class Trial:
    """A trial in a folder, among fakes that keep what they were asked, in order."""

    path: Path
    trial_model: Any
    events: list[tuple[Any, ...]] = field(default_factory=list)
    before: Callable[[tuple[Any, ...]], None] = lambda event: None  # may raise, or ask the trial to end
    figures: dict[str, Figure] = field(
        default_factory=lambda: {"identifiability": the_same(0.5), "fidelity_kid": the_same(0.25)}
    )
    asked: bool = False  # to end

    @property
    def folder(self) -> TrialFolder:
        return TrialFolder(self.path)

    @property
    def context(self) -> TrialContext:
        return TrialContext(lambda: self.asked, lambda: None)

    def happens(self, *event: Any) -> None:
        self.events.append(event)
        self.before(event)

    def reports(self, sweep: Sweep, parameters: dict[str, Any] = LEARNED, **more: Any) -> list[dict[str, Any]]:
        context = replace(more.pop("context", self.context), out_of_memory=more.pop("smaller", 0))
        load = create_autospec(TrialModel.load, return_value=self.trial_model)
        return list(run_trial(parameters, sweep, self.folder, context=context, load=load, **more))

    def of(self, *kinds: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] in kinds]


@pytest.fixture
def a_set(tiny_denoiser: Denoiser) -> DirectionSet:
    timesteps = Schedule.ddim(tiny_denoiser, 2).timesteps
    table = torch.nn.functional.normalize(torch.ones(2, 2, 8, 2, 2).flatten(2), dim=2).reshape(2, 2, 8, 2, 2)
    return DirectionSet(table, torch.ones(2, 2), timesteps, ("a", "b"), {}, {"method": "learned"})


@pytest.fixture
def trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_denoiser: Denoiser, a_set: DirectionSet
) -> Iterator[Trial]:
    trial_model = create_autospec(TrialModel, instance=True)
    trial_model.denoiser, trial_model.schedule = tiny_denoiser, Schedule.ddim(tiny_denoiser, 2)
    trial_model.attributes, trial_model.cache = "attributes", "cache"
    trial_model.through.return_value = None
    trial_model.networks_for.side_effect = lambda settings: (
        {"attributes": "attributes"} if isinstance(settings, supervised.Settings) else {}
    )
    made = Trial(tmp_path / "trial", trial_model)
    network = create_autospec(Traversals, instance=True)

    def scaled(sweep: Sweep, directions: DirectionSet) -> DirectionSet:
        made.happens("scaled", sweep.sampler.batch, directions)
        return replace(directions, sigma=directions.sigma * 7)

    def measure(sweep: Sweep, directions: DirectionSet, seeds: range) -> Evaluation:
        made.happens("measured", sweep.sampler.batch, directions, seeds)
        return Evaluation(dict(made.figures), None, network, {"features": "clip"})

    def draw(sweep: Sweep, directions: DirectionSet, folder: Path) -> None:
        made.happens("drawn", sweep.sampler.batch, directions)
        (folder / "traversal.png").write_text("picture")

    trial_model.scaled.side_effect, trial_model.measure.side_effect, trial_model.draw.side_effect = (
        scaled,
        measure,
        draw,
    )
    engines: Any = create_autospec(Engines)
    snapshot: Any = create_autospec(Snapshot, instance=True)
    snapshot.write.side_effect = lambda folder: (folder.mkdir(), (folder / "weights").write_text("w"))
    engines.return_value.snapshot.return_value = snapshot
    engines.return_value.load.side_effect = lambda folder: made.happens("loaded", folder.parent.name)
    engines.return_value.close.side_effect = lambda: made.happens("closed")
    engines.side_effect = lambda settings, micro_batch: (made.happens("engines", micro_batch), engines.return_value)[1]
    monkeypatch.setattr(module, "Engines", engines)

    taught: Any = create_autospec(learned.Learner, instance=True)
    taught.iterate.side_effect = lambda n: (made.happens("iterated", n), {"loss": float(n)})[1]
    taught.directions.return_value = a_set

    def learner(*given: Any) -> Any:
        _, _, settings, _, draw_batch, cache = given
        made.happens("learner", settings, draw_batch, cache)
        return taught

    monkeypatch.setattr(learned, "Learner", create_autospec(learned.Learner, side_effect=learner))
    # What fits is measured, which takes seconds and depends on the machine: test_memory.py does it.
    monkeypatch.setattr(module, "device_bytes", create_autospec(module.device_bytes, return_value=1 << 30))
    monkeypatch.setattr(Attempt, "first", staticmethod(_first))
    for place in (module, attempts):
        monkeypatch.setattr(place, "release", create_autospec(attempts.release))  # looks through all that Python holds
    save = TrialFolder.save

    def kept(folder: TrialFolder, step: int, write: Callable[[Path], None], score: float | None = None) -> Path:
        made.happens("saved", step, score)
        return save(folder, step, write, score)

    monkeypatch.setattr(TrialFolder, "save", kept)
    yield made
    assert tiny_denoiser.listeners == [], "whoever listened has gone"


def test_a_trial_is_measured_and_saved_when_it_is_due(trial: Trial) -> None:
    """Every third iteration and the last is measured on the seeds that choose; every second is saved otherwise."""
    reports = trial.reports(sweep_with(gradient=WHOLE_STEPS))
    happened = [(kind, *more[:1]) if kind in ("iterated", "saved") else kind for kind, *more in trial.events]
    measured = ["scaled", "measured", "drawn"]
    assert happened == [
        "engines",
        "learner",
        *[("iterated", 0), ("iterated", 1), ("saved", 2), ("iterated", 2), *measured, ("saved", 3)],
        *[("iterated", 3), ("saved", 4), ("iterated", 4), ("iterated", 5), *measured, ("saved", 6)],
        *[("iterated", 6), *measured, ("saved", 7), "closed"],
    ]
    assert [report.global_step for report in reports] == [3, 6, 7]
    assert [[point["step"] for point in report.curve] for report in reports] == [[1, 2, 3], [4, 5, 6], [7]]
    assert reports[0].curve[1] == {"step": 2, "loss": 1.0}
    assert {event[3] for event in trial.of("measured")} == {SELECT_SEEDS}
    assert [event[2] for event in trial.of("saved")] == [None, 0.5, None, 0.5, 0.5]


def test_without_checkpoints_on_the_way_it_is_saved_where_it_is_measured(trial: Trial) -> None:
    trial.reports(sweep_with(gradient=WHOLE_STEPS, recovery={"checkpoint_every": None}))
    assert [event[1] for event in trial.of("saved")] == [3, 6, 7]


@pytest.mark.parametrize(
    ("objectives", "score"), [([{"fidelity_kid": "min"}], -0.25), ([{"identifiability": "max"}], 0.5)]
)
def test_the_better_checkpoint_has_the_larger_score(
    trial: Trial, objectives: list[dict[str, str]], score: float
) -> None:
    trial.reports(sweep_with(gradient=WHOLE_STEPS, objectives=objectives, evaluate={"every": 7, "seeds": 6}))
    assert trial.of("saved")[-1] == ("saved", 7, score)


def test_finding_alone_counts_as_the_seconds_of_finding(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by a second each time that it is read; a learner is made once, and iterates."""
    now = iter(range(1000))
    monkeypatch.setattr("orchestrator.trial.state.time.perf_counter", lambda: float(next(now)))
    reports = trial.reports(sweep_with(gradient=WHOLE_STEPS))
    assert [report.find_seconds for report in reports] == [1 + 3, 1 + 6, 1 + 7]


def test_what_is_kept_of_a_set_says_how_it_was_found_and_measured(trial: Trial, a_set: DirectionSet) -> None:
    """Scaled, then measured and drawn as it was scaled; with its window, injection, precision and judges."""
    first, last = a_set.timesteps
    sweep = sweep_with(
        gradient=WHOLE_STEPS,
        sampler={"steps": 2, "injection": "asymmetric", "window": [first, last + 1]},
        train={"iterations": 3, "batch": 8, "micro_batch": 8, "precision": "bf16"},
    )
    [told] = trial.reports(sweep)
    [(_, _, scaled)], [(_, _, measured, _)], [(_, _, drawn)] = (
        trial.of("scaled"),
        trial.of("measured"),
        trial.of("drawn"),
    )
    written = DirectionSet.load(trial.folder.result() / "directions")
    assert torch.equal(scaled.sigma, torch.tensor([[1.0, 0.0]] * 2)), "zero outside its window"
    for found in (measured, drawn, written):
        assert torch.equal(found.sigma, 7 * scaled.sigma)
    assert dict(written.metrics) == dict(drawn.metrics) == told.metrics == flat(trial.figures)
    origin = {"method": "learned", "injection": "asymmetric", "window": [first, last + 1], "precision": "bf16"}
    assert written.provenance == {**origin, "judged_by": {"features": "clip"}}
    assert told.memory["out_of_memory_retries"] == 0 and told.memory["micro_batch"] == 8
    assert told.milliseconds > 1.6e12


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    "compared_by",
    [
        {"objectives": [{"identifiability": "max"}, {"fidelity_kid": "min"}]},
        {"scheduler": {"asha": {"metric": "fidelity_kid", "grace": 3}}},
    ],
)
def test_a_metric_that_trials_are_compared_by_and_that_is_no_number_ends_the_trial(
    trial: Trial, compared_by: dict[str, Any], value: float
) -> None:
    trial.figures["fidelity_kid"] = the_same(value)
    with pytest.raises(NonFiniteError, match="^fidelity_kid became NaN or infinite at iteration 3$"):
        trial.reports(sweep_with(gradient=WHOLE_STEPS, **compared_by))
    assert [event[1] for event in trial.of("saved")] == [2] and trial.events[-1] == ("closed",)


def test_another_metric_that_is_no_number_is_left_out(trial: Trial) -> None:
    trial.figures["fidelity_kid"] = the_same(float("inf"))
    reports = trial.reports(sweep_with(gradient=WHOLE_STEPS))
    assert [set(report.metrics) for report in reports] == [
        {"identifiability", "identifiability/low", "identifiability/high"}
    ] * 3


def test_a_trial_asked_to_end_between_two_reports_saves_and_goes_on_from_there(trial: Trial) -> None:
    sweep = sweep_with(gradient=WHOLE_STEPS)

    def ask(event: tuple[Any, ...]) -> None:
        trial.asked = event == ("iterated", 4)

    trial.before = ask
    with pytest.raises(Preempted):
        trial.reports(sweep)
    assert trial.events[-2:] == [("saved", 5, None), ("closed",)]
    trial.events.clear()
    reports = trial.reports(sweep)
    assert trial.of("loaded") == [("loaded", "checkpoint_00000005")]
    assert trial.of("iterated") == [("iterated", 5), ("iterated", 6)]
    assert [report.global_step for report in reports] == [6, 7]
    assert [point["step"] for point in reports[0].curve] == [4, 5, 6], "losses before it was asked are not lost"


def test_a_trial_asked_to_end_while_it_is_measured_is_measured_when_it_goes_on(trial: Trial) -> None:
    sweep, context = sweep_with(gradient=WHOLE_STEPS), trial.context

    def ask(event: tuple[Any, ...]) -> None:
        trial.asked = event[0] == "measured"
        context.network_called()

    trial.before = ask
    with pytest.raises(Preempted):
        trial.reports(sweep, context=context)
    assert trial.events[-2:] == [("saved", 3, None), ("closed",)]
    trial.events.clear()
    trial.before, trial.asked = lambda event: None, False
    reports = trial.reports(sweep)
    kinds = [event[0] for event in trial.events]
    assert kinds.index("loaded") < kinds.index("measured") < kinds.index("iterated")
    assert [report.global_step for report in reports] == [3, 6, 7]
    assert [[point["step"] for point in report.curve] for report in reports] == [[1, 2, 3], [4, 5, 6], [7]]


def test_a_trial_that_goes_on_repeats_its_last_report_and_measures_nothing_twice(trial: Trial) -> None:
    sweep = sweep_with(gradient=WHOLE_STEPS)

    def ask(event: tuple[Any, ...]) -> None:
        if event == ("iterated", 3):
            raise ValueError("crashed")

    trial.before = ask
    first: list[dict[str, Any]] = []
    with pytest.raises(ValueError, match="crashed"):
        first.extend(run_trial(LEARNED, sweep, trial.folder, context=trial.context, load=lambda *_: trial.trial_model))
    trial.before = lambda event: None
    trial.events.clear()
    reports = trial.reports(sweep)
    assert [report.global_step for report in reports] == [3, 6, 7]
    assert len(trial.of("measured")) == 2 and trial.of("iterated")[0] == ("iterated", 3)
    assert [point["step"] for point in reports[1].curve] == [4, 5, 6]


def test_what_was_amiss_with_checkpoints_is_told_once(trial: Trial) -> None:
    sweep = sweep_with(gradient=WHOLE_STEPS)
    trial.reports(sweep)
    (trial.path / "checkpoint_00000007" / "state.json").write_text("{}")
    first, *others = trial.reports(sweep)
    assert first.global_step == 6 and len(first.notes) == 1 and "checkpoint_00000007" in first.notes[0]
    assert [report.notes for report in others] == [[]]


def test_memory_that_runs_out_in_an_iteration_halves_the_micro_batch_from_the_last_checkpoint(trial: Trial) -> None:
    failing = iter([("iterated", 3), ("iterated", 2)])
    at = [next(failing)]

    def short(event: tuple[Any, ...]) -> None:
        if event == at[0]:
            at[0] = next(failing, ())  # type: ignore[call-overload]
            raise NO_MEMORY

    trial.before = short
    reports = trial.reports(sweep_with(gradient=WHOLE_STEPS))
    assert [event[1] for event in trial.of("engines")] == [8, 4]
    assert [event[1].micro_batch for event in trial.of("learner")] == [8, 4]
    assert trial.of("loaded") == [("loaded", "checkpoint_00000003")] and len(trial.of("closed")) == 2
    assert [report.global_step for report in reports] == [3, 6, 7]
    assert [report.memory["out_of_memory_retries"] for report in reports] == [0, 1, 1]
    assert {event[2:] for event in trial.of("learner")} == {(64, "cache")}, "what is drawn at a time stays"


def test_memory_that_runs_out_where_samples_are_drawn_halves_those(trial: Trial) -> None:
    """Before training a new attempt is made; while a report is measured that alone starts over."""
    short = [("learner", 64), ("measured", 32)]

    def fails(event: tuple[Any, ...]) -> None:
        found = (event[0], event[2] if event[0] == "learner" else event[1]) if len(event) > 2 else ()
        if found in short:
            short.remove(found)
            raise NO_MEMORY

    trial.before = fails
    reports = trial.reports(sweep_with(gradient=WHOLE_STEPS))
    assert [(event[2], event[1].micro_batch) for event in trial.of("learner")] == [(64, 8), (32, 8)]
    assert [event[1] for event in trial.of("measured")] == [32, 16, 16, 16], "it stays so small"
    assert [report.memory["out_of_memory_retries"] for report in reports] == [2, 2, 2]
    assert reports[-1].memory["sampler_batch"] == 16


@pytest.mark.parametrize("world", [1, 2])
def test_where_processes_share_a_trial_all_of_them_start_anew(trial: Trial, world: int) -> None:
    """The others wait for the gradient of the one that ran out."""
    shared = create_autospec(Ranks, instance=True)
    shared.world, shared.rank = world, 0
    shared.on_first.side_effect = lambda work: work()
    shared.least.side_effect, shared.mean.side_effect, shared.any.side_effect = (lambda given: given,) * 3
    failed: list[int] = []

    def short(event: tuple[Any, ...]) -> None:
        if event == ("iterated", 1) and not failed:
            failed.append(1)
            raise NO_MEMORY

    trial.before = short
    context = TrialContext(ranks=shared)
    with pytest.raises(torch.OutOfMemoryError) if world > 1 else nullcontext():
        trial.reports(sweep_with(gradient=WHOLE_STEPS), context=context)
    assert len(trial.of("engines")) == (1 if world > 1 else 2)


def test_what_fails_otherwise_is_not_tried_again(trial: Trial) -> None:
    def fails(event: tuple[Any, ...]) -> None:
        if event[0] == "iterated":
            raise RuntimeError("no kernel")

    trial.before = fails
    with pytest.raises(RuntimeError, match="no kernel"):
        trial.reports(sweep_with(gradient=WHOLE_STEPS))
    assert len(trial.of("engines")) == 1


def test_a_process_that_ran_out_of_memory_is_followed_by_a_smaller_one(trial: Trial) -> None:
    """Once for each time; what its checkpoint has seen of them is not counted again."""
    sweep = sweep_with(gradient=WHOLE_STEPS)

    def crash(event: tuple[Any, ...]) -> None:
        if event == ("iterated", 4):
            raise ValueError("crashed")

    trial.before = crash
    for smaller in (1, 1, 2):
        with pytest.raises(ValueError, match="crashed"):
            trial.reports(sweep, smaller=smaller)
    assert [event[1] for event in trial.of("engines")] == [4, 4, 2]


@pytest.mark.parametrize(
    ("sections", "micro_batch"),
    [
        ({}, 4),  # as its checkpoint was made: once smaller
        ({"train": {"iterations": 7, "batch": 8, "micro_batch": 2}}, 2),
        ({"deepspeed": {"gradient_clipping": 1.0}}, 8),
        ({"sampler": {"steps": 2, "batch": 32}}, 8),
        ({"gradient": WHOLE_STEPS | {"lean": False}}, 8),
    ],
)
def test_a_trial_goes_on_as_it_was_unless_the_sweep_asks_for_other_means(
    trial: Trial, sections: dict[str, Any], micro_batch: int
) -> None:
    failed: list[int] = []

    def fails(event: tuple[Any, ...]) -> None:
        if event == ("iterated", 1) and not failed:
            failed.append(1)
            raise NO_MEMORY
        if event == ("iterated", 4):
            raise ValueError("crashed")

    trial.before = fails
    with pytest.raises(ValueError, match="crashed"):
        trial.reports(sweep_with(gradient=WHOLE_STEPS))
    trial.events.clear()
    trial.before = lambda event: None
    trial.reports(sweep_with(**{"gradient": WHOLE_STEPS} | sections))
    assert trial.of("engines") == [("engines", micro_batch)]
    state = json.loads((trial.folder.result() / "state.json").read_text())
    assert state["iteration"] == 7 and state["report"]["global_step"] == 7


@pytest.mark.parametrize(("smaller", "batch"), [(0, 64), (2, 16), (9, 1)])
@pytest.mark.parametrize("method", ["random", "supervised"])
def test_a_method_that_does_not_train_finds_once_for_a_whole_trial(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, a_set: DirectionSet, method: str, smaller: int, batch: int
) -> None:
    asked: list[Any] = []

    def find(denoiser: Any, schedule: Any, settings: Any, **more: Any) -> DirectionSet:
        asked.append(
            (denoiser is trial.trial_model.denoiser, schedule is trial.trial_model.schedule, settings.seed, more)
        )
        return a_set

    real = METHODS[method]
    monkeypatch.setitem(METHODS, method, SimpleNamespace(find=find, Settings=real.Settings))
    sweep = sweep_with(method=method, seed=3)
    parameters = {"method": method} | (
        {"supervised.attribute": "smile"} if method == "supervised" else {"directions": 2}
    )
    [told] = trial.reports(sweep, parameters, smaller=smaller)
    more = {"attributes": "attributes"} if method == "supervised" else {}
    assert asked == [(True, True, 3, {"batch": batch, "cache": "cache", **more})]
    assert told.global_step == 7 and told.curve == [] and told.memory == {}
    assert trial.of("saved") == [("saved", 7, 0.5)] and trial.of("measured")[0][3] == SELECT_SEEDS


def test_a_trial_may_end_at_once_but_for_the_middle_of_an_iteration() -> None:
    """An engine that was interrupted there would hold half a gradient."""
    alive: list[int] = []
    asked = [False]
    context = TrialContext(lambda: asked[0], lambda: alive.append(1))
    context.network_called()
    asked[0] = True
    with context.iterating():
        context.network_called()
    with pytest.raises(Preempted):
        context.network_called()
    assert len(alive) == 3, "each of them is a sign of life"
