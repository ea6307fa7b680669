"""Both sets of measures of digits, on shapes whose measures are known."""

from collections.abc import Callable

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from core.predictors import digit_measures
from core.predictors.digit_measures import MEASURES, measure, measure_otherwise

Measure = Callable[[Tensor], Tensor]
BOTH = pytest.mark.parametrize("of", [measure, measure_otherwise])
SIDE = 32
Y, X = torch.meshgrid(*2 * [torch.arange(SIDE).double() + 0.5 - SIDE / 2], indexing="ij")  # pixels from the middle


def drawn(*shapes: Tensor) -> Tensor:
    """Images of shapes [H, W] of ink, 0 to 1."""
    return torch.stack(shapes)[:, None].double() * 2 - 1


def bar(width: float = 2, height: float = 16, slant: float = 0.0) -> Tensor:
    """An upright bar, each row moved to the right by slant for each row that it is above the middle."""
    return ((X + slant * Y).abs() < width / 2) & (Y.abs() < height / 2)


def ring(radius: float = 8, width: float = 2, x: float = 0, y: float = 0) -> Tensor:
    return ((X - x) ** 2 + (Y - y) ** 2).sqrt().sub(radius).abs() < width / 2


def of_shapes(of: Measure, name: str, *shapes: Tensor) -> list[float]:
    found: list[float] = of(drawn(*shapes))[:, MEASURES.index(name)].tolist()
    return found


@BOTH
def test_slant_is_the_shear_that_sets_a_bar_upright(of: Measure) -> None:
    upright, leaning, back = of_shapes(of, "slant", bar(), bar(slant=0.5), bar(slant=-0.5))
    assert upright == pytest.approx(0, abs=1e-6)
    assert leaning == pytest.approx(0.5, abs=0.1) and back == pytest.approx(-leaning, abs=1e-6)


@BOTH
def test_thickness_is_that_of_the_stroke(of: Measure) -> None:
    thin, thick = of_shapes(of, "thickness", bar(2, 20), bar(4, 20))
    assert thin == pytest.approx(2, rel=0.2) and thick > 1.3 * thin


@BOTH
@pytest.mark.parametrize("name", ["width", "height"])
def test_width_and_height_double_with_the_digit(of: Measure, name: str) -> None:
    small, large, leaning = of_shapes(of, name, bar(6, 10), bar(12, 20), bar(6, 10, slant=0.3))
    assert large == pytest.approx(2 * small, rel=0.1)
    assert leaning == pytest.approx(small, rel=0.1), "of the digit that is set upright"


@BOTH
def test_a_ring_is_round_and_a_cross_is_not(of: Measure) -> None:
    cross = bar(2, 20) | bar(2, 20).T
    flat = ((X / 2) ** 2 + Y**2).sqrt().sub(5).abs() < 1
    found = of_shapes(of, "roundness", ring(), flat, cross)
    assert found[0] > 0.9 and found[1] > 0.8 and found[2] < 0.7


@BOTH
def test_holes_are_counted(of: Measure) -> None:
    eight = ring(4, 2, y=-4) | ring(4, 2, y=4)
    assert of_shapes(of, "holes", bar(), ring(), eight) == pytest.approx([0, 1, 2], abs=0.01)


@BOTH
def test_the_centre_is_where_the_digit_is(of: Measure) -> None:
    images = drawn(ring(), ring(x=3, y=-2))
    where = of(images)[:, [MEASURES.index("centre_x"), MEASURES.index("centre_y")]]
    assert where.tolist()[0] == pytest.approx([0, 0], abs=1e-6)
    assert where.tolist()[1] == pytest.approx([3 / 16, -2 / 16], abs=1e-6)


def test_the_euler_number_is_pieces_minus_holes() -> None:
    """Of random pixels, where those that touch at a corner are in one piece."""
    solid = (torch.rand(20, 12, 12, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    for image, found in zip(solid, digit_measures._euler_number(solid), strict=True):
        _, pieces = ndimage.label(image.numpy(), [[1, 1, 1]] * 3)
        _, gaps = ndimage.label(1 - torch.nn.functional.pad(image, (1, 1, 1, 1)).numpy())
        assert float(found) == pieces - (gaps - 1)


def test_every_measure_has_a_gradient() -> None:
    """Against differences of the measure along a random change of a soft image."""
    generator = torch.Generator().manual_seed(0)
    soft = torch.nn.functional.avg_pool2d(drawn(ring() | bar(2, 24, slant=0.2)), 3, 1, 1).requires_grad_()
    change = torch.randn(soft.shape, generator=generator, dtype=torch.float64) * (soft.detach().abs() < 0.9)
    for column, name in enumerate(MEASURES):
        (slope,) = torch.autograd.grad(measure(soft)[0, column], soft)
        with torch.no_grad():
            ends = [measure(soft + sign * 1e-5 * change)[0, column] for sign in (1, -1)]
        expected = float(ends[0] - ends[1]) / 2e-5
        assert float((slope * change).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-8), name


@BOTH
def test_a_single_row_of_ink_leans_by_no_more_than_it_is_wide(of: Measure) -> None:
    row = torch.zeros(SIDE, SIDE)
    row[10, [3, 4, 8]] = 1
    assert abs(of_shapes(of, "slant", row)[0]) < SIDE


def test_both_find_as_many_holes_in_an_empty_image() -> None:
    empty = torch.full((1, 1, SIDE, SIDE), -1.0)
    column = MEASURES.index("holes")
    assert [float(of(empty)[0, column]) for of in (measure, measure_otherwise)] == pytest.approx([1, 1], abs=1e-3)


@BOTH
@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_images_without_a_digit_have_finite_measures(of: Measure, level: float) -> None:
    images = torch.full((2, 1, SIDE, SIDE), level, requires_grad=of is measure)
    found = of(images)
    assert found.shape == (2, len(MEASURES)) and found.isfinite().all()
    if of is measure:
        found.sum().backward()
        assert images.grad is not None and images.grad.isfinite().all()
