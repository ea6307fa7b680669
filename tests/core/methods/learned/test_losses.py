"""Each loss term against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from core.methods.learned import losses


def test_direction_loss_of_a_guess_is_the_logarithm_of_the_number_of_directions() -> None:
    assert float(losses.direction_loss(torch.zeros(5, 8), torch.arange(5))) == pytest.approx(math.log(8))


def test_strength_loss_is_in_the_ancestors_unit() -> None:
    predicted, magnitude = torch.tensor([0.5, -1.0]), torch.tensor([0.0, -0.5])
    assert float(losses.strength_loss(predicted, magnitude)) == pytest.approx(6 * 0.5)


def test_consistency_compares_where_and_not_which_pixel() -> None:
    """On 8 x 8 means: of 16 x 16 pixels, what moves within a square of two is alike, what moves beyond is not."""
    x_0, shifted = torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    shifted[0, 0, 0, 0] = shifted[1, 0, 1, 1] = 1.0
    assert float(losses.consistency_loss(x_0, shifted, torch.ones(2))) == pytest.approx(0, abs=1e-6)
    assert float(losses.consistency_loss(x_0, shifted.roll(1, dims=3), torch.ones(2))) == pytest.approx(1, abs=1e-6)


def test_consistency_compares_what_a_direction_does_to_two_samples() -> None:
    """Alike: 0. Unrelated: 1. The opposite: 2. A negative magnitude turns a change around."""
    left, right = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    left[:, :, :8], right[:, :, 8:] = 1.0, 1.0
    x_0 = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    def loss(first: torch.Tensor, second: torch.Tensor, magnitude: tuple[float, float] = (1.0, 0.3)) -> float:
        shifted = x_0 + torch.stack([first, second])
        return float(losses.consistency_loss(x_0, shifted, torch.tensor(magnitude)))

    assert loss(left, 3 * left) == pytest.approx(0, abs=1e-6)
    assert loss(left, right) == pytest.approx(1, abs=1e-6)
    assert loss(left, -left) == pytest.approx(2, abs=1e-6)
    assert loss(left, -left, (1.0, -0.3)) == pytest.approx(0, abs=1e-6)


def purity(change: list[list[float]], own: list[int], magnitude: list[float]) -> float:
    """The loss of these changes: a row a sample, two samples a pair."""
    return float(losses.purity_loss(torch.tensor(change), torch.tensor(own), torch.tensor(magnitude)))


def test_purity_is_the_share_of_the_own_source_in_what_changes() -> None:
    """1 - cosine: 0 where nothing else changes, 1 where only others do, 2 where the source is lowered."""
    for size in (0.01, 5.0):
        assert purity([[0, size], [0, size]], [1, 1], [1, 1]) == pytest.approx(0, abs=1e-6)
        assert purity([[size, 0], [size, 0]], [1, 1], [1, 1]) == pytest.approx(1)
        assert purity([[0, -size], [0, -size]], [1, 1], [1, 1]) == pytest.approx(2)
        assert purity([[3 * size, 4 * size]] * 2, [1, 1], [1, 1]) == pytest.approx(1 - 4 / 5)


def test_purity_turns_what_a_negative_magnitude_changes_around() -> None:
    """Of the mean of a pair: what two samples change oppositely does not count. The size of magnitudes does not."""
    assert purity([[2, 1], [2, -1]], [0, 0], [1, 0.3]) == pytest.approx(0, abs=1e-6)
    assert purity([[2, 1], [-2, 1]], [0, 0], [0.1, -0.7]) == pytest.approx(0, abs=1e-6)
    assert purity([[2, 1], [2, 1]], [0, 0], [-1, -1]) == pytest.approx(1 + 2 / 5**0.5)


def test_purity_is_the_mean_over_pairs_whose_direction_has_a_source() -> None:
    change = [[0, 1], [0, 1], [3, 4], [3, 4], [-1, 0], [-1, 0]]
    assert purity(change, [1, 1, 0, 0, 0, 0], [1] * 6) == pytest.approx((0 + 2 / 5 + 2) / 3)
    assert purity(change, [1, 1, 0, 0, -1, -1], [1] * 6) == pytest.approx((0 + 2 / 5) / 2)


def test_purity_of_no_pair_that_counts_asks_for_nothing() -> None:
    """0, with a gradient that is 0 and not missing."""
    change = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    loss = losses.purity_loss(change, torch.tensor([-1, -1]), torch.ones(2))
    (gradient,) = torch.autograd.grad(loss, change)
    assert loss.item() == 0 and torch.equal(gradient, torch.zeros(2, 2))


def test_purity_where_nothing_changes_is_one() -> None:
    assert purity([[0, 0], [0, 0]], [0, 0], [1, 1]) == 1


def test_the_gradient_of_purity_is_the_difference_of_its_values() -> None:
    """In float64, along every single number, of pairs with a source and one without."""
    random = torch.Generator().manual_seed(0)
    change = torch.randn(6, 3, generator=random, dtype=torch.float64)
    own, magnitude = torch.tensor([2, 2, -1, -1, 0, 0]), torch.tensor([0.5, -1.0, 1.0, 1.0, -0.2, -0.9]).double()

    def loss(change: Tensor) -> Tensor:
        return losses.purity_loss(change, own, magnitude)

    (gradient,) = torch.autograd.grad(loss(change.requires_grad_()), change)
    assert not gradient[2:4].any() and gradient.norm() > 0.1
    with torch.no_grad():
        for i in range(change.numel()):
            step = torch.zeros(change.numel(), dtype=torch.float64)
            step[i] = 1e-6
            slope = (loss(change + step.reshape(6, 3)) - loss(change - step.reshape(6, 3))) / 2e-6
            assert float(gradient.flatten()[i]) == pytest.approx(float(slope), abs=1e-8)


def locality(change: Tensor, magnitude: list[float]) -> float:
    """The loss of samples that change so from an image of noise."""
    x_0 = torch.randn(change.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return float(losses.locality_loss(x_0, x_0 + change, torch.tensor(magnitude)))


def test_locality_is_how_evenly_places_change() -> None:
    """All alike: 1, whatever the size and the channel. A single place of 256: 1/16. n places alike: sqrt(n) / 16."""
    for size in (1e-3, 5.0):
        assert locality(torch.full((2, 3, 32, 32), size), [1, 1]) == pytest.approx(1, abs=1e-4)
        one, four = torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 16, 16)
        one[:, 1, 6:8, 2:4] = size
        four[:, 0, :, 5][:, ::4] = size
        assert locality(one, [1, 1]) == pytest.approx(1 / 16, abs=1e-4)
        assert locality(four, [1, 1]) == pytest.approx(2 / 16, abs=1e-4)


def test_a_place_changes_by_the_norm_over_channels() -> None:
    """Colours 3 and 4 at one place and 5 at another are two places alike."""
    change = torch.zeros(2, 2, 16, 16)
    change[:, 0, 0, 0], change[:, 1, 0, 0], change[:, 0, 9, 9] = 3.0, 4.0, 5.0
    assert locality(change, [0.5, 0.5]) == pytest.approx(2**0.5 / 16, abs=1e-4)


def test_locality_is_of_the_mean_change_of_a_pair() -> None:
    """A negative magnitude turns a change around: what two samples change oppositely is no change at all."""
    here, there = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    here[0, 0, 0], there[0, 8, 8] = 1.0, 1.0
    assert locality(torch.stack([here + there, here - there]), [1, 0.3]) == pytest.approx(1 / 16, abs=1e-4)
    assert locality(torch.stack([here + there, there - here]), [1, -0.3]) == pytest.approx(1 / 16, abs=1e-4)
    assert locality(torch.stack([here, there]), [1, 1]) == pytest.approx(2**0.5 / 16, abs=1e-4)
    pairs = torch.stack([here, here, here + there, here + there])
    assert locality(pairs, [1] * 4) == pytest.approx((1 + 2**0.5) / 32, abs=1e-4)


def test_the_slope_of_locality_is_finite_where_nothing_changes() -> None:
    x_0 = torch.zeros(2, 1, 16, 16)
    shifted = x_0.clone().requires_grad_()
    (slope,) = torch.autograd.grad(losses.locality_loss(x_0, shifted, torch.ones(2)), shifted)
    assert torch.isfinite(slope).all()


def test_the_gradient_of_locality_is_the_difference_of_its_values() -> None:
    random = torch.Generator().manual_seed(1)
    x_0, shifted = (torch.randn(4, 2, 16, 16, generator=random, dtype=torch.float64) for _ in range(2))
    along = torch.randn(shifted.shape, generator=random, dtype=torch.float64)
    magnitude = torch.tensor([0.5, -1.0, 0.2, 0.9], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(losses.locality_loss(x_0, shifted.requires_grad_(), magnitude), shifted)
    up, down = (losses.locality_loss(x_0, shifted.detach() + step * along, magnitude) for step in (1e-5, -1e-5))
    assert float((gradient * along).sum()) == pytest.approx(float(up - down) / 2e-5, rel=1e-5)
