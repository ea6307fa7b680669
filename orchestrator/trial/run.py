"""One trial from start to end: load the model, find directions, measure them, report.

Runs in a process of its own. It knows its sweep, its parameters and its folder, and nothing of the search, the
scheduler or the tracking store. It goes on from the newest checkpoint in its folder, which holds

    engines/       DeepSpeed's state (method learned)
    state.json     the iteration, what finding has taken so far, the losses since the last report, and that report
    directions/    the direction set so far, where it was measured
    traversal.png  what it looks like
"""

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from core.directions.direction_set import DirectionSet
from core.errors import NonFiniteError
from core.files import write_json
from core.methods import METHODS, learned
from core.model.denoiser import Denoiser
from core.randomness import SELECT_SEEDS
from core.samples.cache import SampleCache
from orchestrator.spec import Sweep
from orchestrator.store.checkpoints import TrialFolder
from orchestrator.store.disk import with_space
from orchestrator.trial.attempt import Attempt, DrawBatch, NothingFits, release, with_batch
from orchestrator.trial.engine import Engines
from orchestrator.trial.footprint import Case, device_bytes
from orchestrator.trial.model import TrialModel
from orchestrator.trial.outcome import Preempted, out_of_memory
from orchestrator.trial.ranks import ALONE, Ranks
from orchestrator.trial.settings import settings_of
from orchestrator.trial.state import Report, State


@dataclass
class TrialContext:
    """What a trial listens to and tells while it works.

    stop: whether it shall save and end; alive: called whenever it has made a step; ranks: the processes that share it;
    out_of_memory: how often its process has run out of memory before.
    """

    stop: Callable[[], bool] = lambda: False
    alive: Callable[[], None] = lambda: None
    ranks: Ranks = ALONE
    out_of_memory: int = 0
    training: bool = False  # an iteration has begun and not ended: nothing may interrupt it

    def step(self) -> None:
        """The network was called. Raises Preempted where the trial shall end and may do so at once."""
        self.alive()
        if not self.training and self.stop():
            raise Preempted

    def waiting(self) -> None:
        """Say that the trial is alive while it waits for space. Raises Preempted where it shall stop."""
        self.alive()
        if self.stop():
            raise Preempted

    @contextmanager
    def iterating(self) -> Iterator[None]:
        self.training = True
        yield
        self.training = False

    @contextmanager
    def watching(self, denoiser: Denoiser) -> Iterator[None]:
        """A step is every pass through the network."""
        denoiser.listeners.append(self.step)
        try:
            yield
        finally:
            denoiser.listeners.remove(self.step)


@dataclass(frozen=True)
class RunningTrial:
    """A trial at work: what it works with, for which sweep, into which folder, among what."""

    trial_model: TrialModel
    sweep: Sweep
    folder: TrialFolder
    context: TrialContext
    notes: list[str]  # what was amiss with its checkpoints, and has not been told

    @property
    def ranks(self) -> Ranks:
        return self.context.ranks

    def alone(self) -> "RunningTrial":
        """The same for one process by itself."""
        return replace(self, context=replace(self.context, ranks=ALONE))

    def latest(self) -> tuple[Path | None, State]:
        """The newest sound checkpoint, if there is one, and how the trial stands."""
        found = self.ranks.lead(self.folder.latest)
        self.notes.extend(found.damaged)
        return found.path, State.read(found.path) if found.path else State()

    def save(self, state: State, engines: Engines | None, measured: Path | None = None) -> None:
        """A checkpoint; it waits for space where the disk is full. Every process has a part in it, the first writes."""
        gathered = engines.snapshot(state.iteration) if engines is not None else None

        def write(folder: Path) -> None:
            if measured is not None:
                shutil.copytree(measured, folder, dirs_exist_ok=True)
            if gathered is not None:
                gathered.write(folder / "engines")
            write_json(folder / "state.json", asdict(state))

        def keep() -> None:
            score = None
            if state.report is not None:
                metric, mode = self.sweep.compared
                score = state.report.metrics[metric] * (1 if mode == "max" else -1)
            with_space(lambda: self.folder.save(state.iteration, write, score), self.context.waiting)

        self.ranks.lead(keep)


def run_trial(
    parameters: Mapping[str, Any],
    sweep: Sweep,
    folder: TrialFolder,
    cache: SampleCache | None = None,
    context: TrialContext | None = None,
    load: Callable[[Sweep, SampleCache | None], TrialModel] = TrialModel.load,
) -> Iterator[Report]:
    """Run one trial of `sweep` with the given parameters from where its folder says it stands; yields its reports.

    A trial that goes on repeats its last report first, which may never have arrived. cache: where unshifted samples,
    which are the same for every trial, are read and kept; load: opens the model. Every process of a trial that is
    shared runs this, and yields the same reports.

    Raises Preempted, after saving, when it was asked to stop.
    """
    if not torch.cuda.is_available():
        torch.set_num_threads(sweep.resources.cpus_per_worker)
    context = context or TrialContext()
    found = context.ranks.lead(folder.latest)
    state = State.read(found.path) if found.path else State()
    notes = list(found.damaged)
    if state.report is not None:
        yield replace(state.report, notes=notes)
        notes = []
        if state.iteration >= sweep.train.iterations:
            return
    trial = RunningTrial(load(sweep, cache), sweep, folder, context, notes)
    with context.watching(trial.trial_model.denoiser):
        if parameters["method"] == "learned":
            yield from _learn(trial, parameters)
        else:
            yield context.ranks.lead(lambda: _find(trial.alone(), parameters))


def _find(trial: RunningTrial, parameters: Mapping[str, Any]) -> Report:
    """A method that does not train: one finding, which counts as a whole trial's."""
    method, state = parameters["method"], State(trial.sweep.train.iterations)
    drawing = DrawBatch(with_batch(trial.sweep, max(1, trial.sweep.sampler.batch >> trial.context.out_of_memory)))
    trial_model = trial.trial_model
    more = {"attributes": trial_model.attributes} if method == "supervised" else {}
    settings = settings_of(parameters, trial.sweep)

    def find(sweep: Sweep) -> DirectionSet:
        batch = sweep.sampler.batch
        with state.running():
            found: DirectionSet = METHODS[method].find(
                trial.trial_model.denoiser,
                trial.trial_model.schedule,
                settings,
                batch=batch,
                cache=trial.trial_model.cache,
                **more,
            )
        return found

    directions = drawing.run(find)
    return _report(trial, drawing, state, directions)


def _learn(trial: RunningTrial, parameters: Mapping[str, Any]) -> Iterator[Report]:
    """Train, in smaller parts after every time that memory has run out, from the last checkpoint on each time."""
    sweep, means_asked = trial.sweep, {"means": _means(trial.sweep), "smaller": trial.context.out_of_memory}
    attempt = _first_attempt(trial, parameters, means_asked)
    while True:
        drawing = DrawBatch(attempt.applied(sweep))
        try:
            yield from _train(trial, attempt, drawing, means_asked)
            return
        except Exception as error:
            if not out_of_memory(error) or isinstance(error, NothingFits) or trial.ranks.world > 1:
                raise  # the other processes of a trial wait for this one's gradient: all of them start anew
            training, trial.context.training = trial.context.training, False
            attempt = attempt.after(drawing).smaller(sweep.micro_batches, training)
        release()


def _first_attempt(trial: RunningTrial, parameters: Mapping[str, Any], means_asked: Mapping[str, Any]) -> Attempt:
    """As the newest checkpoint was made, unless the sweep asks for other means by now; else what fits the device.

    Once smaller for every time that the process itself has run out of memory.
    """
    trial_model, sweep, settings = trial.trial_model, trial.sweep, settings_of(parameters, trial.sweep)
    parts = trial.latest()[1].parts
    if parts is not None and parts["means"] == means_asked["means"]:
        attempt, seen = Attempt.resumed(settings, parts), parts["smaller"]
    else:
        denoiser = trial_model.denoiser
        case = Case(denoiser.blueprint(), trial_model.schedule, sweep, settings)
        memory = device_bytes(sweep, denoiser.device, denoiser.weight_bytes())
        attempt, seen = Attempt.first(case, trial.ranks.least(memory)), 0
    for _ in range(seen, means_asked["smaller"]):
        attempt = attempt.smaller(sweep.micro_batches, training=True)
    return attempt


def _means(sweep: Sweep) -> dict[str, Any]:
    """What may be changed in a sweep file that is under way, and decides how a trial trains."""
    return {
        "gradient": sweep.gradient.model_dump(),
        "engine": {**sweep.deepspeed.model_dump(), "workers": sweep.resources.workers},
        "micro_batch": sweep.train.micro_batch,
        "batch": sweep.sampler.batch,
    }


def _train(
    trial: RunningTrial, attempt: Attempt, drawing: DrawBatch, means_asked: Mapping[str, Any]
) -> Iterator[Report]:
    """One attempt. An iteration that it leaves half done is lost: the engines hold its gradients, and go with it.

    Memory that runs out while a report is measured costs no training: `drawing` starts the measurement over.
    """
    sweep, settings, trial_model, ranks = drawing.sweep, attempt.settings, trial.trial_model, trial.ranks
    path, state = trial.latest()
    state.parts = {**attempt.kept(), **means_asked}
    engines = Engines(sweep.deepspeed, settings.micro_batch or settings.batch)
    try:
        with state.running():
            learner = learned.Learner(
                trial_model.denoiser,
                trial_model.schedule,
                settings,
                engines.make,
                ranks.rank,
                ranks.world,
                drawing.batch,
                trial_model.cache,
                ranks.lead,
            )
        if path is not None:
            engines.load(path / "engines")
            if state.report is None and _due(sweep, state.iteration):  # it was asked to end while it was measured
                yield from _measured(trial, drawing, state, learner, engines, attempt)
        for n in range(state.iteration, settings.iterations):
            with state.running(), trial.context.iterating():
                state.curve.append({"step": n + 1, **ranks.mean(learner.iterate(n))})
            state.iteration, state.report = n + 1, None
            trial.context.alive()
            if _due(sweep, n + 1):
                yield from _measured(trial, drawing, state, learner, engines, attempt)
            elif ranks.any(trial.context.stop()):
                trial.save(state, engines)
                raise Preempted
            elif sweep.recovery.checkpoint_every and (n + 1) % sweep.recovery.checkpoint_every == 0:
                trial.save(state, engines)
    finally:
        engines.close()


def _due(sweep: Sweep, iteration: int) -> bool:
    """Whether a trial is measured after so many iterations."""
    return iteration % sweep.evaluate_every == 0 or iteration == sweep.train.iterations


def _measured(
    trial: RunningTrial, drawing: DrawBatch, state: State, learner: learned.Learner, engines: Engines, attempt: Attempt
) -> Iterator[Report]:
    """The report that is due; where the trial is asked to end meanwhile, its next attempt makes it."""
    try:
        yield _report(trial, drawing, state, learner.directions(), engines, attempt)
    except Preempted:
        trial.save(state, engines)
        raise
    state.curve = []


def _report(
    trial: RunningTrial,
    drawing: DrawBatch,
    state: State,
    directions: DirectionSet,
    engines: Engines | None = None,
    attempt: Attempt | None = None,
) -> Report:
    """Measure the set on the seeds that choose between trials, and keep it in a checkpoint with its report.

    Only what draws samples starts over where memory runs out, so that nothing is saved or reported twice.
    """
    with tempfile.TemporaryDirectory() as temporary:
        measured = Path(temporary)
        report = trial.ranks.lead(lambda: _measure(trial, drawing, state, directions, attempt, measured))
        trial.save(replace(state, report=report, curve=[]), engines, measured)
    noted = replace(report, notes=list(trial.notes))
    trial.notes.clear()
    return noted


def _measure(
    trial: RunningTrial,
    drawing: DrawBatch,
    state: State,
    directions: DirectionSet,
    attempt: Attempt | None,
    folder: Path,
) -> Report:
    """The report; the set that it is of, and its picture, go into the folder."""
    sampler, trial_model = drawing.sweep.sampler, trial.trial_model
    # The set carries its window, so that it is the same edit in any pipeline, and its precision, so that it is opened
    # where it was found.
    found_in = {"injection": sampler.injection, "window": sampler.window, "precision": drawing.sweep.train.precision}
    origin = {**directions.provenance, **found_in}
    unscaled = replace(directions.within(sampler.window), provenance=origin)
    scaled = drawing.run(lambda sweep: trial_model.scaled(sweep, unscaled))
    evaluation = drawing.run(lambda sweep: trial_model.measure(sweep, scaled, SELECT_SEEDS))
    metrics = evaluation.metrics
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"{name} became {value} at iteration {state.iteration}")
    judged = {**scaled.provenance, "judged_by": dict(evaluation.judged_by)}
    described = replace(scaled, metrics=metrics, provenance=judged)
    (folder / "directions").mkdir()
    described.write(folder / "directions")
    drawing.run(lambda sweep: trial_model.draw(sweep, described, folder))
    return Report(
        global_step=state.iteration,
        find_seconds=state.seconds,
        metrics=metrics,
        curve=state.curve,
        memory=attempt.after(drawing).told() if attempt else drawing.told(),
        milliseconds=int(time.time() * 1000),
    )
