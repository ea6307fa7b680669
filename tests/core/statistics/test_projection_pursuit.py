"""Projection pursuit: independent flat causes that principal components mix are told apart again."""

import pytest
import torch
from torch import Tensor

from core.methods.learned.starts import flattest_directions
from core.statistics.principal_components import principal_components
from core.statistics.projection_pursuit import flattest_sources, kurtosis


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """|correlation| of every column of a [N, K] with every column of b [N, M]: [K, M]."""
    a, b = ((x - x.mean(0)) / x.std(0, unbiased=False) for x in (a, b))
    return (a.T @ b).abs() / len(a)


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


@pytest.mark.slow
def test_each_cause_has_a_source_of_its_own(rows: Tensor, causes: Tensor) -> None:
    sources = flattest_sources(rows, 4, components=8)
    found = correlation(sources, causes)
    assert found.max(dim=0).values.min() > 0.97
    assert sorted(found.argmax(dim=1).tolist()) == [0, 1, 2, 3]
    leading = principal_components([rows], 4)
    mixed = correlation((rows - leading.mean) @ leading.vectors.T, causes)
    assert mixed.max(dim=0).values.min() < 0.9  # what the pursuit has to undo


def test_sources_are_standardised_uncorrelated_and_flattest_first(rows: Tensor) -> None:
    sources = flattest_sources(rows, 6, components=8)
    assert torch.allclose(sources.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(sources.T @ sources / (len(rows) - 1), torch.eye(6, dtype=torch.float64), atol=1e-6)
    flatness = kurtosis(sources)
    assert (flatness[:4].diff() > -0.05).all() and flatness[0] < -1.8  # the cause that is there or not comes first


def test_kurtosis_of_known_shapes() -> None:
    two_points = torch.tensor([1.0, -1.0]).repeat(50)[:, None]
    uniform = torch.linspace(-(3**0.5), 3**0.5, 10001)[:, None]
    assert float(kurtosis(two_points)) == pytest.approx(-2)
    assert float(kurtosis(uniform)) == pytest.approx(-1.2, abs=1e-3)


@pytest.mark.slow
def test_the_same_seed_finds_the_same_sources(rows: Tensor) -> None:
    torch.manual_seed(3)
    once = flattest_sources(rows, 3, components=6, seed=4)
    torch.manual_seed(5)
    assert torch.equal(flattest_sources(rows, 3, components=6, seed=4), once)


@pytest.mark.slow
def test_directions_are_how_h_moves_with_a_source(causes: Tensor) -> None:
    """h = sum of causes times known patterns, which grow over the steps: the patterns come back, up to sign."""
    patterns = torch.linalg.qr(random(18, 4, seed=3))[0].T  # [4, 18]
    growth = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    h = growth[:, None, None] * (causes @ patterns + 0.05 * random(2000, 18, seed=4))  # [4, 2000, 18]
    h = h.reshape(4, 2000, 2, 3, 3)
    shared = flattest_directions(h, 4, "shared")
    per_step = flattest_directions(h, 4, "per_step")
    assert shared.shape == (4, 1, 18) and per_step.shape == (4, 4, 18)
    for found in (shared[:, 0], *per_step.unbind(1)):
        unit = torch.nn.functional.normalize(found.double(), dim=1)
        cosines = (unit @ patterns.T).abs()
        assert cosines.max(dim=0).values.min() > 0.97
        assert sorted(cosines.argmax(dim=1).tolist()) == [0, 1, 2, 3]


def test_more_directions_than_samples_are_filled_up() -> None:
    start = flattest_directions(random(3, 5, 2, 2, 2), 7, "shared")
    assert start.shape == (7, 1, 8) and torch.isfinite(start).all() and (start.norm(dim=2) > 0).all()


def test_dimensions_in_which_nothing_varies_are_no_source() -> None:
    """Rows of rank 4: eight sources cannot be had, and none is made of rounding."""
    rows = random(300, 4) @ random(4, 10, seed=1)
    sources = flattest_sources(rows, 8, components=8)
    assert sources.shape == (300, 4)
    assert torch.allclose(sources.std(dim=0), torch.ones(4, dtype=torch.float64), atol=1e-6)
