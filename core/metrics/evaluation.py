"""Measure all metrics of a direction set on one set of traversals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.errors import NonFiniteError, UserError
from core.metrics.attributes import attribute_figures, effects_by_sample
from core.metrics.bootstrap import Figure, flat
from core.metrics.consistency import Alikeness, diversity, evenness, globality, locality, monotonicity
from core.metrics.factors import SEEDS as FACTOR_SEEDS
from core.metrics.factors import Factors, factor_figures
from core.metrics.features import features_of, standardise
from core.metrics.fidelity import kid
from core.metrics.identifiability import identifiability
from core.metrics.judges import NO_JUDGES, Judges
from core.metrics.networks.pixels import levels
from core.metrics.traversals import Traversals, draw_plain, draw_traversals, shown_by
from core.model.denoiser import Denoiser
from core.predictors.attributes import Attributes
from core.predictors.vision import Extractor
from core.samples.draw import Sampling, draw_images

JUDGED_SIDE = 64  # pixels; larger images are averaged down to it for the networks that tell directions apart


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a set, and the images on which they were measured."""

    figures: dict[str, Figure]  # names as in core.metrics.METRICS; a metric not measured or not finite is absent
    effects: Tensor | None  # [K, P] in standard deviations, columns as attributes.names; None without a predictor
    traversals: Traversals
    judged_by: Mapping[str, str]  # use ("features", "inception", ...) -> name of the network; without the denoiser

    @property
    def metrics(self) -> dict[str, float]:
        """The figures as one table, with the ends of their 95 % intervals: "coverage", "coverage/low", ..."""
        return flat(self.figures)


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
    second: Attributes | None = None,
) -> Evaluation:
    """Measure a direction set on samples that were not used in training.

    seeds: at least 3, of the samples that are shifted (16 to 32 are enough). reference_seeds: at least 2, disjoint from
    `seeds`, of the unshifted samples used for comparison (four times as many as `seeds` is a good number). attributes:
    a predictor on the denoiser's device; without it disentanglement and coverage are absent. seed: of the networks that
    tell directions apart. judges: further networks (core.metrics.judges). second: another predictor, with which nothing
    was found, for second_disentanglement and second_coverage. The same arguments give the same result.

    Raises UserError for too few or shared seeds, DirectionSetError for a set that does not fit the model, and
    NonFiniteError where a direction leads to images that are not finite.
    """
    _check_seeds(seeds, reference_seeds)
    traversals = draw_traversals(denoiser, schedule, directions, seeds, sampling=sampling)
    reference = draw_plain(denoiser, schedule, reference_seeds, sampling.batch, sampling.cache)
    _check_finite(traversals, reference, directions.names)
    factors = factors_of(denoiser, schedule, sampling, judges.features)
    return measure(denoiser, traversals, reference, factors, attributes, sampling.batch, seed, judges, second)


def factors_of(
    denoiser: Denoiser, schedule: Schedule, sampling: Sampling = Sampling(), extractor: Extractor | None = None
) -> Factors:
    """Return the factors of variation of a model's unshifted samples, whose seeds nothing else looks at.

    extractor: the network whose features are read (None: the denoiser's own).
    """
    features, images, shown = [], [], shown_by(denoiser)
    for part in draw_images(denoiser, schedule, FACTOR_SEEDS, sampling.batch, sampling.cache):
        features.append(
            features_of(denoiser, _rounded(denoiser, part.cpu()), batch=sampling.batch, extractor=extractor)
        )
        images.append(_averaged(in_levels(shown(part.cpu()))))
    return Factors.of(torch.cat(features), torch.cat(images))


def measure(
    denoiser: Denoiser,
    traversals: Traversals,
    reference: Tensor,
    factors: Factors,
    attributes: Attributes | None = None,
    batch: int = 64,
    seed: int = 0,
    judges: Judges = NO_JUDGES,
    second: Attributes | None = None,
) -> Evaluation:
    """Measure traversals that are drawn, beside unshifted samples [N, *sample_shape] as a reference; see `evaluate`.

    factors: of the model, in the features of the denoiser or of `judges.features` (`factors_of`).
    """
    seen = seen_by_a_viewer(traversals, batch)
    identified = identifiability(seen, seed, device=denoiser.device)
    figures = {
        "identifiability": identified.information,
        "told_apart": identified.told_apart,
        "strength_error": identified.strength_error,
        "locality": locality(seen.plain, seen.positive),
    }
    features = partial(features_of, denoiser, batch=batch, extractor=judges.features)
    change = seen.positive - seen.negative
    figures |= _feature_figures(denoiser, traversals, reference, features, partial(factors.effects, images=change))
    figures |= judges.measure(traversals, reference, batch)
    effect = None
    if attributes is not None:
        by_sample = effects_by_sample(traversals, attributes, reference, batch, denoiser.device)
        effect = by_sample.mean(dim=0)
        figures |= attribute_figures(by_sample)
    if second is not None:
        by_sample = effects_by_sample(traversals, second, reference, batch, denoiser.device)
        figures |= attribute_figures(by_sample, "second_")
    measured = {name: figure for name, figure in figures.items() if math.isfinite(figure.value)}
    return Evaluation(measured, effect, traversals, judges.names)


def _feature_figures(
    denoiser: Denoiser,
    traversals: Traversals,
    reference: Tensor,
    features: Callable[[Tensor], Tensor],
    effects: Callable[[Tensor], Tensor],
) -> dict[str, Figure]:
    """Return the metrics on features, which are standardised by the features of the reference.

    effects: returns those on the factors, given the change of features [M, K, F], which are not standardised.
    """
    shown = partial(_rounded, denoiser)
    unshifted = features(shown(reference))  # [N, F]
    plain = standardise(features(shown(traversals.plain)), unshifted)  # [M, F]
    rows = features(shown(traversals.shifted.flatten(0, 2)))
    raw = rows.reshape(*traversals.shifted.shape[:3], -1)  # [M, K, A, F]
    shifted = standardise(raw, unshifted)
    ends = shifted[:, :, [0, -1]].flatten(1, 2)  # [M, 2 K, F]
    alike = Alikeness.of(shifted[:, :, -1] - plain[:, None])
    return {
        **factor_figures(effects(raw[:, :, -1] - raw[:, :, 0])),
        "fidelity_kid": kid(ends, plain, standardise(unshifted, unshifted)),
        "globality": globality(alike),
        "diversity": diversity(alike),
        "monotonicity": monotonicity(plain, shifted, traversals.scales),
        "evenness": evenness(plain, shifted, traversals.scales),
    }


def _rounded(denoiser: Denoiser, samples: Tensor) -> Tensor:
    """Return samples as they are saved: images in 8-bit levels; latents, which are not images, unchanged."""
    return in_levels(samples) if denoiser.codec is None else samples


def in_levels(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as an 8-bit picture shows them, in [-1, 1] again."""
    return (levels(images.float()) / 127.5 - 1).to(images.dtype)


@torch.no_grad()
def seen_by_a_viewer(traversals: Traversals, batch: int = 64) -> Traversals:
    """Return the traversals as a viewer sees them: decoded, in 8-bit levels, averaged down to JUDGED_SIDE pixels."""

    def seen(samples: Tensor) -> Tensor:
        parts = torch.split(samples.flatten(0, -4), batch)
        images = torch.cat([_averaged(in_levels(traversals.images(part))) for part in parts])
        return images.reshape(*samples.shape[:-3], *images.shape[1:])

    return Traversals(seen(traversals.plain), seen(traversals.shifted), traversals.scales)


def _averaged(images: Tensor) -> Tensor:
    factor = max(1, math.ceil(max(images.shape[-2:]) / JUDGED_SIDE))
    return avg_pool2d(images, factor, ceil_mode=True) if factor > 1 else images


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
