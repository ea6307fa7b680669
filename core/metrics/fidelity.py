"""Measure whether shifted images still look like images of the same model."""

import math

import torch
from torch import Tensor


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
