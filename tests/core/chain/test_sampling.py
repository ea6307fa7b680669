"""The chain against diffusers, closed forms, and itself."""

import pytest
import torch
from diffusers import DDIMScheduler

from core import invert, noise, sample
from core.chain.sampling import trajectory
from core.chain.schedule import Schedule
from core.chain.step import one_step
from core.errors import UserError
from core.model.denoiser import Denoiser
from core.randomness import step_noise


@pytest.fixture
def schedule(tiny_denoiser: Denoiser) -> Schedule:
    return Schedule.ddim(tiny_denoiser, 5)


def start(denoiser: Denoiser, count: int = 2) -> torch.Tensor:
    return noise(range(count), denoiser.sample_shape, torch.float64)


def random_shift(denoiser: Denoiser, count: int = 2, size: float = 1.0) -> torch.Tensor:
    return size * noise(range(100, 100 + count), denoiser.h_shape, torch.float64)


def test_plain_chain_is_diffusers_ddim(tiny_denoiser: Denoiser, schedule: Schedule) -> None:
    x = start(tiny_denoiser)
    scheduler = DDIMScheduler.from_config(tiny_denoiser.scheduler.config)
    scheduler.set_timesteps(5)
    expected = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            expected = scheduler.step(tiny_denoiser.network(expected, t).sample, t, expected).prev_sample
    assert torch.allclose(sample(tiny_denoiser, schedule, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("injection", ["symmetric", "asymmetric"])
def test_zero_shift_is_exactly_the_plain_chain(tiny_denoiser: Denoiser, schedule: Schedule, injection: str) -> None:
    x = start(tiny_denoiser)
    zero = torch.zeros(2, *tiny_denoiser.h_shape, dtype=torch.float64)
    shifted = sample(tiny_denoiser, schedule, x, lambda i: zero, injection)
    assert torch.equal(shifted, sample(tiny_denoiser, schedule, x))


def test_one_asymmetric_step_is_its_formula(tiny_denoiser: Denoiser, schedule: Schedule) -> None:
    """x_prev = sqrt(a_prev) P_t(eps~) + D_t(eps), with eps~ the shifted and eps the plain prediction."""
    x, delta, i = start(tiny_denoiser), random_shift(tiny_denoiser), 2
    t, a, a_prev = schedule.timesteps[i], schedule.signal[i] ** 2, schedule.signal[i + 1] ** 2
    plain, shifted = tiny_denoiser(x, t), tiny_denoiser(x, t, delta)
    assert not torch.equal(plain, shifted)
    predicted = (x - (1 - a) ** 0.5 * shifted) / a**0.5
    expected = a_prev**0.5 * predicted + (1 - a_prev) ** 0.5 * plain
    assert torch.allclose(one_step(tiny_denoiser, schedule, i, x, delta, "asymmetric"), expected, rtol=1e-12)
    symmetric = a_prev**0.5 * predicted + (1 - a_prev) ** 0.5 * shifted
    assert torch.allclose(one_step(tiny_denoiser, schedule, i, x, delta, "symmetric"), symmetric, rtol=1e-12)


def test_the_window_says_which_steps_are_shifted(tiny_denoiser: Denoiser, schedule: Schedule) -> None:
    asked: list[int] = []

    def shift(i: int) -> None:
        asked.append(i)

    inside = [i for i, t in enumerate(schedule.timesteps) if 300 <= t <= 700]
    sample(tiny_denoiser, schedule, start(tiny_denoiser), shift, window=(700, 300))
    assert asked == inside and 0 < len(inside) < len(schedule)
    with pytest.raises(
        UserError, match=r"window \[5, 1\] holds none of the chain's timesteps \[800, 600, 400, 200, 0\]"
    ):
        sample(tiny_denoiser, schedule, start(tiny_denoiser), shift, window=(5, 1))


def test_ddpm_variance_at_eta_one(tiny_denoiser: Denoiser) -> None:
    """sigma_t^2 = (1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev): DDPM's posterior variance."""
    schedule = Schedule.ddim(tiny_denoiser, 5, eta=1.0)
    a, a_prev = schedule.signal[1] ** 2, schedule.signal[2] ** 2
    assert schedule.sigma(1) ** 2 == pytest.approx((1 - a_prev) / (1 - a) * (1 - a / a_prev))
    x = start(tiny_denoiser)
    z = step_noise(range(2), tiny_denoiser.sample_shape, 5, torch.float64)
    drawn = sample(tiny_denoiser, schedule, x, step_noise=z)
    assert torch.equal(drawn, sample(tiny_denoiser, schedule, x, step_noise=z))
    alone = sample(tiny_denoiser, schedule, x[1:], step_noise=z[:, 1:])
    assert torch.allclose(alone, drawn[1:], rtol=1e-10)
    with pytest.raises(UserError, match="a chain with eta 1.0 needs step_noise"):
        sample(tiny_denoiser, schedule, x)


def test_trajectory_gives_the_same_image_and_every_h(tiny_denoiser: Denoiser, schedule: Schedule) -> None:
    x = start(tiny_denoiser)
    x_0, h = trajectory(tiny_denoiser, schedule, x)
    assert torch.equal(x_0, sample(tiny_denoiser, schedule, x))
    assert h.shape == (5, 2, *tiny_denoiser.h_shape)
    assert torch.equal(h[0], tiny_denoiser.encode(x, schedule.timesteps[0]).h)


def test_inversion_comes_back(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, 40)
    x = start(tiny_denoiser)
    x_0 = sample(tiny_denoiser, schedule, x)
    error = (invert(tiny_denoiser, schedule, x_0) - x).norm() / x.norm()
    plain = (invert(tiny_denoiser, schedule, x_0, refinements=0) - x).norm() / x.norm()
    assert error < 1e-3 and error < plain / 10


@pytest.mark.parametrize("refinements", [0, 1, 2])
def test_inversion_solves_each_step_once_and_refines_it_as_often_as_told(
    tiny_denoiser: Denoiser, refinements: int
) -> None:
    schedule, x_0 = Schedule.ddim(tiny_denoiser, 2), start(tiny_denoiser)
    expected = x_0
    for i in (1, 0):
        x_prev = expected
        for _ in range(1 + refinements):
            eps = tiny_denoiser(expected, schedule.timesteps[i])
            expected = schedule.inverse_step(i, x_prev, expected, eps)
    assert torch.equal(invert(tiny_denoiser, schedule, x_0, refinements), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"injection": "both"}, "injection: got 'both'; allowed: symmetric, asymmetric"),
        ({"x": torch.zeros(1, 3, 4, 4)}, r"x has shape \[1, 3, 4, 4\]; model 'tiny' draws \[N, 3, 8, 8\]"),
        ({"z": torch.zeros(1)}, r"step_noise has shape \[1\]; this chain needs \[5, 2, 3, 8, 8\]"),
    ],
)
def test_what_does_not_fit_is_told(tiny_denoiser: Denoiser, schedule: Schedule, change: dict, message: str) -> None:
    x = change.get("x", start(tiny_denoiser))
    with pytest.raises(UserError, match=message):
        sample(tiny_denoiser, schedule, x, None, change.get("injection", "symmetric"), step_noise=change.get("z"))


@pytest.mark.parametrize(("steps", "eta"), [(0, 0.0), (1001, 0.0), (5, 1.5)])
def test_impossible_schedules_are_refused(tiny_denoiser: Denoiser, steps: int, eta: float) -> None:
    with pytest.raises(UserError, match="steps: got|eta: got"):
        Schedule.ddim(tiny_denoiser, steps, eta)


def test_what_is_on_another_device_is_told(tiny_denoiser: Denoiser) -> None:
    x, stochastic = start(tiny_denoiser), Schedule.ddim(tiny_denoiser, 5, eta=1.0)
    z = torch.empty(5, *x.shape, device="meta")
    for told, x_T in (("x", x.to("meta")), ("step_noise", x)):
        with pytest.raises(UserError) as caught:
            sample(tiny_denoiser, stochastic, x_T, step_noise=z)
        assert str(caught.value) == f"{told} is on meta; model 'tiny' is on cpu"
