"""Each loss term against numbers worked out by hand."""

import math

import pytest
import torch

from core.methods.learned import losses


def test_direction_loss_of_a_guess_is_the_logarithm_of_the_number_of_directions() -> None:
    assert float(losses.direction_loss(torch.zeros(5, 8), torch.arange(5))) == pytest.approx(math.log(8))


def test_strength_loss_is_in_the_ancestors_unit() -> None:
    predicted, magnitude = torch.tensor([0.5, -1.0]), torch.tensor([0.0, -0.5])
    assert float(losses.strength_loss(predicted, magnitude)) == pytest.approx(6 * 0.5)


def test_adversarial_losses_of_an_undecided_critic() -> None:
    undecided = torch.zeros(3)
    assert float(losses.fidelity_loss(undecided)) == pytest.approx(math.log(2))
    assert float(losses.discriminator_loss(undecided, undecided)) == pytest.approx(2 * math.log(2))


def test_adversarial_losses_of_a_critic_that_is_right_are_small() -> None:
    """softplus(-x) = log(1 + exp(-x)): of plain samples at 2 and -1, mean over samples, and of shifted ones at -3."""
    plain, shifted = torch.tensor([2.0, -1.0]), torch.tensor([-3.0])
    right = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert float(losses.discriminator_loss(plain, shifted)) == pytest.approx(right + math.log(1 + math.exp(-3)))
    assert float(losses.fidelity_loss(plain)) == pytest.approx(right)


def test_consistency_compares_where_and_not_which_pixel() -> None:
    """On 8 x 8 means: of 16 x 16 pixels, what moves within a square of two is alike, what moves beyond is not."""
    x_0, shifted = torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    shifted[0, 0, 0, 0] = shifted[1, 0, 1, 1] = 1.0
    assert float(losses.consistency_loss(x_0, shifted, torch.ones(2))) == pytest.approx(0, abs=1e-6)
    assert float(losses.consistency_loss(x_0, shifted.roll(1, dims=3), torch.ones(2))) == pytest.approx(1, abs=1e-6)


def test_adversarial_losses_pull_in_opposite_directions() -> None:
    logit = torch.tensor([0.3], requires_grad=True)
    (up,) = torch.autograd.grad(losses.fidelity_loss(logit), logit)
    (down,) = torch.autograd.grad(losses.discriminator_loss(torch.zeros(1), logit), logit)
    assert up < 0 < down


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
