"""Run `orchestrate edit`: read seeds or real images, and write edited pictures, a grid or an animation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from core.chain.schedule import check_window
from core.errors import UserError
from core.files import atomic_file, atomic_folder
from core.pictures.images import pictures_in
from orchestrator.edit.files import (
    Sample,
    check_size,
    grid_factors,
    picture_name,
    sample_names,
    write_animation,
    write_grid,
    write_picture,
)
from orchestrator.edit.request import EditRequest, Kind, check_edit, kind_of
from orchestrator.edit.session import (
    Edit,
    EditSession,
    StartingSamples,
    describe_recovery,
    recovered,
)
from orchestrator.edit.settings import (
    Frames,
    Settings,
    describe_scales,
    differences,
    read_directions,
    read_settings,
    round_frames,
    settings_of,
    write_settings,
)
from orchestrator.text import progress_bar
from orchestrator.trial.loading import LESS, advice_on_memory

_FRAMES = {"grid": 7, "animation": 21}


def edit(bundle: Path, to: Path, request: EditRequest, console: Console) -> None:
    """Draw what `request` asks for and write it to `to`; print notes on the console.

    Raises UserError, with nothing written, for every mistake in `request`.
    """
    kind = kind_of(to, request)
    check_edit(bundle, to, request)
    with advice_on_memory("a smaller --batch", *LESS):
        _edit(bundle, to, request, kind, console)


def _edit(bundle: Path, to: Path, request: EditRequest, kind: Kind, console: Console) -> None:
    saved = read_settings(request.settings) if request.settings else None
    session = _opened(bundle, request, saved)
    settings = _merged_settings(session, request, saved, kind)
    if kind == "picture" and len(_sources(settings)) > 1:
        raise UserError(f"--to: {to} is one picture, and {len(_sources(settings))} are asked for: a folder, or --grid")
    for warning in [
        *session.warnings,
        *(differences(saved, session) if saved else ()),
        *_range_warnings(session, settings),
    ]:
        console.print(f"Note: {warning}.", soft_wrap=True, highlight=False)
    _write(_DrawingJob(session, settings, request.batch, console), kind, to)
    if request.save_settings:
        write_settings(settings, request.save_settings)
    where = settings.injection if settings.window is None else f"{settings.injection}, timesteps {settings.window}"
    console.print(f"{describe_scales(settings.directions)} ({where})", soft_wrap=True, highlight=False)


def _opened(bundle: Path, request: EditRequest, saved: Settings | None) -> EditSession:
    options = request.options
    if saved:
        steps = saved.steps if options.steps is None else options.steps
        options = replace(options, steps=steps, precision=options.precision or saved.precision)
    return EditSession.open(bundle, options)


def _merged_settings(session: EditSession, request: EditRequest, saved: Settings | None, kind: Kind) -> Settings:
    """Return the settings: from the command line, else the saved ones, else the set's own."""
    scales = read_directions(request.directions, session.directions, 1.0 if request.scale is None else request.scale)
    if saved and not scales:
        scales = dict(saved.directions)
    elif not scales:
        raise UserError(f"name a direction with --direction; the set has: {', '.join(session.directions.names)}")
    base = saved.edit if saved else session.edit({})
    edit = Edit(scales, request.injection or base.injection, request.window or base.window)
    session.check(edit)
    check_window(session.denoiser, edit.window)
    session.schedule.steps_in_window(edit.window)
    seeds, images = _samples(request, saved)
    if images:
        session.check_invertible()
    frames = _frames(session, scales, request, saved, kind) if kind in _FRAMES else None
    return settings_of(session, edit, seeds, images, frames)


def _samples(request: EditRequest, saved: Settings | None) -> tuple[Sequence[int], Sequence[str]]:
    """Return (seeds, images), of which one is empty."""
    if request.images is not None:
        return (), [str(path) for path in _files(request.images)]
    if request.seeds is not None or saved is None:
        return request.seeds or (0,), ()
    return saved.seeds, saved.images


def _frames(
    session: EditSession, scales: dict[str, float], request: EditRequest, saved: Settings | None, kind: Kind
) -> Frames:
    if saved and saved.frames:
        base = saved.frames.model_copy(update={"count": request.frames or saved.frames.count})
    else:
        base = _own_frames(session, scales, request.frames, kind)
    first = base.first if request.first is None else request.first
    last = base.last if request.last is None else request.last
    if first == last:
        raise UserError(f"--from and --until: both are {first:g}; an animation or a grid goes from one to another")
    return Frames(count=base.count, first=first, last=last)


def _own_frames(session: EditSession, scales: dict[str, float], count: int | None, kind: Kind) -> Frames:
    """Return the frames within the range in which all directions stay faithful; those of a grid at round scales."""
    low, high = session.common_range(scales)
    count = _FRAMES[kind] if count is None else count
    if kind != "grid":
        return Frames(count=count, first=low, last=high)
    own = [scale for scale in scales.values() if scale]
    return round_frames(low, high, count, own[0] if len(scales) == len(own) == 1 else 1.0)


def _files(paths: Sequence[Path]) -> list[Path]:
    """Return the picture files among `paths` and those directly in folders."""
    return [file for path in paths for file in (pictures_in(path) if path.is_dir() else [path])]


def _range_warnings(session: EditSession, settings: Settings) -> list[str]:
    ends = (settings.frames.first, settings.frames.last) if settings.frames else (1.0,)
    turned = ({name: scale * end for name, scale in settings.directions.items()} for end in ends)
    return [sentence for scales in turned for sentence in session.range_warnings(scales)]


def _sources(settings: Settings) -> list[int | Path]:
    return [*settings.seeds, *map(Path, settings.images)]


@dataclass(frozen=True)
class _DrawingJob:
    session: EditSession
    settings: Settings
    batch: int
    console: Console

    def drawn(self, factors: Sequence[float]) -> Iterator[tuple[list[Sample], Tensor]]:
        """Yield samples, up to `batch` at a time, with their images at every factor: [N, A, C, H, W]."""
        sources = _sources(self.settings)
        names = sample_names(sources)
        with progress_bar(self.console, len(sources) * len(factors)) as advance:
            for start in range(0, len(sources), self.batch):
                part = slice(start, start + self.batch)
                starting = self._begin(sources[part])
                images = self.session.draw(starting, self.settings.edit, factors, self.batch, advance)
                yield [Sample(n, s) for n, s in zip(names[part], sources[part], strict=True)], images

    def tell_of_file(self, sample: Sample, becomes: str) -> None:
        """Print what an image of the user becomes, as two of them may have the same name; nothing for a seed."""
        if isinstance(sample.source, Path):
            self.console.print(f"{sample.source} -> {becomes}", soft_wrap=True, highlight=False)

    def _begin(self, sources: Sequence[int | Path]) -> StartingSamples:
        files = [source for source in sources if isinstance(source, Path)]
        if not files:
            return self.session.from_seeds([source for source in sources if isinstance(source, int)])
        images, notes = self.session.load(files)
        starting = self.session.from_images(images)
        for note in notes:
            self.console.print(f"Note: {note}.", soft_wrap=True, highlight=False)
        for file, levels in zip(files, recovered(starting, images), strict=True):
            self.console.print(f"{describe_recovery(file.name, levels)}.", soft_wrap=True, highlight=False)
        return starting


def _write(work: _DrawingJob, kind: Kind, to: Path) -> None:
    settings, session = work.settings, work.session
    if kind == "pictures":
        with atomic_folder(to) as folder:
            for samples, images in work.drawn((1.0,)):
                for sample, image in zip(samples, images[:, 0], strict=True):
                    to_file = folder / picture_name(sample.name, settings.directions)
                    write_picture(image, sample, settings, session.name, to_file)
                    work.tell_of_file(sample, f"{to / to_file.name}")
            write_settings(settings, folder / "settings.json")
        return
    factors = [1.0]
    if settings.frames:
        factors = grid_factors(settings) if kind == "grid" else settings.frames.factors()
    check_size(kind, len(_sources(settings)), len(factors), session.denoiser.image_shape)
    parts = list(work.drawn(factors))
    samples = [sample for part, _ in parts for sample in part]
    images = torch.cat([part for _, part in parts])
    to.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(to) as temporary:
        if kind == "animation":
            write_animation(images, temporary)
        elif kind == "grid":
            for sample in samples:
                work.tell_of_file(sample, f"the row '{sample.name}'")
            write_grid(images, samples, settings, session.name, temporary)
        else:
            write_picture(images[0, 0], samples[0], settings, session.name, temporary)
