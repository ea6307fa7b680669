"""Find the entries of a sparse autoencoder of h: a dictionary of which every sample uses a few. No labels are needed.

An autoencoder (core.statistics.sparse_autoencoder) learns to write h of unshifted samples, at every step, as a sum of
few entries out of many. An entry j is a vector d_j; how much of it h has is its activation a_j. Its direction is

    n_j,t = spread_t d_j std(a_j,t)        std over samples; spread_t: root mean square of h_t about its mean

the change of h that goes with one standard deviation of its activation. What an autoencoder sees of h is one of

    whole     all of h_t at once; an entry is a pattern over all places
    places    the channels at one place of h_t; an entry is a vector of channels, its direction has it at every place as
              strongly as its activation varies there
    pooled    the mean of h_t over places; an entry is a vector of channels, the same at every place

Sparse autoencoders of diffusion models: Surkov et al., arXiv 2410.22366, for the transformer blocks of SDXL Turbo.
Directions of h from the spread of an activation are ours.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet, units
from core.directions.provenance import provenance
from core.errors import NonFiniteError, UserError
from core.methods.setting_checks import refuse_below, refuse_no_length
from core.model.denoiser import Denoiser
from core.randomness import generator
from core.samples.cache import SampleCache
from core.samples.draw import draw_h
from core.samples.training import training_seeds
from core.statistics import sparse_autoencoder
from core.statistics.sparse_autoencoder import SparseAutoencoder

Seen = Literal["whole", "places", "pooled"]
SEEN = ("whole", "places", "pooled")
Steps = Literal["all", "early", "late"]
STEPS = ("all", "early", "late")
_DENSE = 0.5  # share of rows from which on an entry belongs to everything
_HELD = 2**27  # numbers of h that are held at a time to learn from; of more, as many are chosen at random


@dataclass(frozen=True)
class Settings:
    """The settings of the method.

    width: entries of the dictionary; active: the most that a row is made of; seen: what of h is a row; steps: of which
    half of the chain, or all of it; samples: number of samples that are looked at; iterations: of the autoencoder's
    training; sigmas: length of the shift at scale 1.0, in standard deviations of the activation.
    """

    directions: int = 16
    width: int = 256
    active: int = 4
    seen: Seen = "places"
    steps: Steps = "all"
    samples: int = 1024
    iterations: int = 1000
    sigmas: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_below(self, directions=1, active=1, samples=2, iterations=0, seed=0)
        for name, allowed in (("seen", SEEN), ("steps", STEPS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name}: got '{getattr(self, name)}'; allowed: {', '.join(allowed)}")
        if self.width < max(self.directions, self.active):
            most = f"{self.directions} directions and rows of {self.active} entries"
            raise UserError(f"width: got {self.width}; {most} need at least {max(self.directions, self.active)}")
        refuse_no_length(self.sigmas)


def find(
    denoiser: Denoiser,
    schedule: Schedule,
    settings: Settings = Settings(),  # noqa: B008  # frozen
    batch: int = 64,
    cache: SampleCache | None = None,
) -> DirectionSet:
    """Find the K entries that explain most of h, among those that some rows use and most do not.

    batch: samples drawn at a time; cache: where they are read and kept; without one every chain runs twice. Steps
    outside of `settings.steps` are not shifted. The provenance says how many entries are dead (no row uses them), how
    many dense (most do), and what share of the variance the autoencoder explains. Raises UserError where fewer entries
    are left than `settings.directions`, NonFiniteError where h is NaN or infinite.
    """
    wanted = _wanted(settings.steps, len(schedule))

    def parts() -> Iterator[Tensor]:
        """Yield what is seen of the samples' h, [T, n, P, D] of n samples, in float32."""
        for h in draw_h(denoiser, schedule, training_seeds(settings.samples, settings.seed), batch, cache):
            if not torch.isfinite(h).all():
                raise NonFiniteError(f"h of model '{denoiser.name}' became NaN or infinite in its training samples")
            yield _seen(h[wanted].float(), settings.seen)

    rows = _held(parts(), settings)
    units_of_h = Units.of(rows)
    rows = units_of_h.standardised(rows).flatten(0, 1)
    network = sparse_autoencoder.learn(rows, settings.width, settings.active, settings.iterations, settings.seed)
    usage = Usage.of(network, units_of_h, parts())
    useful = usage.useful.nonzero().flatten()
    if len(useful) < settings.directions:
        raise UserError(
            f"directions: got {settings.directions}; of the {settings.width} entries {len(useful)} are used by some "
            f"and not by most of what is seen of model '{denoiser.name}'; a larger width may give more"
        )
    best = useful[usage.energy[useful].argsort(descending=True, stable=True)[: settings.directions]]
    shifts = torch.zeros(len(best), len(schedule), *denoiser.h_shape)
    by_place = torch.einsum(
        "t,kd,tpk->ktdp",
        units_of_h.spreads.cpu(),
        network.entries.cpu()[best],
        usage.deviations[..., best],
    )
    shifts[:, wanted] = _as_h(by_place, denoiser.h_shape)
    table, length = units(shifts)
    told = {"dead": int(usage.dead.sum()), "dense": int(usage.dense.sum()), "explained": round(usage.explained, 4)}
    return DirectionSet(
        table,
        settings.sigmas * length,
        schedule.timesteps,
        provenance=provenance("sae", denoiser, schedule, asdict(settings)) | told,
    )


@dataclass(frozen=True)
class Units:
    """What rows of h are standardised by at each step."""

    means: Tensor  # [T, D]
    spreads: Tensor  # [T]

    @classmethod
    def of(cls, rows: Tensor) -> "Units":
        """Return the units of rows [T, N, D]."""
        means = rows.mean(dim=1)
        return cls(means, (rows - means[:, None]).square().mean(dim=(1, 2)).sqrt())

    def standardised(self, rows: Tensor) -> Tensor:
        """Return rows [T, N, D] of mean 0 and mean square 1 at each step; of 0 at a step where h does not vary."""
        return (rows - self.means[:, None]) / self.spreads.clamp(min=1e-12)[:, None, None]


@dataclass(frozen=True)
class Usage:
    """How rows of h use the entries of an autoencoder: of N samples, T steps and P places. All is on the CPU."""

    deviations: Tensor  # [T, P, W], of the activations over samples
    energy: Tensor  # [W], mean square of the activations over all rows
    frequency: Tensor  # [W], share of the rows that use an entry
    explained: float  # share of the rows' variance that the autoencoder explains

    @classmethod
    def of(cls, network: SparseAutoencoder, units_of_h: Units, parts: Iterator[Tensor]) -> "Usage":
        """Return how all rows use the entries. parts: [T, n, P, D] of n samples each."""
        totals, samples, left, whole = torch.zeros(3, 1, 1, 1), 0, 0.0, 0.0
        for part in parts:
            rows = units_of_h.standardised(part.flatten(1, 2))
            sums = []
            for step in rows:  # one at a time: there are more activations than numbers of h
                activations = network.activations(step)
                left += float((step - network.rebuilt(activations)).square().sum(dtype=torch.float64))
                amounts = activations.reshape(*part.shape[1:3], -1).double()
                sums.append(torch.stack([amounts.sum(dim=0), amounts.square().sum(dim=0), (amounts > 0).sum(dim=0)]))
            whole += float(rows.square().sum(dtype=torch.float64))
            totals = totals + torch.stack(sums, dim=1).cpu()  # [3, T, P, W]
            samples += part.shape[1]
        mean, square, frequency = totals / samples
        deviations = (square - mean.square()).clamp(min=0).sqrt()
        energy, frequency = square.mean(dim=(0, 1)), frequency.mean(dim=(0, 1))
        return cls(deviations.float(), energy, frequency, 1 - left / max(whole, 1e-12))

    @property
    def dead(self) -> Tensor:
        """Which entries no row uses, [W]."""
        return self.frequency == 0

    @property
    def dense(self) -> Tensor:
        """Which entries most rows use, [W]."""
        return self.frequency > _DENSE

    @property
    def useful(self) -> Tensor:
        """Which entries are neither, and not alike in all samples, [W]."""
        return ~self.dead & ~self.dense & (self.deviations.amax(dim=(0, 1)) > 0)


def _wanted(steps: Steps, count: int) -> slice:
    """Return which of `count` steps h is looked at."""
    half = (count + 1) // 2
    return {"all": slice(0, count), "early": slice(0, half), "late": slice(count - half, count)}[steps]


def _seen(h: Tensor, seen: Seen) -> Tensor:
    """Return h [T, n, C, H, W] as rows of P places: [T, n, P, D]."""
    match seen:
        case "whole":
            return h.flatten(2)[:, :, None]
        case "places":
            return h.flatten(3).transpose(2, 3)
        case "pooled":
            return h.flatten(3).mean(dim=3)[:, :, None]


def _as_h(by_place: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return what belongs to places [K, T, D, P] as shifts of h [K, T, C, H, W]; what is pooled is alike everywhere."""
    channels, height, width = shape
    if by_place.shape[2:] == (channels, 1):
        by_place = by_place.expand(-1, -1, -1, height * width)
    return by_place.reshape(*by_place.shape[:2], channels, height, width)


def _held(parts: Iterator[Tensor], settings: Settings) -> Tensor:
    """Return rows to learn from [T, N, D]: all, or at random as many as hold about _HELD numbers."""
    random, kept = generator("rows of h", settings.seed), []
    for part in parts:
        rows = part.flatten(1, 2)
        share = min(1.0, _HELD / (part[:, :1].numel() * settings.samples))
        chosen = torch.randperm(rows.shape[1], generator=random)[: max(1, round(share * rows.shape[1]))]
        kept.append(rows[:, chosen])
    return torch.cat(kept, dim=1)
