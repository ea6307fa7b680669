"""Random directions: isotropic ones, and ones that are as samples of the model differ."""

import pytest
import torch
from torch import Tensor

from core import Denoiser, Schedule
from core.errors import UserError
from core.methods import random
from core.methods.random import Settings
from core.methods.trained.shift_control import ShiftControl
from core.samples.cache import SampleCache
from core.samples.draw import draw_h
from core.samples.training import SPREAD_SAMPLES, measured_spread, training_seeds


@pytest.fixture(scope="module")
def schedule(tiny_denoiser: Denoiser) -> Schedule:
    return Schedule.ddim(tiny_denoiser, 2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> SampleCache:
    return SampleCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def codes(tiny_denoiser: Denoiser, schedule: Schedule, cache: SampleCache) -> Tensor:
    """The h of the samples whose spread is measured: [T, N, D]."""
    drawn = draw_h(tiny_denoiser, schedule, training_seeds(SPREAD_SAMPLES), cache=cache)
    return torch.cat(list(drawn), dim=1).flatten(2).double()


def shifts(denoiser: Denoiser, schedule: Schedule, cache: SampleCache, settings: Settings) -> Tensor:
    """The shifts of scale 1: [K, T, D]."""
    found = random.find(denoiser, schedule, settings, cache=cache)
    return (found.table.flatten(2) * found.sigma[:, :, None]).double()


def test_without_a_share_the_directions_are_orthonormal_and_as_long_as_the_spread(
    tiny_denoiser: Denoiser, schedule: Schedule, cache: SampleCache
) -> None:
    found = random.find(tiny_denoiser, schedule, Settings(6, 0.25, seed=3), cache=cache)
    spread = measured_spread(tiny_denoiser, schedule, training_seeds(SPREAD_SAMPLES, 3), cache=cache)
    unit = ShiftControl(6, tiny_denoiser.h_shape, spread, schedule.timesteps, seed=3)().detach()
    assert torch.equal(found.table, unit.expand(-1, 2, -1, -1, -1)), "to the last bit"
    assert torch.equal(found.sigma, (0.25 * spread.float()).expand(6, 2))


def test_some_directions_are_shaped_and_the_others_are_not(
    tiny_denoiser: Denoiser, schedule: Schedule, cache: SampleCache
) -> None:
    plain, half = (shifts(tiny_denoiser, schedule, cache, Settings(n, shaped=s)) for n, s in ((3, 0.0), (6, 0.5)))
    assert torch.equal(half[:3], plain)
    other = shifts(tiny_denoiser, schedule, cache, Settings(6, seed=1, shaped=0.5))
    assert len(half) == 6 and not torch.allclose(half[3:], other[3:])
    assert torch.equal(half, shifts(tiny_denoiser, schedule, cache, Settings(6, shaped=0.5))), "from the seed alone"


def test_another_draw_is_other_directions_of_the_same_samples(
    tiny_denoiser: Denoiser, schedule: Schedule, cache: SampleCache
) -> None:
    one, other = (
        random.find(tiny_denoiser, schedule, Settings(4, seed=3, shaped=0.5, draw=draw), cache=cache) for draw in (0, 1)
    )
    assert torch.equal(one.sigma[:2], other.sigma[:2]), "the spread of the same samples"
    overlap = (one.table[:, 0].flatten(1) * other.table[:, 0].flatten(1)).sum(1).abs()
    assert overlap.max() < 0.9
    assert other.provenance["settings"]["draw"] == 1


def test_the_covariance_of_shaped_directions_is_that_of_h(
    tiny_denoiser: Denoiser, schedule: Schedule, cache: SampleCache, codes: Tensor
) -> None:
    """Of many directions, for all pairs of values at one step and at two: the same numbers combine every step."""
    drawn = shifts(tiny_denoiser, schedule, cache, Settings(4000, 0.5, shaped=1.0)).flatten(1)  # [K, T D]
    whole = codes.transpose(0, 1).flatten(1)  # [N, T D]
    wanted = 0.25 * (whole - whole.mean(dim=0)).T @ (whole - whole.mean(dim=0)) / len(whole)
    found = drawn.T @ drawn / len(drawn)
    error = (2 * wanted.diagonal().outer(wanted.diagonal()) / len(drawn)).sqrt()  # at most, of a product of normals
    assert ((found - wanted).abs() < 5 * error + 1e-12).all()
    isotropic = wanted.trace() / len(wanted) * torch.eye(len(wanted), dtype=torch.float64)
    assert (isotropic - wanted).norm() > 5 * (found - wanted).norm(), "h is not isotropic itself"
    assert float(drawn.mean(dim=0).norm()) < 0.1 * float(wanted.trace().sqrt()), "without the mean of h"


def test_a_share_out_of_range_is_refused() -> None:
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=f"^shaped: got {share:g}; allowed: 0 to 1$"):
            Settings(shaped=share)
