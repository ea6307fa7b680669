"""Spatial masks: the region of the image that a method uses, given as a box or as a picture."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from core.errors import UserError
from core.model.denoiser import Denoiser
from core.pictures.opening import open_picture


def find_mask(denoiser: Denoiser, box: Sequence[int] | None = None, path: str | None = None) -> Tensor | None:
    """Return the mask [1, H, W] of a box or of an image file, on the denoiser's device; None where neither is given.

    Both are given in pixels. For a latent model, a place of the latents is in the mask where at least half of its
    pixels are. Raises UserError where both are given, or where the given one does not fit the model's images.
    """
    if box is not None and path is not None:
        raise UserError("mask and box are both given; give one of them")
    mask = None
    if box is not None:
        mask = box_mask(denoiser, box)
    elif path is not None:
        mask = image_mask(denoiser, path)
    return None if mask is None else _on_samples(denoiser, mask).to(denoiser.device)


def _on_samples(denoiser: Denoiser, mask: Tensor) -> Tensor:
    if denoiser.codec is None:
        return mask
    latent_mask = (adaptive_avg_pool2d(mask, denoiser.sample_shape[1:]) >= 0.5).float()
    if not latent_mask.any():
        factor = denoiser.image_shape[1] // denoiser.sample_shape[1]
        raise UserError(f"what is looked at is smaller than a place of the latents, which has {factor}x{factor} pixels")
    return latent_mask


def box_mask(denoiser: Denoiser, box: Sequence[int]) -> Tensor:
    """Return the mask [1, H, W] that is 1 in the box (left, top, right, bottom), right and bottom exclusive, else 0.

    All are in pixels. Raises UserError where the box does not fit the model's images.
    """
    _, height, width = denoiser.image_shape
    if len(box) != 4 or not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
        raise UserError(
            f"box: got {list(box)}; in the {width}x{height} images of model '{denoiser.name}' a box is "
            f"[left, top, right, bottom] with 0 <= left < right <= {width} and 0 <= top < bottom <= {height}"
        )
    left, top, right, bottom = box
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = 1
    return mask


def image_mask(denoiser: Denoiser, path: str) -> Tensor:
    """Return the mask [1, H, W] that is 1 where the image file, read as grey, is at least half white, else 0.

    Raises UserError where the image has another size than the model's, or no white pixel.
    """
    _, height, width = denoiser.image_shape
    with open_picture(Path(path).expanduser(), "mask") as image:
        grey = image.convert("L")
    if grey.size != (width, height):
        raise UserError(
            f"mask: {path} is {grey.size[0]}x{grey.size[1]}; model '{denoiser.name}' draws {width}x{height}"
        )
    white = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).reshape(1, height, width)
    mask = (white.float() / 255 >= 0.5).float()
    if not mask.any():
        raise UserError(f"mask: {path} is black all over; white is what is looked at")
    return mask
