"""Does a direction mean the same for every sample, more of it mean more, and each direction something else?"""

import torch
from torch import Tensor

from core.directions.direction_set import DirectionSet

_TINY = 1e-12


def globality(plain: Tensor, positive: Tensor) -> float:
    """Mean cosine, over pairs of samples, of what a direction changes in their features; mean over directions.

    plain: [M, F] features of unshifted images; positive: [M, K, F] of the same samples at the largest scale; M >= 2.
    Range -1/(M-1) to 1: 1 where every sample changes alike, 0 where each changes its own way; larger is better. The
    changes are not centred: a change that all directions share counts, and it is `diversity` that speaks against it.
    Source: ours; the same contrast is the training objective of NoiseCLR (arXiv 2312.05390).
    """
    return float(agreement((positive - plain[:, None]).double()).mean())


def agreement(change: Tensor) -> Tensor:
    """Mean cosine, over pairs of samples, of what each direction changes. change: [M, K, F], M >= 2 -> [K]."""
    samples, unit = len(change), _unit(change)
    # The sum over all ordered pairs, less each sample with itself.
    pairs = unit.sum(dim=0).square().sum(dim=1) - unit.square().sum(dim=(0, 2))
    return pairs / (samples * (samples - 1))


def distinctness(change: Tensor) -> Tensor:
    """How little each direction's mean change is like another's: [K], 0 to 1. change: [M, K, F].

    1 less the largest |cosine| with any other direction's; 1 for a set of one direction. Source: ours.
    """
    mean = _unit(change.mean(dim=0))
    return (1 - (mean @ mean.T).abs().fill_diagonal_(0.0).amax(dim=1)).clamp(0, 1)


def monotonicity(plain: Tensor, shifted: Tensor, scales: tuple[float, ...]) -> float:
    """Spearman correlation of scale and response, mean over samples and directions.

    plain: [M, F] features; shifted: [M, K, A, F] at ascending scales [A], the last minus the first; M >= 2. The
    response is the change of a sample's features along the direction's own mean change from the first scale to the
    last. The unshifted image stands in at scale 0. Range -1 to 1: 1 where more scale always is more response, 0 where
    nothing responds; larger is better.

    The mean change is taken over the *other* samples: with its own change in the mean, even a direction that does
    something else for every sample would seem to respond to its scale.
    Source: ours.
    """
    samples, directions = shifted.shape[:2]
    change = (shifted - plain[:, None, None]).double()  # [M, K, A, F]
    ends = change[:, :, -1] - change[:, :, 0]  # [M, K, F]
    others = (ends.sum(dim=0) - ends) / (samples - 1)
    response = torch.einsum("mkaf,mkf->mka", change, others)
    with_plain = torch.cat([response, response.new_zeros(samples, directions, 1)], dim=2)  # [M, K, A + 1]
    return float(spearman(torch.tensor((*scales, 0.0)), with_plain).mean())


def diversity(directions: DirectionSet) -> float:
    """Effective number of different directions, as a share of K.

    exp of the entropy of the singular values of the K unit rows (all steps of a direction, weighted by its length at
    each). Range 1/K, all directions equal, to 1, all orthogonal; larger is better.
    Source: effective rank, Roy & Vetterli, EUSIPCO 2007; divided by K: ours.
    """
    full = (directions.table * directions.sigma[:, :, None, None, None]).double().flatten(1)  # [K, S*C*H*W]
    rows = _unit(full)
    # K is small and a row can have a million entries: singular values by the K x K Gram matrix.
    values = torch.linalg.eigvalsh(rows @ rows.T).clamp(min=0).sqrt()
    share = values / values.sum().clamp(min=_TINY)
    return float(torch.special.entr(share).sum().exp() / len(directions))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation along the last dimension, ties at their average rank; 0 where one is constant.

    a, b: broadcastable [..., n] -> [...].
    """
    a, b = (ranks - ranks.mean(dim=-1, keepdim=True) for ranks in (_ranks(a), _ranks(b)))
    lengths = a.norm(dim=-1) * b.norm(dim=-1)
    correlation: Tensor = (a * b).sum(dim=-1) / lengths.clamp(min=_TINY)
    return correlation


def _ranks(values: Tensor) -> Tensor:
    """Ranks 0 .. n-1 along the last dimension: how many are smaller, and half of those that are equal."""
    smaller = (values[..., :, None] > values[..., None, :]).sum(dim=-1)
    equal = (values[..., :, None] == values[..., None, :]).sum(dim=-1) - 1
    return smaller.double() + equal.double() / 2


def _unit(x: Tensor) -> Tensor:
    """Unit vectors along the last dimension; what has no length stays zero."""
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / length.clamp(min=_TINY)
