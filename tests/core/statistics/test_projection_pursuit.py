"""Projection pursuit: independent flat causes that principal components mix are told apart again."""

import pytest
import torch
from torch import Tensor

from core.statistics.principal_components import principal_components
from core.statistics.projection_pursuit import Projections, concentration, kurtosis, pursue


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """|correlation| of every column of a [N, K] with every column of b [N, M]: [K, M]."""
    a, b = ((x - x.mean(0)) / x.std(0, unbiased=False) for x in (a, b))
    return (a.T @ b).abs() / len(a)


def read(found: Projections, rows: Tensor) -> Tensor:
    return (rows.double() - found.mean) @ found.weights


@pytest.fixture(scope="module")
def causes() -> Tensor:
    """Four flat causes: three of any degree, one that is there or not. [2000, 4]"""
    causes = torch.rand(2000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    causes[:, 3] = causes[:, 3].sign()
    return causes


@pytest.fixture(scope="module")
def rows(causes: Tensor) -> Tensor:
    """The causes at equal strength, mixed into 30 dimensions, beside bells. [2000, 30]"""
    mixing, _ = torch.linalg.qr(random(30, 30))
    bells = 0.6 * random(2000, 26, seed=2)
    return torch.cat([3 * causes / causes.std(0), bells], dim=1) @ mixing + 5


@pytest.fixture(scope="module")
def nowhere() -> Tensor:
    """Places that follow nothing, so that only flatness counts. [2000, 3, 64]"""
    return random(2000, 3, 64, seed=7)


def test_each_cause_has_a_projection_of_its_own(rows: Tensor, causes: Tensor, nowhere: Tensor) -> None:
    found = pursue(rows, nowhere, [(4, 8)], kept=8)
    told = correlation(read(found, rows)[:, :4], causes)
    assert found.pursued == 4
    assert told.max(dim=0).values.min() > 0.97
    assert sorted(told.argmax(dim=1).tolist()) == [0, 1, 2, 3]
    assert int(told[0].argmax()) == 3, "the flattest, which is there or not, comes first"
    leading = principal_components([rows], 4)
    mixed = correlation((rows - leading.mean) @ leading.vectors.T, causes)
    assert mixed.max(dim=0).values.min() < 0.9  # what the pursuit has to undo


def test_all_projections_are_standardised_and_uncorrelated_and_the_rest_completes_the_basis(
    rows: Tensor, nowhere: Tensor
) -> None:
    """Six of which three are pursued span what the six leading components span."""
    found = pursue(rows, nowhere, [(3, 5)], kept=6)
    values = read(found, rows)
    assert found.pursued == 3 and values.shape == (2000, 6)
    assert torch.allclose(values.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(values.T @ values / (len(rows) - 1), torch.eye(6, dtype=torch.float64), atol=1e-6)
    vectors = principal_components([rows], 6).vectors
    outside = found.weights - vectors.T @ (vectors @ found.weights)
    assert found.weights.norm(dim=0).min() > 1e-3 and outside.norm() < 1e-6 * found.weights.norm()


def test_a_stage_looks_only_at_its_own_leading_components(nowhere: Tensor) -> None:
    """A cause in the third component, flatter than those in the first two, is found by the stage that looks there."""
    flat = torch.rand(2000, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1
    faint = random(2000, 1, seed=4).sign()
    rows = torch.cat([9 * flat, faint], dim=1)
    staged = correlation(read(pursue(rows, nowhere, [(1, 2), (2, 3)], kept=3), rows), faint)[:, 0]
    at_once = correlation(read(pursue(rows, nowhere, [(3, 3)], kept=3), rows), faint)[:, 0]
    assert staged[0] < 0.05 and staged[1] > 0.99
    assert at_once[0] > 0.99
    none = pursue(rows, nowhere, [(1, 2), (0, 3)], kept=3)
    assert none.pursued == 1 and none.weights.shape == (3, 3)


@pytest.mark.parametrize(("share", "first"), [(0.05, 0), (1.0, 1)])
def test_of_two_projections_the_local_one_is_taken_unless_the_other_is_much_flatter(share: float, first: int) -> None:
    """One of 8 places instead of all is worth 0.3 log 8 = 0.62 of kurtosis; all the way to two points is 0.8.

    The second cause, which is everywhere, has this share of its samples at two points.
    """
    numbers = torch.Generator().manual_seed(5)
    causes = torch.rand(4000, 2, generator=numbers, dtype=torch.float64) * 2 - 1
    causes = causes / causes.std(0)
    points = torch.rand(4000, generator=numbers) < share
    causes[points, 1] = causes[points, 1].sign()
    causes = (causes - causes.mean(0)) / causes.std(0)
    places = 0.1 * random(4000, 1, 8, seed=6) + causes[:, 1, None, None]
    places[:, 0, 0] += causes[:, 0]
    assert kurtosis(causes).diff() < -0.03, "the second is flatter"
    rows = causes @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    values = read(pursue(rows, places, [(1, 2)], kept=2), rows)
    assert correlation(values[:, :1], causes)[0, first] > 0.97


def test_concentration_of_known_loadings() -> None:
    """1 where all places are alike, their number where one counts, a half of it where two of four do.

    Sign does not count, nor which channel a place changes in, nor the size.
    """
    alike, single, half = torch.ones(4), torch.tensor([0.0, 3, 0, 0]), torch.tensor([1.0, -1, 0, 0])
    loadings = torch.stack([alike, single, half], dim=1)[None]
    assert concentration(loadings).tolist() == pytest.approx([1, 4, 2])
    assert concentration(-7 * loadings).tolist() == pytest.approx([1, 4, 2])
    channels = torch.zeros(2, 4, 1)
    channels[0, 0], channels[1, 1], channels[0, 2], channels[1, 3] = 1.0, 1.0, 1.0, 1.0
    assert concentration(channels).tolist() == pytest.approx([1])
    uneven = torch.tensor([1.0, 2, 0, 0])[None, :, None]  # sizes 1 and 4: 4 (1 + 16) / 25
    assert concentration(uneven).tolist() == pytest.approx([68 / 25])


def test_kurtosis_of_known_shapes() -> None:
    two_points = torch.tensor([1.0, -1.0]).repeat(50)[:, None]
    uniform = torch.linspace(-(3**0.5), 3**0.5, 10001)[:, None]
    assert float(kurtosis(two_points)) == pytest.approx(-2)
    assert float(kurtosis(uniform)) == pytest.approx(-1.2, abs=1e-3)


def test_the_same_seed_finds_the_same_projections(rows: Tensor, nowhere: Tensor) -> None:
    torch.manual_seed(3)
    once = pursue(rows, nowhere, [(2, 6)], kept=6, seed=4).weights
    torch.manual_seed(5)
    assert torch.equal(pursue(rows, nowhere, [(2, 6)], kept=6, seed=4).weights, once)
    assert not torch.equal(pursue(rows, nowhere, [(2, 6)], kept=6, seed=5).weights, once)


def test_dimensions_in_which_nothing_varies_are_no_projection() -> None:
    """Rows of rank 4: eight projections cannot be had, and none is made of rounding."""
    rows = random(300, 4) @ random(4, 10, seed=1)
    found = pursue(rows, random(300, 1, 16, seed=2), [(6, 6), (2, 8)], kept=8)
    assert found.pursued == 4 and found.weights.shape == (10, 4)
    assert torch.allclose(read(found, rows).std(dim=0), torch.ones(4, dtype=torch.float64), atol=1e-6)
