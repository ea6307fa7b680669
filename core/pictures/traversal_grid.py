"""Traversals: draw one sample along every direction at several scales, and show the images as a labelled grid."""

from collections.abc import Sequence
from functools import partial

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from core.chain.sampling import sample, start_of
from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.model.denoiser import Denoiser
from core.pictures.channels import as_rgb
from core.pictures.labels import LINE, drawable, label_font, widest, wrapped
from core.randomness import REPORT_SEEDS
from core.samples.draw import Sampling

GRID_SCALES = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
_GAP = 2  # pixels between images
_LEAST_TITLE = 300  # pixels that a title may take where the images take fewer


@torch.no_grad()
def traversal(
    denoiser: Denoiser,
    schedule: Schedule,
    directions: DirectionSet,
    seed: int = REPORT_SEEDS[0],
    scales: Sequence[float] = GRID_SCALES,
    sampling: Sampling = Sampling(),
) -> Tensor:
    """Draw the sample of one seed, shifted along each of K directions at each of A scales: [K, A, *image_shape]."""
    k = torch.arange(len(directions)).repeat_interleave(len(scales))
    scale = torch.tensor(list(scales)).repeat(len(directions))
    directions = directions.to(denoiser.device)
    _, x_T, z = start_of(denoiser, schedule, [seed])
    parts = []
    for rows in torch.split(torch.arange(len(k)), sampling.batch):
        shift = directions.shift(k[rows], scale[rows].to(denoiser.device))
        many = None if z is None else z.expand(-1, len(rows), -1, -1, -1)
        x = x_T.expand(len(rows), -1, -1, -1)
        repeated = denoiser.for_samples([seed] * len(rows))
        drawn = sample(repeated, schedule, x, shift, sampling.injection, window=sampling.window, step_noise=many)
        parts.append(denoiser.images(drawn).cpu())
    return torch.cat(parts).reshape(len(directions), len(scales), *denoiser.image_shape)


def grid(
    images: Tensor, rows: Sequence[str] = (), columns: Sequence[str] = (), cell: int = 96, title: str = ""
) -> Image.Image:
    """Return images [R, C, channels, H, W] in [-1, 1] as one labelled picture, in the aspect ratio of H, W.

    rows, columns: the labels; cell: the pixels of the longer side of an image; title: written above, and wrapped at its
    commas. Images are resized by nearest neighbour, so that small ones are not blurred.
    """
    images = as_rgb(images)
    rows, columns = [drawable(name) for name in rows], [drawable(name) for name in columns]
    height, width = shown_size(images.shape[-2:], cell)
    across, down = max(width, widest(columns) + 6 if columns else 0) + _GAP, max(height, LINE if rows else 0) + _GAP
    left = widest(rows) + 8 if rows else 0
    lines = wrapped(drawable(title), max(left + images.shape[1] * across, _LEAST_TITLE))
    top = LINE * (len(lines) + bool(columns))
    size = max(left + images.shape[1] * across, widest(lines) + 8 if lines else 0), top + len(images) * down
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    write = partial(draw.text, fill="black", font=label_font())
    for i, line in enumerate(lines):
        write((4, LINE * i + LINE // 2), line, anchor="lm")
    for c, name in enumerate(columns):
        write((left + c * across + (across - _GAP) // 2, top - LINE // 2), name, anchor="mm")
    for r, row in enumerate(images):
        y = top + r * down
        if rows:
            write((4, y + (down - _GAP) // 2), rows[r], anchor="lm")
        for c, image in enumerate(row):
            x = left + c * across + (across - _GAP - width) // 2
            picture.paste(to_picture(image).resize((width, height), Image.Resampling.NEAREST), (x, y))
    return picture


def shown_size(size: Sequence[int], longest: int) -> tuple[int, int]:
    """Return the (height, width) in which an image of this height and width is `longest` pixels on its longer side."""
    height, width = (max(1, round(side * longest / max(size))) for side in size)
    return height, width


def to_picture(image: Tensor) -> Image.Image:
    """Return an image [C, H, W] in [-1, 1] as an RGB picture, of as many channels as `as_rgb` says."""
    pixels = ((as_rgb(image.float().cpu()) + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def traversal_grid(images: Tensor, directions: DirectionSet, scales: Sequence[float] = GRID_SCALES) -> Image.Image:
    """Return the labelled picture of the images of `traversal`: a row for each direction, a column for each scale."""
    return grid(images, directions.names, [f"{scale:+g}" if scale else "0" for scale in scales])
