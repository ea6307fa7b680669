"""One trial from start to end: load the model, find directions, measure them, report.

Runs in a process of its own. It knows its sweep and its parameters and nothing of the search, the scheduler or the
tracking store; what it reports goes through a Reporter, with a checkpoint that holds

    engines/       DeepSpeed's state, to go on from (method learned)
    seconds.json   what finding has taken so far
    directions/    the direction set so far
    traversal.png  what it looks like
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from core import predictors
from core.cache import SampleCache
from core.denoiser import Denoiser
from core.directions import DirectionSet
from core.files import write_json
from core.lean import lean
from core.methods import METHODS, learned, random
from core.metrics import Evaluation, calibrate, evaluate
from core.pictures import traversal, traversal_grid
from core.precision import use_precision
from core.randomness import SELECT_SEEDS
from core.schedule import Schedule
from core.zoo.attributes import Attributes
from orchestrator.attempt import Attempt
from orchestrator.drawing import Drawing, NothingFits, release
from orchestrator.engine import Engines
from orchestrator.footprint import Case, device_bytes
from orchestrator.outcome import out_of_memory
from orchestrator.reporter import Reporter
from orchestrator.settings import settings_of
from orchestrator.spec import Sweep


@dataclass(frozen=True)
class Bench:
    """What a trial works with: the frozen model, its chain, its attribute predictor if it has one, and the unshifted
    samples that are there already.
    """

    denoiser: Denoiser
    schedule: Schedule
    attributes: Attributes | None
    cache: SampleCache | None = None

    @classmethod
    def load(cls, sweep: Sweep, cache: SampleCache | None = None) -> "Bench":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        denoiser = Denoiser.from_pretrained(sweep.model, use_precision(sweep.train.precision), device)
        if sweep.gradient.lean:
            denoiser = lean(denoiser)
        schedule = Schedule.ddim(denoiser, sweep.sampler.steps, sweep.sampler.eta)
        return cls(denoiser, schedule, predictors.load(sweep.predictor, sweep.model, device), cache)

    def scaled(self, sweep: Sweep, directions: DirectionSet) -> DirectionSet:
        """The set as strong as `evaluate.strength` says, or as it is where the sweep says nothing."""
        strength, sampler = sweep.evaluate.strength, sweep.sampler
        if strength is None:
            return directions
        return calibrate(
            self.denoiser,
            self.schedule,
            directions,
            strength,
            injection=sampler.injection,
            window=sampler.window,
            batch=sampler.batch,
            cache=self.cache,
        )

    def measure(self, sweep: Sweep, directions: DirectionSet, seeds: range) -> Evaluation:
        """Every metric of a set on the first `evaluate.seeds` of a range of held-out seeds."""
        count = sweep.evaluate.seeds
        return evaluate(
            self.denoiser,
            self.schedule,
            directions,
            seeds[:count],
            reference_seeds=seeds[count : 5 * count],
            attributes=self.attributes,
            injection=sweep.sampler.injection,
            window=sweep.sampler.window,
            batch=sweep.sampler.batch,
            cache=self.cache,
        )

    def draw(self, sweep: Sweep, directions: DirectionSet, folder: Path) -> None:
        """traversal.png: every direction across its scales, on a fixed seed."""
        sampler = sweep.sampler
        images = traversal(
            self.denoiser,
            self.schedule,
            directions,
            injection=sampler.injection,
            window=sampler.window,
            batch=sampler.batch,
        )
        traversal_grid(images, directions).save(folder / "traversal.png")


@dataclass(frozen=True)
class Finding:
    """What a method has found so far, and after how much of looking for it."""

    directions: DirectionSet
    iteration: int
    seconds: float
    curve: list[dict[str, float]] = field(default_factory=list)  # the losses since the finding before
    attempt: Attempt | None = None  # how it is trained


@dataclass
class Stopwatch:
    """Seconds of finding: loading, measuring and drawing do not count."""

    seconds: float = 0.0
    training: bool = False  # whether an iteration has begun and not ended

    @contextmanager
    def running(self, training: bool = False) -> Iterator[None]:
        started, self.training = time.perf_counter(), training
        yield
        self.seconds += time.perf_counter() - started
        self.training = False


def run_trial(
    parameters: Mapping[str, Any], sweep: Sweep, reporter: Reporter, cache: SampleCache | None = None
) -> None:
    """Run one trial of `sweep` with the given parameters, from its last checkpoint if it has one.

    cache: where unshifted samples, which are the same for every trial, are read and kept.
    """
    if not torch.cuda.is_available():
        torch.set_num_threads(sweep.resources.cpus_per_worker)
    bench = Bench.load(sweep, cache)
    if parameters["method"] == "learned":
        _learn(bench, parameters, sweep, reporter)
    else:
        _find(bench, parameters, sweep, reporter)


def _find(bench: Bench, parameters: Mapping[str, Any], sweep: Sweep, reporter: Reporter) -> None:
    """A method that does not train: one finding, which counts as a whole trial's."""
    method, watch = parameters["method"], Stopwatch()
    more = {"attributes": bench.attributes} if method == "supervised" else {}
    settings, drawing = settings_of(parameters, sweep), Drawing(sweep)

    def find(sweep: Sweep) -> DirectionSet:
        batch = sweep.sampler.batch
        with watch.running():
            found: DirectionSet = METHODS[method].find(
                bench.denoiser, bench.schedule, settings, batch=batch, cache=bench.cache, **more
            )
        return found

    directions = drawing.run(find)
    _report(bench, drawing, reporter, Finding(directions, sweep.train.iterations, watch.seconds))


def _learn(bench: Bench, parameters: Mapping[str, Any], sweep: Sweep, reporter: Reporter) -> None:
    """Train, in smaller parts after every time that memory has run out, from the last report on each time."""
    case = Case(bench.denoiser.blueprint(), bench.schedule, sweep, settings_of(parameters, sweep))
    attempt = Attempt.first(case, device_bytes(sweep, bench.denoiser.device, bench.denoiser.weight_bytes()))
    while True:
        watch, drawing = Stopwatch(), Drawing(attempt.applied(sweep))
        try:
            return _train(bench, attempt, drawing, reporter, watch)
        except Exception as error:
            if not out_of_memory(error) or isinstance(error, NothingFits):
                raise
            attempt = attempt.after(drawing).smaller(sweep.micro_batches, watch.training)
        release()


def _train(bench: Bench, attempt: Attempt, drawing: Drawing, reporter: Reporter, watch: Stopwatch) -> None:
    """One attempt. An iteration that it leaves half done is lost: the engines hold its gradients, and go with it.

    Memory that runs out while a report is measured costs no training: `drawing` starts the measurement over.
    """
    sweep, settings = drawing.sweep, attempt.settings
    engines = Engines(sweep.deepspeed, settings.micro_batch or settings.batch)
    try:
        with watch.running():
            learner = learned.Learner(
                bench.denoiser,
                bench.schedule,
                settings,
                engines.make,
                draw_batch=drawing.batch,
                cache=bench.cache,
            )
        done = 0
        with reporter.checkpoint() as folder:
            if folder:
                done = engines.load(folder / "engines")
                watch.seconds = json.loads((folder / "seconds.json").read_text())["find"]
        curve: list[dict[str, float]] = []
        for n in range(done, settings.iterations):
            with watch.running(training=True):
                curve.append({"step": n + 1, **learner.iterate(n)})
            if (n + 1) % sweep.evaluate_every == 0 or n + 1 == settings.iterations:
                finding = Finding(learner.directions(), n + 1, watch.seconds, curve, attempt)
                _report(bench, drawing, reporter, finding, engines)
                curve = []
    finally:
        engines.close()


def _report(
    bench: Bench, drawing: Drawing, reporter: Reporter, finding: Finding, engines: Engines | None = None
) -> None:
    """Measure the set on the seeds that choose between trials, and report it with a checkpoint.

    Only what draws samples starts over where memory runs out, so that nothing is saved or reported twice.
    """
    sampler = drawing.sweep.sampler
    # The set carries its window, so that it is the same edit in any pipeline.
    origin = {**finding.directions.provenance, "injection": sampler.injection, "window": sampler.window}
    unscaled = replace(finding.directions.within(sampler.window), provenance=origin)
    directions = drawing.run(lambda sweep: bench.scaled(sweep, unscaled))
    metrics = drawing.run(lambda sweep: bench.measure(sweep, directions, SELECT_SEEDS)).metrics
    described = replace(directions, metrics=metrics)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "directions").mkdir()
        described.write(folder / "directions")
        drawing.run(lambda sweep: bench.draw(sweep, described, folder))
        write_json(folder / "seconds.json", {"find": finding.seconds})
        if engines is not None:
            engines.save(folder / "engines", finding.iteration)
        told = {"global_step": finding.iteration, "find_seconds": finding.seconds, "curve": finding.curve}
        told["memory"] = finding.attempt.after(drawing).told() if finding.attempt else drawing.told()
        reporter.report({**told, "metrics": metrics, **metrics}, folder)


def random_like(bench: Bench, directions: DirectionSet, sweep: Sweep) -> DirectionSet:
    """The honest baseline of a set: as many random directions, of the same mean length."""
    settings = random.Settings(len(directions), seed=sweep.seed)
    found = random.find(bench.denoiser, bench.schedule, settings, sweep.sampler.batch, bench.cache)
    return replace(found, sigma=found.sigma * (directions.sigma.mean() / found.sigma.mean()))
