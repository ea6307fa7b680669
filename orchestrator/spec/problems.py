"""The messages for mistakes in a sweep file: one line with the path, what is wrong, the value, and what is allowed."""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from core.errors import UserError
from orchestrator.spec.scalars import Ambiguous

T = TypeVar("T")
Path = tuple[str | int, ...]

_DEEPEST, _LONGEST = 3, 8  # levels and items of a nested value in a message; an aliased YAML value may be endless


class SpecError(UserError):
    """A sweep file has mistakes; `problems` holds one line for each of them."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Problem:
    """One mistake: its path in the file, and what is wrong there."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.text}"

    def below(self, *parents: str | int) -> "Problem":
        """Return the same mistake with `parents` put before its path."""
        return Problem((*parents, *self.path), self.text)


class Refused(Exception):
    """A domain does not accept a value; `problems` holds every reason."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(map(str, self.problems)))


class MistakeCollector:
    """A collection of the mistakes of several values, so that all of them are reported at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, text: str, *path: str | int) -> None:
        """Note a mistake at `path`."""
        self.problems.append(Problem(path, text))

    def check(self, check: Callable[[Any], T], value: object, *path: str | int) -> T | None:
        """Return check(value); where it raises Refused, note the reasons under `path` and return None."""
        try:
            return check(value)
        except Refused as refused:
            self.problems += [problem.below(*path) for problem in refused.problems]
            return None

    def raise_if_any(self) -> None:
        """Raise Refused with all mistakes found, if there are any."""
        if self.problems:
            raise Refused(self.problems)


def complaint(what: str, got: object, allowed: object, options: Iterable[str] = ()) -> str:
    """Return `what (got VALUE); allowed: ...; did you mean 'x'?`, the last part only where an option is near.

    Where versions of YAML read the value differently, the last part says so.
    """
    text = f"{what} (got {shown(got)}); allowed: {allowed}"
    if isinstance(got, Ambiguous):
        return f"{text}; {got.advice}"
    near = nearest(got, options)
    return f"{text}; did you mean {near!r}?" if near else text


def nearest(word: object, options: Iterable[str]) -> str | None:
    """Return the option spelt most like `word`, ignoring case, or None if none is near."""
    if not isinstance(word, str):
        return None
    spelt = {option.lower(): option for option in options}
    matches = difflib.get_close_matches(word.lower(), list(spelt), n=1, cutoff=0.6)
    return spelt[matches[0]] if matches else None


def dotted(path: Path) -> str:
    """Return a path as text: ('objectives', 0, 'name') -> 'objectives[0].name'."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_key(part)}"
    return text.removeprefix(".")


def shown(value: object, depth: int = _DEEPEST) -> str:
    """Return `value` as it would be written in YAML, on one line and shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if isinstance(value, dict):
        pairs = (f"{_key(key)}: {shown(item, depth - 1)}" for key, item in list(value.items())[:_LONGEST])
        return "{" + _few(pairs, value, depth) + "}"
    if isinstance(value, list | tuple):
        return "[" + _few((shown(item, depth - 1) for item in value[:_LONGEST]), value, depth) + "]"
    return _shorten(repr(value) if isinstance(value, str) else str(value))


def _few(items: Iterable[str], whole: dict[Any, Any] | list[Any] | tuple[Any, ...], depth: int) -> str:
    if not depth and whole:
        return "..."
    return ", ".join(items) + (", ..." if len(whole) > _LONGEST else "")


def _key(key: object) -> str:
    return key if isinstance(key, str) and key.isprintable() and key else shown(key)


def _shorten(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
