"""Draw labels into pictures with a font that has most alphabets; what it lacks is written as its code point.

The font is DejaVu Sans, which comes inside the package matplotlib. matplotlib itself is not imported, because that
writes into the user's home.
"""

import math
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import ImageFont, features

LINE = 18  # pixels from one line of text to the next
_SIZE = 12  # pixels
_RIGHT_TO_LEFT = ("R", "AL", "AN")


@cache
def label_font() -> ImageFont.FreeTypeFont:
    """Return the font of the labels."""
    return ImageFont.truetype(_font_file(), _SIZE)


def drawable(text: str) -> str:
    r"""Return a text with the characters that cannot be drawn here as their escapes in Python, such as \u5fae."""
    return "".join(c if _can_be_drawn(c) else _escaped(c) for c in unicodedata.normalize("NFC", text))


def text_width(text: str) -> int:
    """Return the width of a label in pixels, rounded up."""
    return math.ceil(label_font().getlength(text))


def wrapped(text: str, width: int) -> list[str]:
    """Return a text as lines of at most `width` pixels where its commas allow that."""
    lines: list[str] = []
    for part in filter(None, text.split(", ")):
        if lines and text_width(f"{lines[-1]}, {part}") <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return lines


def widest(texts: Sequence[str]) -> int:
    """Return the width of the widest label in pixels; 0 where there is none."""
    return max(map(text_width, texts), default=0)


def _can_be_drawn(character: str) -> bool:
    if unicodedata.bidirectional(character) in _RIGHT_TO_LEFT and not _turns_lines():
        return False
    return ord(character) in _code_points()


@cache
def _turns_lines() -> bool:
    """Return whether this Pillow lays out lines that run from right to left."""
    return bool(features.check("raqm") and features.check("fribidi"))


@cache
def _code_points() -> frozenset[int]:
    with TTFont(_font_file(), lazy=True) as font:
        return frozenset(font.getBestCmap())


@cache
def _font_file() -> Path:
    package = find_spec("matplotlib")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
