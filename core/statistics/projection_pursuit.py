"""Projection pursuit: find projections of many samples that follow a single cause each, without any label.

A sum of many independent causes has a normal distribution. A projection that follows a single cause keeps the shape of
that cause. Where samples either have an attribute or lack it, or have it to evenly spread degrees, that shape is
flatter than a normal distribution: its kurtosis is low. Principal components follow variance and mix causes. The
flattest projections of the leading components tend to separate the causes again (Pena & Prieto, JASA 96, 2001, find
groups in data in this way; independent component analysis is known for the maximum of the same measure).

A cause also changes images in few places, where a mixture of causes changes them in many. So of two projections that
are equally flat, the one is taken whose change of the image is concentrated: source ours, after varimax rotation
(Kaiser, Psychometrika 23, 1958), which concentrates loadings in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.randomness import generator
from core.statistics.principal_components import principal_components, store_height

_CANDIDATES = 200  # random starts of each search; the best result is taken
_ITERATIONS = 60
_RATE = 0.1
_LOCALITY = 0.3  # kurtosis that a projection may be less flat by for being e times as concentrated


@dataclass(frozen=True)
class Projections:
    """Uncorrelated projections of rows [N, D]: (rows - mean) @ weights, each of mean 0 and variance 1 over the rows."""

    mean: Tensor  # [D], float64
    weights: Tensor  # [D, P], float64; the first `pursued` are those that were searched for, the others what is left
    pursued: int


def pursue(rows: Tensor, places: Tensor, stages: Sequence[tuple[int, int]], kept: int, seed: int = 0) -> Projections:
    """Return the flattest and most concentrated projections of N rows within their leading principal components.

    rows: [N, D]; places: what the same N samples look like at Q places in C channels [N, C, Q], each standardised; how
    concentrated a projection is, is how few places change with it. stages: (number of projections, number of leading
    components in which they are searched), the latter growing: in many components at once, chance finds flat
    projections of noise. kept: the number of components that all projections together span, at least that of the last
    stage. There are fewer projections where the rows vary in fewer dimensions.
    """
    height = store_height(rows.shape[1], kept, len(rows), itemsize=rows.element_size())
    leading = principal_components([rows], kept, height)
    varying = leading.deviations > 0
    whitening = leading.vectors[varying].T / leading.deviations[varying]  # [D, P]
    white = (rows.double() - leading.mean) @ whitening  # [N, P]
    loadings = torch.einsum("ncq,np->cqp", places.double(), white) / len(rows)
    found, random = white.new_zeros(0, white.shape[1]), generator("pursuit", seed)
    for count, components in stages:
        searched = min(components, white.shape[1])
        for _ in range(min(count, searched - len(found))):
            best = _best(white[:, :searched], loadings[:, :, :searched], found[:, :searched], random)
            found = torch.cat([found, torch.nn.functional.pad(best, (0, white.shape[1] - searched))])
    return Projections(leading.mean, whitening @ _completed(found).T, len(found))


def kurtosis(sources: Tensor) -> Tensor:
    """Return the excess kurtosis [K] of standardised columns [N, K]: normal 0, uniform -1.2, two points -2."""
    return sources.pow(4).mean(dim=0) - 3


def concentration(loadings: Tensor) -> Tensor:
    """Return how concentrated loadings [C, Q, K] are: 1 where all Q places are alike, Q where a single one counts."""
    size = loadings.square().sum(dim=0)  # [Q, K]
    return len(size) * size.square().sum(dim=0) / size.sum(dim=0).square().clamp(min=1e-30)


def _cost(candidates: Tensor, white: Tensor, loadings: Tensor) -> Tensor:
    """Return what is minimised [candidates]."""
    flat = kurtosis(white @ candidates.T)
    return flat - _LOCALITY * concentration(loadings @ candidates.T).log()


def _best(white: Tensor, loadings: Tensor, found: Tensor, random: torch.Generator) -> Tensor:
    """Return the unit vector [1, P] of least cost orthogonal to those found, by projected gradient descent."""
    candidates = torch.randn(_CANDIDATES, white.shape[1], generator=random, dtype=torch.float64).to(white)
    for _ in range(_ITERATIONS):
        candidates = _inside(candidates, found).requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(_cost(candidates, white, loadings).sum(), candidates)
        candidates = candidates.detach()
        along = (slope * candidates).sum(dim=1, keepdim=True)
        candidates = candidates - _RATE * (slope - along * candidates)
    candidates = _inside(candidates, found)
    best = _cost(candidates, white, loadings).argmin()
    return candidates[best : best + 1]


def _inside(candidates: Tensor, found: Tensor) -> Tensor:
    left = candidates - (candidates @ found.T) @ found
    unit: Tensor = left / left.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return unit


def _completed(found: Tensor) -> Tensor:
    """Return orthonormal rows [k, P] followed by rows that complete them to a basis: [P, P]."""
    basis, _ = torch.linalg.qr(found.T, mode="complete")
    return torch.cat([found, basis.T[len(found) :]])
