"""Identifiability and the error of the strength, on directions whose answer is known by construction."""

import math
from dataclasses import replace
from unittest.mock import create_autospec

import pytest
import torch

from core.metrics import Traversals
from core.metrics import identifiability as judge
from core.metrics.identifiability import identifiability
from core.metrics.traversals import SCALES
from tests.core.metrics.test_traversals import normal


def painted(per_direction: bool = True, per_scale: bool = True, unit: float = 1.0) -> Traversals:
    """Noise images on which direction k paints quadrant k (or all paint the first), as brightly as the scale says."""
    plain = 0.3 * normal(12, 1, 8, 8)
    quadrants = torch.zeros(4, 1, 8, 8, dtype=torch.float64)
    for k in range(4):
        row, column = divmod(k if per_direction else 0, 2)
        quadrants[k, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.5
    brightness = torch.tensor(SCALES if per_scale else (1.0,) * 4, dtype=torch.float64)
    shift = brightness[:, None, None, None] * quadrants[:, None]  # [K, A, 1, 8, 8]
    return Traversals(plain, plain[:, None, None] + shift, tuple(unit * scale for scale in SCALES))


def test_directions_that_paint_their_own_quadrant_are_identified_with_their_strength() -> None:
    recognised, error = identifiability(painted())
    assert recognised > 0.99
    assert error < 0.12


def test_directions_that_all_do_the_same_are_at_chance() -> None:
    recognised, error = identifiability(painted(per_direction=False))
    # Whatever the network answers for four equal images, it is right for one of them.
    assert recognised == pytest.approx(0.0, abs=1e-12)
    assert error < 0.12


@pytest.mark.slow
def test_strength_that_does_not_show_is_guessed() -> None:
    recognised, error = identifiability(painted(per_scale=False))
    assert recognised > 0.99
    # Any constant guess in [-1/2, 1/2] is wrong by 3/4 on average over -1, -1/2, 1/2, 1.
    assert error == pytest.approx(0.75, abs=0.02)


@pytest.mark.slow
def test_strength_error_is_in_units_of_the_largest_scale() -> None:
    assert identifiability(painted(unit=7.0), iterations=20)[1] == pytest.approx(
        identifiability(painted(), iterations=20)[1], rel=1e-5
    )


@pytest.mark.slow
def test_identifiability_is_judged_on_samples_not_trained_on() -> None:
    """Directions recognisable only by a pattern that each sample has for itself can be learned by heart, not found."""
    plain = 0.3 * normal(6, 1, 8, 8)
    own = 0.5 * normal(6, 4, 1, 8, 8, purpose="own")
    scales = torch.tensor(SCALES, dtype=torch.float64)[:, None, None, None]
    memorised = Traversals(plain, plain[:, None, None] + scales * own[:, :, None], SCALES)
    recognised, _ = identifiability(memorised)
    assert abs(recognised) < 0.4


def test_the_judge_is_tested_on_the_last_third_alone() -> None:
    """What is not a number shows where it is looked at: untrained, the judge sees the test and nothing else."""
    images = painted()  # of twelve samples
    for m in range(12):
        plain = images.plain.clone()
        plain[m] = math.nan
        error = identifiability(replace(images, plain=plain), iterations=0)[1]
        assert math.isnan(error) == (m >= 8)


def test_the_judge_is_trained_on_the_first_two_thirds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every sample there, every direction at every scale, as even as chance is."""
    images, looked_at = painted(), []
    look_up = create_autospec(
        judge._look_up, side_effect=lambda t, pairs, d: looked_at.append(pairs) or real(t, pairs, d)
    )
    real = judge._look_up
    monkeypatch.setattr(judge, "_look_up", look_up)
    identifiability(images, iterations=20)
    trained, tested = torch.cat(looked_at[:20]), torch.cat(looked_at[20:])
    assert trained[:, 0].unique().tolist() == list(range(8)) and tested[:, 0].unique().tolist() == [8, 9, 10, 11]
    assert len(tested) == 4 * 4 * 4 == len(tested.unique(dim=0))
    assert len(trained) == 20 * 64 and len(trained.unique(dim=0)) == 8 * 4 * 4


@pytest.mark.slow
def test_one_direction_is_at_chance_and_still_has_a_strength() -> None:
    four = painted()
    recognised, error = identifiability(replace(four, shifted=four.shifted[:, :1]))
    assert recognised == 0.0
    assert error < 0.12


def test_identifiability_depends_on_its_seed_alone_and_leaves_the_global_generator() -> None:
    images = painted()
    before = torch.random.get_rng_state()
    first = identifiability(images, seed=1, iterations=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    with torch.no_grad():
        assert identifiability(images, seed=1, iterations=5) == first
    assert identifiability(images, seed=2, iterations=5) != first
    untrained = [identifiability(images, seed, iterations=0) for seed in (1, 2)]  # only the first weights differ
    assert untrained[0] != untrained[1]
