"""Read real images from disk, single or in labelled pairs, as tensors of the shape that a model draws."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from core.errors import UserError
from core.pictures.opening import open_picture

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> PIL's name for them
_SHOWN = 5  # file names listed in a message


def load_images(paths: str | Path | Sequence[str | Path], sample_shape: tuple[int, int, int]) -> Tensor:
    """Return images [N, C, H, W] in [-1, 1], in the order of `paths`, float32; C, H, W are those of `sample_shape`.

    paths: picture files, or a folder, which stands for the pictures directly in it, in the order of their names. Each
    picture is cropped around its centre to the aspect ratio of H, W and resized with an antialiasing filter (Lanczos).
    Raises UserError where there is no picture, or one cannot be read.
    """
    if isinstance(paths, str | Path):
        path = Path(paths).expanduser()
        paths = pictures_in(path) if path.is_dir() else [path]
    if not paths:
        raise UserError("images: got no files")
    return torch.stack([_load(Path(path).expanduser(), sample_shape) for path in paths])


def load_pairs(
    folder: str | Path, sample_shape: tuple[int, int, int], attributes: Sequence[str] = ()
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return labelled pairs: attribute -> (negative [N, C, H, W], positive [N, C, H, W]), as `load_images` reads them.

    On disk: folder/ATTRIBUTE/negative/* and folder/ATTRIBUTE/positive/*, matched by file name without its ending.
    attributes: the attributes to read, in this order; empty for all, in the order of their names.
    Raises UserError where the folder has another layout, or a picture has no partner.
    """
    folder = Path(folder).expanduser()
    subfolders = _subfolders(folder)
    for name in attributes:
        if name not in subfolders:
            near = difflib.get_close_matches(name, subfolders, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"attribute '{name}' is not one that {folder} has pairs of: {', '.join(subfolders)}{hint}")
    matched = {name: _matched(folder / name) for name in attributes or subfolders}
    return {
        name: (load_images(negative, sample_shape), load_images(positive, sample_shape))
        for name, (negative, positive) in matched.items()
    }


def pictures_in(folder: Path) -> list[Path]:
    """Return the picture files directly in a folder, in the order of their names. Raises UserError for none."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    if not files:
        raise UserError(f"images: {folder} holds no pictures ({', '.join(SUFFIXES)})")
    return sorted(files)


def _load(path: Path, sample_shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = sample_shape
    if channels not in _MODES:
        raise UserError(f"images: a model of {channels} channels draws neither greyscale nor RGB nor RGBA pictures")
    with open_picture(path, "images") as opened:
        # Cameras store their orientation in EXIF data and leave the pixels unrotated.
        picture = ImageOps.exif_transpose(opened)
        if picture.mode.startswith(("I", "F")):
            raise UserError(f"images: {path} has more than 8 bits a channel; save it with 8")
        picture = (picture if channels == 4 else _opaque(picture)).convert(_MODES[channels])
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(fitted, dtype=np.float32)).reshape(height, width, channels)
    return (pixels / 127.5 - 1).permute(2, 0, 1).contiguous()


def _opaque(picture: Image.Image) -> Image.Image:
    """Return the picture with its transparent parts on white; the colours stored under them were never visible."""
    if not picture.has_transparency_data:
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))


def _subfolders(folder: Path) -> list[str]:
    """Return the attributes in a folder of pairs: the names of its subfolders."""
    if not folder.is_dir():
        raise UserError(f"pairs: {folder} is not a folder")
    names = sorted(part.name for part in folder.iterdir() if part.is_dir() and not part.name.startswith("."))
    if not names:
        raise UserError(f"pairs: {folder} holds none; expected {folder}/ATTRIBUTE/negative/* and .../positive/*")
    return names


def _matched(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the negative and the positive pictures of one attribute, partners at the same index."""
    for side in ("negative", "positive"):
        if not (folder / side).is_dir():
            raise UserError(f"pairs: {folder} has no folder '{side}'")
    negative, positive = _by_stem(folder / "negative"), _by_stem(folder / "positive")
    alone = [
        f"negative/{negative[stem].name}" if stem in negative else f"positive/{positive[stem].name}"
        for stem in sorted(negative.keys() ^ positive.keys())
    ]
    if alone:
        more = f" and {len(alone) - _SHOWN} more" if len(alone) > _SHOWN else ""
        raise UserError(f"pairs: in {folder} without a partner of the same name: {', '.join(alone[:_SHOWN])}{more}")
    stems = sorted(negative)
    return [negative[stem] for stem in stems], [positive[stem] for stem in stems]


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in pictures_in(folder):
        if file.stem in files:
            raise UserError(f"pairs: {folder} has two pictures named '{file.stem}'")
        files[file.stem] = file
    return files
