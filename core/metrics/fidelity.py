"""Measure how far sets of images are apart, on features of any network: KID and FID.

`kid_by_sample` asks whether shifted images still look like images of the same model. `fid` and `kid_over_subsets` are
the two distances that papers report; the published ones use the features of `networks.load_inception`. Checked against
torchmetrics 1.9.0.
"""

import math

import torch
from torch import Tensor

from core.errors import UserError
from core.randomness import generator


def kid_by_sample(shifted: Tensor, reference: Tensor) -> float:
    """Return the kernel inception distance: the unbiased squared MMD of features of shifted and unshifted images.

    shifted: [M, R, F], R images of each of M samples; reference: [N, F], other samples, unshifted; both standardised.
    No unit; smaller is better; 0 in expectation where both come from one distribution (so slightly negative by chance).
    The reference consists of samples of the same model, not of data, so errors of the model itself do not count.

    The R images of one sample are alike whatever the shift does, so pairs within a sample are left out, as the paper
    leaves out the pair of an image with itself. With R = 1 this is the paper's estimator, over all samples at once.
    Source: Binkowski et al., arXiv 1801.01401 (KID and its unbiased estimator); other features, and pairs by sample,
    ours.
    """
    x, y = shifted.double(), reference.double()
    across = _kernel_sum(x.flatten(0, 1), y) / (x.shape[0] * x.shape[1] * len(y))
    return _mean_within(x) + _mean_within(y[:, None]) - 2 * across


def _mean_within(x: Tensor) -> float:
    """Return the mean kernel over all pairs from different samples. x: [M, R, F]."""
    samples, images = x.shape[:2]
    everything = _kernel_sum(x.flatten(0, 1), x.flatten(0, 1))
    same_sample = float(_kernel(x, x).sum())
    return (everything - same_sample) / (samples * (samples - 1) * images**2)


def _kernel_sum(x: Tensor, y: Tensor, rows: int = 1024) -> float:
    """Return the sum of the kernel over all pairs, a block of rows at a time: the whole matrix can be gigabytes."""
    return math.fsum(float(_kernel(part, y).sum()) for part in torch.split(x, rows))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return k(x, y) = (x.y / F + 1)^3 of every row of x [..., P, F] with every row of y [..., Q, F]: [..., P, Q]."""
    return torch.pow(x @ y.mT / x.shape[-1] + 1, 3)


def fid(a: Tensor, b: Tensor) -> float:
    """Return the Frechet distance of features a [N, F] and b [M, F], each taken as a normal distribution.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of the means m and covariances S, in float64; 0 or more, 0 for
    equal sets; smaller is better. The bias falls with the number of images, so values can only be compared at equal N
    and M. Raises UserError for fewer than two images, or features of two widths. Cost: a QR of each set and the
    singular values of a matrix of at most F x F.

    With centred rows A / sqrt(N - 1) and B / sqrt(M - 1) the last trace is the sum of the singular values of A B^T.
    This needs no matrix square root and has no small negative eigenvalues where there are fewer images than features.
    Source: Heusel et al., arXiv 1706.08500, equation 6; the singular values: ours.
    """
    _check("fid", a, b)
    a, b = a.double(), b.double()
    apart = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    rows_a, rows_b = _spread(a), _spread(b)
    shared = torch.linalg.svdvals(rows_a @ rows_b.T).sum()
    return float(apart + rows_a.square().sum() + rows_b.square().sum() - 2 * shared)


def kid_over_subsets(
    a: Tensor, b: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the kernel distance of features a [N, F] and b [M, F]: mean and standard deviation over random subsets.

    The unbiased squared MMD with the kernel (x.y / F + 1)^3, in float64; smaller is better. It is slightly negative by
    chance where both sets are from one distribution. `seed` draws the subsets, without repetition. Raises UserError
    where the subsets do not fit the sets. Source: Binkowski et al., arXiv 1801.01401.
    """
    _check("kid", a, b)
    if not 2 <= subset_size <= min(len(a), len(b)):
        raise UserError(f"kid: subset_size is {subset_size}; allowed: 2 to {min(len(a), len(b))}, the smaller set")
    if subsets < 1:
        raise UserError(f"kid: subsets is {subsets}; allowed: 1 and more")
    drawing, values = generator("kid", seed), []
    for _ in range(subsets):
        part_a, part_b = (x[torch.randperm(len(x), generator=drawing)[:subset_size].to(x.device)] for x in (a, b))
        values.append(kid_by_sample(part_a[:, None], part_b))
    distances = torch.tensor(values, dtype=torch.float64)
    return float(distances.mean()), float(distances.std(correction=0))


def _spread(x: Tensor) -> Tensor:
    """Return at most F rows R such that R^T R is the covariance of x [N, F]."""
    rows: Tensor = (x - x.mean(dim=0)) / math.sqrt(len(x) - 1)
    return rows if len(rows) <= rows.shape[1] else torch.linalg.qr(rows, mode="r")[1]


def _check(name: str, a: Tensor, b: Tensor) -> None:
    if min(len(a), len(b)) < 2:
        raise UserError(f"{name} needs 2 or more images in each set; got {len(a)} and {len(b)}")
    if a.shape[1] != b.shape[1]:
        raise UserError(f"{name} needs features of one network; got {a.shape[1]} and {b.shape[1]} of an image")
