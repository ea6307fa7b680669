"""Real images become what a model draws: right range, shape and orientation, and one sentence for each that cannot."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import UserError
from core.pictures.images import load_images, load_pairs, pictures_in
from core.pictures.opening import MAX_PIXELS
from core.pictures.traversal_grid import to_picture


def picture(size: tuple[int, int] = (4, 4), color: object = "red", mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, color)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_saved_image_comes_back_to_8_bits(tmp_path: Path, channels: int) -> None:
    image = torch.rand(channels, 6, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    to_picture(image).save(tmp_path / "a.png")
    loaded = load_images([tmp_path / "a.png"], (channels, 6, 5))
    assert loaded.shape == (1, channels, 6, 5) and loaded.dtype == torch.float32
    assert (loaded[0] - image).abs().max() <= 0.5 / 127.5 + 1e-6


def test_black_and_white_are_the_ends(tmp_path: Path) -> None:
    picture(color="black").save(tmp_path / "black.png")
    picture(color="white").save(tmp_path / "white.png")
    black, white = load_images([tmp_path / "black.png", tmp_path / "white.png"], (3, 2, 2))
    assert torch.equal(black, torch.full((3, 2, 2), -1.0)) and torch.equal(white, torch.full((3, 2, 2), 1.0))


def test_wide_and_high_pictures_are_cropped_around_their_centre(tmp_path: Path) -> None:
    """A green square between red edges: all of the edges go, none of the square."""
    for name, size, corner in (("wide", (12, 4), (4, 0)), ("high", (4, 12), (0, 4))):
        whole = picture(size)
        whole.paste(picture((4, 4), "lime"), corner)
        whole.save(tmp_path / f"{name}.png")
    green = torch.tensor([-1.0, 1.0, -1.0])[:, None, None].expand(3, 4, 4)
    assert torch.equal(load_images(tmp_path / "wide.png", (3, 4, 4))[0], green)
    assert torch.equal(load_images(tmp_path / "high.png", (3, 4, 4))[0], green)
    # The model's own aspect ratio decides: nothing of the wide one is cut off for a wide model.
    assert load_images(tmp_path / "wide.png", (3, 4, 12))[0, 0, :, 0].min() == 1


def test_shrinking_averages_instead_of_picking(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    assert load_images(tmp_path / "board.png", (1, 8, 8)).abs().max() < 0.1


def test_a_folder_gives_its_pictures_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, color in (("b.png", "white"), ("a.PNG", "black"), (".hidden.png", "red")):
        picture(color=color).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    assert [file.name for file in pictures_in(tmp_path)] == ["a.PNG", "b.png"]
    assert load_images(str(tmp_path), (3, 2, 2)).mean((1, 2, 3)).tolist() == [-1, 1]


def test_the_orientation_that_a_camera_noted_is_kept(tmp_path: Path) -> None:
    half = picture((4, 4), "black")
    half.paste(picture((4, 2), "white"), (0, 0))
    exif = Image.Exif()
    exif[0x0112] = 3  # held upside down
    half.save(tmp_path / "a.png", exif=exif)
    assert load_images(tmp_path / "a.png", (1, 4, 4))[0, 0, :, 0].tolist() == [-1, -1, 1, 1]


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    picture(color=(255, 0, 0, 0), mode="RGBA").save(tmp_path / "a.png")
    assert torch.equal(load_images(tmp_path / "a.png", (3, 2, 2)), torch.ones(1, 3, 2, 2))


def test_a_model_with_alpha_gets_it(tmp_path: Path) -> None:
    picture(color=(255, 0, 0, 0), mode="RGBA").save(tmp_path / "clear.png")
    picture(color="blue").save(tmp_path / "opaque.png")
    clear, opaque = (load_images(tmp_path / f"{name}.png", (4, 2, 2))[0, :, 0, 0] for name in ("clear", "opaque"))
    assert clear[3] == -1 and opaque.tolist() == [-1, -1, 1, 1]


def test_what_is_not_a_picture_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    picture((40, 40)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-40])
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "none.png", "images: .*none.png is not there"),
        (
            tmp_path / "text.png",
            "images: .*text.png cannot be read as a picture .it is no BMP, JPEG, PNG, TIFF or WEBP",
        ),
        (tmp_path / "half.png", r"images: .*half.png cannot be read as a picture \(image file is truncated"),
        (tmp_path / "deep.png", "images: .*deep.png has more than 8 bits a channel; save it with 8"),
        (tmp_path / "empty", r"images: .*empty holds no pictures \(.bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp\)"),
        ([], "images: got no files"),
    ):
        with pytest.raises(UserError, match=message):
            load_images(path, (3, 4, 4))
    with pytest.raises(UserError, match="images: a model of 5 channels draws neither greyscale nor RGB nor RGBA pict"):
        load_images(tmp_path / "whole.png", (5, 4, 4))


@pytest.mark.parametrize("side", [8_200, 10_000, 20_000])  # beyond our limit, where PIL warns, where it refuses
def test_a_picture_that_claims_too_many_pixels_is_not_decoded(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(UserError) as error:
        load_images(tmp_path / "bomb.png", (3, 4, 4))
    assert str(error.value) == f"images: {tmp_path}/bomb.png is larger than {MAX_PIXELS} pixels; save it smaller"


def test_only_the_decoders_of_the_endings_are_tried(tmp_path: Path) -> None:
    """PIL would start Ghostscript for a page that is called picture.png."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n")
    picture().save(tmp_path / "b.png", format="GIF")
    for name in ("a.png", "b.png"):
        with pytest.raises(UserError, match=f"{name} cannot be read as a picture"):
            load_images(tmp_path / name, (3, 4, 4))


def save(folder: Path, *names: str) -> None:
    """Pictures whose grey level is their place in `names`."""
    for level, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(color=level, mode="L").save(folder / name)


def test_pairs_are_matched_by_name(tmp_path: Path) -> None:
    # By whole file names, y.n.jpg would stand before y.png, and y.jpg before y.n.jpg.
    smile = ("smile/negative/y.jpg", "smile/negative/y.n.jpg", "smile/positive/y.n.jpg", "smile/positive/y.png")
    save(tmp_path, *smile, "age/negative/1.png", "age/positive/1.png", ".git/object.png")
    pairs = load_pairs(tmp_path, (1, 4, 4))
    assert list(pairs) == ["age", "smile"]
    negative, positive = (((side[:, 0, 0, 0] + 1) * 127.5).round().tolist() for side in pairs["smile"])
    assert (negative, positive) == ([0, 1], [3, 2])
    assert list(load_pairs(tmp_path, (1, 4, 4), ("smile",))) == ["smile"]
    assert list(load_pairs(tmp_path, (1, 4, 4), ("smile", "age"))) == ["smile", "age"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), r"pairs: .*pairs holds none; expected .*pairs/ATTRIBUTE/negative/\* and .../positive/\*"),
        (("smile/negative/x.png",), "pairs: .*smile has no folder 'positive'"),
        (("smile/positive/x.png",), "pairs: .*smile has no folder 'negative'"),
        (
            ("smile/negative/x.png", "smile/negative/z.png", "smile/positive/x.png", "smile/positive/a.jpg"),
            "pairs: in .*smile without a partner of the same name: positive/a.jpg, negative/z.png$",
        ),
        (
            ("smile/negative/x.png", *(f"smile/positive/{n}.png" for n in range(6))),
            "positive/3.png, positive/4.png and 2 more$",
        ),
        (
            ("smile/negative/x.png", "smile/negative/x.jpg", "smile/positive/x.png"),
            "pairs: .*negative has two pictures named 'x'",
        ),
        (("smile/negative/x.txt.png", "smile/positive/x.png"), "without a partner of the same name: "),
    ],
)
def test_pairs_that_are_not_are_told(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    (tmp_path / "pairs").mkdir()
    save(tmp_path / "pairs", *files)
    with pytest.raises(UserError, match=message):
        load_pairs(tmp_path / "pairs", (1, 4, 4))


def test_folders_that_are_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pairs: .*none is not a folder"):
        load_pairs(tmp_path / "none", (1, 4, 4))
    save(tmp_path, "smile/negative/x.png")
    (tmp_path / "smile" / "positive").mkdir()
    with pytest.raises(UserError, match="images: .*positive holds no pictures"):
        load_pairs(tmp_path, (1, 4, 4))


def test_an_attribute_without_pairs_gets_the_nearest_name(tmp_path: Path) -> None:
    save(tmp_path, "smile/negative/x.png", "smile/positive/x.png", "age/negative/x.png", "age/positive/x.png")
    message = r"attribute 'smiel' is not one that .* has pairs of: age, smile; did you mean 'smile'\?"
    with pytest.raises(UserError, match=message):
        load_pairs(tmp_path, (1, 4, 4), ("age", "smiel"))
    with pytest.raises(UserError, match="has pairs of: age, smile$"):
        load_pairs(tmp_path, (1, 4, 4), ("xyz",))
