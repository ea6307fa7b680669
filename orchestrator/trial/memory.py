"""Predict the memory that training takes, and choose the settings that fit a device, before anything runs.

`orchestrate plan` and every trial of a method that trains call the same function, `choose`, so their settings agree.
A policy or a micro-batch that the sweep file names is kept. Otherwise the micro-batch is the largest that fits. Policy
auto becomes the first of these that fits:

    1  keep_steps with the largest micro-batch with which no step is run again; micro-batches below 4 are not tried
    2  keep_steps with the largest micro-batch and as many steps as the device holds
    3  checkpoint_blocks with the largest micro-batch

Samples are drawn `sampler.batch` at a time, or half as many, or a quarter, and so on, as fits.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import psutil
import torch

from core.chain.gradient import GradientPolicy, KeepSteps, PredictedMemory, free_memory, predict
from core.chain.schedule import Schedule
from core.execution.lean import lean
from core.execution.streaming import offloaded, partitioned
from core.methods.learned.looks import PIXELS
from core.methods.sources import DENOISER
from core.methods.trained.training_settings import TrainingSettings
from core.methods.training_memory import drawing_bytes, pool_bytes, trained_bytes
from core.model.denoiser import Denoiser
from core.precision import PRECISIONS
from core.predictors.memory import Through, scoring_bytes
from orchestrator.spec import PAIRED, PARAMETERS, Sweep, Value
from orchestrator.trial.settings import POLICIES, settings_of

RESERVE = 0.1  # share of a device left free for rounding by the allocator, workspaces of libraries, and the driver
_WORTHWHILE = 4  # below this micro-batch a GPU is idle for longer than a step takes to run again
_HEAVIEST = ("per_step", "time", "shared")  # parametrisations of the shift, by memory, the largest first
_STARTS = ("slopes", "pca", "supervised", "random")  # of the directions, by what they look at, the most first


@dataclass(frozen=True)
class Footprint:
    """One way to train on a device, with its peak memory in bytes, by parts."""

    policy: str
    gradient: GradientPolicy  # a KeepSteps holds the bytes that kept steps may take
    micro_batch: int
    draw_batch: int  # samples drawn at a time, unshifted ones and those for measuring
    chain: PredictedMemory
    trained: int  # shift control, discriminator and what else trains; optimisers; losses on a micro-batch
    pool: int
    drawing: int  # the peak while samples are drawn
    steps: int  # the number of steps that are differentiated
    device: int

    @property
    def training(self) -> int:
        """The peak bytes while the gradient is computed."""
        return self.chain.peak + self.trained + self.pool

    @property
    def peak(self) -> int:
        """The larger of the peaks while training and while drawing, in bytes."""
        return max(self.training, self.drawing)

    @property
    def fits(self) -> bool:
        """Whether the peak fits in the usable part of the device."""
        return self.peak <= usable(self.device)

    @property
    def again(self) -> int:
        """The number of steps that are run again in the backward pass."""
        return self.steps - self.chain.kept

    def __str__(self) -> str:
        taken = self.training if self.drawing <= usable(self.device) else self.peak
        return f"{self.policy} with micro_batch {self.micro_batch} takes {taken / 1e9:.1f} GB"


@dataclass(frozen=True)
class Case:
    """The input of a prediction: a denoiser, which needs no weights, its chain, the sweep, and the method settings.

    through: the predictor or the vision model that the gradient goes through, None where there is none or it is not at
    hand; device: where it is.
    """

    denoiser: Denoiser
    schedule: Schedule
    sweep: Sweep
    settings: TrainingSettings
    through: Through | None = None
    device: str = "cpu"

    def trained(self, micro_batch: int, optimiser_bytes: int = 8) -> int:
        """Return the bytes of what trains and of its losses on `micro_batch` samples."""
        own = trained_bytes(self.denoiser, self.schedule, self.settings, micro_batch, optimiser_bytes)
        return own + scoring_bytes(self.through, self.denoiser.image_shape, micro_batch, self.device)


def usable(device: int) -> int:
    """Return the bytes of a device that settings may use: all but RESERVE."""
    return int((1 - RESERVE) * device)


def device_bytes(sweep: Sweep, device: torch.device, held: int = 0) -> int:
    """Return the bytes that a trial may take of the device that it runs on. held: bytes that it has taken already.

    Of a GPU this is the trial's share, or all that is free where that is less. Of a CPU's memory it is the trial's
    share of what is free. What the trial holds counts as free; what its process holds beside it does not.
    """
    free = free_memory(device) + held
    if device.type != "cuda":
        return int(free * min(1.0, sweep.resources.cpus_per_worker / (psutil.cpu_count() or 1)))
    _, total = torch.cuda.mem_get_info(device)
    others = max(0, torch.cuda.memory_allocated(device) - held)  # networks that judge or look on
    return min(free, share_of(sweep, total) - others)


def share_of(sweep: Sweep, device: int) -> int:
    """Return the bytes that a trial may take of a GPU of `device` bytes."""
    return int(device * min(1.0, sweep.resources.gpus_per_trial or 1.0))


def without_weights(sweep: Sweep) -> Denoiser:
    """Return the sweep's denoiser without data, built as its trials run it.

    Raises ModelError where no configuration is available.
    """
    denoiser = Denoiser.without_weights(sweep.model, PRECISIONS[sweep.train.precision].dtype, **sweep.denoiser.use)
    if sweep.gradient.weights == "cpu":
        return offloaded(denoiser, "meta")
    if sweep.gradient.weights == "partitioned":
        return partitioned(denoiser, "meta", 0, sweep.resources.workers)
    return lean(denoiser) if sweep.gradient.lean else denoiser


def looks_of(sweep: Sweep, method: str) -> tuple[str, ...]:
    """Return what a method that trains may look at in this sweep, of vision models one; the slowest first."""
    if method != "learned":
        return (PIXELS,)
    values = [str(look) for look in sweep.possible_values("learned.look", method) or ()]
    visions = [look for look in values if look not in (PIXELS, DENOISER)]
    return (*visions[:1], *(look for look in (DENOISER, PIXELS) if look in values))


def heaviest(sweep: Sweep, method: str = "learned", look: str | None = None) -> TrainingSettings:
    """Return the settings of a method that trains, in this sweep, that take the most memory.

    look: what `learned` looks at; None: the slowest. Which takes the most memory depends on the model.
    """
    shapes = sweep.possible_values("parametrisation", method) or ()
    parameters: dict[str, Value] = {"method": method}
    parameters["parametrisation"] = next(name for name in _HEAVIEST if name in shapes)
    start = "start" if method == "learned" else f"{method}.start"
    starts = sweep.possible_values(start, method) or ()
    parameters[start] = next(name for name in _STARTS if name in starts)
    if method == "learned":
        parameters["directions"] = max(sweep.possible_values("directions", method) or ())
        parameters["learned.look"] = look or looks_of(sweep, method)[0]
    else:
        asked = sweep.possible_values("guided.attributes", method) or ()
        parameters["guided.attributes"] = max(asked, key=lambda names: (names == "all", str(names).count(";")))
    for name in ("discriminator_weight", *PAIRED):
        if method in PARAMETERS[name].methods:
            weights = sweep.possible_values(name, method)
            parameters[name] = 1.0 if weights is None or any(weights) else 0.0
    settings: TrainingSettings = settings_of(parameters, sweep)
    return settings


def choose(case: Case, device: int) -> Footprint:
    """Return how a method trains on a device of `device` bytes; the smallest setting where nothing fits."""
    sweep = case.sweep
    sizes = (sweep.train.micro_batch,) if sweep.train.micro_batch else sweep.micro_batches
    if sweep.gradient.policy != "auto":
        return _first_fitting(_tried(case, sweep.gradient.policy, sizes, device))
    large = [size for size in sizes if size >= _WORTHWHILE or sweep.train.micro_batch]
    unhurried = (option for option in _tried(case, "keep_steps", large, device) if not option.again)
    smaller = (_tried(case, policy, sizes, device) for policy in ("keep_steps", "checkpoint_blocks"))
    return _first_fitting(chain(unhurried, *smaller))


def next_fitting(case: Case, device: int) -> Footprint:
    """Return the nearest settings that fit where those of the sweep file do not; the smallest where nothing fits."""
    most = case.sweep.train.micro_batch or case.sweep.train.batch
    sizes = [size for size in case.sweep.micro_batches if size <= most]
    return _first_fitting(
        chain(*(_tried(case, policy, sizes, device) for policy in ("checkpoint_steps", "checkpoint_blocks")))
    )


def footprint(case: Case, policy: str, micro_batch: int, device: int) -> Footprint:
    """Return the footprint of training with this policy and micro-batch on a device of `device` bytes."""
    denoiser, schedule, settings, gradient = case.denoiser, case.schedule, case.settings, POLICIES[policy]
    trained = case.trained(micro_batch, _optimiser_bytes(case.sweep))
    pool = pool_bytes(denoiser, settings)
    rest = max(usable(device) - trained - pool, 0)
    predicted = _chain(case, micro_batch, gradient, rest)
    if policy == "keep_steps":
        limit = case.sweep.gradient.bytes
        if limit is not None and (limit < predicted.graphs or case.sweep.gradient.policy == policy):
            predicted = _chain(case, micro_batch, KeepSteps(limit))
        gradient = KeepSteps(predicted.graphs)
    beside = predicted.network + trained + pool
    batch, drawing = _drawing(case, usable(device) - beside)
    steps = len(schedule) - schedule.steps_in_window(settings.window).index(True)
    return Footprint(policy, gradient, micro_batch, batch, predicted, trained, pool, beside + drawing, steps, device)


def _chain(case: Case, micro_batch: int, gradient: GradientPolicy, memory: int | None = None) -> PredictedMemory:
    settings = case.settings
    return predict(
        case.denoiser, case.schedule, micro_batch, gradient, None, settings.injection, settings.window, memory
    )


def _drawing(case: Case, memory: int) -> tuple[int, int]:
    """Return (samples drawn at a time, bytes): `sampler.batch`, halved until it fits in `memory` or is 1."""
    batch = case.sweep.sampler.batch
    while (needed := drawing_bytes(case.denoiser, case.schedule, batch)) > memory and batch > 1:
        batch //= 2
    return batch, needed


def _optimiser_bytes(sweep: Sweep) -> int:
    """Return the bytes per parameter, at most, that DeepSpeed and Adam hold on the device beside it and its gradient.

    ZeRO-3 is counted as if whole parameters stayed on the device, though they are there only while they are used.
    """
    engine, workers = sweep.deepspeed, sweep.resources.workers
    if engine.zero == 0:
        return 8 if engine.precision == "fp32" else 16  # Adam's moments; and a float32 copy and its gradient
    gpu = sweep.resources.gpus_per_trial > 0
    adam = 0 if gpu and engine.offload_optimizer != "none" else 12  # moments and a float32 copy
    part = 4 if engine.zero == 3 and not (gpu and engine.offload_param != "none") else 0
    return 8 + -(-(adam + part) // workers)  # 8: a bucket and the result of its reduction


def _tried(case: Case, policy: str, sizes: Iterable[int], device: int) -> Iterator[Footprint]:
    return (footprint(case, policy, size, device) for size in sizes)


def _first_fitting(ways: Iterator[Footprint]) -> Footprint:
    """Return the first that fits, else the last."""
    way = next(ways)
    while not way.fits:
        following = next(ways, None)
        if following is None:
            break
        way = following
    return way
