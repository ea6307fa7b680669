"""One trial from start to end: load the model, find directions, measure them, report.

Runs in a process of its own. It knows its sweep and its parameters and nothing of the search, the scheduler or the
tracking store; what it reports goes through a Reporter, with a checkpoint that holds

    engines/      DeepSpeed's state, to go on from
    directions/   the direction set so far
    traversal.png what it looks like
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from core.denoiser import Denoiser
from core.directions import DirectionSet
from core.gradient import CheckpointSteps, FullGraph, GradientPolicy
from core.methods import learned, random
from core.metrics import Evaluation, evaluate
from core.pictures import traversal, traversal_grid
from core.randomness import SELECT_SEEDS
from core.schedule import Schedule
from core.zoo.attributes import Attributes, embedded
from orchestrator.engine import Engines
from orchestrator.reporter import Reporter
from orchestrator.spec import Sweep

_GRADIENTS: dict[str, GradientPolicy] = {"full_graph": FullGraph(), "checkpoint_steps": CheckpointSteps()}
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Bench:
    """What a trial works with: the frozen model, its chain, and its attribute predictor if it has one."""

    denoiser: Denoiser
    schedule: Schedule
    attributes: Attributes | None

    @classmethod
    def load(cls, sweep: Sweep) -> "Bench":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        denoiser = Denoiser.from_pretrained(sweep.model, _PRECISIONS[sweep.train.precision], device)
        schedule = Schedule.ddim(denoiser, sweep.sampler.steps, sweep.sampler.eta)
        return cls(denoiser, schedule, embedded(sweep.model, device))

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
        )

    def draw(self, sweep: Sweep, directions: DirectionSet, folder: Path) -> None:
        """traversal.png: every direction across its scales, on a fixed seed."""
        injection, window = sweep.sampler.injection, sweep.sampler.window
        images = traversal(self.denoiser, self.schedule, directions, injection=injection, window=window)
        traversal_grid(images, directions).save(folder / "traversal.png")


def run_trial(parameters: Mapping[str, Any], sweep: Sweep, reporter: Reporter) -> None:
    """Run one trial of `sweep` with the given parameters, from its last checkpoint if it has one."""
    if not torch.cuda.is_available():
        torch.set_num_threads(sweep.resources.cpus_per_worker)
    bench = Bench.load(sweep)
    if parameters["method"] == "random":
        directions = random_set(bench, parameters, sweep)
        _report(bench, sweep, reporter, directions, sweep.train.iterations, [], None)
        return
    _learn(bench, parameters, sweep, reporter)


def random_set(bench: Bench, parameters: Mapping[str, Any], sweep: Sweep) -> DirectionSet:
    """The honest baseline: as many random directions, as strong."""
    settings = random.Settings(parameters["directions"], parameters["shift_scale"], sweep.seed)
    return random.find(bench.denoiser, bench.schedule, settings)


def _learn(bench: Bench, parameters: Mapping[str, Any], sweep: Sweep, reporter: Reporter) -> None:
    settings = learned_settings(parameters, sweep)
    engines = Engines(sweep.deepspeed, settings.micro_batch or settings.batch)
    try:
        learner = learned.Learner(bench.denoiser, bench.schedule, settings, engines.make)
        with reporter.checkpoint() as folder:
            done = engines.load(folder / "engines") if folder else 0
        curve: list[dict[str, float]] = []
        for n in range(done, settings.iterations):
            curve.append({"step": n + 1, **learner.iterate(n)})
            if (n + 1) % sweep.evaluate_every == 0 or n + 1 == settings.iterations:
                _report(bench, sweep, reporter, learner.directions(), n + 1, curve, engines)
                curve = []
    finally:
        engines.close()


def learned_settings(parameters: Mapping[str, Any], sweep: Sweep) -> learned.Settings:
    """The learned method's settings: the trial's parameters and what the sweep fixes."""
    searched = {name: value for name, value in parameters.items() if name != "method"}
    return learned.Settings(
        **searched,
        iterations=sweep.train.iterations,
        batch=sweep.train.batch,
        micro_batch=sweep.train.micro_batch,
        pool=sweep.train.pool,
        injection=sweep.sampler.injection,
        window=sweep.sampler.window,
        strength_floor=sweep.train.strength_floor,
        seed=sweep.seed,
        gradient=_GRADIENTS[sweep.gradient.policy],
    )


def _report(
    bench: Bench,
    sweep: Sweep,
    reporter: Reporter,
    directions: DirectionSet,
    iteration: int,
    curve: list[dict[str, float]],
    engines: Engines | None,
) -> None:
    """Measure the set on the seeds that choose between trials, and report it with a checkpoint."""
    metrics = bench.measure(sweep, directions, SELECT_SEEDS).metrics
    described = replace(directions, metrics=metrics)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "directions").mkdir()
        described.write(folder / "directions")
        bench.draw(sweep, described, folder)
        if engines is not None:
            engines.save(folder / "engines", iteration)
        reporter.report({"global_step": iteration, "metrics": metrics, "curve": curve, **metrics}, folder)
