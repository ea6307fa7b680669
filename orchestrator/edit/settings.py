"""Define, read and write the settings of an edit, with which `orchestrate edit` and `explore` repeat its pictures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.chain.step import Injection
from core.directions.direction_set import DirectionSet
from core.errors import UserError
from core.files import atomic_file, open_regular
from core.precision import PRECISIONS
from orchestrator.edit.request import Window
from orchestrator.edit.session import Edit, EditSession

_MAX_BYTES = 1 << 20
_SHOWN = 60  # characters of a value from the file in a message
MAX_SEED = 2**63 - 1
_ROUND = (1.0, 2.0, 2.5, 5.0)  # steps between round numbers, times a power of ten

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Frames(_Strict):
    """The multiples of the edit, evenly spaced, that an animation or a grid shows."""

    count: Annotated[int, Field(ge=2)]
    first: float
    last: float

    def factors(self) -> list[float]:
        """Return the multiples, rounded to six decimals."""
        step = (self.last - self.first) / (self.count - 1)
        return [round(self.first + i * step, 6) for i in range(self.count)]


def round_frames(low: float, high: float, count: int, scale: float = 1.0) -> Frames:
    """Return at least `count` frames whose scales are round numbers, as many below 0 as above, and 0 in the middle.

    low, high: the range of multiples that they stay in; of a range on one side of 0 the same length is taken on both.
    scale: what the multiples are multiplied with.
    """
    half = count // 2
    reach = (min(-low, high) if low < 0 < high else max(-low, high)) * abs(scale) / half
    power = 10.0 ** math.floor(math.log10(reach))
    step = power * max(part for part in _ROUND if part * power <= reach * (1 + 1e-9)) / abs(scale)
    return Frames(count=2 * half + 1, first=-half * step, last=half * step)


class Settings(_Strict):
    """All that the pictures of an edit depend on. directions: name -> scale; images: their files."""

    format: Literal["h-space edit"] = "h-space edit"
    version: Literal[1] = 1
    set_digest: str
    model: str
    weight_digest: str
    directions: dict[str, float]
    seeds: tuple[Seed, ...] = ()
    images: tuple[str, ...] = ()
    injection: Injection = "symmetric"
    window: Window | None = None
    steps: int
    precision: Annotated[str, Field(pattern=f"^({'|'.join(PRECISIONS)})$")] = "fp32"
    frames: Frames | None = None

    @model_validator(mode="after")
    def _of_something(self) -> Self:
        if bool(self.seeds) == bool(self.images):
            raise ValueError("seeds or images are needed, and not both")
        return self

    @property
    def edit(self) -> Edit:
        """The edit in these settings."""
        return Edit(self.directions, self.injection, self.window)


def settings_of(
    session: EditSession,
    edit: Edit,
    seeds: Sequence[int],
    images: Sequence[str],
    frames: Frames | None = None,
) -> Settings:
    """Return the settings of an edit of these samples in this session."""
    return Settings(
        set_digest=session.digest,
        model=session.denoiser.name,
        weight_digest=session.denoiser.digest,
        directions=dict(edit.scales),
        seeds=tuple(seeds),
        images=tuple(images),
        injection=edit.injection,
        window=edit.window,
        steps=len(session.schedule),
        precision=session.precision,
        frames=frames,
    )


def read_settings(path: Path) -> Settings:
    """Return the settings in a file. Raises UserError, in one sentence, where it does not hold settings."""
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"--settings: {path} cannot be read: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise UserError(f"--settings: {path} is longer than {_MAX_BYTES} bytes")
    try:
        return Settings.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:_SHOWN]
        problem = ascii(f"{where}: {first['msg']}" if where else first["msg"])[1:-1]
        raise UserError(f"--settings: {path} is not of an edit: {problem}") from None


def write_settings(settings: Settings, path: Path) -> None:
    """Write settings as JSON."""
    with atomic_file(path) as temporary:
        temporary.write_text(settings.model_dump_json(indent=2) + "\n")


def differences(settings: Settings, session: EditSession) -> list[str]:
    """Return a sentence for each difference in the set or the weights, as pictures then differ from former ones."""
    pairs = (
        ("direction set", settings.set_digest, session.digest),
        ("weights", settings.weight_digest, session.denoiser.digest),
    )
    return [
        f"the settings were written with another {what} ({ascii(was[:12])}, here '{now[:12]}'): "
        "the pictures will be others"
        for what, was, now in pairs
        if was != now
    ]


def read_directions(texts: Sequence[str], directions: DirectionSet, scale: float = 1.0) -> dict[str, float]:
    """Return the scales by direction from texts `NAME` and `NAME=SCALE`.

    scale: of directions without one of their own. Raises UserError for one that is unknown or given twice, and for a
    scale that is not a finite number.
    """
    scales: dict[str, float] = {}
    for text in texts:
        name, number = _parted(text, directions)
        name = directions.names[directions.index(name)]
        if name in scales:
            raise UserError(f"--direction: '{name}' is given twice")
        scales[name] = scale if number is None else _number(number, name)
    return scales


def _parted(text: str, directions: DirectionSet) -> tuple[str, str | None]:
    if text in directions.names or "=" not in text:
        return text, None
    name, _, number = text.rpartition("=")
    return name, number


def _number(text: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"--direction: the scale of '{name}' is {text!r}; allowed: a finite number, as in {name}=1.5")
    return number


def describe_scales(scales: Mapping[str, float]) -> str:
    """Return the scales as text: `skin +1.5, yaw -0.5`."""
    return ", ".join(f"{name} {scale:+g}" for name, scale in scales.items()) or "no edit"
