"""A feature network as a value, and what it makes of images in [-1, 1] before its first layer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Extractor:
    """`embed(images [N, 1 or 3, H, W] in [-1, 1]) -> [N, F]`, float32 on the CPU; row i depends on image i alone."""

    name: str  # what a report says: the kind of network, and the first digits of its weights' sha256
    embed: Callable[[Tensor], Tensor]


def rgb(images: Tensor, device: torch.device | str) -> Tensor:
    """[N, 1 or 3, H, W] -> [N, 3, H, W] float32 on `device`; grey is repeated."""
    return images.to(device).float().expand(-1, 3, -1, -1)


def levels(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as the 256 levels that a saved picture of them has, as floats."""
    return ((images + 1) * 127.5).round().clamp(0, 255)
