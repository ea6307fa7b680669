"""Compute what the explore page shows, without the page: one sample at a time, unshifted and edited, as files.

Starting samples are cached, so that moving a slider costs one chain, and an own image is inverted once.
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

from core.pictures.channels import as_rgb
from orchestrator.bundle.gallery_pictures import colours
from orchestrator.edit.files import Sample, picture_name, sample_names, write_picture
from orchestrator.edit.session import Edit, EditSession, StartingSamples, describe_recovery, recovered
from orchestrator.edit.settings import settings_of, write_settings

STEP = 0.05  # step of a slider
_KEPT = 16  # samples whose unshifted chain is cached
_FIRST = 8  # directions shown at once; the others are folded
_VISIBLE = 0.5 / 255  # share of the range from black to white; smaller differences are rounding


@dataclass(frozen=True)
class Slider:
    """One direction on the page: its name, the ends of its slider, and a text on it."""

    name: str
    low: float
    high: float
    about: str


@dataclass(frozen=True)
class EditFiles:
    """The files that the page shows and offers for download, and notes on them."""

    plain: Path
    edited: Path
    difference: Path
    settings: Path
    notes: Sequence[str]


class ExploreState:
    """An opened set, its cached starting samples, and a folder with the files of the last picture."""

    def __init__(self, session: EditSession, folder: Path) -> None:
        self.session, self.folder = session, folder
        self._starting = lru_cache(maxsize=_KEPT)(self._begin)

    def show(self, source: int | Path, edit: Edit) -> EditFiles:
        """Edit a seed's sample or a file's image, and write the files. Raises UserError for what cannot be drawn."""
        starting, notes = self._starting(source)
        scales = {name: scale for name, scale in edit.scales.items() if scale}
        edited = self.session.draw(starting, Edit(scales, edit.injection, edit.window))[0, 0]
        plain = starting.plain[0]
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        seeds, images = ([source], []) if isinstance(source, int) else ([], [source.name])
        sample = Sample(sample_names([source])[0], source)
        settings = settings_of(self.session, Edit(scales, edit.injection, edit.window), seeds, images)
        pictures = EditFiles(
            self.folder / f"{sample.name}.png",
            self.folder / picture_name(sample.name, scales),
            self.folder / "of both" / "difference.png",  # no sample's picture, whatever the sample is called
            self.folder / "settings.json",
            [*notes, *self.session.range_warnings(scales)],
        )
        pictures.difference.parent.mkdir()
        write_picture(plain, sample, settings.model_copy(update={"directions": {}}), self.session.name, pictures.plain)
        write_picture(edited, sample, settings, self.session.name, pictures.edited)
        difference(plain, edited).save(pictures.difference)
        write_settings(settings, pictures.settings)
        return pictures

    def _begin(self, source: int | Path) -> tuple[StartingSamples, tuple[str, ...]]:
        if isinstance(source, int):
            return self.session.from_seeds([source]), ()
        self.session.check_invertible()
        images, notes = self.session.load([source])
        starting = self.session.from_images(images)
        return starting, (*notes, describe_recovery(source.name, recovered(starting, images)[0]))


def difference(plain: Tensor, edited: Tensor) -> Image.Image:
    """Return a picture of where two images [C, H, W] differ, from dark to bright, where they differ most."""
    apart = (as_rgb(edited.clamp(-1, 1)) - as_rgb(plain.clamp(-1, 1))).abs().mean(dim=0) / 2  # [H, W]
    most = float(apart.max())
    shades = apart / most * 255 if most > _VISIBLE else torch.zeros_like(apart)
    picture = Image.fromarray(shades.round().byte().numpy())
    picture.putpalette(colours().tobytes())
    return picture.convert("RGB")


def sliders_of(session: EditSession) -> tuple[list[Slider], list[Slider]]:
    """Return the sliders to show and those to fold away, the most interpretable directions first."""
    directions, dials = session.directions, session.directions.dials
    order = sorted(range(len(directions)), key=lambda k: -dials[k].score) if dials else list(range(len(directions)))
    every = [_slider_of(session, k) for k in order]
    return every[:_FIRST], every[_FIRST:]


def _slider_of(session: EditSession, k: int) -> Slider:
    name, dials = session.directions.names[k], session.directions.dials
    ends = session.common_range({name: 1.0})
    low, high = (math.trunc(round(end / STEP, 6)) * STEP for end in ends)  # so that 0 is one of the steps
    return Slider(name, round(low, 6), round(high, 6), f"score {dials[k].score:.2f}" if dials else "")
