"""Projection pursuit: the projections of many samples that are flattest, without any label.

Whatever many independent causes add up to is distributed like a bell. A projection that follows a single cause keeps
that cause's own shape, and where samples either have an attribute or lack it, or have it to any degree alike, that
shape is flatter than a bell: its kurtosis is low. Principal components follow variance and mix causes; the flattest
projections of the leading ones tend to separate them again (Pena & Prieto, JASA 96, 2001, who find groups in data this
way; the maximum of the same measure is what independent component analysis is known for).
"""

import torch
from torch import Tensor

from core.randomness import generator
from core.statistics.principal_components import principal_components, store_height

_CANDIDATES = 200  # random starts of each search; the flattest survives
_ITERATIONS = 60
_RATE = 0.3


def flattest_sources(rows: Tensor, count: int, components: int, seed: int = 0) -> Tensor:
    """The `count` flattest uncorrelated projections of N rows [N, D] inside their leading principal components.

    components: how many of those, at least `count`. Returns the rows' coordinates [N, count], float64, each of mean 0
    and variance 1, flattest first; fewer columns where the rows vary in fewer dimensions.
    """
    height = store_height(rows.shape[1], components, len(rows), itemsize=rows.element_size())
    leading = principal_components([rows], components, height)
    varying = leading.deviations > 0
    white = (rows.double() - leading.mean) @ (leading.vectors[varying].T / leading.deviations[varying])  # [N, P]
    random = generator("pursuit", seed)
    found = white.new_zeros(0, white.shape[1])
    for _ in range(min(count, white.shape[1])):
        found = torch.cat([found, _flattest(white, found, random)])
    sources: Tensor = white @ found.T
    return sources


def kurtosis(sources: Tensor) -> Tensor:
    """Excess kurtosis of standardised columns [N, K]: [K]; 0 for a bell, -1.2 for uniform, -2 for two points."""
    return sources.pow(4).mean(dim=0) - 3


def _flattest(white: Tensor, found: Tensor, random: torch.Generator) -> Tensor:
    """The unit vector [1, P] of least kurtosis that is orthogonal to those found; projected gradient descent."""
    candidates = torch.randn(_CANDIDATES, white.shape[1], generator=random, dtype=torch.float64).to(white)
    for _ in range(_ITERATIONS):
        candidates = _inside(candidates, found)
        slope = (white @ candidates.T).pow(3).T @ white / len(white)  # [candidates, P]
        along = (slope * candidates).sum(dim=1, keepdim=True)
        candidates = candidates - _RATE * (slope - along * candidates)
    candidates = _inside(candidates, found)
    best = kurtosis(white @ candidates.T).argmin()
    return candidates[best : best + 1]


def _inside(candidates: Tensor, found: Tensor) -> Tensor:
    left = candidates - (candidates @ found.T) @ found
    unit: Tensor = left / left.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return unit
