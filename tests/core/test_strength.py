"""Calibration: afterwards every direction moves images equally far, whatever its scale meant before."""

import pytest
import torch

from core import Denoiser, DirectionSet, Schedule
from core.errors import UserError
from core.methods import random
from core.metrics import calibrate, moved


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
    calibrated = calibrate(tiny_denoiser, schedule, uneven, 0.1)
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
