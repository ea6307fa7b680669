"""Attributes of a drawn digit that are measured in the image, and need no training.

    slant        the shear that would set the strokes upright; positive leans right
    thickness    of the strokes, in pixels
    width        of the digit once it is set upright, height: standard deviations of its ink, as fractions of half the
                 image
    roundness    how nearly all ink is equally far from the centre, once width and height are made alike; 1 for a ring
    holes        how many the strokes enclose, less one for each further piece of ink
    centre_x, centre_y  where the ink is, as fractions of half the image; positive is right and down

`measure` is differentiable, so that method guided can pursue what it returns. `measure_otherwise` measures the same
with other arithmetic: it judges what was found with the first.
"""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

MEASURES = ("slant", "thickness", "width", "height", "roundness", "holes", "centre_x", "centre_y")
_SHARPNESS = 30.0  # of the soft threshold between ink and none, for holes
_TINY = 1e-6


def measure(images: Tensor) -> Tensor:
    """Return the measures [N, 8] of images [N, 1, H, W] in [-1, 1], from moments of the ink; differentiable."""
    ink = _ink(images)
    axis = _axis(ink)
    total = ink.sum((1, 2)).clamp(min=_TINY)

    def mean(values: Tensor) -> Tensor:
        return (ink * values).sum((1, 2)) / total

    x_0, y_0 = mean(axis.expand_as(ink)), mean(axis[:, None].expand_as(ink))
    x, y = axis - x_0[:, None, None], axis[:, None] - y_0[:, None, None]  # [N, 1, W], [N, H, 1]
    var_y = mean(y**2).clamp(min=_TINY)
    slant = -mean(x * y) / var_y
    upright = x + slant[:, None, None] * y  # [N, H, W]
    var_x = mean(upright**2).clamp(min=_TINY)
    radius = (upright**2 / var_x[:, None, None] + y**2 / var_y[:, None, None] + _TINY).sqrt()
    usual = mean(radius).clamp(min=0.1)  # about 1.3 where there is ink
    roundness = 1 - (mean(radius**2) - mean(radius) ** 2).clamp(min=_TINY).sqrt() / usual
    thickness = 2 * total / _edges(ink)  # a stroke has two edges
    return torch.stack([slant, thickness, var_x.sqrt(), var_y.sqrt(), roundness, _holes(ink), x_0, y_0], dim=1)


@torch.no_grad()
def measure_otherwise(images: Tensor) -> Tensor:
    """Return the measures [N, 8] of images [N, 1, H, W] in [-1, 1], from extents, quantiles and counted pixels.

    slant: between the middles of the upper and the lower half. thickness: twice the number of solid pixels, divided by
    those with an empty one among their eight neighbours. width, height: the middle four fifths of the ink. roundness:
    as in `measure`, by the median. centre: the middle between the first and the last tenth of the ink.
    """
    ink = _ink(images)
    axis = _axis(ink)
    solid = (ink > 0.5).float()
    holes = 1 - _euler_number(solid)
    solid[solid.sum((1, 2)) == 0] = 1.0  # an empty image is measured as a full one, which has no slant
    across, down = axis.expand_as(solid), axis[:, None].expand_as(solid)
    x_0, y_0 = ((_quantile(each, solid, 0.1) + _quantile(each, solid, 0.9)) / 2 for each in (across, down))
    x, y = across - x_0[:, None, None], down - y_0[:, None, None]
    upper, lower = solid * (y < 0), solid * (y >= 0)
    rise = _mean(y, lower) - _mean(y, upper)
    slant = (_mean(x, upper) - _mean(x, lower)) / rise.clamp(min=2 / len(axis))  # a pixel, where there is one row
    upright = x + slant[:, None, None] * y
    width, height = _middle(upright, solid), _middle(y, solid)
    scaled = torch.stack([upright / width[:, None, None], y / height[:, None, None]])
    scaled = scaled - torch.stack([_mean(each, solid) for each in scaled])[..., None, None]
    radius = scaled.square().sum(0).sqrt()
    usual = _quantile(radius, solid, 0.5)
    roundness = 1 - _mean((radius - usual[:, None, None]).abs(), solid) / usual.clamp(min=_TINY)
    outline = solid.sum((1, 2)) - (1 - max_pool2d(1 - pad(solid, (1, 1, 1, 1))[:, None], 3, 1)[:, 0]).sum((1, 2))
    thickness = 2 * solid.sum((1, 2)) / outline.clamp(min=1.0)
    return torch.stack([slant, thickness, width, height, roundness, holes, x_0, y_0], dim=1)


def _ink(images: Tensor) -> Tensor:
    return ((images[:, 0] + 1) / 2).clamp(0, 1)  # [N, H, W]


def _axis(ink: Tensor) -> Tensor:
    """Return the positions of pixels along a side, from -1 to 1: [W]."""
    side = ink.shape[-1]
    return ((torch.arange(side, device=ink.device) + 0.5) / side * 2 - 1).to(ink.dtype)


def _edges(ink: Tensor) -> Tensor:
    """Return the length of the outline in pixels [N]: the total variation of the ink."""
    around = pad(ink, (1, 1, 1, 1))
    across, down = around[:, 1:, 1:] - around[:, 1:, :-1], around[:, 1:, 1:] - around[:, :-1, 1:]
    return (across**2 + down**2 + _TINY).sqrt().sum((1, 2))


def _holes(ink: Tensor) -> Tensor:
    """Return the number of holes [N] of ink in one piece, nearly a whole number, differentiable."""
    return 1 - _euler_number(torch.sigmoid(_SHARPNESS * (ink - 0.5)))


def _euler_number(solid: Tensor) -> Tensor:
    """Return pieces minus holes [N] of pixels that are solid with probability `solid` [N, H, W].

    Each pixel is a closed square: corners minus edges plus faces. Pixels that touch at a corner are in one piece. Exact
    for 0 and 1.
    """
    empty = 1 - pad(solid, (1, 1, 1, 1))
    faces = solid.sum((1, 2))
    beside, below = empty[:, :, 1:] * empty[:, :, :-1], empty[:, 1:] * empty[:, :-1]
    edges = (1 - beside).sum((1, 2)) + (1 - below).sum((1, 2))
    corners = (1 - beside[:, 1:] * beside[:, :-1]).sum((1, 2))
    return corners - edges + faces


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return weighted means [N] of values [N, H, W]."""
    mean: Tensor = (values * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=_TINY)
    return mean


def _quantile(values: Tensor, solid: Tensor, share: float) -> Tensor:
    """Return a quantile [N] of values [N, H, W] over the pixels that are solid."""
    among = values.masked_fill(solid == 0, torch.nan).flatten(1)
    return torch.nanquantile(among, share, dim=1)


def _middle(values: Tensor, solid: Tensor) -> Tensor:
    """Return the width [N] of the middle four fifths of values [N, H, W] over the pixels that are solid."""
    return (_quantile(values, solid, 0.9) - _quantile(values, solid, 0.1)).clamp(min=_TINY)
