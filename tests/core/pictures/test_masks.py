"""Which pixels a box or a picture stands for, and what is said when it cannot be used."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from core.errors import UserError
from core.model.denoiser import Denoiser
from core.pictures.masks import find_mask

BOX_RULE = (
    "in the 8x8 images of model 'tiny' a box is [left, top, right, bottom] "
    "with 0 <= left < right <= 8 and 0 <= top < bottom <= 8"
)


def picture(folder: Path, grey: Sequence[Sequence[int]], mode: str = "L") -> str:
    """An image file whose pixels are these shades of grey, row by row."""
    image = Image.new("L", (len(grey[0]), len(grey)))
    image.putdata([shade for row in grey for shade in row])
    path = folder / "mask.png"
    image.convert(mode).save(path)
    return str(path)


def test_a_box_is_left_top_right_bottom_with_exclusive_ends(tiny_denoiser: Denoiser) -> None:
    mask = find_mask(tiny_denoiser, box=(1, 2, 4, 8))
    assert mask is not None
    expected = [[[float(1 <= x < 4 and 2 <= y < 8) for x in range(8)] for y in range(8)]]
    assert mask.tolist() == expected


@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_a_picture_is_looked_at_where_it_is_at_least_half_white(
    tiny_denoiser: Denoiser, tmp_path: Path, mode: str
) -> None:
    rows = [[0] * 8 for _ in range(8)]
    rows[1][6], rows[3][2] = 255, 255
    if mode != "1":
        rows[0][0], rows[0][1] = 128, 127
    mask = find_mask(tiny_denoiser, path=picture(tmp_path, rows, mode))
    assert mask is not None and mask.shape == (1, 8, 8)
    expected = [[1, 6], [3, 2]] if mode == "1" else [[0, 0], [1, 6], [3, 2]]
    assert mask[0].nonzero().tolist() == expected
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_no_box_and_no_picture_is_no_mask(tiny_denoiser: Denoiser) -> None:
    assert find_mask(tiny_denoiser) is None


@pytest.mark.parametrize("box", [(0, 0, 9, 8), (-1, 0, 4, 4), (3, 2, 3, 5), (2, 6, 5, 5), (0, 0, 8)])
def test_a_box_that_is_empty_or_leaves_the_image(tiny_denoiser: Denoiser, box: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as error:
        find_mask(tiny_denoiser, box=box)
    assert str(error.value) == f"box: got {list(box)}; {BOX_RULE}"


def test_a_box_on_images_that_are_not_square(tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_denoiser, "sample_shape", (3, 4, 8))
    mask = find_mask(tiny_denoiser, box=(6, 0, 8, 4))
    assert mask is not None and mask.shape == (1, 4, 8) and torch.equal(mask[0, 0], torch.tensor([0.0] * 6 + [1.0] * 2))
    with pytest.raises(UserError, match="8x4 images"):
        find_mask(tiny_denoiser, box=(0, 0, 4, 8))


def test_a_picture_of_another_size(tiny_denoiser: Denoiser, tmp_path: Path) -> None:
    path = picture(tmp_path, [[255] * 16] * 4)
    with pytest.raises(UserError) as error:
        find_mask(tiny_denoiser, path=path)
    assert str(error.value) == f"mask: {path} is 16x4; model 'tiny' draws 8x8"


def test_a_black_picture(tiny_denoiser: Denoiser, tmp_path: Path) -> None:
    path = picture(tmp_path, [[127] * 8] * 8)
    with pytest.raises(UserError) as error:
        find_mask(tiny_denoiser, path=path)
    assert str(error.value) == f"mask: {path} is black all over; white is what is looked at"


def test_a_file_that_is_missing_or_not_a_picture(tiny_denoiser: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    with pytest.raises(UserError) as error:
        find_mask(tiny_denoiser, path=str(path))
    assert str(error.value) == f"mask: {path} is not there"
    path.write_text("not a picture")
    with pytest.raises(UserError) as error:
        find_mask(tiny_denoiser, path=str(path))
    assert str(error.value) == f"mask: {path} cannot be read as a picture (it is no BMP, JPEG, PNG, TIFF or WEBP)"


def test_a_box_and_a_picture_at_once(tiny_denoiser: Denoiser) -> None:
    with pytest.raises(UserError) as error:
        find_mask(tiny_denoiser, box=(0, 0, 4, 4), path="mask.png")
    assert str(error.value) == "mask and box are both given; give one of them"
