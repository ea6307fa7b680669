"""Measure what a set does to the model's own factors of variation: attributes that need no predictor.

What the model's unshifted images differ in most, the leading principal components of their features and pixels, takes
the place of attributes: a good set moves many of them, each direction one of them alone. On the embedded models this
follows what an attribute predictor says of a set more closely than any other figure here
(benchmarks/results/objectives.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.metrics.bootstrap import Figure, of_directions, weights
from core.metrics.features import deviation_of
from core.randomness import CALIBRATION_SEEDS

SEEDS: Sequence[int] = CALIBRATION_SEEDS[1024 : 1024 + 256]  # of the unshifted samples whose factors are taken
COUNT = 12
ENOUGH = 0.5  # standard deviations of a factor that count as moving it, as core.metrics.attributes.coverage asks


@dataclass(frozen=True)
class Factors:
    """The factors of variation of a model's images, as axes in the space of their features and pixels."""

    of_features: Tensor  # [F, P] float64: a change of features times this is in standard deviations of each factor
    of_pixels: Tensor  # [D, P]; the two are added

    @classmethod
    def of(cls, features: Tensor, images: Tensor, count: int = COUNT) -> "Factors":
        """Take the leading components of unshifted samples' features [N, F] and 8-bit images [N, C, H, W] together.

        Each feature counts in its own deviations; features and pixels have the same variance in all. Features tell what
        is where only coarsely, pixels do not tell what it is. There are fewer components than `count` where the samples
        vary in fewer dimensions.
        """
        features, pixels = features.double(), images.double().flatten(1)
        unit = deviation_of(features) * features.shape[1] ** 0.5  # [F]
        level = pixels.std(dim=0).norm().clamp(min=1e-12)
        rows = torch.cat([features / unit, pixels / level], dim=1)
        _, lengths, vectors = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
        kept = min(count, int((lengths > 1e-9 * lengths.max()).sum()))
        axes = vectors[:kept].T * ((len(rows) - 1) ** 0.5 / lengths[:kept])
        return cls(axes[: len(unit)] / unit[:, None], axes[len(unit) :] / level)

    def effects(self, features: Tensor, images: Tensor) -> Tensor:
        """Return how far each sample is moved along each factor, in its standard deviations: [M, K, P], signed.

        Half the change from the smallest to the largest scale, as `attributes.effects_by_sample` has it. features: the
        whole change [M, K, F]; images: that of the 8-bit images [M, K, C, H, W].
        """
        return (features.double() @ self.of_features + images.double().flatten(2) @ self.of_pixels) / 2


def factor_figures(by_sample: Tensor) -> dict[str, Figure]:
    """Return the figures of the effects on each sample's factors [M, K, P], of which the samples are resampled.

    The weight of direction k for factor p is the share of p in the squared effects of k, times the effect, of which
    ENOUGH and more count as 1: the weight is 1 where k moves p visibly and nothing else. An effect is the mean over
    samples, so what a direction does to one sample and not to others does not count.

        factor_coverage  sum over factors of the largest weight of a direction: 0 to min(K, P). How many factors the set
                         moves, one at a time.
        purity           mean over directions of the largest weight of a factor: 0 to 1. How much of what a direction
                         does is one thing.
        factor_score     the product. It does not grow with directions that repeat others or move everything a little.

    All are 0 where nothing is shifted. Source: ours.
    """
    samples = len(by_sample)
    weight = _weights(by_sample.double().mean(dim=0))
    resampled = _weights(torch.einsum("bm,mkp->bkp", weights(samples), by_sample.double()) / samples)
    purity = of_directions(weight.amax(dim=1), resampled.amax(dim=2), samples)
    covered, coverages = weight.amax(dim=0).sum(), resampled.amax(dim=1).sum(dim=1)
    score = float(covered) * purity.value
    return {
        "factor_score": Figure(score, coverages * resampled.amax(dim=2).mean(dim=1), samples),
        "factor_coverage": Figure(float(covered), coverages, samples),
        "purity": purity,
    }


def _weights(effect: Tensor) -> Tensor:
    """Return the weight of each direction for each factor, [..., K, P], of effects [..., K, P]."""
    squares = effect.square()
    share: Tensor = squares / squares.sum(dim=-1, keepdim=True).clamp(min=1e-24)
    return share * (effect.abs() / ENOUGH).clamp(max=1)
