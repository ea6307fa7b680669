"""The training samples: which they are, what is kept of their chains, and how far their h spreads."""

import pytest
import torch

from core import Denoiser, Schedule, noise
from core.chain.sampling import trajectory
from core.errors import UserError
from core.randomness import TRAIN_SEEDS
from core.samples.training import RUN_SAMPLES, SPREAD_SAMPLES, draw_pool, measured_spread, training_seeds


@pytest.fixture(scope="module")
def schedule(tiny_denoiser: Denoiser) -> Schedule:
    return Schedule.ddim(tiny_denoiser, 3)


def test_a_run_looks_at_the_first_samples_of_its_own_share() -> None:
    assert (RUN_SAMPLES, SPREAD_SAMPLES) == (2**20, 256)
    assert training_seeds(3) == range(2**52, 2**52 + 3)
    assert training_seeds(3, seed=5) == range(2**52 + 5 * 2**20, 2**52 + 5 * 2**20 + 3)
    assert len(training_seeds(RUN_SAMPLES, 1)) == RUN_SAMPLES and training_seeds(1, 2**32 - 1)[0] in TRAIN_SEEDS
    with pytest.raises(UserError, match="^samples: got 1048577; a run looks at 1 to 1048576$"):
        training_seeds(RUN_SAMPLES + 1)


@pytest.mark.parametrize("batch", [64, 4])
def test_the_spread_is_the_distance_of_a_typical_sample_from_the_mean(
    tiny_denoiser: Denoiser, schedule: Schedule, batch: int
) -> None:
    seeds = range(10, 20)
    _, h = trajectory(tiny_denoiser, schedule, noise(seeds, tiny_denoiser.sample_shape, torch.float64))
    apart = (h - h.mean(dim=1, keepdim=True)).flatten(2).norm(dim=2)  # [T, N]
    expected = apart.square().mean(dim=1).sqrt()
    found = measured_spread(tiny_denoiser, schedule, seeds, batch)
    assert found.dtype == torch.float64 and torch.allclose(found, expected, rtol=1e-9)
    assert len({round(value, 6) for value in found.tolist()}) == 3


@pytest.mark.parametrize("first", [0, 2])
def test_the_pool_has_each_samples_state_image_and_h(tiny_denoiser: Denoiser, schedule: Schedule, first: int) -> None:
    pool, h = draw_pool(tiny_denoiser, schedule, training_seeds(5, 1), batch=2, first=first)
    assert pool.seeds == training_seeds(5, 1) and pool.first_step == first
    x_T = noise(pool.seeds, tiny_denoiser.sample_shape, torch.float64)
    x_0, expected = trajectory(tiny_denoiser, schedule, x_T)
    assert torch.allclose(pool.x_0, x_0, rtol=1e-9) and torch.allclose(h.double(), expected, rtol=1e-5, atol=1e-6)
    assert h.dtype == torch.float32
    assert torch.equal(pool.x_t, x_T) == (first == 0)
