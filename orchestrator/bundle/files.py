"""Write and read a bundle, the folder that a user takes away: a direction set, its pictures, and its card.

directions.safetensors, directions.json   the set (core.directions.direction_set)
directions.schema.json                    the schema of directions.json
gallery.html                              every direction across its scale, on several samples, in one file
traversal.png                             the same on one sample, for pages that show pictures only
apply_directions.py                       uses the set in any diffusers pipeline, without this package
README.md                                 the card
"""

import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch

from core.directions import apply_directions
from core.directions.direction_set import DirectionSet
from core.errors import UserError
from core.files import open_regular
from core.metrics.calibration import Calibrated
from core.pictures.traversal_grid import traversal_grid
from orchestrator.bundle.card import card
from orchestrator.bundle.gallery import ShownSet, page

Format = Literal["bundle", "hub"]
FORMATS: tuple[Format, ...] = ("bundle", "hub")
GALLERY, PICTURE, CARD = "gallery.html", "traversal.png", "README.md"
SCHEMA = "directions.schema.json"
_LARGE = ("*.safetensors", "*.png", "*.html")  # what a hub stores by Git LFS


@dataclass(frozen=True)
class Bundle:
    """A bundle that is not written yet, small enough to be sent from the machine that drew it."""

    directions: DirectionSet
    files: Mapping[str, bytes]  # name -> content of gallery and picture; empty where they are not drawn


def bundle_of(calibrated: Calibrated, title: str) -> Bundle:
    """Return a set with its dials as a bundle, with gallery and picture drawn from its images."""
    directions, drawn = calibrated.directions, calibrated.traversals
    shown_set = ShownSet(directions, drawn, title)
    return Bundle(directions, {GALLERY: page([shown_set]).encode(), PICTURE: _picture(calibrated)})


def _picture(calibrated: Calibrated) -> bytes:
    """Return the first sample as PNG: directions down, scales across, the unshifted image in the middle."""
    drawn = calibrated.traversals
    middle = sum(scale < 0 for scale in drawn.scales)
    plain = drawn.plain[0].expand(len(calibrated.directions), 1, *drawn.plain.shape[1:])
    row = torch.cat([drawn.shifted[0, :, :middle], plain, drawn.shifted[0, :, middle:]], dim=1)
    scales = (*drawn.scales[:middle], 0.0, *drawn.scales[middle:])
    held = io.BytesIO()
    images = drawn.images(row.flatten(0, 1))
    pictures = images.reshape(*row.shape[:2], *images.shape[1:])
    traversal_grid(pictures, calibrated.directions, scales).save(held, format="PNG")
    return held.getvalue()


def write_bundle(bundle: Bundle, to: Path, style: Format = "bundle") -> None:
    """Write the bundle's files into an existing folder, and load the set once to check it."""
    bundle.directions.write(to)
    for name, content in bundle.files.items():
        (to / name).write_bytes(content)
    (to / SCHEMA).write_bytes(files("core").joinpath(SCHEMA).read_bytes())
    shutil.copyfile(apply_directions.__file__, to / Path(apply_directions.__file__).name)
    _describe(bundle, to, style)
    DirectionSet.load(to)


def read_bundle(folder: Path) -> Bundle:
    """Return the bundle in a folder. Raises UserError where it is none, or one of its files is a link."""
    directions, held = DirectionSet.load(folder), {}
    for name in (GALLERY, PICTURE):
        try:
            with open_regular(folder / name, follow=False) as file:
                held[name] = file.read()
        except OSError as error:
            raise UserError(f"{folder} is not a whole bundle: {name} cannot be read: {error.strerror}") from None
    return Bundle(directions, held)


def is_whole(folder: Path) -> bool:
    """Return whether a folder has what `read_bundle` needs; one that an older version wrote has no gallery."""
    return all((folder / name).is_file() for name in (GALLERY, PICTURE))


def _describe(bundle: Bundle, to: Path, style: Format) -> None:
    (to / CARD).write_text(card(bundle.directions, for_hub=style == "hub", pictures=bool(bundle.files)))
    if style == "hub":
        rules = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LARGE)
        (to / ".gitattributes").write_text(rules)
