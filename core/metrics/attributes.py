"""Measure what directions do to named attributes, with the scores of an attribute predictor (core.predictors)."""

from collections.abc import Callable

import torch
from torch import Tensor

from core.metrics.bootstrap import Figure, of_directions, weights
from core.metrics.traversals import Traversals
from core.predictors.attributes import Attributes


def effects_by_sample(
    traversals: Traversals,
    attributes: Attributes,
    reference: Tensor,
    batch: int = 64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return how much each of K directions moves each of P attributes of each of M samples: [M, K, P], signed.

    An effect is half the difference between the scores at the largest and at the smallest scale, in standard deviations
    of the attribute over the unshifted reference [N, *sample_shape] (N >= 2). The effect is 0 where the attribute does
    not vary in the reference. `device` is where the predictor expects its images.
    Source: the attribute re-scoring matrix of WarpedGANSpace (Tzelepis et al., arXiv 2109.13357), as an effect size.
    """
    samples, directions = traversals.shifted.shape[:2]
    high, low = (
        _score(attributes, ends.flatten(0, 1), traversals.images, batch, device).reshape(samples, directions, -1)
        for ends in (traversals.positive, traversals.negative)
    )
    deviation = _score(attributes, reference, traversals.images, batch, device).std(dim=0)  # [P]
    return torch.where(deviation > 1e-6, (high - low) / 2 / deviation.clamp(min=1e-6), 0.0)


def attribute_figures(by_sample: Tensor, prefix: str = "") -> dict[str, Figure]:
    """Return disentanglement and coverage, given the effects on each sample [M, K, P], which are resampled.

    prefix: of the figures' names.
    """
    drawn = weights(len(by_sample))
    resampled = torch.einsum("bm,mkp->bkp", drawn, by_sample.double()) / len(by_sample)
    effect = by_sample.mean(dim=0)
    counts = torch.tensor([coverage(each) for each in resampled], dtype=torch.float64)
    return {
        f"{prefix}disentanglement": of_directions(_share(effect), _share(resampled), len(by_sample)),
        f"{prefix}coverage": Figure(coverage(effect), counts, len(by_sample)),
    }


def disentanglement(effect: Tensor) -> float:
    """Return the share of the largest effect in all effects of a direction, mean over directions. effect: [K, P].

    Range 1/P to 1; larger is better. 1/P: a direction moves all attributes alike. 1: a direction moves one attribute
    only. A direction that moves none counts 0. A direction that hardly moves anything has a share too, so read this
    metric together with `coverage`. Source: Tzelepis et al., arXiv 2109.13357 (rows of the correlation matrix,
    L1-normalised).
    """
    return float(_share(effect).mean())


def coverage(effect: Tensor, min_effect: float = 0.5, min_share: float = 0.4) -> float:
    """Return the number of different attributes that some direction controls. effect: [K, P].

    A direction controls the attribute that it moves most, if that effect is at least `min_effect` standard deviations
    and at least `min_share` of the sum of its effects. Range 0 to min(K, P); larger is better. Source: ours.
    """
    return float(len(set(controlled(effect, min_effect, min_share)) - {None}))


def controlled(effect: Tensor, min_effect: float = 0.5, min_share: float = 0.4) -> list[int | None]:
    """Return for each direction the attribute that it controls, as `coverage` defines it, or None. effect: [K, P]."""
    size, attribute = effect.abs().max(dim=1)
    controls = (size >= min_effect) & (_share(effect) >= min_share)
    return [p if is_one else None for p, is_one in zip(attribute.tolist(), controls.tolist(), strict=True)]


def _share(effect: Tensor) -> Tensor:
    size = effect.abs()
    return size.amax(dim=-1) / size.sum(dim=-1).clamp(min=1e-12)


def _score(
    attributes: Attributes,
    samples: Tensor,
    images: Callable[[Tensor], Tensor],
    batch: int,
    device: torch.device | str,
) -> Tensor:
    """Return the scores [N, P] of samples [N, *sample_shape], on the CPU."""
    parts = torch.split(samples, batch)
    return torch.cat([attributes.score(images(part).to(device)).double().cpu() for part in parts])
