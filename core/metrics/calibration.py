"""Calibrate the dials of a set: one scale for all directions, the range in which it holds, a sign, and a name.

The length and the sign of a direction depend on the method that found it. This module draws a set once, at several
scales, and reads all properties of its dials off those images.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from core.chain.schedule import Schedule
from core.directions.dials import Dial
from core.directions.direction_set import DirectionSet
from core.metrics.attributes import controlled, effects_by_sample
from core.metrics.consistency import agreement, distinctness
from core.metrics.features import features_of, standardise
from core.metrics.strength import REFERENCE, calibrate
from core.metrics.traversals import Traversals, draw_plain, draw_traversals
from core.model.denoiser import Denoiser
from core.predictors.attributes import Attributes
from core.predictors.vision import Extractor
from core.randomness import CALIBRATION_SEEDS
from core.samples.draw import Sampling

STRENGTH = 0.5  # scale 1.0 moves an image half as far as another sample is
SCALES = (-3.0, -2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0, 3.0)
SEEDS = CALIBRATION_SEEDS[72:78]
_CLOSE = 0.1  # relative error of the strength; too small to be seen in the images
# Share of unshifted samples whose distance to the nearest other one is within the limit of `_DialFeatures`.
TYPICAL_QUANTILE = 0.9
_UNNAMED = re.compile(r"direction_\d+")


@dataclass(frozen=True)
class Calibrated:
    """A set with its dials, and the images from which the dials were read."""

    directions: DirectionSet
    traversals: Traversals


@torch.no_grad()
def with_dials(
    denoiser: Denoiser,
    schedule: Schedule,
    directions: DirectionSet,
    attributes: Attributes | None = None,
    strength: float = STRENGTH,
    sampling: Sampling = Sampling(),
    named_by: str = "attributes",
    extractor: Extractor | None = None,
) -> Calibrated:
    """Return the set with a dial for each direction, and with sigma such that scale 1.0 moves images by `strength`.

    These values of each direction are read off the images, in standardised features (`core.metrics.features`):

        consistency   mean cosine, over pairs of samples, of the change from scale -1 to 1; 0 where it is negative
        distinctness  1 less the largest |cosine| of its mean change with that of another direction
        low, high     the scales up to which the median sample is as near to an unshifted sample as TYPICAL_QUANTILE of
                      all unshifted samples are to another one; interpolated between the SCALES that were drawn
        effects       how far scale 1 moves each attribute (`core.metrics.attributes.effects_by_sample`)

    A direction that controls an attribute (as `coverage` defines it) and has no name yet gets the name of the
    attribute. Several directions that control the same attribute are numbered, strongest first. The sign is chosen so
    that + increases the attribute of the direction's name; without such a name, its strongest attribute; without
    attributes, the feature that changes most. The metrics of the set are kept; `Dial.own` is the scale at which they
    were measured.

    directions: as a method left them, or with dials already, whose names by hand are kept. named_by: recorded as the
    source of names that come from `attributes`. extractor: the network whose features are read (None: the denoiser's
    own). Raises UserError for a strength that is not positive, and DirectionSetError where the set does not fit the
    model or the chain. Source: ours.
    """
    stretched = calibrate(denoiser, schedule, directions, strength, sampling, _CLOSE, extractor)
    drawn = draw_traversals(denoiser, schedule, stretched, SEEDS, SCALES, sampling)
    batch = sampling.batch
    reference = draw_plain(denoiser, schedule, REFERENCE, batch, sampling.cache)
    features = _DialFeatures.of(drawn, reference, partial(features_of, denoiser, batch=batch, extractor=extractor))
    effect = _effects(denoiser, drawn, attributes, reference, batch)
    names, sources = names_from(directions, effect, attributes, named_by)
    turned = _signs(names, effect, attributes, features.change)
    dials = _dials(features, turned, effect, attributes, _own(directions, stretched), sources)
    calibrated = replace(_turned(stretched, turned), names=names, metrics=directions.metrics, dials=dials)
    return Calibrated(calibrated, _turned_images(drawn, turned))


@dataclass(frozen=True)
class _DialFeatures:
    """The features of a set's images that its dials are read from."""

    change: Tensor  # [M, K, F], from scale -1 to 1
    distance: Tensor  # [K, A], from the shifted samples to the nearest sample of the reference, median over samples
    still: float  # the same distance at scale 0, where nothing is shifted
    limit: float  # the TYPICAL_QUANTILE of the distance from a sample of the reference to the nearest other one

    @classmethod
    def of(cls, drawn: Traversals, reference: Tensor, features: Callable[[Tensor], Tensor]) -> "_DialFeatures":
        """Measure them on traversals, against unshifted samples. features: x_0 [N, *sample_shape] -> [N, F]."""
        unshifted = features(reference)
        plain = standardise(features(drawn.plain), unshifted)
        flat = standardise(features(drawn.shifted.flatten(0, 2)), unshifted)
        others = standardise(unshifted, unshifted)
        shifted = flat.reshape(*drawn.shifted.shape[:3], -1)  # [M, K, A, F]
        apart = torch.cdist(others, others).fill_diagonal_(torch.inf)
        high, low = drawn.scales.index(1.0), drawn.scales.index(-1.0)
        return cls(
            (shifted[:, :, high] - shifted[:, :, low]).double(),
            torch.cdist(flat, others).amin(dim=1).reshape(shifted.shape[:3]).median(dim=0).values,
            float(torch.cdist(plain, others).amin(dim=1).median()),
            float(apart.amin(dim=1).quantile(TYPICAL_QUANTILE)),
        )


def reach(distance: Sequence[float], scales: Sequence[float], still: float, limit: float) -> float:
    """Return how far from 0 the distance stays within the limit. scales: ascending, above 0; distance: at each scale.

    Interpolates linearly between the last scale within the limit and the first beyond it. Returns the last scale where
    the distance never exceeds the limit. still: the distance at scale 0.
    """
    before, at = still, 0.0
    for scale, value in zip(scales, distance, strict=True):
        if not value <= limit:  # also true for NaN
            share = (limit - before) / (value - before) if before < limit and math.isfinite(value) else 0.0
            return at + share * (scale - at)
        before, at = value, scale
    return at


def names_from(
    directions: DirectionSet, effect: Tensor | None, attributes: Attributes | None, named_by: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names and the source of each, given the effects [K, P] on the attributes; rules as in `with_dials`."""
    names = list(directions.names)
    sources = [dial.named_by for dial in directions.dials] or [""] * len(names)
    if effect is None or attributes is None:
        return tuple(names), tuple(sources)
    free = [k for k, name in enumerate(names) if _UNNAMED.fullmatch(name) or sources[k] in ("attributes", "clip")]
    for k in free:
        names[k], sources[k] = _unused(f"direction_{k}", names[:k] + names[k + 1 :]), ""
    chosen = controlled(effect)
    for k in sorted(free, key=lambda k: -float(effect[k].abs().max())):
        attribute = chosen[k]
        if attribute is not None:
            names[k], sources[k] = _unused(attributes.names[attribute], names), named_by
    return tuple(names), tuple(sources)


def _effects(
    denoiser: Denoiser, drawn: Traversals, attributes: Attributes | None, reference: Tensor, batch: int
) -> Tensor | None:
    """Return the effects [K, P] of scale 1, in standard deviations; None without attributes."""
    if attributes is None:
        return None
    ends = [drawn.scales.index(-1.0), drawn.scales.index(1.0)]
    at_one = replace(drawn, shifted=drawn.shifted[:, :, ends], scales=(-1.0, 1.0))
    return effects_by_sample(at_one, attributes, reference, batch, denoiser.device).mean(dim=0)


def _unused(name: str, taken: Sequence[str]) -> str:
    """Return `name`, or `name 2`, `name 3`, ... where that is taken."""
    number = 1
    while (numbered := name if number == 1 else f"{name} {number}") in taken:
        number += 1
    return numbered


def _signs(names: Sequence[str], effect: Tensor | None, attributes: Attributes | None, change: Tensor) -> Tensor:
    """Return 1 or -1 for each direction: [K], by the rules in `with_dials`."""
    if effect is None or attributes is None:
        mean = change.mean(dim=0)  # [K, F]
        deciding = mean.gather(1, mean.abs().argmax(dim=1, keepdim=True))[:, 0]
    else:
        known = {name: p for p, name in enumerate(attributes.names)}
        strongest = effect.abs().argmax(dim=1).tolist()
        columns = [known.get(re.sub(r" \d+$", "", name), strongest[k]) for k, name in enumerate(names)]
        deciding = effect[torch.arange(len(effect)), columns]
    return torch.where(deciding < 0, -1.0, 1.0)


def _dials(
    features: _DialFeatures,
    turned: Tensor,
    effect: Tensor | None,
    attributes: Attributes | None,
    own: Sequence[float],
    sources: Sequence[str],
) -> tuple[Dial, ...]:
    alike, apart = agreement(features.change).clamp(0, 1), distinctness(features.change)
    positive = [scale for scale in SCALES if scale > 0]
    dials = []
    for k, distance in enumerate(features.distance.tolist()):
        up = reach(distance[len(positive) :], positive, features.still, features.limit)
        down = reach(distance[: len(positive)][::-1], positive, features.still, features.limit)
        low, high = (-down, up) if turned[k] > 0 else (-up, down)
        moved = {} if effect is None or attributes is None else _by_name(attributes, effect[k] * turned[k])
        dials.append(Dial(low, high, float(alike[k]), float(apart[k]), own[k], moved, sources[k]))
    return tuple(dials)


def _by_name(attributes: Attributes, effect: Tensor) -> dict[str, float]:
    return dict(zip(attributes.names, effect.tolist(), strict=True))


def _own(before: DirectionSet, after: DirectionSet) -> list[float]:
    """Return the scale at which each direction of `after` is as long as it was in `before`."""
    earlier, later = before.sigma.double().norm(dim=1), after.sigma.double().norm(dim=1)
    was = [dial.own for dial in before.dials] or [1.0] * len(before)
    return [float(a / b) * own if b > 0 else own for a, b, own in zip(earlier, later, was, strict=True)]


def _turned(directions: DirectionSet, turned: Tensor) -> DirectionSet:
    return replace(directions, table=directions.table * turned.to(directions.table)[:, None, None, None, None])


def _turned_images(drawn: Traversals, turned: Tensor) -> Traversals:
    """Return the images that the turned directions would draw: those of the opposite scales."""
    shifted = drawn.shifted.clone()
    round_ = turned < 0
    shifted[:, round_] = shifted[:, round_].flip(2)
    return replace(drawn, shifted=shifted)
