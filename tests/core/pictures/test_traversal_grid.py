"""Pictures show what they say."""

import numpy as np
import pytest
import torch

from core import Denoiser, DirectionSet, Schedule, noise, sample
from core.pictures.channels import shown_shape
from core.pictures.labels import LINE
from core.pictures.traversal_grid import grid, shown_size, to_picture, traversal, traversal_grid
from core.samples.draw import Sampling


def test_a_traversal_moves_one_direction_a_row(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, 2)
    table = torch.nn.functional.normalize(torch.ones(2, 1, 32, dtype=torch.float64), dim=2).reshape(2, 1, 8, 2, 2)
    directions = DirectionSet(table, torch.tensor([[1.0], [3.0]], dtype=torch.float64), schedule.timesteps)
    x_T = noise([5], tiny_denoiser.sample_shape, tiny_denoiser.dtype)
    images = traversal(tiny_denoiser, schedule, directions, seed=5, scales=(-1.0, 0.0, 2.0), sampling=Sampling(batch=4))
    assert images.shape == (2, 3, 3, 8, 8)
    plain = sample(tiny_denoiser, schedule, x_T)[0]
    assert torch.allclose(images[0, 1], plain, atol=1e-5) and torch.allclose(images[1, 1], plain, atol=1e-5)
    expected = sample(tiny_denoiser, schedule, x_T, directions.shift(1, 2.0))[0]
    assert torch.allclose(images[1, 2], expected, atol=1e-5)
    assert not torch.allclose(images[0, 2], images[1, 2], atol=1e-3)
    picture = traversal_grid(images, directions, (-1.0, 0.0, 2.0))
    assert picture.width > 3 * 96 and picture.height > 2 * 96


def test_grey_levels_and_order() -> None:
    images = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 0.0, 1.0, 5.0)]).reshape(2, 2, 1, 2, 2)
    assert [to_picture(image).getpixel((0, 0))[0] for image in images.flatten(0, 1)] == [0, 128, 255, 255]
    picture = grid(images, cell=4)
    assert [picture.getpixel(at)[0] for at in ((1, 1), (7, 1), (1, 7))] == [0, 128, 255]


def test_alpha_is_over_white() -> None:
    for alpha, seen in ((1.0, (0, 128, 255)), (0.0, (128, 191, 255)), (-1.0, (255, 255, 255)), (-9.0, (255, 255, 255))):
        image = torch.tensor([-1.0, 0.0, 1.0, alpha])[:, None, None].expand(4, 2, 2)
        assert to_picture(image).getpixel((1, 1)) == seen


@pytest.mark.parametrize("count", [2, 5])
def test_channels_that_no_screen_has_are_side_by_side_as_grey(count: int) -> None:
    image = torch.linspace(-1, 1, count)[:, None, None].expand(count, 2, 3)
    picture = to_picture(image)
    assert picture.size == (3 * count, 2) and (3, *picture.size[::-1]) == shown_shape((count, 2, 3))
    assert [picture.getpixel((3 * c + 1, 0)) for c in range(count)] == [
        (round(255 * c / (count - 1) + 1e-6),) * 3 for c in range(count)
    ]
    assert grid(image.expand(2, 2, -1, -1, -1)).size == grid(torch.zeros(2, 2, 1, 2, 3 * count)).size


@pytest.mark.parametrize("size", [(16, 24), (24, 8)])
def test_images_keep_their_aspect_ratio(size: tuple[int, int]) -> None:
    """Each pixel of an image becomes a square of the picture, whatever the labels beside it."""
    images = torch.rand(2, 3, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    height, width = (4 * side for side in size)
    bare = np.asarray(grid(images, cell=96))
    assert bare.shape[:2] == (2 * (height + 2), 3 * (width + 2))
    assert (bare[:height, :width] == np.asarray(to_picture(images[0, 0])).repeat(4, 0).repeat(4, 1)).all()
    labelled = grid(images, ["smile", "улыбка"], ["-1", "original", "+1"], title="smile")
    assert labelled.height == 2 * (height + 2) + 2 * LINE and labelled.width > bare.shape[1]
    assert shown_size((1, 400), 96) == (1, 96)
