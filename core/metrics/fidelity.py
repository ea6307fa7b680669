"""Measure how far sets of images are apart, on features of any network: KID and FID.

Both ask whether shifted images still look like images of the same model. Published values use the features of
`networks.load_inception`. Checked against torchmetrics 1.9.0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import UserError
from core.metrics.bootstrap import REPLICATES, Figure, over_pairs, weights


@dataclass(frozen=True)
class _Kernels:
    """Mean kernels between the R images of samples [M, R, F], and with the images of a reference [N, F]."""

    within: Tensor  # [M, M]
    across: Tensor  # [M, N]

    @classmethod
    def of(cls, x: Tensor, reference: Tensor) -> "_Kernels":
        """Compare the images of samples [M, R, F] with one another and with a reference [N, F], some rows at a time."""
        samples, images = x.shape[:2]
        rows = x.double().flatten(0, 1)
        within = torch.cat([_block(part, x.double()) for part in torch.split(rows, _ROWS)])
        across = torch.cat([_kernel(part, reference.double()) for part in torch.split(rows, _ROWS)])
        return cls(
            within.reshape(samples, images, samples).mean(dim=1), across.reshape(samples, images, -1).mean(dim=1)
        )


def kid(shifted: Tensor, plain: Tensor, reference: Tensor) -> Figure:
    """Return how much further shifted images are from the model's images than the same samples are unshifted.

    The difference of two kernel inception distances, both from the reference: of the shifted images and of the plain
    ones. A kernel inception distance is the unbiased squared MMD of features, with the kernel (x.y / F + 1)^3.
    shifted: [M, R, F], R images of each of M samples; plain: [M, F], the same samples unshifted; reference: [N, F],
    other samples, unshifted. No unit; smaller is better; exactly 0 where nothing is shifted, and 0 in expectation where
    shifts lead from the model's images to the model's images (so slightly negative by chance). The reference consists
    of samples of the same model, not of data, so errors of the model itself do not count.

    The R images of one sample are alike whatever the shift does, so pairs within a sample are left out, as the paper
    leaves out the pair of an image with itself. The chance by which few samples are near to or far from the reference
    is the same in both distances and cancels. Samples and reference are both resampled for the interval.
    Source: Binkowski et al., arXiv 1801.01401 (KID and its unbiased estimator); pairs by sample and difference: ours.
    """
    after, before = _Kernels.of(shifted, reference), _Kernels.of(plain[:, None], reference)
    within, across = after.within - before.within, after.across - before.across
    within = within - torch.diag(within.diagonal())
    samples, others = across.shape
    alike = within.sum() / (samples * (samples - 1))
    drawn, drawn_others = weights(samples), weights(others, "reference")
    replicates = over_pairs(((drawn @ within) * drawn).sum(dim=1), alike, drawn)
    replicates -= 2 * ((drawn @ across) * drawn_others).sum(dim=1) / (samples * others)
    return Figure(float(alike - 2 * across.mean()), replicates, samples)


_ROWS = 1024  # of a kernel matrix at a time: the whole can be gigabytes


def _block(rows: Tensor, x: Tensor) -> Tensor:
    """Return the mean kernel of each row [P, F] with the R images of each sample of x [M, R, F]: [P, M]."""
    samples, images = x.shape[:2]
    return _kernel(rows, x.flatten(0, 1)).reshape(len(rows), samples, images).mean(dim=2)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return k(x, y) = (x.y / F + 1)^3 of every row of x [..., P, F] with every row of y [..., Q, F]: [..., P, Q]."""
    return torch.pow(x @ y.mT / x.shape[-1] + 1, 3)


def fid(a: Tensor, b: Tensor) -> float:
    """Return the Frechet distance of features a [N, F] and b [M, F], each taken as a normal distribution.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of the means m and covariances S, in float64; 0 or more, 0 for
    equal sets; smaller is better. The bias falls with the number of images, so values can only be compared at equal N
    and M. Raises UserError for features of two widths, and for sets of no more images than features, whose covariances
    are singular. Cost: a QR of each set and the singular values of an F x F matrix.

    With centred rows A / sqrt(N - 1) and B / sqrt(M - 1) the last trace is the sum of the singular values of A B^T.
    This needs no matrix square root.
    Source: Heusel et al., arXiv 1706.08500, equation 6; the singular values: ours.
    """
    if a.shape[1] != b.shape[1]:
        raise UserError(f"fid needs features of one network; got {a.shape[1]} and {b.shape[1]} of an image")
    if not enough_for_fid(min(len(a), len(b)), a.shape[1]):
        raise UserError(
            f"fid needs more than {a.shape[1]} images in each set, one for each feature; got {len(a)} and {len(b)}; "
            f"kid is unbiased for any number"
        )
    return _frechet(a.double(), b.double(), torch.ones(len(a)).double(), torch.ones(len(b)).double())


def enough_for_fid(images: int, features: int) -> bool:
    """Return whether the covariance of so many features over so many images can have full rank."""
    return images > features


def fid_by_sample(shifted: Tensor, reference: Tensor) -> Figure:
    """Return the Frechet distance of shifted images [M, R, F] from the reference [N, F], resampled as `kid` is.

    Its interval is of FID_REPLICATES resamples, for each costs a decomposition. Raises UserError as `fid` does.
    """
    samples, images = shifted.shape[:2]
    a, b = shifted.flatten(0, 1).double(), reference.double()
    value = fid(a, b)
    drawn, drawn_others = weights(samples)[:FID_REPLICATES], weights(len(b), "reference")[:FID_REPLICATES]
    rows = drawn[:, :, None].expand(-1, -1, images).flatten(1)
    pairs = zip(rows, drawn_others, strict=True)
    few = torch.tensor([_frechet(a, b, *pair) for pair in pairs], dtype=torch.float64)
    replicates = few.repeat(REPLICATES // FID_REPLICATES)
    return Figure(value, replicates, samples)


FID_REPLICATES = 20


def _frechet(a: Tensor, b: Tensor, times_a: Tensor, times_b: Tensor) -> float:
    """Return the distance of rows a and b, each taken as often as its weight says."""
    mean_a, rows_a = _spread(a, times_a)
    mean_b, rows_b = _spread(b, times_b)
    shared = torch.linalg.svdvals(rows_a @ rows_b.T).sum()
    apart = (mean_a - mean_b).square().sum()
    return float(apart + rows_a.square().sum() + rows_b.square().sum() - 2 * shared)


def _spread(x: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of x [N, F], and at most F rows R such that R^T R is its covariance."""
    count = times.sum()
    mean = times @ x / count
    rows: Tensor = (x - mean) * (times / (count - 1)).sqrt()[:, None]
    return mean, rows if len(rows) <= rows.shape[1] else torch.linalg.qr(rows, mode="r")[1]
