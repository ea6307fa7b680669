"""Measure on this machine, in about a minute, what the parts of a trial take (`orchestrator.plan.duration` predicts).

Measured are the parts that repeat: one call of the network, one micro-batch of training with the real engines, the
start of the directions, and the judge's training on data of the right shape. The pool is never drawn whole. Where
trials run side by side on the cores of one machine, as many processes measure side by side, since they share its memory
and caches. Communication between the workers that share a batch is not measured.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from statistics import mean, median
from typing import Any

import psutil
import torch

from core.chain.schedule import Schedule
from core.errors import UserError
from core.methods import METHODS, learned
from core.methods.sources import DENOISER, READ, find_sources
from core.methods.trained.chain_learner import ChainLearner, Workers
from core.methods.trained.starts import leading_components
from core.methods.trained.training_settings import TrainingSettings
from core.metrics import Traversals
from core.metrics.evaluation import seen_by_a_viewer
from core.metrics.identifiability import ITERATIONS, identifiability
from core.metrics.traversals import SCALES, shown_by
from orchestrator.spec import Sweep, Value
from orchestrator.trial.attempt import Attempt
from orchestrator.trial.memory import Case, device_bytes, heaviest
from orchestrator.trial.model import TrialModel
from orchestrator.trial.settings import method_of, with_names

_ENOUGH_S = 0.25  # seconds of one call of the network that are enough to time it
_TIMED_S = 10.0  # seconds of training, after a first iteration that does not count
_LONG_S = 60.0  # seconds; an iteration that would take longer is measured on a shorter chain
_BACKWARD = 3  # forward passes that a step takes forward and backward, at least
_SEEN = 1024  # samples in which sources are looked for
_JUDGED = 15  # iterations of each of the two networks, of ITERATIONS


@dataclass(frozen=True)
class Timings:
    """The measured seconds of the parts; None where no trial of the sweep needs the part."""

    load: float  # start of a process, its imports, and the model
    forward: float  # one sample through the whole network
    score: float  # one image by the attribute predictor, and by the second one where there is one
    judge: float  # the training of the networks that measure identifiability, on a set of up to 16 directions
    labels: float = 0  # not a time: the number of attributes that the predictor scores
    start: float | None = None  # of the learned directions, from the pool's h
    iteration: float | None = None  # of training the heaviest configuration, of the method that takes longest
    sources: float | None = None  # of method semantic: looking at its samples and finding what they vary in
    decode: float = 0.0  # one latent to an image; 0 where samples are images


def trials_at_a_time(sweep: Sweep) -> int:
    """Return how many trials this machine runs at a time; 0 where it has no room for one."""
    resources = sweep.resources
    if resources.gpus_per_trial:
        return int(torch.cuda.device_count() / resources.gpus_per_trial + 1e-9)
    return (os.cpu_count() or 1) // (resources.cpus_per_worker * resources.workers)


def device_name() -> str:
    """Return the name of the device that this machine computes on."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return f"CPU with {os.cpu_count()} cores"


def refuse_elsewhere(sweep: Sweep) -> None:
    """Raise UserError where the resources of this machine are not enough for one trial."""
    gpus, there = sweep.resources.gpus_per_trial, torch.cuda.device_count()
    if gpus > there:
        raise UserError(
            f"--probe: a trial asks for {gpus:g} GPU (resources.gpus_per_trial) and this machine has {there}; measure "
            "on a machine like those that will run it, or set resources.gpus_per_trial to what is here"
        )
    if not gpus and trials_at_a_time(sweep) < 1:
        raise UserError(
            f"--probe: a trial asks for {sweep.resources.workers * sweep.resources.cpus_per_worker} CPU and this "
            f"machine has {os.cpu_count()}; measure on a machine like those that will run it"
        )


def measure(sweep: Sweep, side_by_side: int) -> Timings:
    """Return the means over `side_by_side` processes that measure at once. Raises UserError where there is no model."""
    context = get_context("spawn")  # no copy of this process, whose threads and GPU are in use
    try:
        with ProcessPoolExecutor(side_by_side, context, initializer=_silent) as pool:
            running = [pool.submit(_measured, sweep) for _ in range(side_by_side)]
            results = [each.result() for each in running]
    except BrokenProcessPool:
        raise RuntimeError("the probe's process was ended while it measured: is there enough memory?") from None
    return _mean(results)


def _mean(results: list[Timings]) -> Timings:
    together: dict[str, Any] = {}
    for name in asdict(results[0]):
        values = [getattr(each, name) for each in results]
        together[name] = None if None in values else mean(values)
    return Timings(**together)


def _silent() -> None:
    """Discard the output of libraries in this process: the output of the command is a plan."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _measured(sweep: Sweep) -> Timings:
    if not torch.cuda.is_available():
        torch.set_num_threads(sweep.resources.cpus_per_worker)
    trial_model = TrialModel.load(sweep)
    load = time.time() - psutil.Process().create_time()
    forward = _forward_s(trial_model, sweep.sampler.batch)
    labels = len(trial_model.attributes.names) if trial_model.attributes else 0
    decode = _decode_s(trial_model)
    measured = Timings(load, forward, _score_s(trial_model), _judge_s(trial_model), labels, decode=decode)
    if DENOISER in (sweep.possible_values("semantic.look", "semantic") or ()) and "semantic" in sweep.methods:
        measured = replace(measured, sources=_sources_s(trial_model, *_most_of_semantic(sweep)))
    settings = {method: with_names(heaviest(sweep, method), trial_model.attributes) for method in sweep.trained}
    if not settings:
        return measured
    start = _start_s(trial_model, settings["learned"]) if "learned" in settings else None
    iteration = max(_iteration_s(trial_model, sweep, each, forward) for each in settings.values())
    return replace(measured, start=start, iteration=iteration)


@torch.no_grad()
def _forward_s(trial_model: TrialModel, most: int) -> float:
    """Return the seconds per sample, in a batch as large as samples are drawn in, or large enough to time."""
    denoiser, size = trial_model.denoiser, 1
    timestep = trial_model.schedule.timesteps[0]
    while True:
        call = partial(denoiser, torch.randn(size, *denoiser.sample_shape, device=denoiser.device), timestep)
        call()
        if (taken := _timed(call)) > _ENOUGH_S or size == most:
            return min(taken, _timed(call), _timed(call)) / size
        size = min(2 * size, most)


def _score_s(trial_model: TrialModel) -> float:
    predictors = [each for each in (trial_model.attributes, trial_model.second_attributes) if each is not None]
    if not predictors:
        return 0.0
    images = torch.zeros(16, *trial_model.denoiser.image_shape, device=trial_model.denoiser.device)

    def score() -> None:
        for each in predictors:
            each.score(images)

    score()
    return _timed(score) / len(images)


@torch.no_grad()
def _decode_s(trial_model: TrialModel) -> float:
    """Return the seconds of decoding one latent, four at a time; 0 where samples are images."""
    denoiser = trial_model.denoiser
    if denoiser.codec is None:
        return 0.0
    images, latents = shown_by(denoiser), torch.randn(4, *denoiser.sample_shape)
    images(latents)
    return _timed(lambda: images(latents)) / len(latents)


def _judge_s(trial_model: TrialModel) -> float:
    """Return the seconds of training both networks, on noise of the shape that they see."""
    shape = trial_model.denoiser.image_shape
    images = torch.rand(3 * (1 + 2 * len(SCALES)), *shape) * 2 - 1
    seen = seen_by_a_viewer(Traversals(images[:3], images[3:].reshape(3, 2, len(SCALES), *shape), SCALES))

    def judge(iterations: int) -> None:
        identifiability(seen, iterations=iterations, device=trial_model.denoiser.device)

    judge(1)
    return _timed(lambda: judge(_JUDGED)) * ITERATIONS / _JUDGED


def _start_s(trial_model: TrialModel, settings: learned.Settings) -> float:
    """Return the seconds of finding components or sources, on random numbers of the shape of the pool; no slopes."""
    denoiser, directions = trial_model.denoiser, settings.directions
    taken = 0.0
    if settings.start == "pca":
        h = torch.randn(len(trial_model.schedule), settings.pool, *denoiser.h_shape)
        taken = _timed(lambda: leading_components(h, directions, settings.parametrisation))
    if settings.finds_sources:
        taken += _sources_s(trial_model, settings.pool, min(directions, READ))
    return taken


def _sources_s(trial_model: TrialModel, samples: int, directions: int) -> float:
    """Return the seconds of finding sources in what the denoiser sees of samples, which are noise here.

    The time is that of at most _SEEN samples, in proportion.
    """
    denoiser, few = trial_model.denoiser, min(samples, _SEEN)
    x_0 = torch.randn(few, *denoiser.sample_shape, dtype=denoiser.chain_dtype, device=denoiser.device)
    return _timed(lambda: find_sources(denoiser, x_0, directions)) * samples / few


def _most_of_semantic(sweep: Sweep) -> tuple[int, int]:
    """Return the most samples and the most directions that method semantic may have in this sweep."""
    samples, directions = (sweep.possible_values(name, "semantic") or () for name in ("semantic.samples", "directions"))
    return _greatest(samples), _greatest(directions)


def _greatest(values: Sequence[Value]) -> int:
    """Return the largest of whole numbers; of a range without going through it."""
    ends = (values[0], values[-1]) if isinstance(values, range) else values
    return max(map(int, ends))


def _iteration_s(trial_model: TrialModel, sweep: Sweep, settings: TrainingSettings, forward: float) -> float:
    """Return the seconds of an iteration: the median of a few on one micro-batch, times the micro-batches per batch."""
    from orchestrator.trial.engine import Engines  # imports DeepSpeed

    denoiser, schedule = trial_model.denoiser, trial_model.schedule
    share = settings.batch // sweep.resources.workers
    through, device = trial_model.through(settings), str(denoiser.device)
    case = Case(denoiser.blueprint(), schedule, sweep, settings, through, device)
    attempt = Attempt.first(case, device_bytes(sweep, denoiser.device, denoiser.weight_bytes()))
    micro = attempt.settings.micro_batch or share
    steps = len(schedule) - schedule.steps_in_window(settings.window).index(True)
    few = max(2, min(steps, int(_LONG_S / (_BACKWARD * forward * micro))))
    window = settings.window
    if few < steps:
        schedule, window = Schedule.ddim(denoiser, few, schedule.eta), None
    changes: dict[str, Any] = {"batch": micro, "pool": max(2, micro), "start": "random", "window": window}
    small = replace(attempt.settings, **changes)
    engines, method = Engines(sweep.deepspeed, micro), method_of(settings)
    try:
        workers, networks = Workers(engines.make), trial_model.networks_for(settings)
        learner: ChainLearner[Any, Any] = METHODS[method].Learner(
            denoiser, schedule, small, workers, attempt.draw_batch, **networks
        )
        taken = [_timed(lambda: learner.iterate(0))]
        while sum(taken[1:]) < _TIMED_S and len(taken) < 6 and (len(taken) < 2 or taken[0] < _TIMED_S):
            taken.append(_timed(lambda: learner.iterate(len(taken))))
    finally:
        engines.close()
    return median(taken[1:]) * (share // micro) * max(1.0, steps / few)


def _timed(work: Callable[[], object]) -> float:
    """Return the seconds until the work is done, on a GPU too."""
    _settle()
    began = time.perf_counter()
    work()
    _settle()
    return time.perf_counter() - began


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
