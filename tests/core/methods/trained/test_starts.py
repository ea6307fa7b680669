"""Pure shifts: the shortest that change one number and keep the others, worked out by hand."""

import pytest
import torch
from torch import Tensor

from core.methods.trained.starts import pure_directions

E = torch.eye(6)


def slopes(*rows: Tensor) -> Tensor:
    """Of as many numbers along a shift that is shared by all steps: [R, 1, 6]."""
    return torch.stack(rows)[:, None]


def test_where_slopes_are_orthogonal_each_number_is_followed_along_its_own() -> None:
    """a / (a^2 + mu), with mu a thousandth of the mean squared length of the slopes: here of 4 and 16."""
    found = pure_directions(slopes(2 * E[0], 4 * E[3]), 2, 2)
    assert found.shape == (2, 1, 6) and found.dtype == torch.float32
    assert torch.allclose(found[0, 0], 2 / 4.01 * E[0])
    assert torch.allclose(found[1, 0], 4 / 16.01 * E[3])


def test_a_shift_changes_its_number_by_one_and_keeps_all_others_also_those_without_a_direction() -> None:
    """And is the shortest that does: it lies in the span of the slopes."""
    rows = E[:4].double() + 0.3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = pure_directions(slopes(*rows), 2, 2)
    gram = rows @ rows.T
    by_hand = rows.T @ torch.linalg.inv(gram + 1e-3 * gram.diagonal().mean() * torch.eye(4))
    assert torch.allclose(found[:, 0].double(), by_hand.T[:2], atol=1e-6)
    assert torch.allclose(rows @ found[:, 0].double().T, torch.eye(4, 2, dtype=torch.float64), atol=0.02)
    alone = pure_directions(slopes(*rows[:2]), 2, 2)
    assert not torch.allclose(alone, found, atol=0.05), "the other two would be changed"


def test_a_number_that_hardly_changes_is_not_followed_to_the_end() -> None:
    """1e-6 / mu instead of 1e6."""
    found = pure_directions(slopes(E[0], 1e-6 * E[1]), 2, 2)
    assert float(found[1].norm()) == pytest.approx(1e-6 / 0.5e-3, rel=1e-3)


def test_where_there_are_fewer_numbers_than_directions_random_ones_are_added() -> None:
    found = pure_directions(slopes(E[0], E[1]), 2, 5)
    assert found.shape == (5, 1, 6) and (found.norm(dim=2) > 0.1).all()
    assert torch.equal(found[:2], pure_directions(slopes(E[0], E[1]), 2, 2))
    assert torch.linalg.matrix_rank(found[:, 0]) == 5


def test_each_step_has_its_own_shift_and_one_outside_the_window_the_mean_of_the_others() -> None:
    """The steps act together: a number is changed by one over all of them."""
    each = torch.zeros(1, 3, 6)
    each[0, 1], each[0, 2] = 3 * E[2], 4 * E[4]  # none at the first step
    found = pure_directions(each, 1, 1)
    expected = torch.stack([3 * E[2], 4 * E[4]]) / (25 + 25e-3)
    assert torch.allclose(found[0, 1:], expected, atol=1e-6)
    assert torch.allclose(found[0, 0], expected.sum(dim=0) / 3, atol=1e-6)


def test_a_number_that_no_shift_changes_has_a_random_one() -> None:
    found = pure_directions(slopes(E[0], 0 * E[1], E[2]), 3, 3)
    assert (found.norm(dim=2) > 0.1).all() and torch.isfinite(found).all()
    assert torch.allclose(found[[0, 2]], pure_directions(slopes(E[0], E[2]), 2, 2), atol=1e-3)
