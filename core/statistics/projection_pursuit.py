"""Projection pursuit: find the projections of many samples with the flattest distribution, without any label.

A sum of many independent causes has a normal distribution. A projection that follows a single cause keeps the shape of
that cause. Where samples either have an attribute or lack it, or have it to evenly spread degrees, that shape is
flatter than a normal distribution: its kurtosis is low. Principal components follow variance and mix causes. The
flattest projections of the leading components tend to separate the causes again (Pena & Prieto, JASA 96, 2001, find
groups in data in this way; independent component analysis is known for the maximum of the same measure).
"""

import torch
from torch import Tensor

from core.randomness import generator
from core.statistics.principal_components import principal_components, store_height

_CANDIDATES = 200  # random starts of each search; the flattest result is taken
_ITERATIONS = 60
_RATE = 0.3


def flattest_projections(rows: Tensor, count: int, components: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the `count` flattest uncorrelated projections of N rows [N, D] within their leading principal components.

    components: the number of leading components, at least `count`. The result is the mean [D] and the weights
    [D, count] of the projections, float64: (rows - mean) @ weights has columns of mean 0 and variance 1, flattest
    first. There are fewer columns where the rows vary in fewer dimensions.
    """
    height = store_height(rows.shape[1], components, len(rows), itemsize=rows.element_size())
    leading = principal_components([rows], components, height)
    varying = leading.deviations > 0
    whitening = leading.vectors[varying].T / leading.deviations[varying]  # [D, P]
    white = (rows.double() - leading.mean) @ whitening  # [N, P]
    random = generator("pursuit", seed)
    projections = white.new_zeros(0, white.shape[1])
    for _ in range(min(count, white.shape[1])):
        projections = torch.cat([projections, _flattest(white, projections, random)])
    return leading.mean, whitening @ projections.T


def kurtosis(sources: Tensor) -> Tensor:
    """Return the excess kurtosis [K] of standardised columns [N, K]: normal 0, uniform -1.2, two points -2."""
    return sources.pow(4).mean(dim=0) - 3


def _flattest(white: Tensor, projections: Tensor, random: torch.Generator) -> Tensor:
    """Return the unit vector [1, P] of least kurtosis orthogonal to `projections`, by projected gradient descent."""
    candidates = torch.randn(_CANDIDATES, white.shape[1], generator=random, dtype=torch.float64).to(white)
    for _ in range(_ITERATIONS):
        candidates = _inside(candidates, projections)
        slope = (white @ candidates.T).pow(3).T @ white / len(white)  # [candidates, P]
        along = (slope * candidates).sum(dim=1, keepdim=True)
        candidates = candidates - _RATE * (slope - along * candidates)
    candidates = _inside(candidates, projections)
    best = kurtosis(white @ candidates.T).argmin()
    return candidates[best : best + 1]


def _inside(candidates: Tensor, projections: Tensor) -> Tensor:
    left = candidates - (candidates @ projections.T) @ projections
    unit: Tensor = left / left.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return unit
