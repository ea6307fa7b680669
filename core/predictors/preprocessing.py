"""Do the preprocessing of a `transformers` image processor with torch, so that a gradient goes back to the images.

The steps are the processor's own, in its order: resize, centre crop, rescale, normalise. PIL rounds to 8 bits after
each pass of a resize, and torch does not; nothing else differs. Whether that is so is not read from names:
`differentiable` runs both on pictures of noise and compares.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL.Image import Resampling
from torch import Tensor
from torch.nn.functional import interpolate

from core.pictures.channels import as_rgb
from core.pictures.traversal_grid import to_picture
from core.randomness import generator

_MODES = {Resampling.BILINEAR: "bilinear", Resampling.BICUBIC: "bicubic"}
_SHAPES = ((24, 36), (420, 400))  # (H, W) of the pictures that are compared: smaller and larger than what networks see
_ROUNDING = 2.5  # levels of 255 that the roundings of a resize may add up to
_WARPED_FROM = 384  # shortest edge from which a processor with crop_pct squeezes images instead of cropping them


def behind_processor(
    processor: Callable[..., Any], network: Callable[..., Tensor], device: torch.device | str
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]:
    """Return two functions of images, what a network behind an image processor makes of them; both on `device`.

    network: called with what the processor returns, as network(pixel_values=[N, 3, H', W']), on `device` -> [N, ...].
    The first function uses the processor itself and has no gradient; the second is differentiable, by what
    `differentiable` makes of the processor, and None where that makes nothing.
    """

    @torch.no_grad()
    def plain(images: Tensor) -> Tensor:
        return network(**_processed(processor, images).to(device))

    pixels_of = differentiable(processor)
    if pixels_of is None:
        return plain, None
    return plain, lambda images: network(pixel_values=pixels_of(images.to(device)))


def differentiable(processor: Any) -> Callable[[Tensor], Tensor] | None:
    """Return what a processor does: images [N, 1, 3 or 4, H, W] in [-1, 1] -> [N, 3, H', W'], differentiable.

    None where the processor does something that its configuration, as it is understood here, does not say.
    """
    settings = processor.to_dict()

    def pixels_of(images: Tensor) -> Tensor:
        return _pixels(images, settings)

    try:
        agrees = all(_agrees(processor, pixels_of, settings, shape) for shape in _SHAPES)
    except (KeyError, TypeError, ValueError):  # a setting that is missing, or of a kind unknown here
        return None
    return pixels_of if agrees else None


def _agrees(
    processor: Callable[..., Any],
    pixels_of: Callable[[Tensor], Tensor],
    settings: Mapping[str, Any],
    shape: tuple[int, int],
) -> bool:
    """Return whether both make the same of a picture of noise with this (H, W), but for rounding."""
    images = torch.rand(1, 3, *shape, generator=generator("preprocessing")) * 2 - 1
    expected, found = _processed(processor, images)["pixel_values"], pixels_of(images)
    deviation = float(torch.tensor(settings["image_std"]).min()) if settings.get("do_normalize") else 1.0
    scale = settings["rescale_factor"] if settings.get("do_rescale") else 1.0
    return expected.shape == found.shape and float((expected - found).abs().max()) <= _ROUNDING * scale / deviation


def _processed(processor: Callable[..., Any], images: Tensor) -> Any:
    """Return what the processor itself makes of images, as 8-bit RGB pictures; its pixel_values: [N, 3, H', W']."""
    return processor(images=[to_picture(image) for image in images], return_tensors="pt")


def _pixels(images: Tensor, settings: Mapping[str, Any]) -> Tensor:
    levels = ((as_rgb(images.float()) + 1) * 127.5).clamp(0, 255)
    if settings.get("do_resize"):
        levels = _resized(levels, settings)
    if settings.get("do_center_crop"):
        levels = _centre(levels, settings["crop_size"]["height"], settings["crop_size"]["width"])
    if settings.get("do_rescale"):
        levels = levels * settings["rescale_factor"]
    if settings.get("do_normalize"):
        mean, deviation = (torch.tensor(settings[name]).to(levels) for name in ("image_mean", "image_std"))
        levels = (levels - mean.reshape(-1, 1, 1)) / deviation.reshape(-1, 1, 1)
    return levels


def _resized(levels: Tensor, settings: Mapping[str, Any]) -> Tensor:
    size = settings["size"]
    if "shortest_edge" not in size:
        return _to_size(levels, (size["height"], size["width"]), settings)
    edge = size["shortest_edge"]
    if settings.get("crop_pct") is None:
        return _to_size(levels, _with_shortest(levels, edge), settings)
    if edge >= _WARPED_FROM:
        return _to_size(levels, (edge, edge), settings)
    return _centre(_to_size(levels, _with_shortest(levels, int(edge / settings["crop_pct"])), settings), edge, edge)


def _with_shortest(levels: Tensor, edge: int) -> tuple[int, int]:
    """Return the (H, W) at which the shorter side has `edge` pixels, in the aspect ratio of the images."""
    height, width = levels.shape[-2:]
    return (int(edge * height / width), edge) if width <= height else (edge, int(edge * width / height))


def _to_size(levels: Tensor, size: tuple[int, int], settings: Mapping[str, Any]) -> Tensor:
    mode = _MODES[Resampling(settings["resample"])]
    # PIL resizes rows, then columns, and clips after each: bicubic filters overshoot.
    for each in ((levels.shape[-2], size[1]), size):
        levels = interpolate(levels, each, mode=mode, align_corners=False, antialias=True).clamp(0, 255)
    return levels


def _centre(levels: Tensor, height: int, width: int) -> Tensor:
    """Return the centre of images. Raises ValueError where they are smaller."""
    rows, columns = levels.shape[-2:]
    top, left = (rows - height) // 2, (columns - width) // 2
    if top < 0 or left < 0:
        raise ValueError(f"a crop of {height}x{width} is larger than the picture")
    return levels[..., top : top + height, left : left + width]
