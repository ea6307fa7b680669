"""Unshifted samples and the h they pass through: what every method looks at before it finds anything."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.chain import trajectory
from core.denoiser import Denoiser
from core.errors import UserError
from core.randomness import TRAIN_SEEDS, noise, step_noise
from core.schedule import Schedule

RUN_SAMPLES = 1 << 20  # training samples set aside for each seed
SPREAD_SAMPLES = 256  # of them, those on which methods that do not train measure the spread of h


@dataclass(frozen=True)
class Drawn:
    """A batch of N unshifted samples."""

    x_T: Tensor  # [N, *sample_shape]
    x_0: Tensor  # [N, *sample_shape]
    h: Tensor  # [T, N, *h_shape]
    z: Tensor | None  # [T, N, *sample_shape] where eta > 0


def training_seeds(count: int, seed: int = 0) -> range:
    """The first `count` of the samples that a run with this `seed` may look at; no two runs share any."""
    runs = len(TRAIN_SEEDS) // RUN_SAMPLES
    if not 0 <= seed < runs:
        raise UserError(f"seed: got {seed}; allowed: 0 to {runs - 1}")
    if not 1 <= count <= RUN_SAMPLES:
        raise UserError(f"samples: got {count}; a run looks at 1 to {RUN_SAMPLES}")
    first = seed * RUN_SAMPLES
    return TRAIN_SEEDS[first : first + count]


@torch.no_grad()
def draw(denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], batch: int = 64) -> Iterator[Drawn]:
    """The samples of `seeds`, `batch` at a time, so that memory does not grow with their number."""
    # The chain's arithmetic is at least float32, however coarse the network's is.
    dtype = torch.promote_types(denoiser.dtype, torch.float32)
    for start in range(0, len(seeds), batch):
        part = seeds[start : start + batch]
        x_T = noise(part, denoiser.sample_shape, dtype, denoiser.device)
        z = None
        if schedule.eta > 0:
            z = step_noise(part, denoiser.sample_shape, len(schedule), dtype, denoiser.device)
        x_0, h = trajectory(denoiser, schedule, x_T, z)
        yield Drawn(x_T, x_0, h, z)


def measured_spread(denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], batch: int = 64) -> Tensor:
    """The spread s_t of h [T] over the samples of `seeds`, in one pass; float64, on the CPU.

    s_t = root mean square of ||h_t - mean h_t||: the distance of a typical sample from the mean, the unit in which
    shifts are measured at every step of every model.
    """
    total: Tensor | None = None
    squares: Tensor | None = None
    for part in draw(denoiser, schedule, seeds, batch):
        h = part.h.double().cpu()
        total = h.sum(1) + (0 if total is None else total)
        squares = h.square().flatten(1).sum(1) + (0 if squares is None else squares)
    assert total is not None and squares is not None
    mean = total / len(seeds)
    return (squares / len(seeds) - mean.flatten(1).square().sum(1)).clamp(min=0).sqrt()


@dataclass(frozen=True)
class Pool:
    """Training samples, drawn once: their seeds, noise and images, on the denoiser's device."""

    seeds: range
    x_T: Tensor  # [P, *sample_shape]
    x_0: Tensor  # [P, *sample_shape]


def draw_pool(denoiser: Denoiser, schedule: Schedule, size: int, seed: int = 0, batch: int = 64) -> tuple[Pool, Tensor]:
    """`size` unshifted training samples and the h they passed through: [T, P, *h_shape], float32, on the CPU."""
    seeds = training_seeds(size, seed)
    h = torch.empty(len(schedule), size, *denoiser.h_shape)
    noises, images, done = [], [], 0
    for part in draw(denoiser, schedule, seeds, batch):
        h[:, done : done + len(part.x_0)] = part.h.float().cpu()
        done += len(part.x_0)
        noises.append(part.x_T)
        images.append(part.x_0)
    return Pool(seeds, torch.cat(noises), torch.cat(images)), h
