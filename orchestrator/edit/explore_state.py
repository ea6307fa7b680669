"""What the explore page shows, without the page: one sample at a time, unshifted beside edited, as files.

Samples that were begun are kept, so that a slider costs one chain and an own image is inverted once.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from orchestrator.bundle.gallery_pictures import colours
from orchestrator.edit.files import Sample, picture_name, sample_names, write_picture
from orchestrator.edit.session import Edit, EditSession, StartingSamples, recovered, told_recovered
from orchestrator.edit.settings import settings_of, write_settings

STEP = 0.05  # of a slider
_KEPT = 16  # samples whose unshifted chain is kept
_FIRST = 8  # directions that are shown at once; the others are folded
_VISIBLE = 0.5 / 255  # of the way from black to white; less is rounding


@dataclass(frozen=True)
class Slider:
    """One direction as the page offers it: where its slider ends, and what is known of it."""

    name: str
    low: float
    high: float
    about: str


@dataclass(frozen=True)
class Shown:
    """Files of what is seen and taken away, and sentences about it."""

    plain: Path
    edited: Path
    difference: Path
    settings: Path
    notes: Sequence[str]


class ExploreState:
    """One studio, and a folder whose files are those of the last picture."""

    def __init__(self, session: EditSession, folder: Path) -> None:
        self.session, self.folder = session, folder
        self._begun = lru_cache(maxsize=_KEPT)(self._begin)

    def show(self, source: int | Path, edit: Edit) -> Shown:
        """A seed's sample or a file's image, edited. Raises UserError for what cannot be drawn."""
        begun, notes = self._begun(source)
        scales = {name: scale for name, scale in edit.scales.items() if scale}
        edited = self.session.draw(begun, Edit(scales, edit.injection, edit.window))[0, 0]
        plain = begun.plain[0]
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        seeds, images = ([source], []) if isinstance(source, int) else ([], [source.name])
        sample = Sample(sample_names([source])[0], source)
        settings = settings_of(self.session, Edit(scales, edit.injection, edit.window), seeds, images)
        shown = Shown(
            self.folder / f"{sample.name}.png",
            self.folder / picture_name(sample.name, scales),
            self.folder / "difference.png",
            self.folder / "settings.json",
            [*notes, *self.session.beyond(scales)],
        )
        write_picture(plain, sample, settings.model_copy(update={"directions": {}}), self.session.name, shown.plain)
        write_picture(edited, sample, settings, self.session.name, shown.edited)
        difference(plain, edited).save(shown.difference)
        write_settings(settings, shown.settings)
        return shown

    def _begin(self, source: int | Path) -> tuple[StartingSamples, tuple[str, ...]]:
        if isinstance(source, int):
            return self.session.from_seeds([source]), ()
        self.session.check_invertible()
        images, notes = self.session.load([source])
        begun = self.session.from_images(images)
        return begun, (*notes, told_recovered(source.name, recovered(begun, images)[0]))


def difference(plain: Tensor, edited: Tensor) -> Image.Image:
    """Where two images [C, H, W] differ, from dark to bright; the brightest is where they differ most."""
    apart = (edited.clamp(-1, 1) - plain.clamp(-1, 1)).abs().mean(dim=0) / 2  # [H, W]
    most = float(apart.max())
    shades = apart / most * 255 if most > _VISIBLE else torch.zeros_like(apart)
    picture = Image.fromarray(shades.round().byte().numpy())
    picture.putpalette(colours().tobytes())
    return picture.convert("RGB")


def dialled(session: EditSession) -> tuple[list[Slider], list[Slider]]:
    """The directions to show and to fold away: those that do one thing, and alone, come first."""
    found, dials = session.directions, session.directions.dials
    order = sorted(range(len(found)), key=lambda k: -dials[k].score) if dials else list(range(len(found)))
    every = [_dialled(session, k) for k in order]
    return every[:_FIRST], every[_FIRST:]


def _dialled(session: EditSession, k: int) -> Slider:
    name, dials = session.directions.names[k], session.directions.dials
    low, high = (math.trunc(end / STEP) * STEP for end in session.reach({name: 1.0}))  # so that 0 is one of the steps
    return Slider(name, round(low, 6), round(high, 6), f"interpretability {dials[k].score:.2f}" if dials else "")
