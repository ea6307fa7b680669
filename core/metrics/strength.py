"""Measure how far a direction moves images, and find the scale at which all directions move them equally far.

Scale 1.0 has another meaning for every method: standard deviations of a component, a difference of means, a distance in
h. Sets can be compared, and dials have one meaning, when scale 1.0 moves images equally far in the features that the
other metrics read.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.errors import UserError
from core.metrics.features import features_of, standardise
from core.metrics.traversals import draw_plain, draw_traversals
from core.model.denoiser import Denoiser
from core.predictors.vision import Extractor
from core.randomness import CALIBRATION_SEEDS
from core.samples.draw import Sampling

SEEDS = CALIBRATION_SEEDS[:8]
REFERENCE = CALIBRATION_SEEDS[8:72]
ROUNDS = 6  # at most, of drawing and measuring
STRENGTH_TOLERANCE = 0.02  # default relative error of the strength at which the search ends
_VERY_FAR = 1e6
MAX_STRETCH = 16.0  # sigma is multiplied or divided by at most this, which a direction that moves nothing reaches


def calibrate(
    denoiser: Denoiser,
    schedule: Schedule,
    directions: DirectionSet,
    strength: float,
    sampling: Sampling = Sampling(),
    close: float = STRENGTH_TOLERANCE,
    extractor: Extractor | None = None,
) -> DirectionSet:
    """Return the directions with sigma such that scale 1.0 moves images by `strength`; their signs do not change.

    Strength 1 is the distance of two unshifted samples; 0.5 moves an image half as far as another sample is (see
    `moved`). The response grows more slowly than the scale. A secant search on logarithms therefore runs for all
    directions at once, until all are within a relative error of `close` or ROUNDS rounds have been drawn. The
    provenance gets `strength` and `moved`, the last measured distance of each direction. Metrics in the set are
    dropped, because they were measured at another scale. extractor: the network whose features measure distance (None:
    the denoiser's own). Raises UserError for a strength that is not positive.
    """
    if not strength > 0:
        raise UserError(f"strength: got {strength:g}; it must be above 0 (1 is the distance of two unshifted samples)")
    unit = _DistanceUnit(denoiser, schedule, SEEDS, sampling, extractor)
    goal, limit = math.log(strength), math.log(MAX_STRETCH)
    stretch = torch.zeros(len(directions), dtype=torch.float64)  # log of the factor of sigma
    slope = torch.ones_like(stretch)
    before: tuple[Tensor, Tensor] | None = None
    for rounds in itertools.count(1):
        response = _log(unit.moved(_stretched(directions, stretch)))
        if rounds == ROUNDS or (response - goal).abs().max() < close:
            break
        if before is not None:
            run = stretch - before[0]
            still = run.abs() < 1e-3
            measured = (response - before[1]) / torch.where(still, 1.0, run)
            slope = torch.where(still, slope, measured.clamp(0.3, 3.0))
        before = stretch, response
        stretch = (stretch + (goal - response) / slope).clamp(-limit, limit)
    origin = {**directions.provenance, "strength": strength, "moved": response.exp().tolist()}
    return replace(_stretched(directions, stretch), metrics={}, provenance=origin)


def moved(
    denoiser: Denoiser,
    schedule: Schedule,
    directions: DirectionSet,
    seeds: Sequence[int] = SEEDS,
    sampling: Sampling = Sampling(),
    extractor: Extractor | None = None,
) -> Tensor:
    """Return how far each direction moves images at scales -1 and 1: [K]; 1 is the distance of two unshifted samples.

    The root mean square change of standardised features, over samples and both signs, divided by the root mean square
    difference of two independent samples. extractor: as in `calibrate`. Source: ours.
    """
    return _DistanceUnit(denoiser, schedule, seeds, sampling, extractor).moved(directions)


class _DistanceUnit:
    """The samples and the feature space in which distances are measured, computed once for several rounds."""

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        seeds: Sequence[int],
        sampling: Sampling,
        extractor: Extractor | None = None,
    ) -> None:
        self.denoiser, self.schedule, self.seeds = denoiser, schedule, seeds
        self.sampling, self.extractor = sampling, extractor
        self.reference = self._features(draw_plain(denoiser, schedule, REFERENCE, sampling.batch, sampling.cache))
        standard = standardise(self.reference, self.reference).double()
        self.length = (2 * standard.square().sum(dim=1).mean()).sqrt()  # RMS difference of two independent samples

    def moved(self, directions: DirectionSet) -> Tensor:
        """Return how far each direction moves images: [K], as the function `moved` defines it."""
        drawn = draw_traversals(self.denoiser, self.schedule, directions, self.seeds, (-1.0, 1.0), self.sampling)
        plain = standardise(self._features(drawn.plain), self.reference)  # [M, F]
        flat = self._features(drawn.shifted.flatten(0, 2))
        shifted = standardise(flat, self.reference).reshape(*drawn.shifted.shape[:3], -1)  # [M, K, 2, F]
        change = (shifted - plain[:, None, None]).double().square().sum(dim=3)
        return change.mean(dim=(0, 2)).sqrt() / self.length

    def _features(self, samples: Tensor) -> Tensor:
        return features_of(self.denoiser, samples, self.sampling.batch, self.extractor)


def _log(response: Tensor) -> Tensor:
    """Return the logarithm of the response, always finite: images that are not finite count as _VERY_FAR."""
    return response.nan_to_num(nan=_VERY_FAR, posinf=_VERY_FAR).clamp(1e-9, _VERY_FAR).log()


def _stretched(directions: DirectionSet, log_factor: Tensor) -> DirectionSet:
    factor = log_factor.exp().to(directions.sigma)
    return replace(directions, sigma=directions.sigma * factor[:, None])
