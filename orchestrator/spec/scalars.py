"""Read the values of a sweep file that stand without quotes, and write text so that it is read back as text.

YAML 1.1, which PyYAML reads, takes 12:00:00 for 43200, 010 for 8, `no` for false and 1e-4 for text; YAML 1.2 does not.
Here a number is a decimal one, with or without an exponent. What the versions read differently is kept as it was
written (`Ambiguous`), and each domain decides: a duration takes 12:00:00, everything else refuses it.
"""

import re
from dataclasses import dataclass
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_KINDS = ("int", "float", "bool", "timestamp")  # that YAML 1.1 may read plain text as, beside text and null
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_REAL = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_ENDLESS = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_OTHER_WHOLE = re.compile(r"[-+]?0(?:[0-9]+|o[0-7]+)")  # decimal with a leading zero, and octal as YAML 1.2 has it
_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False} | dict.fromkeys(
    ("null", "Null", "NULL", "~", "")
)


@dataclass(frozen=True)
class Ambiguous:
    """A value without quotes that one version of YAML reads as something else than another, as it was written.

    It is no text and no number, so that every domain refuses it that does not know it.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def truth(self) -> bool | None:
        """What YAML 1.1 reads `yes`, `no`, `on` and `off` as; None for everything else."""
        return yaml.safe_load(self.text) if _kind_in_1_1(self.text) == "bool" else None

    @property
    def advice(self) -> str:
        """What YAML reads, and what to write instead, as the end of a sentence."""
        read = self._readings()
        if not read:
            return f"YAML reads {self.text} as a date: write '{self.text}' for text"
        meant = read[0] if len(read) == 1 else "the one you mean"
        return f"YAML reads {self.text} as {' or '.join(read)}: write {meant}, or '{self.text}' for text"

    def _readings(self) -> list[str]:
        """Return the numbers or the truth value that versions of YAML read, without repetition; none for a date."""
        if self.truth is not None:
            return ["true" if self.truth else "false"]
        numbers = []
        if _kind_in_1_1(self.text) in ("int", "float"):
            numbers.append(yaml.safe_load(self.text))
        if _OTHER_WHOLE.fullmatch(self.text):
            sign, digits = (-1 if self.text[0] == "-" else 1), self.text.lstrip("+-")
            numbers.append(sign * (int(digits, 8) if "o" in digits else int(digits)))
        return list(dict.fromkeys(map(str, numbers)))


def plain(text: str) -> Any:
    """Return the value of text without quotes that may be a number, a truth value, null or a date.

    It is Ambiguous where versions of YAML differ. A number or a date that none of them can make, such as 0x_ or
    2026-13-45, is text.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _REAL.fullmatch(text):
        return float(text)
    if _ENDLESS.fullmatch(text):
        return float(text.replace(".", ""))
    try:
        yaml.safe_load(text)
    except (ValueError, OverflowError):
        return text
    return Ambiguous(text)


def _constructed(_: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return plain(node.value) if node.style is None else node.value  # after ! quotes do not matter to PyYAML


def read_scalars(loader: type[yaml.SafeLoader]) -> None:
    """Make a class of loaders read values as `plain` does."""
    _resolve_more(loader)
    for kind in _KINDS:
        loader.add_constructor(_TAG + kind, _constructed)
    loader.add_constructor(f"{_TAG}value", lambda _, node: node.value)  # a lone =, of which PyYAML makes nothing


def to_yaml(data: Any, **style: Any) -> str:
    """Return plain data as YAML that a sweep file's reader, and any other, reads back as the same values."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, **style)
    return text


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that puts text in quotes where some version of YAML would read it as a number."""


def _resolve_more(kind: type[Any]) -> None:
    """Have numbers recognised that YAML 1.1 reads as text."""
    kind.add_implicit_resolver(f"{_TAG}float", re.compile(f"(?:{_REAL.pattern})$"), list("-+.0123456789"))
    kind.add_implicit_resolver(f"{_TAG}int", re.compile(f"(?:{_OTHER_WHOLE.pattern})$"), list("-+0"))


_resolve_more(_Dumper)


def _kind_in_1_1(text: str) -> str:
    """Return the kind of value that YAML 1.1 reads: int, float, bool, timestamp, str, ..."""
    loader: Any = yaml.SafeLoader("")  # of its methods the stubs say little
    tag: str = loader.resolve(yaml.ScalarNode, text, (True, False))
    return tag.removeprefix(_TAG)
