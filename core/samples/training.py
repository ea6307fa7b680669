"""The training samples: the unshifted samples from which methods find directions, and the spread of their h."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.chain.schedule import Schedule
from core.errors import UserError
from core.model.denoiser import Denoiser
from core.randomness import TRAIN_SEEDS
from core.samples.cache import SampleCache
from core.samples.draw import IMAGES, H, before_step, draw, draw_h

RUN_SAMPLES = 1 << 20  # training samples reserved for each run seed
RUNS = len(TRAIN_SEEDS) // RUN_SAMPLES  # run seeds are 0 to RUNS - 1
SPREAD_SAMPLES = 256  # the first of them, on which methods that do not train measure the spread of h


def training_seeds(count: int, seed: int = 0) -> range:
    """Return the first `count` sample seeds of the run with this `seed`. Runs with different seeds share none.

    Raises UserError for a `seed` or a `count` out of range.
    """
    if not 0 <= seed < RUNS:
        raise UserError(f"seed: got {seed}; allowed: 0 to {RUNS - 1}")
    if not 1 <= count <= RUN_SAMPLES:
        raise UserError(f"samples: got {count}; a run looks at 1 to {RUN_SAMPLES}")
    first = seed * RUN_SAMPLES
    return TRAIN_SEEDS[first : first + count]


def measured_spread(
    denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], batch: int = 64, cache: SampleCache | None = None
) -> Tensor:
    """Return the spread s_t of h [T] over the samples with these seeds, computed in one pass; float64, on the CPU.

    s_t = root mean square of ||h_t - mean h_t||, the distance of a typical sample from the mean. It is the unit in
    which shifts are measured, at every step of every model.
    """
    total: Tensor | None = None
    squares: Tensor | None = None
    for part in draw_h(denoiser, schedule, seeds, batch, cache):
        h = part.cpu().double()
        total = h.sum(1) + (0 if total is None else total)
        squares = h.square().flatten(1).sum(1) + (0 if squares is None else squares)
    assert total is not None and squares is not None
    mean = total / len(seeds)
    return (squares / len(seeds) - mean.flatten(1).square().sum(1)).clamp(min=0).sqrt()


@dataclass(frozen=True)
class Pool:
    """The P training samples of a run, drawn once, with the states from which shifted chains start."""

    seeds: range
    first_step: int  # the first step to run from x_t
    x_t: Tensor  # [P, *sample_shape], the states before step `first_step`; x_T where that is 0
    x_0: Tensor  # [P, *sample_shape], the unshifted samples

    def to(self, device: torch.device | str) -> "Pool":
        """Return the pool with its tensors on `device`."""
        return replace(self, x_t=self.x_t.to(device), x_0=self.x_0.to(device))


def draw_pool(
    denoiser: Denoiser,
    schedule: Schedule,
    seeds: range,
    batch: int = 64,
    first: int = 0,
    cache: SampleCache | None = None,
) -> tuple[Pool, Tensor]:
    """Return the pool of these training samples, and the h of their chains [T, P, *h_shape], float32, on the CPU.

    seeds: from `training_seeds`; first: the first step that will be shifted; the steps before it run only here.
    """
    state = before_step(first)
    h = torch.empty(len(schedule), len(seeds), *denoiser.h_shape)
    states, images, done = [], [], 0
    for part in draw(denoiser, schedule, seeds, (state, IMAGES, H), batch, cache):
        h[:, done : done + len(part[IMAGES])] = part[H].cpu().float()
        done += len(part[IMAGES])
        states.append(part[state])
        images.append(part[IMAGES])
    return Pool(seeds, first, torch.cat(states), torch.cat(images)), h
