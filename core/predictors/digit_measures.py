"""Attributes of a drawn digit that are measured by the image's moments, and need no training."""

import torch
from torch import Tensor

MEASURES = ("slant", "thickness", "size")


def measure(images: Tensor) -> Tensor:
    """Return slant, thickness and size of the ink. images: [N, 1, H, W] in [-1, 1] -> [N, 3].

    slant: cov(x, -y) / var(y), the shear that would set the strokes upright; positive leans right. thickness: the mean
    ink where there is ink. size: the root mean square distance of ink from its centre, as a fraction of half the image.
    """
    ink = ((images[:, 0] + 1) / 2).clamp(min=0)  # [N, H, W]
    side = ink.shape[-1]
    axis = ((torch.arange(side, device=ink.device) + 0.5) / side * 2 - 1).to(ink.dtype)
    total = ink.sum((1, 2)).clamp(min=1e-6)
    mean_x = (ink.sum(1) * axis).sum(1) / total
    mean_y = (ink.sum(2) * axis).sum(1) / total
    x = axis[None, None, :] - mean_x[:, None, None]
    y = axis[None, :, None] - mean_y[:, None, None]
    var_x, var_y = (ink * x**2).sum((1, 2)) / total, (ink * y**2).sum((1, 2)) / total
    slant = -(ink * x * y).sum((1, 2)) / total / var_y.clamp(min=1e-6)
    thickness = (ink**2).sum((1, 2)) / total
    return torch.stack([slant, thickness, torch.sqrt(var_x + var_y)], dim=1)
