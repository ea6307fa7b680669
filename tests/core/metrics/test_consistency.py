"""Globality, monotonicity and diversity, each on a case whose answer is known by hand or by construction."""

import math

import pytest
import torch
from torch import Tensor

from core.metrics.consistency import diversity, globality, monotonicity, spearman
from core.metrics.traversals import SCALES
from tests.core.metrics.test_traversals import normal, set_of_rows


def test_globality_of_equal_orthogonal_opposite_and_no_changes() -> None:
    plain = normal(4, 4)
    equal = plain[:, None] + torch.tensor([[1.0, 2, 0, 0], [0, 0, 0, 5.0]])
    orthogonal = plain[:, None] + torch.eye(4)[:, None]
    assert globality(plain, equal) == pytest.approx(1.0)
    assert globality(plain, orthogonal) == pytest.approx(0.0, abs=1e-12)
    assert globality(plain, torch.cat([equal, orthogonal], dim=1)) == pytest.approx(2 / 3)
    assert globality(plain, plain[:, None]) == 0.0
    opposite = plain[:2, None] + torch.tensor([1.0, -1.0])[:, None, None]
    assert globality(plain[:2], opposite) == pytest.approx(-1.0)


def responding(values: list[float], axes: Tensor) -> tuple[Tensor, Tensor]:
    """Features of samples that one direction moves along their axes [M, F] by `values` at SCALES."""
    plain = normal(len(axes), axes.shape[1])
    amount = torch.tensor(values, dtype=torch.float64)[:, None]
    return plain, (plain[:, None] + amount * axes[:, None])[:, None]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1, -0.5, 0.5, 1], 1.0),
        ([-9, -0.1, 0.1, 0.2], 1.0),  # ranks only
        ([1, 0.5, -0.5, -1], 1.0),  # which way along the axis is no matter
        ([-1, 0.5, -0.5, 1], 0.6),  # ranks 1, 4, 3 (the plain image), 2, 5: 1 - 6 * 8 / 120
        ([0, 0, 0, 0], 0.0),
    ],
)
def test_monotonicity_of_known_responses(values: list[float], expected: float) -> None:
    assert monotonicity(*responding(values, torch.ones(3, 2)), SCALES) == pytest.approx(expected)


def test_monotonicity_does_not_take_a_samples_own_change_for_a_response() -> None:
    assert monotonicity(*responding([-1, -0.5, 0.5, 1], torch.eye(4)), SCALES) == 0.0


def test_spearman_of_known_ranks() -> None:
    order = torch.tensor([10.0, 20, 30, 40])
    others = torch.tensor([[1.0, 3, 2, 4], [4.0, 3, 2, 1], [1.0, 1, 2, 3], [7.0, 7, 7, 7]])
    # The third by hand: ranks 1.5, 1.5, 3, 4.
    expected = torch.tensor([0.8, -1.0, 4.5 / math.sqrt(5 * 4.5), 0.0], dtype=torch.float64)
    torch.testing.assert_close(spearman(order, others), expected)


def test_diversity_of_orthogonal_equal_and_mixed_rows() -> None:
    assert diversity(set_of_rows(torch.eye(5)[:4, None])) == pytest.approx(1.0)
    assert diversity(set_of_rows(torch.ones(4, 1, 5))) == pytest.approx(0.25, rel=1e-4)
    assert diversity(set_of_rows(torch.ones(1, 1, 5))) == pytest.approx(1.0)
    # Two equal rows and one orthogonal: singular values sqrt(2), 1, 0, whose shares have a known entropy.
    first, second = math.sqrt(2) / (1 + math.sqrt(2)), 1 / (1 + math.sqrt(2))
    entropy = -(first * math.log(first) + second * math.log(second))
    mixed = diversity(set_of_rows(torch.eye(2)[[0, 0, 1], None]))
    assert mixed == pytest.approx(math.exp(entropy) / 3, rel=1e-4)


def test_diversity_weighs_steps_by_their_length_and_directions_alike() -> None:
    rows = torch.tensor([[[1.0, 0], [1.0, 0]], [[1.0, 0], [0.0, 1]]])  # equal at step 0, orthogonal at step 1
    assert diversity(set_of_rows(rows, torch.tensor([[0.0, 1], [0.0, 1]]))) == pytest.approx(1.0)
    assert diversity(set_of_rows(rows, torch.tensor([[1.0, 0], [1.0, 0]]))) == pytest.approx(0.5, rel=1e-4)
    assert diversity(set_of_rows(torch.eye(2)[:, None], torch.tensor([[1.0], [100.0]]))) == pytest.approx(1.0)
