"""What `edit`, `explore`, `name` and `gallery` are asked for, and what is refused before a set or a model is read.

Nothing heavy is imported, so that such a mistake is told at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core.errors import DirectionSetError, UserError

if TYPE_CHECKING:
    from core.chain.step import Injection

Window = tuple[int, int]  # [high, low] in training timesteps
Kind = Literal["pictures", "picture", "grid", "animation"]

_ANIMATED = (".gif", ".webp")
_OTHER_FORMATS = (".apng", ".avif", ".bmp", ".jpeg", ".jpg", ".mp4", ".tif", ".tiff")
_DESCRIPTION = "directions.json"  # of a set, beside its tensors
_MOST_SETS = 2  # side by side in a gallery


@dataclass(frozen=True)
class ModelOptions:
    """How to open the model of a direction set, where that differs from what the set says.

    model: a folder or hub id, instead of the model that the set names; any_model: accept other weights of the same
    shape; steps: of the chain, instead of the set's own; precision: of the model, instead of the one in which the set
    was found; weights: where they are kept, "device" or "cpu"; device: None for this machine's own.
    """

    model: str | None = None
    any_model: bool = False
    steps: int | None = None
    precision: str | None = None
    weights: str = "device"
    device: str | None = None


@dataclass(frozen=True)
class EditRequest:
    """The options of the command line. None leaves a value to the settings file or to the set."""

    directions: Sequence[str] = ()
    scale: float | None = None
    seeds: Sequence[int] | None = None
    images: Sequence[Path] | None = None
    injection: "Injection | None" = None
    window: Window | None = None
    frames: int | None = None
    first: float | None = None
    last: float | None = None
    animate: bool = False
    grid: bool = False
    batch: int = 64
    options: ModelOptions = ModelOptions()
    settings: Path | None = None
    save_settings: Path | None = None


def parse_names(texts: Sequence[str]) -> dict[int | str, str]:
    """Return names by old name or number: ["3=smile", "yaw=turn left"] -> {3: "smile", "yaw": "turn left"}.

    Raises UserError for a text that is not OLD=NEW.
    """
    names: dict[int | str, str] = {}
    for text in texts:
        old, equals, new = map(str.strip, text.partition("="))
        if not (old and equals and new):
            raise UserError(f"names: got '{text}'; allowed: OLD=NEW, as in 3=smile or direction_3=smile")
        names[int(old) if old.isdigit() else old] = new
    return names


def check_bundle(folder: Path) -> None:
    """Raise DirectionSetError where the folder is missing or holds no direction set; what is in the set is not read."""
    if not (folder / _DESCRIPTION).is_file():
        raise DirectionSetError(f"{folder} is not a direction set: {_DESCRIPTION} is missing")


def check_gallery(folders: Sequence[Path], to: Path) -> None:
    """Raise UserError for too many sets, for a set that is not there, and for a file that is."""
    if not 1 <= len(folders) <= _MOST_SETS:
        raise UserError(f"a gallery shows one set, or two side by side; got {len(folders)}")
    for folder in folders:
        check_bundle(folder)
    if to.exists():
        raise UserError(f"{to} exists; a gallery is written into a new file")


def check_name(folder: Path, predictor: str | None, words: str | None, names_only: bool) -> None:
    """Raise UserError for a set that is not there, and for options that exclude each other."""
    check_bundle(folder)
    if names_only and predictor is not None:
        raise UserError("--names-only: names from a predictor need the model; give one of the two")
    if words is not None and predictor is None:
        raise UserError("--words: for which CLIP model? name it with --predictor")


def kind_of(to: Path, request: EditRequest) -> Kind:
    """Return what is written to `to`. Raises UserError where the options do not go with the ending of its name."""
    suffix = to.suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise UserError(f"--to: {to} is of no kind that is written; allowed: a new folder, .png, .gif or .webp")
    if request.grid and (request.animate or suffix != ".png"):
        raise UserError(f"--to: {to}; a grid is written as one .png")
    if request.animate and suffix not in _ANIMATED:
        raise UserError(f"--to: {to}; an animation is written as .gif or .webp")
    if suffix in _ANIMATED:
        return "animation"
    if request.grid:
        return "grid"
    if any(each is not None for each in (request.frames, request.first, request.last)):
        raise UserError("--frames, --from and --until are of an animation (--to x.gif, x.webp) or a --grid")
    return "picture" if suffix == ".png" else "pictures"


def check_edit(bundle: Path, to: Path, request: EditRequest) -> None:
    """Raise UserError for what is wrong with an edit whatever the set and its model are."""
    check_bundle(bundle)
    for path, option in ((to, "--to"), (request.save_settings, "--save-settings")):
        if path is not None and path.exists():
            raise UserError(f"{option}: {path} exists; name one that does not")
    if request.frames is not None and request.frames < 2:
        raise UserError(f"--frames: got {request.frames}; allowed: 2 or more")
    for option, value in (("--scale", request.scale), ("--from", request.first), ("--until", request.last)):
        if value is not None and not math.isfinite(value):
            raise UserError(f"{option}: got {value}; allowed: a finite number")
    if request.batch < 1:
        raise UserError(f"--batch: got {request.batch}; allowed: 1 or more")
    if request.scale is not None and not request.directions:
        raise UserError("--scale is that of directions without one of their own: name them with --direction")
    if request.seeds is not None and request.images is not None:
        raise UserError("--seed and --image: one of them, not both")
