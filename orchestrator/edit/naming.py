"""Name the directions of a bundle, by hand or from words, and write galleries of bundles."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from core.directions.direction_set import DirectionSet
from core.files import atomic_file
from core.metrics import draw_traversals
from core.metrics.calibration import SCALES, SEEDS, STRENGTH, Calibrated, with_dials
from core.predictors import classifier
from core.predictors.attributes import Attributes
from core.predictors.clip import parse_words
from core.progress import Listener, listening
from core.samples.draw import Sampling
from orchestrator.bundle.files import GALLERY, PICTURE, Bundle, Format, bundle_of, write_bundle
from orchestrator.bundle.gallery import ShownSet, page
from orchestrator.edit.request import ModelOptions, check_gallery, check_name
from orchestrator.edit.session import EditSession
from orchestrator.text import counted, progress_bar
from orchestrator.trial.attempt import halving_batch
from orchestrator.trial.loading import LESS, advice_on_memory

Say = Callable[[str], None]
_BATCH = 64  # samples drawn at a time, where memory suffices


def name(
    folder: Path,
    names: Mapping[int | str, str],
    predictor: str | None = None,
    words: str | None = None,
    options: ModelOptions = ModelOptions(),
    say: Say = lambda _: None,
) -> DirectionSet:
    """Name directions of a bundle, in its folder, draw its picture and gallery anew, and return the renamed set.

    predictor: measures every direction anew, and names those without a name by hand: a classifier, or a CLIP model with
    `words`. say: called with a sentence at the beginning of each part that takes a while.
    Raises UserError, with nothing changed, where a direction or a model is missing.
    """
    check_name(folder, predictor, words, names_only=False)
    directions = DirectionSet.load(folder).renamed(names)
    with advice_on_memory(*LESS):
        say(f"Loading the model of {folder} ...")
        session = replace(EditSession.open(folder, options), directions=directions)
        attributes, named_by = _attributes(session, predictor, words)
        say(_work_on(session, folder, attributes))
        calibrated = _set_with_images(session, attributes, named_by)
    _rewrite(folder, bundle_of(calibrated, _title(calibrated.directions, folder)))
    return calibrated.directions


def rename(folder: Path, names: Mapping[int | str, str]) -> tuple[DirectionSet, list[str]]:
    """Name directions of a bundle, in its folder, without the model.

    Returns the renamed set, and the files that had the old names and are removed: picture and gallery.
    Raises UserError, with nothing changed, where a direction is missing.
    """
    directions = DirectionSet.load(folder).renamed(names)
    _rewrite(folder, Bundle(directions, {}))
    old = [name for name in (GALLERY, PICTURE) if (folder / name).exists()]
    for name in old:
        (folder / name).unlink()
    return directions, old


def gallery(
    folders: Sequence[Path], to: Path, options: ModelOptions = ModelOptions(), say: Say = lambda _: None
) -> None:
    """Write the page of one bundle, or of two side by side. Raises UserError, with nothing written, if `to` exists.

    say: called with a sentence at the beginning of each part that takes a while.
    """
    check_gallery(folders, to)
    sets = []
    for folder in folders:
        DirectionSet.load(folder)  # it is refused before anything is said to be loaded
        say(f"Loading the model of {folder} ...")
        session = EditSession.open(folder, options)
        say(_work_on(session, folder, None))
        calibrated = _set_with_images(session)
        sets.append(ShownSet(calibrated.directions, calibrated.traversals, _title(calibrated.directions, folder)))
    with atomic_file(to) as temporary:
        temporary.write_text(page(sets))


def _set_with_images(
    session: EditSession, attributes: Attributes | None = None, named_by: str = "attributes"
) -> Calibrated:
    """Return the set and its images: unchanged where it has dials and no attributes are given, else measured now."""
    with progress_bar(Console(stderr=True), _images(session)) as advance, listening(_shown_by(advance)):
        return _drawn(session, attributes, named_by)


def _shown_by(advance: Callable[[int], object]) -> Listener:
    """Return a listener that moves a bar to as many images as are drawn, back where they are drawn anew."""
    shown = 0

    def listen(what: str, done: int, total: int) -> None:
        nonlocal shown
        if what == "images":
            advance(done - shown)
            shown = done

    return listen


def _drawn(session: EditSession, attributes: Attributes | None, named_by: str) -> Calibrated:
    sampling = Sampling(session.injection, session.window)
    directions, chain = session.directions, (session.denoiser, session.schedule)
    if directions.dials and attributes is None:
        draw = partial(draw_traversals, *chain, directions, SEEDS, SCALES)
        return Calibrated(directions, halving_batch(lambda batch: draw(replace(sampling, batch=batch)), _BATCH))
    strength = float(directions.provenance.get("strength", STRENGTH))
    measure = partial(with_dials, *chain, directions, attributes, strength, named_by=named_by)
    return halving_batch(lambda batch: measure(sampling=replace(sampling, batch=batch)), _BATCH)


def _work_on(session: EditSession, folder: Path, attributes: Attributes | None) -> str:
    """Return what `_set_with_images` does, as a sentence: how many images it draws takes most of its time."""
    measured = not session.directions.dials or attributes is not None
    what = "Measuring the dials of" if measured else "Drawing"
    return (
        f"{what} {folder} ({counted(len(session.directions), 'direction')}, {counted(_images(session), 'image')}) ..."
    )


def _images(session: EditSession) -> int:
    return len(SEEDS) * len(session.directions) * len(SCALES)


def _attributes(session: EditSession, predictor: str | None, words: str | None) -> tuple[Attributes | None, str]:
    """Return the attributes to name by, and the word that records their source."""
    if predictor is None:
        return None, ""
    word_list = None if words is None else parse_words(words)
    attributes = classifier.load(predictor, session.denoiser.name, session.denoiser.device, word_list)
    return attributes, "clip" if classifier.is_clip(predictor) else "attributes"


def _title(directions: DirectionSet, folder: Path) -> str:
    names = [str(directions.provenance[key]) for key in ("sweep", "trial") if directions.provenance.get(key)]
    return ", trial ".join(names) if len(names) == 2 else folder.resolve().name


def _rewrite(folder: Path, bundle: Bundle) -> None:
    """Write a bundle over the one in a folder, in its style."""
    style: Format = "hub" if (folder / ".gitattributes").is_file() else "bundle"
    with tempfile.TemporaryDirectory() as temporary:
        write_bundle(bundle, Path(temporary), style)
        _replace(Path(temporary), folder)


def _replace(new: Path, folder: Path) -> None:
    """Copy the files of a new bundle over an old one's: the set first, then the files that describe it."""
    for name in sorted(
        (file.name for file in new.iterdir()), key=lambda name: (not name.endswith(".safetensors"), name)
    ):
        with atomic_file(folder / name) as temporary:
            shutil.copyfile(new / name, temporary)
