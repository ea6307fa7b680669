"""Convert images to what networks that judge take."""

import torch
from torch import Tensor

from core.errors import UserError
from core.pictures.channels import COLOURS, as_rgb


def rgb(images: Tensor, device: torch.device | str) -> Tensor:
    """Return images [N, 1, 3 or 4, H, W] as [N, 3, H, W] float32 on `device`; grey is repeated, alpha is over white.

    Raises UserError for another number of channels.
    """
    if images.shape[1] not in COLOURS:
        raise UserError(f"images of {images.shape[1]} channels are no pictures to a network that judges: 1, 3 or 4 are")
    return as_rgb(images.to(device).float())


def levels(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as the 256 levels of a saved picture, 0 to 255, as floats."""
    return ((images + 1) * 127.5).round().clamp(0, 255)
