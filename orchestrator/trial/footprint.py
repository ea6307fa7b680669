"""What training takes in memory, and the settings that fit a device: counted before anything runs.

`orchestrate plan` and every trial of the learned method ask the same function, `choose`, and so agree. A policy that
the sweep file names stays, and so does a micro-batch, else it is the largest that fits. Policy auto becomes, of what
fits,

    1  keep_steps with the largest micro-batch of which no step is run again, though none below 4 for its sake
    2  else keep_steps with the largest micro-batch and as many steps as the device holds
    3  else checkpoint_blocks with the largest micro-batch

Samples are drawn `sampler.batch` at a time, or half as many, or a quarter, as fits.
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
from core.methods import learned
from core.methods.learned.memory import drawing_bytes, pool_bytes, trained_bytes
from core.model.denoiser import Denoiser
from core.precision import PRECISIONS
from orchestrator.spec import Sweep
from orchestrator.trial.settings import POLICIES, settings_of

RESERVE = 0.1  # of a device, for what an allocator rounds up, a library's workspace, the driver
_WORTHWHILE = 4  # below this micro-batch a GPU is idle for longer than a step takes to run again
_HEAVIEST = ("per_step", "time", "shared")  # parametrisations of the shift, by what they take


@dataclass(frozen=True)
class Footprint:
    """One way to train on a device, and its peak bytes by parts."""

    policy: str
    gradient: GradientPolicy  # with the memory that kept steps may take
    micro_batch: int
    draw_batch: int  # unshifted samples, and those that are measured, at a time
    chain: PredictedMemory
    trained: int  # shift control, reconstructor and discriminator; their optimisers; their losses on a micro-batch
    pool: int
    drawing: int  # the peak while samples are drawn
    steps: int  # that are differentiated
    device: int

    @property
    def training(self) -> int:
        """The peak while the gradient is taken."""
        return self.chain.peak + self.trained + self.pool

    @property
    def peak(self) -> int:
        return max(self.training, self.drawing)

    @property
    def fits(self) -> bool:
        return self.peak <= usable(self.device)

    @property
    def again(self) -> int:
        """Steps that are run again on the way back."""
        return self.steps - self.chain.kept

    def __str__(self) -> str:
        taken = self.training if self.drawing <= usable(self.device) else self.peak
        return f"{self.policy} with micro_batch {self.micro_batch} takes {taken / 1e9:.1f} GB"


@dataclass(frozen=True)
class Case:
    """What is asked about: a denoiser, which needs no weights, its chain, the sweep, and settings of the method."""

    denoiser: Denoiser
    schedule: Schedule
    sweep: Sweep
    settings: learned.Settings


def usable(device: int) -> int:
    """Bytes of a device that may be planned with."""
    return int((1 - RESERVE) * device)


def device_bytes(sweep: Sweep, device: torch.device, held: int = 0) -> int:
    """What a trial may take of the device that it runs on; `held` is what it has taken already.

    Of a GPU its share, or all that is free where that is less; of a CPU's memory its share of what is free.
    """
    free = free_memory(device) + held
    if device.type != "cuda":
        return int(free * min(1.0, sweep.resources.cpus_per_worker / (psutil.cpu_count() or 1)))
    _, total = torch.cuda.mem_get_info(device)
    return min(free, share_of(sweep, total))


def share_of(sweep: Sweep, device: int) -> int:
    """What a trial may take of a GPU of `device` bytes."""
    return int(device * min(1.0, sweep.resources.gpus_per_trial or 1.0))


def without_weights(sweep: Sweep) -> Denoiser:
    """The sweep's denoiser as its trials run it, without data. Raises ModelError where no configuration is at hand."""
    denoiser = Denoiser.without_weights(sweep.model, PRECISIONS[sweep.train.precision].dtype, **sweep.denoiser.use)
    if sweep.gradient.weights == "cpu":
        return offloaded(denoiser, "meta")
    if sweep.gradient.weights == "partitioned":
        return partitioned(denoiser, "meta", 0, sweep.resources.workers)
    return lean(denoiser) if sweep.gradient.lean else denoiser


def heaviest(sweep: Sweep) -> learned.Settings:
    """Of the learned method's settings in this sweep those that take the most memory."""
    directions, shapes = (sweep.taken(name, "learned") or () for name in ("directions", "parametrisation"))
    parameters = {"method": "learned", "directions": max(directions)}
    parameters["parametrisation"] = next(name for name in _HEAVIEST if name in shapes)
    for name in ("discriminator_weight", "consistency_weight"):
        weights = sweep.taken(name, "learned")
        parameters[name] = 1.0 if weights is None or any(weights) else 0.0
    settings: learned.Settings = settings_of(parameters, sweep)
    return settings


def choose(case: Case, device: int) -> Footprint:
    """How the learned method trains on a device of so many bytes; the least that it can take where nothing fits."""
    sweep = case.sweep
    sizes = (sweep.train.micro_batch,) if sweep.train.micro_batch else sweep.micro_batches
    if sweep.gradient.policy != "auto":
        return _first_fitting(_tried(case, sweep.gradient.policy, sizes, device))
    large = [size for size in sizes if size >= _WORTHWHILE or sweep.train.micro_batch]
    unhurried = (found for found in _tried(case, "keep_steps", large, device) if not found.again)
    smaller = (_tried(case, policy, sizes, device) for policy in ("keep_steps", "checkpoint_blocks"))
    return _first_fitting(chain(unhurried, *smaller))


def next_fitting(case: Case, device: int) -> Footprint:
    """The nearest settings that fit where those of the sweep file do not; the least there is where nothing fits."""
    most = case.sweep.train.micro_batch or case.sweep.train.batch
    sizes = [size for size in case.sweep.micro_batches if size <= most]
    return _first_fitting(
        chain(*(_tried(case, policy, sizes, device) for policy in ("checkpoint_steps", "checkpoint_blocks")))
    )


def footprint(case: Case, policy: str, micro_batch: int, device: int) -> Footprint:
    """The peak bytes of one way to train."""
    denoiser, schedule, settings, gradient = case.denoiser, case.schedule, case.settings, POLICIES[policy]
    trained = trained_bytes(denoiser, schedule, settings, micro_batch, _optimiser_bytes(case.sweep))
    pool = pool_bytes(denoiser, settings)
    rest = max(usable(device) - trained - pool, 0)
    found = _chain(case, micro_batch, gradient, rest)
    if policy == "keep_steps":
        limit = case.sweep.gradient.bytes
        if limit is not None and (limit < found.graphs or case.sweep.gradient.policy == policy):
            found = _chain(case, micro_batch, KeepSteps(limit))
        gradient = KeepSteps(found.graphs)
    beside = found.network + trained + pool
    batch, drawing = _drawing(case, usable(device) - beside)
    steps = len(schedule) - schedule.steps_in_window(settings.window).index(True)
    return Footprint(policy, gradient, micro_batch, batch, found, trained, pool, beside + drawing, steps, device)


def _chain(case: Case, micro_batch: int, gradient: GradientPolicy, memory: int | None = None) -> PredictedMemory:
    settings = case.settings
    return predict(
        case.denoiser, case.schedule, micro_batch, gradient, None, settings.injection, settings.window, memory
    )


def _drawing(case: Case, memory: int) -> tuple[int, int]:
    """(samples drawn at a time, bytes): `sampler.batch`, or as many halves of it as bring it into `memory`."""
    batch = case.sweep.sampler.batch
    while (needed := drawing_bytes(case.denoiser, case.schedule, batch)) > memory and batch > 1:
        batch //= 2
    return batch, needed


def _optimiser_bytes(sweep: Sweep) -> int:
    """What DeepSpeed and Adam hold for each parameter on the device, beside itself and its gradient, at most.

    ZeRO-3 is counted as if whole parameters were there all the time, though they are only while they are used.
    """
    engine, workers = sweep.deepspeed, sweep.resources.workers
    if engine.zero == 0:
        return 8 if engine.precision == "fp32" else 16  # Adam's moments; and a float32 copy and its gradient
    gpu = sweep.resources.gpus_per_trial > 0
    adam = 0 if gpu and engine.offload_optimizer != "none" else 12  # moments and a float32 copy
    part = 4 if engine.zero == 3 and not (gpu and engine.offload_param != "none") else 0
    return 8 + -(-(adam + part) // workers)  # a bucket and what it is reduced to


def _tried(case: Case, policy: str, sizes: Iterable[int], device: int) -> Iterator[Footprint]:
    return (footprint(case, policy, size, device) for size in sizes)


def _first_fitting(ways: Iterator[Footprint]) -> Footprint:
    """The first that fits, else the last."""
    way = next(ways)
    while not way.fits:
        following = next(ways, None)
        if following is None:
            break
        way = following
    return way
