"""Names for the directions of a bundle, by hand or from words, and galleries of bundles as they are now."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from core.directions.direction_set import DirectionSet
from core.errors import UserError
from core.files import atomic_file
from core.metrics import draw_traversals
from core.metrics.calibration import SCALES, SEEDS, STRENGTH, Calibrated, with_dials
from core.predictors import classifier
from core.predictors.attributes import Attributes
from core.predictors.clip import parse_words
from orchestrator.bundle.files import GALLERY, Bundle, Format, bundle_of, write_bundle
from orchestrator.bundle.gallery import Shown, page
from orchestrator.edit.session import EditSession, ModelOptions
from orchestrator.trial.attempt import as_fits
from orchestrator.trial.loading import LESS, told_of_memory

_BATCH = 64  # samples drawn at a time, where memory suffices


def parse_names(given: Sequence[str]) -> dict[int | str, str]:
    """["3=smile", "yaw=turn left"] -> {3: "smile", "yaw": "turn left"}. Raises UserError for what is not OLD=NEW."""
    names: dict[int | str, str] = {}
    for text in given:
        old, equals, new = map(str.strip, text.partition("="))
        if not (old and equals and new):
            raise UserError(f"names: got '{text}'; allowed: OLD=NEW, as in 3=smile or direction_3=smile")
        names[int(old) if old.isdigit() else old] = new
    return names


def name(
    folder: Path,
    names: Mapping[int | str, str],
    predictor: str | None = None,
    words: str | None = None,
    names_only: bool = False,
    options: ModelOptions = ModelOptions(),
) -> DirectionSet:
    """Give directions of a bundle names, in its folder; the set as it is then.

    predictor: what to measure every direction with anew, and to name those after that have no name by hand: a
    classifier, or a CLIP model with `words`. Card, picture and gallery follow, for which the model is needed;
    names_only: without them, the gallery goes. Raises UserError, with nothing changed, where a name or a model is not
    there.
    """
    found = DirectionSet.load(folder).renamed(names)
    style: Format = "hub" if (folder / ".gitattributes").is_file() else "bundle"
    if names_only:
        if predictor is not None:
            raise UserError("--names-only: names from a predictor need the model; give one of the two")
        with tempfile.TemporaryDirectory() as temporary:
            write_bundle(Bundle(found, {}), Path(temporary), style)
            _replace(Path(temporary), folder)
        (folder / GALLERY).unlink(missing_ok=True)
        return found
    with told_of_memory(*LESS):
        session = EditSession.open(folder, options)
        session = replace(session, directions=found)
        calibrated = _look(session, *_attributes(session, predictor, words))
    with tempfile.TemporaryDirectory() as temporary:
        write_bundle(bundle_of(calibrated, _title(calibrated.directions, folder)), Path(temporary), style)
        _replace(Path(temporary), folder)
    return calibrated.directions


def gallery(folders: Sequence[Path], to: Path, options: ModelOptions = ModelOptions()) -> None:
    """The page of one bundle, or of two side by side. Raises UserError, with nothing written, where `to` exists."""
    if to.exists():
        raise UserError(f"{to} exists; a gallery is written into a new file")
    shown = []
    for folder in folders:
        calibrated = _look(EditSession.open(folder, options))
        shown.append(Shown(calibrated.directions, calibrated.traversals, _title(calibrated.directions, folder)))
    with atomic_file(to) as temporary:
        temporary.write_text(page(shown))


def _look(session: EditSession, attributes: Attributes | None = None, named_by: str = "attributes") -> Calibrated:
    """The set and its images: as it is where it has dials and nobody asks for attributes, else measured now."""
    directions, chain = session.directions, (session.denoiser, session.schedule)
    if directions.dials and attributes is None:
        given = (*chain, directions, SEEDS, SCALES, session.injection, session.window)
        return Calibrated(directions, as_fits(lambda batch: draw_traversals(*given, batch), _BATCH))
    strength = float(directions.provenance.get("strength", STRENGTH))
    asked = (*chain, directions, attributes, strength, session.injection, session.window)
    return as_fits(lambda batch: with_dials(*asked, batch, named_by=named_by), _BATCH)


def _attributes(session: EditSession, predictor: str | None, words: str | None) -> tuple[Attributes | None, str]:
    """What to name by, and what to call that."""
    if predictor is None:
        if words is not None:
            raise UserError("--words: for which CLIP model? name it with --predictor")
        return None, ""
    given = None if words is None else parse_words(words)
    found = classifier.load(predictor, session.denoiser.name, session.denoiser.device, given)
    return found, "clip" if classifier.is_clip(predictor) else "attributes"


def _title(directions: DirectionSet, folder: Path) -> str:
    told = [str(directions.provenance[key]) for key in ("sweep", "trial") if directions.provenance.get(key)]
    return ", trial ".join(told) if len(told) == 2 else folder.resolve().name


def _replace(new: Path, folder: Path) -> None:
    """Put the files of a new bundle in place of an old one's: the set first, then what tells of it."""
    for name in sorted(
        (file.name for file in new.iterdir()), key=lambda name: (not name.endswith(".safetensors"), name)
    ):
        with atomic_file(folder / name) as temporary:
            shutil.copyfile(new / name, temporary)
