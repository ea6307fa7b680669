"""Traversals: draw one sample along every direction at several scales, and show the images as a labelled grid."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from core.chain.sampling import sample, start_of
from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.model.denoiser import Denoiser
from core.randomness import REPORT_SEEDS
from core.samples.draw import Sampling

GRID_SCALES = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)


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


def grid(images: Tensor, rows: Sequence[str] = (), columns: Sequence[str] = (), cell: int = 96) -> Image.Image:
    """Return images [R, C, channels, H, W] in [-1, 1] as one labelled picture, each `cell` pixels wide and high.

    rows, columns: the labels. Images are resized by nearest neighbour, so that small ones are not blurred.
    """
    left = 8 + max((7 * len(name) for name in rows), default=-8)
    top = 18 if columns else 0
    gap = 2
    height, width = len(images) * (cell + gap) + top, images.shape[1] * (cell + gap) + left
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for r, row in enumerate(images):
        y = top + r * (cell + gap)
        if rows:
            draw.text((4, y + cell // 2 - 6), rows[r], fill="black")
        for c, image in enumerate(row):
            picture.paste(
                to_picture(image).resize((cell, cell), Image.Resampling.NEAREST), (left + c * (cell + gap), y)
            )
    for c, name in enumerate(columns):
        draw.text((left + c * (cell + gap) + cell // 2 - 3 * len(name), 3), name, fill="black")
    return picture


def to_picture(image: Tensor) -> Image.Image:
    """Return an image [C, H, W] in [-1, 1] as an RGB picture: of its first three channels, or of the first as grey."""
    channels = image[: 3 if len(image) >= 3 else 1].float().cpu()
    pixels = ((channels.expand(3, -1, -1) + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def traversal_grid(images: Tensor, directions: DirectionSet, scales: Sequence[float] = GRID_SCALES) -> Image.Image:
    """Return the labelled picture of the images of `traversal`: a row for each direction, a column for each scale."""
    return grid(images, directions.names, [f"{scale:+g}" if scale else "0" for scale in scales])
