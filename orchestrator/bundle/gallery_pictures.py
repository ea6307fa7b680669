"""Draw the pictures of a gallery as data URIs: a direction's frames on one sheet, and where in the image it acts."""

from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from plotly.colors import hex_to_rgb, sequential
from torch import Tensor

from core.metrics import Traversals
from core.pictures.channels import as_rgb
from core.pictures.traversal_grid import to_picture
from orchestrator.pages import data_uri

LARGEST_FRAME = 160  # pixels of the longer side; larger images are reduced
PIXELATED = 64  # pixels of the longer side; up to this size every pixel is kept and shown as a square
_QUALITY = 85  # of WebP, for images larger than PIXELATED
_LONGEST_SHEET = 16_383  # pixels; WebP's limit


RAMP: list[str] = sequential.Inferno  # its colours are perceptually uniform


@dataclass(frozen=True)
class Difference:
    """A map of where a direction acts; `most` is the difference of its brightest colour, where black to white is 1."""

    uri: str
    most: float


def stops(traversals: Traversals) -> tuple[float, ...]:
    """Return the scales of the frames of a row, with 0.0 for the unshifted image."""
    half = len(traversals.scales) // 2
    return (*traversals.scales[:half], 0.0, *traversals.scales[half:])


def frames(traversals: Traversals, k: int) -> Tensor:
    """Return the images of direction k as they are shown: [M, stops, 3, H, W]."""
    half, shifted = len(traversals.scales) // 2, traversals.shifted[:, k]
    samples = torch.cat([shifted[:, :half], traversals.plain[:, None], shifted[:, half:]], dim=1)
    images = as_rgb(traversals.images(samples.flatten(0, 1)).float())
    return images.reshape(*samples.shape[:2], *images.shape[1:])


def frame_size(images: Tensor) -> tuple[int, int]:
    """Return height and width in which frames [M, stops, C, H, W] are shown."""
    rows, columns, _, height, width = images.shape
    longest = min(LARGEST_FRAME, _LONGEST_SHEET // max(rows, columns))
    shrink = min(1.0, longest / max(height, width))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def pixelated(images: Tensor) -> bool:
    """Return whether images are so small that every pixel is shown as a square."""
    return max(images.shape[-2:]) <= PIXELATED


def sheet(images: Tensor) -> str:
    """Return frames [M, stops, C, H, W] side by side in one picture, a row for each sample."""
    rows, columns, channels = images.shape[:3]
    height, width = frame_size(images)
    small = _resized(images.clamp(-1, 1).flatten(0, 1), height, width)
    whole = small.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    picture = to_picture(whole.reshape(channels, rows * height, columns * width))
    if pixelated(images):
        return _uri(picture, "PNG", optimize=True)
    return _uri(picture, "WEBP", quality=_QUALITY)


def difference(images: Tensor, first: int, last: int) -> Difference | None:
    """Return the map of the mean absolute difference of two columns of frames, over samples and channels.

    None where the difference is not finite.
    """
    low, high = images[:, first].clamp(-1, 1), images[:, last].clamp(-1, 1)
    mean = (high - low).abs().mean(dim=(0, 1)) / 2  # [H, W]
    mean = _resized(mean[None, None], *frame_size(images))[0, 0]
    most = float(mean.max())
    if not np.isfinite(most):
        return None
    shades = (mean / most * 255 if most > 0 else mean).round().clamp(0, 255).byte()
    picture = Image.fromarray(shades.numpy())
    picture.putpalette(colours().tobytes())
    return Difference(_uri(picture, "PNG", optimize=True), most)


@cache
def colours() -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Return the ramp as [256, 3] bytes, from least to most."""
    known = np.array([hex_to_rgb(colour) for colour in RAMP])  # [10, 3]
    places = np.linspace(0, len(known) - 1, 256)
    parts = [np.interp(places, range(len(known)), channel) for channel in known.T]
    return np.stack(parts, axis=1).round().astype(np.uint8)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    return torch.nn.functional.interpolate(images, (height, width), mode="bicubic", antialias=True)


def _uri(picture: Image.Image, form: str, **options: int | bool) -> str:
    buffer = BytesIO()
    picture.save(buffer, form, **options)
    return data_uri(buffer.getvalue(), form)
