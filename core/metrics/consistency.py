"""Measure consistency over samples (globality) and scales (monotonicity), and the diversity of directions."""

import torch
from torch import Tensor

from core.directions.direction_set import DirectionSet

_TINY = 1e-12


def globality(plain: Tensor, positive: Tensor) -> float:
    """Return the mean cosine, over pairs of samples, of the change of features by a direction; mean over directions.

    plain: [M, F] features of unshifted images; positive: [M, K, F] of the same samples at the largest scale; M >= 2.
    Range -1/(M-1) to 1; larger is better. 1: every sample changes alike; 0: the changes have nothing in common. The
    changes are not centred, so a change that all directions share raises this metric; `diversity` falls in that case.
    Source: ours; the same contrast is the training objective of NoiseCLR (arXiv 2312.05390).
    """
    return float(agreement((positive - plain[:, None]).double()).mean())


def agreement(change: Tensor) -> Tensor:
    """Return the mean cosine, over pairs of samples, of each direction's change. change: [M, K, F], M >= 2 -> [K]."""
    samples, unit = len(change), _unit(change)
    # The sum over all ordered pairs, less each sample with itself.
    pairs = unit.sum(dim=0).square().sum(dim=1) - unit.square().sum(dim=(0, 2))
    return pairs / (samples * (samples - 1))


def distinctness(change: Tensor) -> Tensor:
    """Return how different each direction's mean change is from the others': [K], 0 to 1. change: [M, K, F].

    1 less the largest |cosine| with the mean change of any other direction; 1 for a set of one direction. Source: ours.
    """
    mean = _unit(change.mean(dim=0))
    return (1 - (mean @ mean.T).abs().fill_diagonal_(0.0).amax(dim=1)).clamp(0, 1)


def monotonicity(plain: Tensor, shifted: Tensor, scales: tuple[float, ...]) -> float:
    """Return the Spearman correlation of scale and response, mean over samples and directions.

    plain: [M, F] features; shifted: [M, K, A, F] at the ascending `scales` [A], of which the last is minus the first;
    M >= 2. The response is the change of a sample's features along the direction's mean change from the first scale to
    the last. The unshifted image is used at scale 0. Range -1 to 1; larger is better. 1: a larger scale always gives a
    larger response; 0: nothing responds.

    The mean change is taken over the *other* samples. If a sample's own change were in the mean, a direction that does
    something else to every sample would seem to respond to its scale. Source: ours.
    """
    samples, directions = shifted.shape[:2]
    change = (shifted - plain[:, None, None]).double()  # [M, K, A, F]
    ends = change[:, :, -1] - change[:, :, 0]  # [M, K, F]
    others = (ends.sum(dim=0) - ends) / (samples - 1)
    response = torch.einsum("mkaf,mkf->mka", change, others)
    with_plain = torch.cat([response, response.new_zeros(samples, directions, 1)], dim=2)  # [M, K, A + 1]
    return float(spearman(torch.tensor((*scales, 0.0)), with_plain).mean())


def diversity(directions: DirectionSet) -> float:
    """Return the effective number of different directions, as a share of K.

    The exponential of the entropy of the singular values of the K unit rows. A row is a direction at all steps,
    weighted by its length at each. Range 1/K (all directions equal) to 1 (all orthogonal); larger is better.
    Source: effective rank, Roy & Vetterli, EUSIPCO 2007; divided by K: ours.
    """
    full = (directions.table * directions.sigma[:, :, None, None, None]).double().flatten(1)  # [K, S*C*H*W]
    rows = _unit(full)
    # K is small and a row can have a million entries, so the singular values come from the K x K Gram matrix.
    values = torch.linalg.eigvalsh(rows @ rows.T).clamp(min=0).sqrt()
    share = values / values.sum().clamp(min=_TINY)
    return float(torch.special.entr(share).sum().exp() / len(directions))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's rank correlation along the last dimension. a, b: broadcastable [..., n] -> [...].

    Equal values get their average rank. The correlation is 0 where `a` or `b` is constant.
    """
    a, b = (ranks - ranks.mean(dim=-1, keepdim=True) for ranks in (_ranks(a), _ranks(b)))
    lengths = a.norm(dim=-1) * b.norm(dim=-1)
    correlation: Tensor = (a * b).sum(dim=-1) / lengths.clamp(min=_TINY)
    return correlation


def _ranks(values: Tensor) -> Tensor:
    """Return the ranks 0 .. n-1 along the last dimension: the number of smaller values plus half that of equals."""
    smaller = (values[..., :, None] > values[..., None, :]).sum(dim=-1)
    equal = (values[..., :, None] == values[..., None, :]).sum(dim=-1) - 1
    return smaller.double() + equal.double() / 2


def _unit(x: Tensor) -> Tensor:
    """Return unit vectors along the last dimension; vectors of length 0 stay 0."""
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / length.clamp(min=_TINY)
