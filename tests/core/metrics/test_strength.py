"""Calibration: afterwards every direction moves images equally far, whatever its scale meant before."""

import math
from dataclasses import replace
from unittest.mock import create_autospec

import pytest
import torch

from core import Denoiser, DirectionSet, Schedule, noise, sample
from core.errors import UserError
from core.methods import random
from core.metrics import calibrate, moved, strength
from core.metrics.features import features_of
from core.metrics.networks import Extractor
from core.metrics.strength import REFERENCE, SEEDS
from core.metrics.traversals import draw_plain
from core.samples.draw import Sampling


@pytest.fixture(scope="module")
def schedule(tiny_denoiser: Denoiser) -> Schedule:
    return Schedule.ddim(tiny_denoiser, 2)


@pytest.fixture(scope="module")
def uneven(tiny_denoiser: Denoiser, schedule: Schedule) -> DirectionSet:
    """Four directions whose scale 1.0 means lengths a hundred times apart."""
    found = random.find(tiny_denoiser, schedule, random.Settings(4, 1.0))
    found.sigma.mul_(torch.tensor([0.1, 0.3, 1.0, 3.0])[:, None])
    return found


def test_after_calibration_all_directions_move_images_equally_far(
    tiny_denoiser: Denoiser, schedule: Schedule, uneven: DirectionSet
) -> None:
    before = moved(tiny_denoiser, schedule, uneven)
    assert before.max() > 10 * before.min()
    goal = float(before.mean()) / 2
    after = moved(tiny_denoiser, schedule, calibrate(tiny_denoiser, schedule, uneven, goal))
    assert torch.allclose(after, torch.full_like(after, goal), rtol=0.02)


def test_calibration_changes_lengths_only(tiny_denoiser: Denoiser, schedule: Schedule, uneven: DirectionSet) -> None:
    calibrated = calibrate(tiny_denoiser, schedule, replace(uneven, metrics={"globality": 0.5}), 0.1)
    assert torch.equal(calibrated.table, uneven.table)
    factor = calibrated.sigma / uneven.sigma
    assert torch.allclose(factor, factor[:, :1].expand_as(factor))  # steps keep their proportions
    assert dict(calibrated.metrics) == {}


def test_a_calibrated_set_says_how_far_it_moves_images(
    tiny_denoiser: Denoiser, schedule: Schedule, uneven: DirectionSet
) -> None:
    calibrated = calibrate(tiny_denoiser, schedule, uneven, 0.01)
    told = torch.tensor(calibrated.provenance["moved"], dtype=torch.float64)
    assert calibrated.provenance["strength"] == 0.01
    assert torch.allclose(told, moved(tiny_denoiser, schedule, calibrated))


def test_strength_1_is_the_distance_of_two_independent_samples(tiny_denoiser: Denoiser, schedule: Schedule) -> None:
    """The unit by hand: root mean square over all pairs of reference samples, and of two samples that nothing ties."""
    found = random.find(tiny_denoiser, schedule, random.Settings(3, 1.0))
    features = [features_of(tiny_denoiser, draw_plain(tiny_denoiser, schedule, seeds)) for seeds in (REFERENCE, SEEDS)]
    mean, deviation = features[0].mean(dim=0), features[0].std(dim=0)
    deviation = deviation.clamp(min=0.01 * float(deviation.mean()))
    reference, plain = ((part - mean) / deviation for part in features)
    pairs = (reference[:, None] - reference[None]).double().square().sum(dim=2)
    unit = pairs.mean().sqrt()
    squares = []
    for k in range(3):
        for scale in (-1.0, 1.0):
            x_T = noise(SEEDS, tiny_denoiser.sample_shape, torch.float64)
            shifted = sample(tiny_denoiser, schedule, x_T, found.shift(k, scale))
            moved_to = (features_of(tiny_denoiser, shifted) - mean) / deviation
            squares.append((moved_to - plain).double().square().sum(dim=1).mean())
    by_hand = torch.stack(squares).reshape(3, 2).mean(dim=1).sqrt() / unit
    assert torch.allclose(moved(tiny_denoiser, schedule, found), by_hand, rtol=1e-4)
    others = features_of(tiny_denoiser, draw_plain(tiny_denoiser, schedule, range(5000, 5256)))
    apart = ((others[:128] - others[128:]) / deviation).double().square().sum(dim=1).mean().sqrt()
    assert float(unit) == pytest.approx(float(apart), rel=0.15)


@pytest.mark.parametrize(
    ("power", "drawn"),
    [(1.0, 2), (0.5, 3), (2.0, 3)],
    ids=["a straight line needs no secant", "a response that flattens", "one that steepens"],
)
def test_calibration_follows_a_secant(
    tiny_denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch, power: float, drawn: int
) -> None:
    """A response that is a power of the scale is a straight line on logarithms: two points find its end."""
    seen: list[torch.Tensor] = []

    def response(self: object, directions: DirectionSet, *_: object) -> torch.Tensor:
        seen.append(directions.sigma[:, 0].double())
        return 0.3 * seen[-1] ** power

    monkeypatch.setattr("core.metrics.strength._DistanceUnit.moved", response)
    found = random.find(tiny_denoiser, schedule, random.Settings(2, 1.0))
    found.sigma.copy_(torch.tensor([1.0, 0.7])[:, None].expand_as(found.sigma))
    calibrated = calibrate(tiny_denoiser, schedule, found, 0.5)
    assert len(seen) == drawn
    expected = torch.full((2,), (0.5 / 0.3) ** (1 / power))
    assert torch.allclose(calibrated.sigma[:, 0], expected, rtol=0.02 / power)


@pytest.mark.parametrize(("close", "rounds"), [(0.02, 6), (1e-9, 6), (0.9, 1)])
def test_calibration_ends_when_it_is_close_and_after_six_rounds_at_the_most(
    tiny_denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch, close: float, rounds: int
) -> None:
    seen: list[torch.Tensor] = []

    def deaf(self: object, directions: DirectionSet, *_: object) -> torch.Tensor:
        seen.append(directions.sigma[:, 0])
        return torch.full((2,), 0.3, dtype=torch.float64)

    monkeypatch.setattr("core.metrics.strength._DistanceUnit.moved", deaf)
    found = random.find(tiny_denoiser, schedule, random.Settings(2, 1.0))
    calibrate(tiny_denoiser, schedule, found, 0.5, close=close)
    assert len(seen) == rounds


@pytest.mark.parametrize(("power", "slope"), [(0.1, 0.3), (6.0, 3.0)], ids=["nearly flat", "very steep"])
def test_a_secant_is_followed_no_farther_than_its_slope_can_be_believed(
    tiny_denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch, power: float, slope: float
) -> None:
    """On logarithms: first as if the slope were 1, then with what was measured, held within 0.3 and 3."""
    seen: list[float] = []

    def response(self: object, directions: DirectionSet, *_: object) -> torch.Tensor:
        seen.append(float(directions.sigma[0, 0].log()))
        return 0.5 * directions.sigma[:, 0].double() ** power

    monkeypatch.setattr("core.metrics.strength._DistanceUnit.moved", response)
    found = random.find(tiny_denoiser, schedule, random.Settings(1, 1.0))
    found.sigma.fill_(1.0)
    calibrate(tiny_denoiser, schedule, found, 0.6)
    first = math.log(0.6 / 0.5)
    assert seen[:2] == pytest.approx([0, first], abs=1e-6)
    assert seen[2] == pytest.approx(first + (first - power * first) / slope, abs=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e9])
def test_images_that_are_not_finite_have_moved_as_far_as_there_is(
    tiny_denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """So that a direction which breaks the model is made shorter, by 16 at the most, and no other is touched by it."""

    def response(self: object, directions: DirectionSet, *_: object) -> torch.Tensor:
        return torch.tensor([value, 0.5], dtype=torch.float64)

    monkeypatch.setattr("core.metrics.strength._DistanceUnit.moved", response)
    found = random.find(tiny_denoiser, schedule, random.Settings(2, 1.0))
    calibrated = calibrate(tiny_denoiser, schedule, found, 0.5)
    assert torch.allclose(calibrated.sigma, found.sigma * torch.tensor([[1 / 16], [1.0]]))
    assert calibrated.provenance["moved"] == pytest.approx([1e6, 0.5])


def test_a_set_is_calibrated_as_it_will_be_used(
    tiny_denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is injected, in which window, and in the features of the network that is asked."""
    pixels = Extractor("pixels", lambda images: images.flatten(1)[:, :6].float())
    drawing = create_autospec(strength.draw_traversals, side_effect=strength.draw_traversals)
    monkeypatch.setattr(strength, "draw_traversals", drawing)
    found, window = random.find(tiny_denoiser, schedule, random.Settings(2, 1.0)), (schedule.timesteps[0],) * 2
    measured = calibrate(tiny_denoiser, schedule, found, 0.5, Sampling("asymmetric", window, 5), 1e9, pixels)
    (call,) = drawing.call_args_list
    assert torch.equal(call.args[2].sigma, found.sigma)
    assert call.args[3:] == (SEEDS, (-1.0, 1.0), Sampling("asymmetric", window, 5))
    reference = draw_plain(tiny_denoiser, schedule, REFERENCE).flatten(1)[:, :6]
    x_T = noise(SEEDS, tiny_denoiser.sample_shape, torch.float64)
    plain = draw_plain(tiny_denoiser, schedule, SEEDS).flatten(1)[:, :6]
    squares = torch.zeros(2, dtype=torch.float64)
    for k in range(2):
        for scale in (-1.0, 1.0):
            shifted = sample(tiny_denoiser, schedule, x_T, found.shift(k, scale), "asymmetric", None, window)
            change = (shifted.flatten(1)[:, :6] - plain) / reference.std(dim=0)
            squares[k] += change.square().sum(dim=1).mean() / 2
    unit = 2 * ((reference - reference.mean(0)) / reference.std(0)).square().sum(1).mean()
    assert measured.provenance["moved"] == pytest.approx((squares / unit).sqrt().tolist(), rel=1e-4)


def test_no_shift_moves_nothing(tiny_denoiser: Denoiser, schedule: Schedule) -> None:
    still = random.find(tiny_denoiser, schedule, random.Settings(2, 1e-9))
    assert moved(tiny_denoiser, schedule, still).max() < 1e-6


def test_a_direction_that_hardly_moves_anything_is_stretched_a_bounded_amount(
    tiny_denoiser: Denoiser, schedule: Schedule
) -> None:
    still = random.find(tiny_denoiser, schedule, random.Settings(2, 1e-9))
    stretched = calibrate(tiny_denoiser, schedule, still, 0.5)
    assert torch.allclose(stretched.sigma, 16 * still.sigma)


def test_a_strength_must_be_positive(tiny_denoiser: Denoiser, schedule: Schedule, uneven: DirectionSet) -> None:
    with pytest.raises(UserError, match="strength: got 0; it must be above 0"):
        calibrate(tiny_denoiser, schedule, uneven, 0)
