"""The loss terms of the learned method, one function each.

    L = L_direction + 0.25 L_strength + w L_fidelity + c L_consistency + p L_purity + l L_locality

The first two terms and their weights are those of Voynov & Babenko (arXiv 2002.03754, equation 1). The third is that of
all trained methods (core.methods.trained.discriminator); a sweep searches its weight w. The last three are ours.
"""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity, cross_entropy

STRENGTH_WEIGHT = 0.25
CONSISTENCY_GRID = 8
LOCALITY_GRID = 16
_TINY = 1e-20  # keeps the slope of a root finite where nothing changes
STRENGTH_UNIT = 6.0  # largest magnitude of Voynov & Babenko: keeps STRENGTH_WEIGHT right for magnitudes in [-1, 1]


def direction_loss(logits: Tensor, k: Tensor) -> Tensor:
    """Return the loss of the predicted direction: cross-entropy of logits [N, K] with k [N]."""
    return cross_entropy(logits, k)


def strength_loss(predicted: Tensor, magnitude: Tensor) -> Tensor:
    """Return the loss of the predicted magnitude: mean absolute error of magnitudes [N] in [-1, 1], times 6."""
    return STRENGTH_UNIT * (predicted - magnitude).abs().mean()


def consistency_loss(x_0: Tensor, shifted: Tensor, magnitude: Tensor) -> Tensor:
    """Return 1 - cosine between the changes of the two samples of a pair: a direction should change all images alike.

    x_0, shifted: what is seen of samples, [N, C, H, W], 2j and 2j + 1 shifted along the same direction; magnitude: [N],
    each change is multiplied by its sign. Changes are compared as means on an 8 x 8 grid, or on the grid that they have
    where it is smaller, so the region counts and not the pixel.
    Source: ours; that learned directions are global is the claim of Zhang et al. (arXiv 2310.09912).
    """
    grid = min(CONSISTENCY_GRID, *shifted.shape[-2:])
    change = adaptive_avg_pool2d(shifted - x_0, grid).flatten(1) * magnitude.sign()[:, None]
    return 1 - cosine_similarity(change[0::2], change[1::2]).mean()


def purity_loss(change: Tensor, own: Tensor, magnitude: Tensor) -> Tensor:
    """Return 1 - cosine between what a shift changes of all numbers that are read and the own source, mean over pairs.

    change: by the shift [N, R], samples 2j and 2j + 1 shifted along the same direction; it is multiplied by the sign of
    magnitude [N] and averaged over a pair. own: the number of each sample's own source [N], or -1 for a direction
    without one, whose pairs do not count. Range 0 to 2; without a pair that counts, 0. Source: ours.
    """
    signed = change * magnitude.sign()[:, None]
    mean = (signed[0::2] + signed[1::2]) / 2  # [N / 2, R]
    has_one = own[0::2] >= 0
    if not has_one.any():
        return change.sum() * 0
    along = mean.gather(1, own[0::2].clamp(min=0)[:, None])[:, 0] / mean.norm(dim=1).clamp(min=1e-12)
    loss: Tensor = 1 - along[has_one].mean()
    return loss


def locality_loss(x_0: Tensor, shifted: Tensor, magnitude: Tensor) -> Tensor:
    """Return how evenly what a shift changes is spread over the image: 1 where all places change alike, near 0 for one.

    x_0, shifted: [N, C, H, W], samples 2j and 2j + 1 shifted along the same direction; magnitude: [N], each change is
    multiplied by its sign and averaged over a pair. A place is a cell of a 16 x 16 grid, a its change, as the norm over
    channels: sum a / (sqrt(256) sqrt(sum a^2)), the sparseness of Hoyer (JMLR 5, 2004) without its scaling, mean over
    pairs. Source: ours; a cause changes few places, and a mixture of causes many.
    """
    change = adaptive_avg_pool2d(shifted - x_0, LOCALITY_GRID) * magnitude.sign()[:, None, None, None]
    mean = ((change[0::2] + change[1::2]) / 2).flatten(2)  # [N / 2, C, 256]
    size = (mean.square().sum(dim=1) + _TINY).sqrt()
    loss: Tensor = (size.sum(dim=1) / size.norm(dim=1)).mean() / LOCALITY_GRID
    return loss
