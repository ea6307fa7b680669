"""The domains of single values in a sweep file: `check` returns a value or raises Refused, `str` says what is allowed.

The same domains check the fixed fields (as pydantic annotations) and the searchable parameters.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from pydantic_core import PydanticCustomError, core_schema

from orchestrator.spec.problems import Problem, Refused, complaint
from orchestrator.spec.scalars import Ambiguous

LARGEST = 2**31 - 1  # bound of whole numbers without an own bound, so that loops up to them end
LONGEST = 1_024  # characters of a text

REFUSED = "refused"  # the pydantic error type under which Refused travels


class Domain:
    """A set of allowed values."""

    def check(self, value: object) -> Any:
        """Return the value in the form that the program uses. Raises Refused for a value outside the domain."""
        raise NotImplementedError

    def refuse(self, what: str, got: object, options: tuple[str, ...] = ()) -> NoReturn:
        """Raise Refused, saying what is wrong with `got` and what is allowed."""
        raise Refused([Problem((), complaint(what, got, self, options))])

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(_for_pydantic(self.check))


def _for_pydantic(check: Callable[[object], Any]) -> Callable[[object], Any]:
    """Return `check` with Refused wrapped in an error of pydantic's, so that pydantic goes on to the other fields."""

    def checked(value: object) -> Any:
        try:
            return check(value)
        except Refused as refused:
            raise PydanticCustomError(REFUSED, "refused", {"problems": refused.problems}) from refused

    return checked


@dataclass(frozen=True)
class Whole(Domain):
    """An integer; a bool is not one. `refused` maps forbidden values to the reason in the message."""

    low: int
    high: int | None = None
    refused: Mapping[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"an integer >= {self.low}" + ("" if self.high is None else f" and <= {self.high}")

    def check(self, value: object) -> int:
        """Return `value` if it is an integer in range, else raise Refused."""
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse("is not an integer", value)
        if value in self.refused:
            self.refuse(self.refused[value], value)
        if value < self.low or (self.high is not None and value > self.high):
            self.refuse("is out of range", value)
        if value > max(LARGEST, self.high or 0):
            self.refuse(f"is more than {LARGEST}", value)
        return value


@dataclass(frozen=True)
class Real(Domain):
    """A finite number; integers count. `above` and `below` exclude their end."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        ends = ((">=", self.low), (">", self.above), ("<=", self.high), ("<", self.below))
        return "a number " + " and ".join(f"{sign} {end:g}" for sign, end in ends if end is not None)

    def check(self, value: object) -> float:
        """Return `value` as a float if it is a finite number in range, else raise Refused."""
        number = _number(value)
        if number is None:
            self.refuse("is not a number", value)
        if not math.isfinite(number):
            self.refuse("is not a finite number", value)
        if not self._contains(number):
            self.refuse("is out of range", value)
        return number

    def _contains(self, number: float) -> bool:
        return (
            (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer beyond the largest float
        return math.inf


@dataclass(frozen=True)
class Truth(Domain):
    """true or false."""

    def __str__(self) -> str:
        return "true or false"

    def check(self, value: object) -> bool:
        """Return `value` if it is a bool, or true and false for yes, on and no, off. Raises Refused otherwise."""
        if isinstance(value, Ambiguous) and value.truth is not None:
            return value.truth
        if not isinstance(value, bool):
            self.refuse("is neither true nor false", value)
        return value


@dataclass(frozen=True)
class OneOf(Domain):
    """One of a few words; `null` is the word that YAML's null stands for, if any."""

    options: tuple[str, ...]
    null: str | None = None

    def __str__(self) -> str:
        return ", ".join(self.options)

    def check(self, value: object) -> str:
        """Return the word, or `null` for None. Raises Refused for an unknown word."""
        if value is None and self.null is not None:
            return self.null
        if not isinstance(value, str) or value not in self.options:
            self.refuse("is not known", value, self.options)
        return value


@dataclass(frozen=True)
class Text(Domain):
    """Text that is not blank."""

    def __str__(self) -> str:
        return "text, not empty (quote what YAML reads as a number or a truth value)"

    def check(self, value: object) -> str:
        """Return `value` if it is text, not blank, of at most LONGEST characters, none a control character.

        Raises Refused otherwise.
        """
        if not isinstance(value, str):
            self.refuse("is not text", value)
        if not value.strip():
            self.refuse("is empty", value)
        if len(value) > LONGEST:
            self.refuse(f"is longer than {LONGEST} characters", value)
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
            self.refuse("has control characters", value)
        return value


_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?) ?([A-Za-z]+)")


@dataclass(frozen=True)
class Size(Domain):
    """An amount of memory as text: a number and its unit."""

    def __str__(self) -> str:
        return f"a number above 0 with {', '.join(list(_UNITS)[:-1])} or {list(_UNITS)[-1]}, such as 20GiB"

    def check(self, value: object) -> str:
        """Return the amount without a space before the unit. Raises Refused unless it is an amount above 0."""
        size = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if size is None:
            self.refuse("is not an amount of memory", value)
        number, unit = size.groups()
        if unit not in _UNITS:
            near = [f"; did you mean '{number}{known}'?" for known in _UNITS if known.casefold() == unit.casefold()]
            raise Refused([Problem((), "".join([complaint("is not an amount of memory", value, self), *near]))])
        if size_bytes(f"{number}{unit}") == 0:
            self.refuse("is no memory", value)
        return f"{number}{unit}"


def size_bytes(size: str) -> int:
    """Return the bytes of a text that `Size` has checked: "1.5GiB" -> 1610612736."""
    checked = _SIZE.fullmatch(size)
    assert checked is not None
    number, unit = checked.groups()
    return int(float(number) * _UNITS[unit])


_BOX = re.compile(",".join(["([0-9]{1,6})"] * 4))


@dataclass(frozen=True)
class Box(Domain):
    """A rectangle of pixels as text, its right and bottom excluded."""

    def __str__(self) -> str:
        return "'left,top,right,bottom' in pixels with left < right and top < bottom"

    def check(self, value: object) -> str:
        """Return the box as "left,top,right,bottom" without spaces. Raises Refused for a wrong or empty box."""
        ends = _BOX.fullmatch(value.replace(" ", "")) if isinstance(value, str) else None
        if ends is None:
            self.refuse("is not a box", value)
        left, top, right, bottom = map(int, ends.groups())
        if left >= right or top >= bottom:
            self.refuse("is an empty box", value)
        return f"{left},{top},{right},{bottom}"


_SHARED = ("cache", "mlartifacts", "mlflow.db")  # in the same folder as the sweeps


@dataclass(frozen=True)
class Slug(Domain):
    """A name that is safe for an experiment, and for a folder beside the files that all sweeps share."""

    def __str__(self) -> str:
        return "at most 100 of A-Z a-z 0-9 . _ -, the first a letter or digit"

    def check(self, value: object) -> str:
        """Return `value` if it is such a name, else raise Refused."""
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            self.refuse("is not a name", value)
        if value in _SHARED:
            self.refuse("is the name of what all sweeps share", value)
        return value


@dataclass(frozen=True)
class OrNull(Domain):
    """A value of `domain`, or null."""

    domain: Domain

    def __str__(self) -> str:
        return f"{self.domain}, or null"

    def check(self, value: object) -> Any:
        """Return None for null, else the value as `domain` returns it. Raises Refused as `domain` does."""
        return None if value is None else _widened(self.domain, self, value)


@dataclass(frozen=True)
class OrWord(Domain):
    """A value of `domain`, or one of a few words; YAML's null stands for the first word."""

    domain: Domain
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.domain}, or {' or '.join(self.words)}"

    def check(self, value: object) -> Any:
        """Return the word, or the value as `domain` returns it. Raises Refused as `domain` does."""
        if value is None:
            return self.words[0]
        return value if value in self.words else _widened(self.domain, self, value)


def _widened(inner: Domain, outer: Domain, value: object) -> Any:
    """Return inner.check(value), with the allowed values of `outer` in the message where it is refused."""
    try:
        return inner.check(value)
    except Refused as refused:
        problems = [Problem(p.path, p.text.replace(str(inner), str(outer), 1)) for p in refused.problems]
        raise Refused(problems) from refused


_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "min": 60, "s": 1}
_AMOUNT = r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(d|h|min|m|s)"
_CLOCK = re.compile(r"([0-9]{1,9}):([0-5]?[0-9])(?::([0-5]?[0-9]))?")


@dataclass(frozen=True)
class Duration(Domain):
    """An amount of time above 0: a number of `unit`, or a time with units of its own."""

    unit: Literal["hours", "minutes"]
    high: float | None = None

    def __str__(self) -> str:
        most = "" if self.high is None else f" and <= {self.high:g}"
        return f"a number of {self.unit} > 0{most}, or a time such as 12:00:00, 90m, 1.5h or 2d"

    def check(self, value: object) -> float:
        """Return the number of `unit`. Raises Refused for what is no time, and for one out of range.

        "1:30" begins with `unit`: it is an hour and a half, or a minute and a half. "1:30:00" begins with hours.
        """
        number = value
        if isinstance(value, Ambiguous | str):
            number = self._read(str(value))
            if number is None:
                self.refuse("is not a time", value)
        try:
            return Real(above=0, high=self.high).check(number)
        except Refused as refused:
            self.refuse(refused.problems[0].text.partition(" (got ")[0], value)

    def _read(self, text: str) -> float | None:
        unit = _SECONDS[self.unit[0]]
        if clock := _CLOCK.fullmatch(text):
            first, second, third = clock.groups()
            if third is None:
                return int(first) + int(second) / 60
            return (3600 * int(first) + 60 * int(second) + int(third)) / unit
        if not re.fullmatch(f"{_AMOUNT}(?: ?{_AMOUNT})*", text):
            return None
        return sum(float(number) * _SECONDS[word] for number, word in re.findall(_AMOUNT, text)) / unit


@dataclass(frozen=True)
class Window(Domain):
    """[high, low] in training timesteps, the order in which the chain passes them.

    How many of them a model has, only the model says: `core.chain.schedule.check_window`.
    """

    def __str__(self) -> str:
        return "[high, low], integers with high > low >= 0"

    def check(self, value: object) -> tuple[int, int]:
        """Return (high, low). Raises Refused for anything that is not such a pair of integers."""
        if not isinstance(value, list | tuple) or len(value) != 2 or any(type(end) is not int for end in value):
            self.refuse("is not a pair of timesteps", value)
        high, low = value
        if not LARGEST >= high > low >= 0:
            self.refuse("is not a window of timesteps", value)
        return high, low


@dataclass(frozen=True)
class Gpus(Domain):
    """The GPUs of one trial: a share of one, or whole ones."""

    def __str__(self) -> str:
        return "a number from 0 to 1, or a whole number of GPUs"

    def check(self, value: object) -> float:
        """Return the number of GPUs. Raises Refused for a negative number, or a fraction above 1."""
        number = _number(value)
        if number is None or not math.isfinite(number) or number < 0:
            self.refuse("is not a number of GPUs", value)
        if number > LARGEST:
            self.refuse(f"is more than {LARGEST}", value)
        if number > 1 and not number.is_integer():
            self.refuse("is neither a share of one GPU nor whole GPUs", value)
        return number
