"""Measure what the changes of a set have in common: over samples, between directions, and along the dial."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.metrics.bootstrap import Figure, of_directions, of_mean, over_pairs, weights

_TINY = 1e-12


@dataclass(frozen=True)
class Alikeness:
    """How alike the changes of different samples are: mean cosine of direction k in one with direction l in another."""

    value: Tensor  # [K, K], symmetric; its diagonal is the agreement of each direction with itself
    replicates: Tensor  # [B, K, K]
    samples: int

    @classmethod
    def of(cls, change: Tensor) -> "Alikeness":
        """Compare changes [M, K, F], M >= 2, of features or images. Pairs within a sample are left out.

        A change of nothing has cosine 0 with every other. Cost: M^2 K^2 F products, in memory M^2 K at a time.
        """
        samples, directions = change.shape[:2]
        unit, drawn = _unit(change.double()), weights(samples)
        rows, value, replicates = unit.flatten(0, 1), [], []
        for other in unit.unbind(dim=1):  # [M, F]
            cosine = (rows @ other.T).reshape(samples, directions, samples)
            cosine = cosine * (1 - torch.eye(samples, dtype=torch.float64))[:, None]
            value.append(cosine.sum(dim=(0, 2)) / (samples * (samples - 1)))
            over_first = (drawn @ cosine.flatten(1)).reshape(-1, directions, samples)
            replicates.append(over_pairs((over_first * drawn[:, None]).sum(dim=2), value[-1], drawn))
        return cls(torch.stack(value, dim=1), torch.stack(replicates, dim=2), samples)


def globality(alike: Alikeness) -> Figure:
    """Return the mean cosine, over pairs of samples, of the change by a direction; mean over directions.

    Range -1/(M-1) to 1; larger is better. 1: every sample changes alike; 0: the changes have nothing in common, or
    nothing changes. The changes are not centred, so a change that all directions share raises this metric; `diversity`
    falls in that case. Source: ours; the same contrast is the training objective of NoiseCLR (arXiv 2312.05390).
    """
    value, replicates = (x.diagonal(dim1=-2, dim2=-1) for x in (alike.value, alike.replicates))
    return of_directions(value, replicates, alike.samples)


def diversity(alike: Alikeness) -> Figure:
    """Return how much more a direction resembles itself in another sample than another direction; mean over directions.

    Of direction k: the cosine of its changes in two samples, less the largest |cosine| of its change in one sample with
    that of another direction in another sample. Range -1 to 1; larger is better. 1: each direction does one thing of
    its own; 0: nothing changes, or two directions do the same. Orthogonal rows of h whose images change alike have 0.
    With one direction it is `globality`. The largest of K - 1 cosines is above 0 by chance, the more so the more
    directions and the fewer samples: compare sets of one size. Source: ours, after the silhouette of clusters
    (Rousseeuw 1987).
    """
    return of_directions(_margin(alike.value), _margin(alike.replicates), alike.samples)


def _margin(cosine: Tensor) -> Tensor:
    """Return the diagonal less the largest other |entry| of its row: [..., K, K] -> [..., K]."""
    own = cosine.diagonal(dim1=-2, dim2=-1)
    others = (cosine - torch.diag_embed(own)).abs().amax(dim=-1)
    return own - others


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


def monotonicity(plain: Tensor, shifted: Tensor, scales: tuple[float, ...]) -> Figure:
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
    return of_mean(spearman(torch.tensor((*scales, 0.0)), with_plain))


def evenness(plain: Tensor, shifted: Tensor, scales: tuple[float, ...]) -> Figure:
    """Return how equal the steps of a dial are in what is seen, mean over samples and directions.

    plain: [M, F] features; shifted: [M, K, A, F] at the ascending `scales`, between which the unshifted image stands at
    0. A step is the distance of neighbouring images for each unit of scale; evenness is 1 less the deviation of the
    steps divided by their mean. Largest 1: equal changes of the dial are equal changes of the image; lower where it
    does nothing at first or saturates, down to 1 - sqrt(A - 1) where one of A steps is the whole change; 0 where
    nothing changes. The steps need not lead anywhere: unrelated images are equally far apart, so read this metric
    together with `monotonicity`. Source: ours; FreeSliders takes the deviation of the steps of a CLIP score in the same
    way, without dividing (arXiv 2511.00103, its "smoothness").
    """
    middle = sum(scale < 0 for scale in scales)
    at_zero = plain[:, None, None].expand(-1, shifted.shape[1], -1, -1)
    path = torch.cat([shifted[:, :, :middle], at_zero, shifted[:, :, middle:]], dim=2).double()
    positions = torch.tensor((*scales[:middle], 0.0, *scales[middle:]), dtype=torch.float64)
    steps = path.diff(dim=2).norm(dim=3) / positions.diff()  # [M, K, A]
    mean = steps.mean(dim=2)
    return of_mean(torch.where(mean > _TINY, 1 - steps.std(dim=2, correction=0) / mean.clamp(min=_TINY), 0.0))


def locality(plain: Tensor, positive: Tensor) -> Figure:
    """Return in how small a part of the image the change is, mean over samples and directions.

    plain: [M, C, H, W] images; positive: [M, K, C, H, W] at the largest scale. 1 less the effective share of the
    pixels, (sum of e)^2 / (P sum of e^2) of the energy e of the change at each of P pixels. Range 0 (all pixels change
    alike, or nothing changes) to 1 - 1/P (one pixel). Neither is better as such: an attribute such as the background
    is everywhere. Source: the participation ratio of a change; ours.
    """
    energy = (positive - plain[:, None]).double().square().sum(dim=2).flatten(2)  # [M, K, P]
    total, squares = energy.sum(dim=2), energy.square().sum(dim=2)
    return of_mean(torch.where(squares > 0, 1 - total.square() / (energy.shape[2] * squares.clamp(min=1e-300)), 0.0))


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
