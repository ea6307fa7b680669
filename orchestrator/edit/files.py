"""Write edited images as files: pictures that hold their settings, a grid, an animation that runs back and forth."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from core.errors import UserError
from core.pictures.traversal_grid import grid, shown_size, to_picture
from orchestrator.edit.settings import Settings, describe_scales

_LONGEST_NAME = 180  # bytes; file systems stop at 255
_LEAST_CELL = {"grid": 96, "animation": 256}  # pixels of the longer side; smaller images are enlarged
_LONGEST_SIDE = 16_383  # pixels; the limit of WebP
_FRAME_MS = 60


@dataclass(frozen=True)
class Sample:
    """One sample: its name in names of files, and its seed or its file."""

    name: str
    source: int | Path

    @property
    def settings(self) -> Mapping[str, object]:
        """The settings that concern only this sample: its seed, or its file."""
        if isinstance(self.source, int):
            return {"seeds": (self.source,), "images": ()}
        return {"seeds": (), "images": (self.source.name,)}


def sample_names(sources: Sequence[int | Path]) -> list[str]:
    """Return `seed_7`, or the file's name without its suffix, for each source; numbered where two would be equal."""
    stems = [f"seed_{source}" if isinstance(source, int) else _plain(source.stem) for source in sources]
    reserved, given, names = set(map(_folded, stems)), set[str](), list[str]()
    for stem in stems:
        name = stem
        if _folded(stem) in given:
            name = next(n for i in count(2) if _folded(n := f"{stem}_{i}") not in reserved and _folded(n) not in given)
        given.add(_folded(name))
        names.append(name)
    return names


def picture_name(sample: str, scales: Mapping[str, float]) -> str:
    """Return the name of an edited picture, such as `seed_7__skin+1.5_yaw-0.5.png`."""
    edits = "_".join(f"{_plain(name)}{scale:+g}" for name, scale in scales.items())
    return _cut("__".join(filter(None, [sample, edits])), _LONGEST_NAME) + ".png"


def _plain(text: str) -> str:
    """Replace everything but letters, digits, plus and minus, so that any file system accepts the name."""
    return _cut(re.sub(r"[^\w+-]+", "_", unicodedata.normalize("NFC", text)), _LONGEST_NAME // 2) or "_"


def _cut(text: str, length: int) -> str:
    """Return the beginning of a text, of at most `length` bytes in UTF-8."""
    return text.encode()[:length].decode(errors="ignore")


def _folded(name: str) -> str:
    """Return a name as file systems that ignore case compare it."""
    return name.casefold()


def save_png(picture: Image.Image, settings: Settings, bundle: str, of: str, to: Path) -> None:
    """Write a PNG whose text records its bundle, sample, edit and settings, so that it can be made again."""
    text = PngInfo()
    told_of = {
        "Software": "orchestrate edit",
        "Bundle": bundle,
        "Sample": of,
        "Edit": describe_scales(settings.directions),
        "Settings": settings.model_dump_json(),
    }
    for key, value in told_of.items():
        text.add_text(key, value)
    picture.save(to, "PNG", pnginfo=text)


def write_picture(image: Tensor, sample: Sample, settings: Settings, bundle: str, to: Path) -> None:
    """Write one edited image [C, H, W], with only the settings that concern it."""
    save_png(to_picture(image), settings.model_copy(update=dict(sample.settings)), bundle, sample.name, to)


def write_grid(images: Tensor, samples: Sequence[Sample], settings: Settings, bundle: str, to: Path) -> None:
    """Write images [N, A, C, H, W] as one picture: a row for each sample, a column for each of `grid_factors`."""
    rows = [sample.name for sample in samples]
    columns = [_column(factor, settings.directions) for factor in grid_factors(settings)]
    names = list(settings.directions)
    title = names[0] if len(names) == 1 else describe_scales(settings.directions)
    picture = grid(images, rows, columns, _cell(images.shape[-2:], "grid"), title)
    save_png(picture, settings, bundle, ", ".join(rows)[:_LONGEST_NAME], to)


def grid_factors(settings: Settings) -> list[float]:
    """Return the multiples of the edit that a grid shows: those of its frames in their order, and always 0."""
    factors = settings.frames.factors() if settings.frames else [1.0]
    return factors if 0.0 in factors else sorted([*factors, 0.0], reverse=factors[0] > factors[-1])


def _column(factor: float, scales: Mapping[str, float]) -> str:
    """Return the label of a column: the scale of one direction, or what the scales of several are multiplied with."""
    if not factor:
        return "original"
    if len(scales) != 1:
        return f"× {factor:.3g}"
    [scale] = scales.values()
    return f"{factor * (scale or 1.0):+.3g}"


def write_animation(images: Tensor, to: Path) -> None:
    """Write images [N, A, C, H, W] as an endless GIF or WebP, back and forth, with all samples side by side."""
    count, frames = images.shape[:2]
    columns = _columns(count)
    blank = torch.ones(-count % columns, *images.shape[1:])
    tiled = torch.cat([images, blank]).reshape(-1, columns, *images.shape[1:])  # [R, C, A, ...]
    cell = _cell(images.shape[-2:], "animation" if count == 1 else "grid")
    there = [grid(tiled[:, :, a], cell=cell) for a in range(frames)]
    loop = [*there, *reversed(there[1:-1])]
    loop[0].save(to, save_all=True, append_images=loop[1:], duration=_FRAME_MS, loop=0, lossless=True)


def check_size(kind: str, samples: int, frames: int, shape: tuple[int, int, int]) -> None:
    """Raise UserError where one picture of this many images would be larger than viewers can show."""
    if kind not in _LEAST_CELL:
        return
    columns = frames if kind == "grid" else _columns(samples)
    rows = samples if kind == "grid" else -(-samples // columns)
    height, width = shown_size(shape[1:], _cell(shape[1:], "grid"))
    longest = max(rows * height, columns * width)
    if longest > _LONGEST_SIDE:
        raise UserError(
            f"--to: {samples} samples make a picture of {longest} pixels, more than {_LONGEST_SIDE}: ask for fewer, "
            "or for a folder"
        )


def _columns(count: int) -> int:
    """Return the columns of a nearly square arrangement of `count` images."""
    return next(columns for columns in range(1, count + 1) if columns * columns >= count)


def _cell(size: Sequence[int], kind: str) -> int:
    """Return the pixels of the longer side of a shown image: a whole multiple of its own size."""
    return int(max(size) * max(1, _LEAST_CELL[kind] // max(size)))
