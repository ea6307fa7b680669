"""Run one trial from start to end: load the model, find directions, measure them, report.

A trial runs in a process of its own. It knows its sweep, its parameters and its folder, and nothing of the search, the
scheduler or the tracking store. It resumes from the newest checkpoint in its folder, which holds

    engines/       DeepSpeed's state (methods that train)
    state.json     the iteration, the seconds spent on finding, the losses since the last report, and that report
    directions/    the direction set so far, where it was measured
    traversal.png  a picture of that set
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from core.directions.direction_set import DirectionSet
from core.errors import NonFiniteError
from core.files import write_json
from core.methods import METHODS
from core.methods.trained.chain_learner import ChainLearner, Workers
from core.model.denoiser import Denoiser
from core.progress import Listener, listening
from core.randomness import SELECT_SEEDS
from core.samples.cache import SampleCache
from orchestrator.spec import TRAINED, Sweep
from orchestrator.store.checkpoints import TrialFolder
from orchestrator.store.disk import with_space
from orchestrator.trial.attempt import Attempt, DrawBatch, NothingFits, release, with_batch
from orchestrator.trial.engine import Engines
from orchestrator.trial.memory import Case, device_bytes
from orchestrator.trial.model import TrialModel
from orchestrator.trial.outcome import Preempted, out_of_memory
from orchestrator.trial.ranks import ALONE, Ranks
from orchestrator.trial.settings import method_of, settings_of, with_names
from orchestrator.trial.state import Report, State


@dataclass
class TrialContext:
    """The callbacks and processes through which a trial communicates while it works.

    stop: returns whether the trial has to save and end; report_alive: called after every step; ranks: the processes
    that share the trial; out_of_memory: how often its process has run out of memory before; advanced: called
    with the progress of a method that does not train.
    """

    stop: Callable[[], bool] = lambda: False
    report_alive: Callable[[], None] = lambda: None
    ranks: Ranks = ALONE
    out_of_memory: int = 0
    advanced: Listener = lambda *_: None
    training: bool = False  # an iteration has begun and not ended: it must not be interrupted

    def network_called(self) -> None:
        """Report a call of the network. Raises Preempted where the trial has to end and no iteration is under way."""
        self.report_alive()
        if not self.training and self.stop():
            raise Preempted

    def waiting(self) -> None:
        """Report that the trial is alive while it waits for disk space. Raises Preempted where it has to end."""
        self.report_alive()
        if self.stop():
            raise Preempted

    @contextmanager
    def iterating(self) -> Iterator[None]:
        """Mark the block as an iteration of training. After an error `training` stays True, which `_learn` reads."""
        self.training = True
        yield
        self.training = False

    @contextmanager
    def differentiating(self) -> Iterator[None]:
        """Tell `_learn` that an error inside the block came from a gradient, as one of `iterating` does.

        The block holds nothing that a checkpoint keeps, so it may be interrupted.
        """
        try:
            yield
        except Preempted:
            raise
        except Exception:
            self.training = True
            raise

    @contextmanager
    def watching(self, denoiser: Denoiser) -> Iterator[None]:
        """Call `network_called` at every pass through the network inside the block."""
        denoiser.listeners.append(self.network_called)
        try:
            yield
        finally:
            denoiser.listeners.remove(self.network_called)


@dataclass(frozen=True)
class RunningTrial:
    """One trial under way: its model, its sweep, its folder, and its context."""

    model: TrialModel
    sweep: Sweep
    folder: TrialFolder
    context: TrialContext
    notes: list[str]  # sentences on damaged checkpoints that have not been reported yet

    @property
    def ranks(self) -> Ranks:
        """The processes that share this trial."""
        return self.context.ranks

    def on_one_process(self) -> "RunningTrial":
        """Return the same trial for one process by itself."""
        return replace(self, context=replace(self.context, ranks=ALONE))

    def latest(self) -> tuple[Path | None, State]:
        """Return the newest sound checkpoint (None without one) and the state in it (a new state without one)."""
        checkpoint = self.ranks.on_first(self.folder.latest)
        self.notes.extend(checkpoint.damaged)
        return checkpoint.path, State.read(checkpoint.path) if checkpoint.path else State()

    def save(self, state: State, engines: Engines | None, measured: Path | None = None) -> None:
        """Save a checkpoint, waiting while the disk is full. Every process has to call this; the first writes.

        measured: the folder with the set that was measured and its picture, which are copied into the checkpoint.
        """
        gathered = engines.snapshot(state.iteration) if engines is not None else None

        def write(folder: Path) -> None:
            if measured is not None:
                shutil.copytree(measured, folder, dirs_exist_ok=True)
            if gathered is not None:
                gathered.write(folder / "engines")
            write_json(folder / "state.json", state.to_json())

        def keep() -> None:
            score = None
            if state.report is not None:
                metric, mode = self.sweep.checkpoint_metric
                score = state.report.metrics[metric] * (1 if mode == "max" else -1)
            with_space(lambda: self.folder.save(state.iteration, write, score), self.context.waiting)

        self.ranks.on_first(keep)


def run_trial(
    parameters: Mapping[str, Any],
    sweep: Sweep,
    folder: TrialFolder,
    cache: SampleCache | None = None,
    context: TrialContext | None = None,
    load: Callable[[Sweep, SampleCache | None], TrialModel] = TrialModel.load,
) -> Iterator[Report]:
    """Run one trial of `sweep` with these parameters from its newest checkpoint, and yield its reports.

    A resumed trial first repeats its last report, which may never have arrived. cache: where unshifted samples, which
    are the same for every trial, are read and kept; load: opens the model. Every process that shares the trial runs
    this, and yields the same reports.

    Raises Preempted, after saving, when it was asked to end.
    """
    if not torch.cuda.is_available():
        torch.set_num_threads(sweep.resources.cpus_per_worker)
    context = context or TrialContext()
    latest = context.ranks.on_first(folder.latest)
    state = State.read(latest.path) if latest.path else State()
    notes = list(latest.damaged)
    if state.report is not None:
        yield replace(state.report, notes=notes)
        notes = []
        if state.iteration >= sweep.train.iterations:
            return
    trial = RunningTrial(load(sweep, cache), sweep, folder, context, notes)
    with context.watching(trial.model.denoiser):
        if parameters["method"] in TRAINED:
            yield from _learn(trial, parameters)
        else:
            with listening(context.advanced):
                report = context.ranks.on_first(lambda: _find(trial.on_one_process(), parameters))
            yield report


def _find(trial: RunningTrial, parameters: Mapping[str, Any]) -> Report:
    """Find and measure a set by a method that does not train, and report it as at the last iteration.

    The draw batch is halved once for every time that the trial's process has run out of memory.
    """
    method, state = parameters["method"], State(trial.sweep.train.iterations)
    drawing = DrawBatch(with_batch(trial.sweep, max(1, trial.sweep.sampler.batch >> trial.context.out_of_memory)))
    model = trial.model
    settings = settings_of(parameters, trial.sweep)
    networks = model.networks_for(settings)

    def find(sweep: Sweep) -> DirectionSet:
        batch = sweep.sampler.batch
        with state.running():
            directions: DirectionSet = METHODS[method].find(
                model.denoiser, model.schedule, settings, batch=batch, cache=model.cache, **networks
            )
        return directions

    directions = drawing.run(find)
    return _measure_and_save(trial, drawing, state, directions)


def _learn(trial: RunningTrial, parameters: Mapping[str, Any]) -> Iterator[Report]:
    """Train and yield the reports; where memory runs out, resume from the last checkpoint in smaller parts."""
    sweep, conditions = trial.sweep, {"means": _memory_settings(trial.sweep), "smaller": trial.context.out_of_memory}
    attempt = _first_attempt(trial, parameters, conditions)
    while True:
        drawing = DrawBatch(attempt.applied(sweep))
        try:
            yield from _train(trial, attempt, drawing, conditions)
            return
        except Exception as error:
            if not out_of_memory(error) or isinstance(error, NothingFits) or trial.ranks.world > 1:
                raise  # the other processes wait for this one's gradient: all have to start anew
            training, trial.context.training = trial.context.training, False
            attempt = attempt.after(drawing).smaller(sweep.micro_batches, training)
        release()


def _first_attempt(trial: RunningTrial, parameters: Mapping[str, Any], conditions: Mapping[str, Any]) -> Attempt:
    """Return the newest checkpoint's attempt if the sweep's memory settings are unchanged, else one that fits.

    conditions: what decides how a trial trains ("means": `_memory_settings`; "smaller": how often its process has run
    out of memory). A checkpoint keeps them with its attempt.
    The attempt is made smaller for every time that the process ran out of memory since.
    """
    model, sweep = trial.model, trial.sweep
    settings = with_names(settings_of(parameters, sweep), model.attributes)
    kept = trial.latest()[1].attempt
    if kept is not None and kept["means"] == conditions["means"]:
        attempt, seen = Attempt.resumed(settings, kept), kept["smaller"]
    else:
        denoiser = model.denoiser
        through, device = model.through(settings), str(denoiser.device)
        case = Case(denoiser.blueprint(), model.schedule, sweep, settings, through, device)
        memory = device_bytes(sweep, denoiser.device, denoiser.weight_bytes())
        attempt, seen = Attempt.first(case, trial.ranks.least(memory)), 0
    for _ in range(seen, conditions["smaller"]):  # what ran out, training or drawing, is not known of an ended process
        drawn = max(1, attempt.draw_batch // 2)
        attempt = replace(attempt.smaller(sweep.micro_batches, training=True), draw_batch=drawn)
    return attempt


def _memory_settings(sweep: Sweep) -> dict[str, Any]:
    """Return the keys of a sweep file that may change while the sweep is under way and decide how a trial trains."""
    return {
        "gradient": sweep.gradient.model_dump(),
        "engine": {**sweep.deepspeed.model_dump(), "workers": sweep.resources.workers},
        "micro_batch": sweep.train.micro_batch,
        "batch": sweep.sampler.batch,
    }


def _train(
    trial: RunningTrial, attempt: Attempt, drawing: DrawBatch, conditions: Mapping[str, Any]
) -> Iterator[Report]:
    """Train one attempt and yield its reports.

    An iteration that fails half-way is lost, since its gradients are in the engines, which are closed. Memory that runs
    out while a set is measured costs no training: `drawing` starts the measurement over.
    """
    sweep, settings, model, ranks = drawing.sweep, attempt.settings, trial.model, trial.ranks
    path, state = trial.latest()
    state.attempt = {**attempt.kept(), **conditions}
    engines = Engines(sweep.deepspeed, settings.micro_batch or settings.batch)
    try:
        with state.running():
            method = method_of(settings)
            learner: ChainLearner[Any, Any] = METHODS[method].Learner(
                model.denoiser,
                model.schedule,
                settings,
                Workers(engines.make, ranks.rank, ranks.world, ranks.on_first, trial.context.differentiating),
                drawing.batch,
                model.cache,
                **model.networks_for(settings),
            )
        if path is not None:
            engines.load(path / "engines")
            if state.report is None and _due(sweep, state.iteration):  # the last attempt had to end while measuring
                yield from _yield_report(trial, drawing, state, learner, engines, attempt)
        for n in range(state.iteration, settings.iterations):
            with state.running(), trial.context.iterating():
                state.curve.append({"step": n + 1, **ranks.mean(learner.iterate(n))})
            state.iteration, state.report = n + 1, None
            trial.context.report_alive()
            if _due(sweep, n + 1):
                yield from _yield_report(trial, drawing, state, learner, engines, attempt)
            elif ranks.any(trial.context.stop()):
                trial.save(state, engines)
                raise Preempted
            elif sweep.recovery.checkpoint_every and (n + 1) % sweep.recovery.checkpoint_every == 0:
                trial.save(state, engines)
    finally:
        engines.close()


def _due(sweep: Sweep, iteration: int) -> bool:
    """Return whether a trial is measured after this many iterations."""
    return iteration % sweep.evaluate_every == 0 or iteration == sweep.train.iterations


def _yield_report(
    trial: RunningTrial,
    drawing: DrawBatch,
    state: State,
    learner: ChainLearner[Any, Any],
    engines: Engines,
    attempt: Attempt,
) -> Iterator[Report]:
    """Yield the report that is due. Where the trial has to end meanwhile, save; its next attempt makes the report."""
    try:
        yield _measure_and_save(trial, drawing, state, learner.directions(), engines, attempt)
    except Preempted:
        trial.save(state, engines)
        raise
    state.curve = []


def _measure_and_save(
    trial: RunningTrial,
    drawing: DrawBatch,
    state: State,
    directions: DirectionSet,
    engines: Engines | None = None,
    attempt: Attempt | None = None,
) -> Report:
    """Measure the set on the seeds that compare trials, save it in a checkpoint with its report, and return the report.

    Only the steps that draw samples start over where memory runs out, so nothing is saved or reported twice.
    """
    with tempfile.TemporaryDirectory() as temporary:
        measured = Path(temporary)
        report = trial.ranks.on_first(lambda: _measure_set(trial, drawing, state, directions, attempt, measured))
        trial.save(replace(state, report=report, curve=[]), engines, measured)
    noted = replace(report, notes=list(trial.notes))
    trial.notes.clear()
    return noted


def _measure_set(
    trial: RunningTrial,
    drawing: DrawBatch,
    state: State,
    directions: DirectionSet,
    attempt: Attempt | None,
    folder: Path,
) -> Report:
    """Measure the set and return its report. Write the set and its picture into the folder."""
    sampler, model = drawing.sweep.sampler, trial.model
    # The set records its window, so that it is the same edit in any pipeline, and its precision, in which it is opened.
    found_in = {"injection": sampler.injection, "window": sampler.window, "precision": drawing.sweep.train.precision}
    origin = {**directions.provenance, **found_in}
    unscaled = replace(directions.within(sampler.window), provenance=origin)
    scaled = drawing.run(lambda sweep: model.scaled(sweep, unscaled))
    evaluation = drawing.run(lambda sweep: model.measure(sweep, scaled, SELECT_SEEDS))
    metrics = evaluation.metrics
    for name in (*trial.sweep.objective_names, trial.sweep.checkpoint_metric[0]):
        if name not in metrics:  # a metric that is not finite is absent
            raise NonFiniteError(f"{name} became NaN or infinite at iteration {state.iteration}")
    judged = {**scaled.provenance, "judged_by": dict(evaluation.judged_by)}
    described = replace(scaled, metrics=metrics, provenance=judged)
    (folder / "directions").mkdir()
    described.write(folder / "directions")
    drawing.run(lambda sweep: model.draw(sweep, described, folder))
    return Report(
        global_step=state.iteration,
        find_seconds=state.seconds,
        metrics=metrics,
        curve=state.curve,
        memory=attempt.after(drawing).as_tags() if attempt else drawing.as_tags(),
        milliseconds=int(time.time() * 1000),
    )
