"""Make random directions: the baseline for comparisons of methods."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.directions.provenance import provenance
from core.errors import UserError
from core.methods.trained.shift_control import ShiftControl
from core.model.denoiser import Denoiser
from core.randomness import generator
from core.samples.cache import SampleCache
from core.samples.draw import draw_h
from core.samples.training import SPREAD_SAMPLES, measured_spread, training_seeds


@dataclass(frozen=True)
class Settings:
    """The settings of the method. Raises UserError for one that is out of range.

    shift_scale: length of the shift at scale 1.0, in spreads of h. shaped: the share of the directions, rounded, that
    are shaped by the covariance of h; they come last, the others are isotropic. With normal numbers a_kn, the shift of
    a shaped direction k at step t is a combination of the h of N samples about their mean,

        delta_h_k,t = shift_scale / sqrt(N)  sum over n of  a_kn (h_n,t - mean h_t)

    so its covariance over draws of a_kn is that of h_t times shift_scale^2: it leads where samples differ. The numbers
    are the same at all steps. seed: of the samples and of the random numbers; draw: other numbers, the same samples.
    """

    directions: int = 16
    shift_scale: float = 0.5
    seed: int = 0
    shaped: float = 0.0
    draw: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.shaped <= 1:
            raise UserError(f"shaped: got {self.shaped:g}; allowed: 0 to 1")


def find(
    denoiser: Denoiser,
    schedule: Schedule,
    settings: Settings = Settings(),  # noqa: B008  # frozen
    batch: int = 64,
    cache: SampleCache | None = None,
) -> DirectionSet:
    """Return K random directions, scaled by the measured spread of h.

    The isotropic ones are orthonormal and shared by all steps. batch: samples drawn at a time to measure h; cache:
    where they are read and kept.
    """
    seeds, steps = training_seeds(SPREAD_SAMPLES, settings.seed), len(schedule)
    spread = measured_spread(denoiser, schedule, seeds, batch, cache)
    numbers = settings.seed + settings.draw
    shaped = round(settings.shaped * settings.directions)
    isotropic = settings.directions - shaped
    tables, lengths = [], []
    if isotropic:
        shift = ShiftControl(isotropic, denoiser.h_shape, spread, schedule.timesteps, seed=numbers)
        tables.append(shift().detach().expand(-1, steps, -1, -1, -1))
        lengths.append(spread.float().expand(isotropic, steps))
    if shaped:
        h_about_mean = _combined(denoiser, schedule, seeds, shaped, numbers, batch, cache)
        norms = h_about_mean.flatten(2).norm(dim=2)
        tables.append(_unit(h_about_mean, norms).float())
        lengths.append(norms.float())
    return DirectionSet(
        torch.cat(tables).clone(),
        settings.shift_scale * torch.cat(lengths),
        schedule.timesteps,
        provenance=provenance("random", denoiser, schedule, asdict(settings)),
    )


def _combined(
    denoiser: Denoiser,
    schedule: Schedule,
    seeds: Sequence[int],
    count: int,
    seed: int,
    batch: int,
    cache: SampleCache | None,
) -> Tensor:
    """Return `count` random combinations of the h of samples about their mean: [count, T, *h_shape], float64."""
    numbers = torch.randn(count, len(seeds), generator=generator("shaped directions", seed), dtype=torch.float64)
    # Numbers that add up to 0 take the mean of h away, whatever it is.
    numbers = (numbers - numbers.mean(dim=1, keepdim=True)) / len(seeds) ** 0.5
    combined = torch.zeros(count, len(schedule), *denoiser.h_shape, dtype=torch.float64)
    done = 0
    for part in draw_h(denoiser, schedule, seeds, batch, cache):
        h = part.cpu().double()  # [T, N, *h_shape]
        combined += torch.einsum("kn,tnchw->ktchw", numbers[:, done : done + h.shape[1]], h)
        done += h.shape[1]
    return combined


def _unit(vectors: Tensor, norms: Tensor) -> Tensor:
    """Return vectors [K, T, *h_shape] over their norms [K, T]; any unit vector where h does not vary at a step."""
    flat = vectors.flatten(2)
    anywhere = torch.eye(1, flat.shape[2], dtype=flat.dtype)
    return torch.where(norms[:, :, None] > 0, flat / norms[:, :, None], anywhere).reshape(vectors.shape)
