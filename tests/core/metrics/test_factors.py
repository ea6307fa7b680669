"""Factors of variation: axes that are known by construction, and what sets do to them, by hand."""

import math

import pytest
import torch
from torch import Tensor

from core.chain.schedule import Schedule
from core.metrics.evaluation import factors_of
from core.metrics.factors import COUNT, SEEDS, Factors, factor_figures
from core.model.denoiser import Denoiser
from core.randomness import CALIBRATION_SEEDS
from core.samples.draw import Sampling
from tests.core.metrics.test_traversals import STEPS, normal

# Deviations of three causes, each of which moves one feature and one pixel.
CAUSES = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)


def samples(count: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """Three uncorrelated causes [N, 3] of variance 1, and features [N, 3] and images [N, 1, 1, 3] made of them."""
    causes = normal(count, 3)
    causes = torch.linalg.qr(causes - causes.mean(dim=0))[0] * math.sqrt(count - 1)
    moved = causes * CAUSES
    return causes, moved + 5, moved.reshape(-1, 1, 1, 3) - 2


def changed(features: list[float], pixels: list[float]) -> tuple[Tensor, Tensor]:
    """The change of features and image by one direction, of three samples."""
    f, p = (torch.tensor(values, dtype=torch.float64).expand(3, 1, 3) for values in (features, pixels))
    return f, p.reshape(3, 1, 1, 1, 3)


def test_factors_are_the_causes_in_their_own_deviations() -> None:
    _, features, images = samples()
    factors = Factors.of(features, images)
    assert factors.of_features.shape == (3, 3), "no more than the samples vary in"
    for k, deviation in enumerate(CAUSES.tolist()):
        whole = [2 * deviation if i == k else 0.0 for i in range(3)]  # from -1 to 1 deviation
        effect = factors.effects(*changed(whole, whole))[0, 0].abs()
        assert effect.max() == pytest.approx(1.0, rel=1e-6) and effect.sum() == pytest.approx(1.0, abs=1e-6)


def test_effects_tell_the_coordinates_of_a_sample_apart_from_the_mean() -> None:
    causes, features, images = samples()
    factors = Factors.of(features, images)
    change = 2 * (features - features.mean(dim=0)), 2 * (images - images.mean(dim=0))
    effect = factors.effects(change[0][:, None], change[1][:, None])[:, 0]
    torch.testing.assert_close((effect.T @ causes / (len(causes) - 1)).abs().sum(dim=0), torch.ones(3).double())


def test_there_are_at_most_twelve_factors_of_seeds_that_nothing_else_looks_at() -> None:
    assert Factors.of(normal(40, 30), normal(40, 1, 4, 4, purpose="images")).of_features.shape == (30, COUNT)
    assert len(SEEDS) == 256 and all(seed in CALIBRATION_SEEDS[78:] for seed in SEEDS)


def by_sample(effect: list[list[float]]) -> Tensor:
    """The same effects [K, P] on each of five samples."""
    return torch.tensor(effect, dtype=torch.float64).expand(5, -1, -1)


@pytest.mark.parametrize(
    ("effect", "covered", "purity"),
    [
        ([[1.0, 0], [0, 1]], 2.0, 1.0),  # each moves its own
        ([[1.0, 0], [1, 0]], 1.0, 1.0),  # both move the same
        ([[1.0, 1], [1, -1]], 1.0, 0.5),  # each moves both
        ([[0.25, 0], [0, 2]], 1.5, 0.75),  # half of what is enough counts half
        ([[0.0, 0], [0, 0]], 0.0, 0.0),
        ([[-3.0, 4]], 9 / 25 + 16 / 25, 16 / 25),
    ],
)
def test_figures_by_hand(effect: list[list[float]], covered: float, purity: float) -> None:
    found = factor_figures(by_sample(effect))
    assert found["factor_coverage"].value == pytest.approx(covered)
    assert found["purity"].value == pytest.approx(purity)
    assert found["factor_score"].value == pytest.approx(covered * purity)


def test_what_one_sample_alone_does_hardly_counts() -> None:
    """Effects that differ in sign from sample to sample are no direction of the set."""
    signs = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)[:, None, None]
    assert factor_figures(signs * torch.eye(2).double())["factor_score"].value == 0.0


def test_directions_that_repeat_others_add_no_factor() -> None:
    once, twice = ([[1.0, 0, 0], [0, 1, 0]] * times for times in (1, 2))
    scores = [factor_figures(by_sample(effect))["factor_score"].value for effect in (once, twice)]
    assert scores == pytest.approx([2.0, 2.0])


def test_a_set_a_hundred_times_weaker_scores_a_hundredth_and_less() -> None:
    effect = by_sample([[0.5, 0.1], [0.1, 0.5]])
    strong, weak = (factor_figures(effect * size)["factor_score"].value for size in (1.0, 0.01))
    assert 0 < weak < strong / 100


def test_figures_have_an_interval_that_holds_their_value() -> None:
    noisy = normal(20, 4, 6, purpose="effects") * 0.3 + torch.eye(4, 6).double()
    for figure in factor_figures(noisy).values():
        low, high = figure.interval
        assert low < figure.value < high and figure.samples == 20
        assert abs(float(figure.replicates.mean()) - figure.value) < 3 * figure.error


@pytest.mark.slow
def test_factors_of_a_model_do_not_depend_on_the_batch(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, STEPS)
    small, large = (factors_of(tiny_denoiser, schedule, Sampling(batch=batch)) for batch in (50, 256))
    assert small.of_features.shape[1] == COUNT
    change = normal(3, 2, small.of_features.shape[0]), normal(3, 2, *tiny_denoiser.image_shape, purpose="pixels")
    torch.testing.assert_close(small.effects(*change).abs(), large.effects(*change).abs(), rtol=1e-3, atol=1e-3)
