"""The training samples: what every method looks at, unshifted, before it finds anything."""

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

RUN_SAMPLES = 1 << 20  # training samples set aside for each seed
SPREAD_SAMPLES = 256  # of them, those on which methods that do not train measure the spread of h


def training_seeds(count: int, seed: int = 0) -> range:
    """The first `count` of the samples that a run with this `seed` may look at; no two runs share any."""
    runs = len(TRAIN_SEEDS) // RUN_SAMPLES
    if not 0 <= seed < runs:
        raise UserError(f"seed: got {seed}; allowed: 0 to {runs - 1}")
    if not 1 <= count <= RUN_SAMPLES:
        raise UserError(f"samples: got {count}; a run looks at 1 to {RUN_SAMPLES}")
    first = seed * RUN_SAMPLES
    return TRAIN_SEEDS[first : first + count]


def measured_spread(
    denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int], batch: int = 64, cache: SampleCache | None = None
) -> Tensor:
    """The spread s_t of h [T] over the samples of `seeds`, in one pass; float64, on the CPU.

    s_t = root mean square of ||h_t - mean h_t||: the distance of a typical sample from the mean, the unit in which
    shifts are measured at every step of every model.
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
    """Training samples, drawn once, and the state from which their chains go on."""

    seeds: range
    first: int  # the step before which the chains are
    x_t: Tensor  # [P, *sample_shape], their state there; x_T where first is 0
    x_0: Tensor  # [P, *sample_shape], where they end unshifted

    def to(self, device: torch.device | str) -> "Pool":
        return replace(self, x_t=self.x_t.to(device), x_0=self.x_0.to(device))


def draw_pool(
    denoiser: Denoiser,
    schedule: Schedule,
    size: int,
    seed: int = 0,
    batch: int = 64,
    first: int = 0,
    cache: SampleCache | None = None,
) -> tuple[Pool, Tensor]:
    """`size` unshifted training samples and the h they passed through: [T, P, *h_shape], float32, on the CPU.

    first: the first step that will be shifted; what comes before it is run here, once and for all.
    """
    seeds, state = training_seeds(size, seed), before_step(first)
    h = torch.empty(len(schedule), size, *denoiser.h_shape)
    states, images, done = [], [], 0
    for part in draw(denoiser, schedule, seeds, (state, IMAGES, H), batch, cache):
        h[:, done : done + len(part[IMAGES])] = part[H].cpu().float()
        done += len(part[IMAGES])
        states.append(part[state])
        images.append(part[IMAGES])
    return Pool(seeds, first, torch.cat(states), torch.cat(images)), h
