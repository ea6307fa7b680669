"""Labels of pictures: names of most alphabets are drawn, and what no glyph exists for is spelled out."""

import numpy as np
import pytest
import torch
from PIL import Image

from core.pictures import labels
from core.pictures.labels import drawable, label_font, text_width, wrapped
from core.pictures.traversal_grid import grid


@pytest.mark.parametrize("name", ["smile", "größer", "łza", "улыбка", "χαμόγελο", "→ 1.5 σ"])
def test_names_of_most_alphabets_are_drawn_as_they_are(name: str) -> None:
    assert drawable(name) == name
    missing = np.asarray(label_font().getmask("\uffff"))
    assert all(np.asarray(label_font().getmask(c)).tolist() != missing.tolist() for c in name)


def test_no_two_letters_look_alike_in_a_picture() -> None:
    """A font without them draws the same box for both."""
    images = torch.zeros(1, 1, 3, 4, 4)
    pictures = [grid(images, [name], cell=20) for name in ("ö", "ж", "ω")]
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_what_the_font_lacks_is_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawable("微笑 smile") == r"\u5fae\u7b11 smile"
    assert drawable("한") == r"\ud55c"
    assert drawable("e\u0301") == "é"  # a letter and an accent as one character
    monkeypatch.setattr(labels, "_turns_lines", lambda: False)
    assert drawable("ابت smile") == r"\u0627\u0628\u062a smile"  # drawn from left to right it would be another word


def test_a_title_is_wrapped_at_its_commas_and_nothing_is_cut() -> None:
    title = ", ".join(f"direction {k} +1" for k in range(9))
    lines = wrapped(title, 300)
    assert ", ".join(lines) == title and 1 < len(lines) < 9 and all(text_width(line) <= 300 for line in lines)
    plain, titled = (grid(torch.zeros(1, 1, 3, 4, 4), cell=20, title=text) for text in ("", title))
    assert titled.width >= max(map(text_width, lines)) and titled.height == plain.height + labels.LINE * len(lines)
    assert isinstance(titled, Image.Image) and wrapped("", 300) == []
