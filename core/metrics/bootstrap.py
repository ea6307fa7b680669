"""Say within which interval a figure is known, by a bootstrap over the samples that it was measured on.

A resample gives each sample the number of times that it was drawn, as a weight. So pairs of a sample with itself can be
left out of a resample as they are left out of the figure, and two sets measured on the same samples share resamples:
the difference of two such figures has the interval of paired measurements.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.intervals import t_95
from core.randomness import generator

REPLICATES = 300  # resamples: their standard deviation is known to about 4 %
_NONE = torch.zeros(REPLICATES, dtype=torch.float64)


@dataclass(frozen=True)
class Figure:
    """A measured figure, its values on resamples of the samples, and what resamples of directions or sets add to it.

    replicates: [B] float64, in an order that figures on equally many samples share; samples: how many were resampled;
    apart: [B] deviations from the figure where the directions or sets that it is a mean of are resampled, or 0;
    others: how many of them there are.
    """

    value: float
    replicates: Tensor
    samples: int
    apart: Tensor = _NONE
    others: int = 1

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(sum(self._variances))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval: the value plus and minus t standard errors."""
        half = t_95(self.freedom) * self.error if self.error else 0.0
        return self.value - half, self.value + half

    @property
    def freedom(self) -> int:
        """The degrees of freedom of `error`: of the samples, of the directions or sets, or between the two.

        Source: Satterthwaite 1946; rounded down, since with few directions the two parts are themselves hardly known.
        """
        of_samples, of_others = self._variances
        total = of_samples + of_others
        if of_others == 0 or not math.isfinite(total):
            return self.samples - 1
        squares = (of_samples / total) ** 2 / (self.samples - 1) + (of_others / total) ** 2 / max(self.others - 1, 1)
        return math.floor(1 / squares + 1e-9)

    @property
    def _variances(self) -> tuple[float, float]:
        """Of the samples, with the small-sample factor n / (n - 1), and of the directions or sets."""
        n = self.samples
        of_samples = float(self.replicates.var(correction=0)) * n / (n - 1) if n > 1 else math.inf
        return of_samples, float(self.apart.var(correction=0))

    def minus(self, other: "Figure") -> "Figure":
        """Return the difference of two figures that were measured on the same samples."""
        return Figure(
            self.value - other.value,
            self.replicates - other.replicates,
            min(self.samples, other.samples),
            self.apart - other.apart,
            min((count for count in (self.others, other.others) if count > 1), default=1),
        )


def flat(figures: Mapping[str, Figure]) -> dict[str, float]:
    """Return figures as one table of numbers: `name`, `name/low` and `name/high`; without those that are not finite."""
    table: dict[str, float] = {}
    for name, figure in figures.items():
        if math.isfinite(figure.value):
            table[name] = figure.value
            low, high = figure.interval
            if math.isfinite(low) and math.isfinite(high):
                table |= {f"{name}/low": low, f"{name}/high": high}
    return table


def weights(count: int, what: str = "samples") -> Tensor:
    """Return how often each of `count` samples is in each resample: [B, count] float64, rows of sum `count`.

    what: the name of what is resampled; resamples of one name and count are the same everywhere.
    """
    drawn = torch.randint(count, (REPLICATES, count), generator=generator("bootstrap", what, count))
    return torch.zeros(REPLICATES, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(REPLICATES, count, dtype=torch.float64)
    )


def over_pairs(sums: Tensor, value: Tensor, drawn: Tensor) -> Tensor:
    """Return means over pairs of different samples, of sums [B, ...] over the pairs of each resample `drawn` [B, M].

    A resample of one sample only has no pairs and tells nothing: it gets `value` [...], the mean over all samples.
    """
    pairs = drawn.shape[1] ** 2 - drawn.square().sum(dim=1)
    pairs = pairs.reshape(-1, *(1 for _ in value.shape))
    return torch.where(pairs > 0, sums / pairs.clamp(min=1), value)


def of_mean(values: Tensor) -> Figure:
    """Return the mean of values [M] of samples, or [M, K] of samples and directions, both of which are resampled."""
    values = values.double()
    replicates, count = weights(len(values)) @ values / len(values), len(values)
    if values.dim() == 1:
        return Figure(float(values.mean()), replicates, count)
    return of_directions(values.mean(dim=0), replicates, count)


def of_directions(value: Tensor, replicates: Tensor, samples: int) -> Figure:
    """Return the mean over directions, which are resampled too. value: [K]; replicates: [B, K], one row a resample."""
    return Figure(float(value.mean()), replicates.mean(dim=1), samples, _apart(value, "directions"), len(value))


def pooled(figures: Sequence[Figure]) -> Figure:
    """Return the mean of one figure of several sets, drawn at random and measured on the same samples.

    The sets are resampled too: the interval is of the mean over all sets of their kind, not only over these. How far
    the directions of a set lie apart is part of how far the sets do.
    """
    if len(figures) == 1:
        return figures[0]
    value = torch.tensor([figure.value for figure in figures], dtype=torch.float64)
    replicates = torch.stack([figure.replicates for figure in figures]).mean(dim=0)
    samples = min(figure.samples for figure in figures)
    return Figure(float(value.mean()), replicates, samples, _apart(value, "sets"), len(value))


def _apart(value: Tensor, what: str) -> Tensor:
    """Return by how much the mean of values [K] changes where `what`, of which each is one, is resampled: [B].

    Kept apart from what the samples contribute, and added to it: so chance of a single value, which both resamplings
    see, counts twice and not three times as in the product of their weights (Owen 2007, "the pigeonhole bootstrap").
    The factor sqrt(K / (K - 1)) is the small-sample factor of `Figure.error`, here for K.
    """
    count = len(value)
    return (weights(count, what) - 1) @ value.double() / count * math.sqrt(count / max(count - 1, 1))
