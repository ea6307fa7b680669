"""Effects on attributes, disentanglement and coverage, by a predictor that is linear."""

import math

import pytest
import torch
from torch import Tensor

from core.metrics import Traversals
from core.metrics.attributes import attribute_figures, controlled, coverage, disentanglement, effects_by_sample
from core.metrics.bootstrap import weights
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
    torch.testing.assert_close(effects_by_sample(images, LEFT_RIGHT, reference, batch=4), expected.expand(3, 2, 3))


def test_effects_are_of_each_sample() -> None:
    plain, change, reference = normal(3, 1, 8, 8), normal(3, 2, 1, 8, 8, purpose="change"), normal(9, 1, 8, 8)
    amount = torch.tensor([-1.0, 2.0], dtype=torch.float64)[:, None, None, None]
    images = Traversals(plain, plain[:, None, None] + amount * change[:, :, None], (-2.0, 2.0))
    found = effects_by_sample(images, LEFT_RIGHT, reference, batch=2)
    left = (change[2, 1, :, :, :4].mean() * (2 + 1) / 2) / reference[..., :4].mean(dim=(1, 2, 3)).std()
    assert float(found[2, 1, 0]) == pytest.approx(float(left)), "half of what lies between the two ends"


def test_nothing_shifted_moves_and_controls_nothing() -> None:
    plain = normal(3, 1, 8, 8)
    still = effects_by_sample(
        Traversals(plain, plain[:, None, None].expand(3, 2, 4, 1, 8, 8), SCALES), LEFT_RIGHT, plain
    )
    assert torch.equal(still, torch.zeros(3, 2, 3, dtype=torch.float64))
    figures = attribute_figures(still)
    assert {name: figure.interval for name, figure in figures.items()} == {
        "disentanglement": (0.0, 0.0),
        "coverage": (0.0, 0.0),
    }


@pytest.mark.parametrize("directions", [2, 8, 32])
def test_coverage_counts_directions_and_disentanglement_does_not(directions: int) -> None:
    """Each direction moves its own attribute by 2 and the next by 1, by a little more or less in each sample."""
    own = torch.eye(directions, dtype=torch.float64)
    by_sample = (2 * own + own.roll(1, dims=1)) * torch.linspace(0.9, 1.1, 5, dtype=torch.float64)[:, None, None]
    found = attribute_figures(by_sample)
    assert found["coverage"].interval == (directions, directions)
    assert found["disentanglement"].interval == pytest.approx((2 / 3, 2 / 3))
    weak = attribute_figures(by_sample / 100)
    assert weak["coverage"].value == 0
    assert weak["disentanglement"].value == pytest.approx(2 / 3), "a share does not depend on the strength"


def test_figures_are_resampled_over_samples() -> None:
    by_sample = normal(6, 3, 4) + 2 * torch.eye(3, 4, dtype=torch.float64)
    found = attribute_figures(by_sample)
    assert found["coverage"].value == coverage(by_sample.mean(dim=0))
    assert found["disentanglement"].value == pytest.approx(disentanglement(by_sample.mean(dim=0)))
    for b in (0, 9):
        drawn = by_sample.repeat_interleave(weights(6)[b].long(), dim=0).mean(dim=0)
        assert float(found["coverage"].replicates[b]) == coverage(drawn)
        one = attribute_figures(by_sample[:, :1])["disentanglement"]  # of one direction, which is all of them
        assert float(one.replicates[b]) == pytest.approx(disentanglement(drawn[:1]))
    assert found["coverage"].samples == found["disentanglement"].samples == 6
    assert found["coverage"].error > 0 < found["disentanglement"].error


def test_disentanglement_adds_the_deviation_between_directions() -> None:
    shares = torch.tensor([[1.0, 0.0], [1.0, 1.0], [3.0, 1.0]], dtype=torch.float64)  # 1, 1/2 and 3/4, on every sample
    found = attribute_figures(shares.expand(8, 3, 2))["disentanglement"]
    assert found.value == pytest.approx(0.75)
    assert found.error == pytest.approx(0.25 / math.sqrt(3), rel=0.15)


def test_controlled_names_the_attribute_of_each_direction() -> None:
    assert controlled(torch.tensor([[0.1, -2.0], [0.4, 0.1], [1.0, 0.9]])) == [1, None, 0]


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
