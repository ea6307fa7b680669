"""Show images of any number of channels on a screen, which has red, green and blue."""

import torch
from torch import Tensor

COLOURS = (1, 3, 4)  # numbers of channels that are pictures: grey, RGB, RGB with alpha


def as_rgb(images: Tensor) -> Tensor:
    """Return images [..., C, H, W] in [-1, 1] as RGB: [..., 3, H, W].

    One channel is grey. The fourth of four is alpha, from -1 (clear) to 1, over white. Channels of any other number are
    shown side by side, each as grey: [..., 3, H, C W].
    """
    count = images.shape[-3]
    if count == 3:
        return images
    if count == 4:
        colours, alpha = images[..., :3, :, :], (images[..., 3:, :, :].clamp(-1, 1) + 1) / 2
        return colours * alpha + (1 - alpha)
    row = torch.cat(images.unbind(-3), dim=-1).unsqueeze(-3)
    return row.expand(*row.shape[:-3], 3, -1, -1)


def shown_shape(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return (3, H, W) of what `as_rgb` makes of images of (C, H, W)."""
    count, height, width = image_shape
    return 3, height, width if count in COLOURS else count * width
