"""Each loss term of the guided method against numbers worked out by hand, and its gradient against differences."""

import pytest
import torch
from torch import Tensor

from core.methods.guided import losses

# Two pairs, three attributes; the sign of a change is that of its magnitude's sample.
CHANGE = torch.tensor([[1.0, 0.2, 0.0], [-2.0, 0.4, 0.2], [0.5, -1.0, 0.0], [0.5, -2.0, 1.0]], dtype=torch.float64)
MAGNITUDE = torch.tensor([0.5, -1.0, 0.25, 0.75], dtype=torch.float64)
OWN = torch.tensor([0, 1])


def test_effects_are_signed_and_averaged_over_a_pair() -> None:
    found = losses.effects(CHANGE, MAGNITUDE)
    assert torch.allclose(found, torch.tensor([[1.5, -0.1, -0.1], [0.5, -1.5, 0.5]], dtype=torch.float64))


def test_share_is_of_all_attributes_and_counts_the_sign() -> None:
    """1.5 of 1.7 raised; 1.5 of 2.5 lowered, which is worse than no effect at all."""
    effect = losses.effects(CHANGE, MAGNITUDE)
    assert float(losses.share_loss(effect, OWN)) == pytest.approx(((1 - 1.5 / 1.7) + (1 + 1.5 / 2.5)) / 2)
    assert float(losses.share_loss(effect[:1], OWN[:1])) == pytest.approx(1 - 1.5 / 1.7)
    assert float(losses.share_loss(torch.zeros(1, 3), OWN[:1])) == 1
    assert float(losses.share_loss(torch.tensor([[0.3]]), torch.tensor([0]))) == 0, "nothing else to keep"


def test_an_effect_is_wanted_in_proportion_to_the_magnitude_and_no_more() -> None:
    """The mean size of a pair counts: 0.75 and 0.5, so 1.5 and 1.0 are wanted at a target of 2."""
    magnitude = torch.tensor([0.5, -1.0, 0.25, 0.75])

    def loss(first: float, second: float) -> float:
        return float(losses.effect_loss(torch.tensor([[first, 9.0], [9.0, second]]), OWN, magnitude, 2.0))

    assert loss(1.5, 1.0) == loss(7.0, 1.0) == 0
    assert loss(0.75, 1.0) == pytest.approx(0.25) and loss(1.5, 0.25) == pytest.approx(0.375)
    assert loss(-1.5, 1.0) == pytest.approx(1.0), "a lowered attribute is twice as far away"


def whole(change: Tensor) -> Tensor:
    effect = losses.effects(change, MAGNITUDE)
    return losses.share_loss(effect, OWN) + 0.7 * losses.effect_loss(effect, OWN, MAGNITUDE, 3.0)


def test_gradients_are_those_of_differences() -> None:
    assert torch.autograd.gradcheck(whole, CHANGE.clone().requires_grad_())


def test_the_gradient_raises_the_own_attribute_and_keeps_the_others() -> None:
    change = CHANGE.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(whole(change), change)
    step = losses.effects(change - 0.01 * gradient, MAGNITUDE) - losses.effects(change, MAGNITUDE)
    assert step[0, 0] > 0 and step[1, 1] > 0
    assert step[0, 1] > 0 and step[0, 2] > 0, "they had been lowered"
