"""Measure all metrics of a direction set on one set of traversals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.errors import NonFiniteError, UserError
from core.metrics.attributes import coverage, disentanglement, effects
from core.metrics.consistency import diversity, globality, monotonicity
from core.metrics.features import features_of, standardise
from core.metrics.fidelity import kid_by_sample
from core.metrics.identifiability import identifiability
from core.metrics.judges import NO_JUDGES, Judges
from core.metrics.traversals import Traversals, draw_plain, draw_traversals
from core.model.denoiser import Denoiser
from core.predictors.attributes import Attributes
from core.samples.draw import Sampling


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a set, and the images on which they were measured."""

    metrics: dict[str, float]  # names as in core.metrics.METRICS; a metric not measured or not finite is absent
    effects: Tensor | None  # [K, P] in standard deviations, columns as attributes.names; None without a predictor
    traversals: Traversals
    judged_by: Mapping[str, str]  # use ("features", "inception", ...) -> name of the network; without the denoiser


def evaluate(
    denoiser: Denoiser,
    schedule: Schedule,
    directions: DirectionSet,
    seeds: Sequence[int],
    reference_seeds: Sequence[int],
    attributes: Attributes | None = None,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    judges: Judges = NO_JUDGES,
) -> Evaluation:
    """Measure a direction set on samples that were not used in training.

    seeds: at least 3, of the samples that are shifted (16 to 32 are enough). reference_seeds: at least 2, disjoint from
    `seeds`, of the unshifted samples used for comparison (four times as many as `seeds` is a good number). attributes:
    a predictor on the denoiser's device; without it disentanglement and coverage are absent. seed: of the network that
    measures identifiability. judges: further networks (core.metrics.judges). The same arguments give the same result.

    Raises UserError for too few or shared seeds, DirectionSetError for a set that does not fit the model, and
    NonFiniteError where a direction leads to images that are not finite.
    """
    _check_seeds(seeds, reference_seeds)
    traversals, batch = draw_traversals(denoiser, schedule, directions, seeds, sampling=sampling), sampling.batch
    reference = draw_plain(denoiser, schedule, reference_seeds, batch, sampling.cache)
    _check_finite(traversals, reference, directions.names)
    recognised, error = identifiability(_for_judges(denoiser, traversals, batch), seed, device=denoiser.device)
    metrics = {"identifiability": recognised, "strength_error": error, "diversity": diversity(directions)}
    features = partial(features_of, denoiser, batch=batch, extractor=judges.features)
    metrics |= _feature_metrics(traversals, reference, features) | judges.measure(traversals, reference, batch)
    effect = None
    if attributes is not None:
        effect = effects(traversals, attributes, reference, batch, denoiser.device)
        metrics |= {"disentanglement": disentanglement(effect), "coverage": coverage(effect)}
    measured = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return Evaluation(measured, effect, traversals, judges.names)


def _feature_metrics(
    traversals: Traversals, reference: Tensor, features: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Return the metrics on features, which are standardised by the features of the reference."""
    unshifted = features(reference)  # [N, F]
    plain = standardise(features(traversals.plain), unshifted)  # [M, F]
    flat = features(traversals.shifted.flatten(0, 2))
    shifted = standardise(flat, unshifted).reshape(*traversals.shifted.shape[:3], -1)  # [M, K, A, F]
    ends = shifted[:, :, [0, -1]].flatten(1, 2)  # [M, 2 K, F]
    return {
        "fidelity_kid": kid_by_sample(ends, standardise(unshifted, unshifted)),
        "globality": globality(plain, shifted[:, :, -1]),
        "monotonicity": monotonicity(plain, shifted, traversals.scales),
    }


@torch.no_grad()
def _for_judges(denoiser: Denoiser, traversals: Traversals, batch: int) -> Traversals:
    """Return the traversals in the space of `denoiser.for_judges`: latents, or images where `use.space` is "pixels"."""
    if denoiser.codec is None or denoiser.use.space == "latents":
        return traversals

    def seen(samples: Tensor) -> Tensor:
        parts = torch.split(samples.flatten(0, -4), batch)
        converted = torch.cat([denoiser.for_judges(part.to(denoiser.device)).cpu() for part in parts])
        return converted.reshape(*samples.shape[:-3], *denoiser.judged_shape)

    return replace(traversals, plain=seen(traversals.plain), shifted=seen(traversals.shifted))


def _check_seeds(seeds: Sequence[int], reference_seeds: Sequence[int]) -> None:
    if len(set(seeds)) < max(3, len(seeds)) or len(set(reference_seeds)) < max(2, len(reference_seeds)):
        raise UserError(
            f"evaluate needs 3 or more different seeds and 2 or more different reference seeds; "
            f"got {len(set(seeds))} different of {len(seeds)} and {len(set(reference_seeds))} of {len(reference_seeds)}"
        )
    shared = sorted(set(seeds) & set(reference_seeds))
    if shared:
        raise UserError(f"seed {shared[0]} is both in seeds and in reference_seeds; they must be disjoint")


def _check_finite(traversals: Traversals, reference: Tensor, names: tuple[str, ...]) -> None:
    if not (torch.isfinite(traversals.plain).all() and torch.isfinite(reference).all()):
        raise NonFiniteError("the model draws images with NaN or infinite values even without a shift")
    finite = torch.isfinite(traversals.shifted).flatten(3).all(dim=3).all(dim=0)  # [K, A]
    if not finite.all():
        k, a = (~finite).nonzero()[0].tolist()
        raise NonFiniteError(
            f"direction '{names[k]}' draws images with NaN or infinite values at scale {traversals.scales[a]}"
        )
