"""Effects on attributes, disentanglement and coverage, by a predictor that is linear."""

import pytest
import torch
from torch import Tensor

from core.metrics import Traversals
from core.metrics.attributes import coverage, disentanglement, effects
from core.metrics.traversals import SCALES
from core.predictors.attributes import Attributes
from tests.core.metrics.test_traversals import normal


def left_right_constant(images: Tensor) -> Tensor:
    """A linear predictor: mean of the left half, of the right half, and something that never varies."""
    left, right = images[..., :4].mean(dim=(1, 2, 3)), images[..., 4:].mean(dim=(1, 2, 3))
    return torch.stack([left, right, torch.full_like(left, 7.0)], dim=1)


LEFT_RIGHT = Attributes(("left", "right", "constant"), left_right_constant)


def test_effects_of_a_linear_predictor_are_in_deviations_of_the_reference() -> None:
    plain = normal(3, 1, 8, 8)
    change = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    change[0, :, :, :4] = 0.6  # at scale 1, direction 0 brightens the left by 0.6,
    change[1, :, :, 4:] = -0.2  # and direction 1 darkens the right by 0.2
    amount = torch.tensor(SCALES, dtype=torch.float64)[:, None, None, None]
    images = Traversals(plain, plain[:, None, None] + amount * change[:, None], SCALES)
    levels = torch.tensor([[1.0, 2], [2.0, 4], [3.0, 6]], dtype=torch.float64)  # deviations 1 (left) and 2 (right)
    reference = levels.repeat_interleave(4, dim=1)[:, None, None].expand(3, 1, 8, 8)

    expected = torch.tensor([[0.6, 0.0, 0.0], [0.0, -0.1, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(effects(images, LEFT_RIGHT, reference, batch=4), expected)


def test_disentanglement_is_the_share_of_the_largest_effect() -> None:
    assert disentanglement(torch.tensor([[-3.0, 1.0], [0.0, 2.0]])) == pytest.approx((0.75 + 1) / 2)
    assert disentanglement(torch.ones(3, 4)) == pytest.approx(0.25)
    assert disentanglement(torch.zeros(3, 4)) == 0.0


def test_coverage_counts_attributes_that_are_controlled() -> None:
    controlled = torch.tensor([[-2.0, 0.1, 0.0], [3.0, 0.0, 0.0], [0.0, 0.6, 0.0]])  # two for the first, one the second
    weak = torch.tensor([[0.0, 0.0, 0.49]])
    entangled = torch.tensor([[1.0, 1.0, 1.05]])  # a share of 0.34
    everything = torch.cat([controlled, weak, entangled])
    assert coverage(everything) == 2.0
    assert coverage(everything, min_effect=0.4) == 3.0
    assert coverage(everything, min_share=0.3) == 3.0
    assert coverage(everything, min_effect=1.0) == 1.0
    assert coverage(torch.tensor([[-2.0, 0.1]])) == 1.0
    assert coverage(torch.tensor([[0.9, 0.6, -0.6]])) == 1.0, "a share of 0.43"
    at_least = torch.tensor([[0.5, 0.0, 0.0], [0.0, 2.0, 3.0]], dtype=torch.float64)
    assert coverage(at_least, min_effect=0.5, min_share=0.6) == 2.0, "both limits are themselves enough"
