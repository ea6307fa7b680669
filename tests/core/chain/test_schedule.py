"""The steps of a chain: closed forms of every prediction, and diffusers' own schedulers."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    LCMScheduler,
    UNet2DModel,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_lcm
from torch import Tensor

from core import Denoiser, Schedule, noise
from core.chain.schedule import PREDICTIONS, check_window, level_at
from core.errors import UserError
from core.model.condition import Condition

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SHAPE = (1, 8, 8)
DDIM = partial(DDIMScheduler, clip_sample=False)
ZERO = partial(DDIM, rescale_betas_zero_snr=True, timestep_spacing="trailing")
LCM = partial(LCMScheduler, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


def model(scheduler: Any, **more: Any) -> Denoiser:
    """A denoiser whose scheduler is all that matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(4,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            layers_per_block=1,
            norm_num_groups=2,
            add_attention=False,
        )
    return Denoiser(unet.double(), scheduler, "tiny", **more)


def exact(scheduler: Any) -> Any:
    """A scheduler of diffusers in the precision that our chain is compared in."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    return scheduler


def drawn(seed: int, count: int = 2) -> Tensor:
    return noise(range(seed, seed + count), SHAPE, torch.float64)


def output_for(schedule: Schedule, i: int, x_0: Tensor, e: Tensor) -> Tensor:
    """What a network that knows x_0 and the noise gives."""
    a, s = schedule.signal[i], schedule.noise[i]
    return {"epsilon": e, "v_prediction": a * e - s * x_0, "sample": x_0, "flow": e - x_0}[schedule.prediction]


SCHEDULES = {
    "epsilon": DDIM(),
    "v_prediction": DDIM(prediction_type="v_prediction"),
    "sample": DDIM(prediction_type="sample"),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "v_prediction from zero signal": ZERO(prediction_type="v_prediction"),
    "sample from zero signal": ZERO(prediction_type="sample"),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return Schedule.ddim(model(SCHEDULES[request.param]), 5)


def test_every_prediction_is_among_them() -> None:
    assert {name.split()[0] for name in SCHEDULES} == set(PREDICTIONS)


def test_levels_are_those_of_diffusion_and_of_flows(schedule: Schedule) -> None:
    power = 1 if schedule.prediction == "flow" else 2
    for a, s in zip(schedule.signal, schedule.noise, strict=True):
        assert a**power + s**power == pytest.approx(1, abs=1e-7)
    assert list(schedule.signal) == sorted(schedule.signal) and schedule.signal[-1] == 1
    assert list(schedule.timesteps) == sorted(schedule.timesteps, reverse=True) and len(schedule) == 5


def test_image_and_noise_come_back_from_the_true_output(schedule: Schedule) -> None:
    x_0, e = drawn(0), drawn(10)
    for i in range(len(schedule)):
        x_t = schedule.signal[i] * x_0 + schedule.noise[i] * e
        output = output_for(schedule, i, x_0, e)
        assert torch.allclose(schedule.predicted_x0(i, x_t, output), x_0, rtol=1e-7, atol=1e-6)
        assert torch.allclose(schedule.predicted_noise(i, x_t, output), e, rtol=1e-7, atol=1e-6)
        expected = schedule.signal[i + 1] * x_0 + schedule.noise[i + 1] * e
        assert torch.allclose(schedule.step(i, x_t, output, output), expected, rtol=1e-7, atol=1e-6)


def test_a_step_is_turned_back_by_its_inverse(schedule: Schedule) -> None:
    """Exactly where p x_t + q output can be solved for x_t, and in any case where the guess is right."""
    x_0, e, other = drawn(0), drawn(10), drawn(20)
    for i in range(len(schedule)):
        x_t = schedule.signal[i] * x_0 + schedule.noise[i] * e
        for output in (output_for(schedule, i, x_0, e), other):
            x_prev = schedule.step(i, x_t, output, output)
            assert torch.allclose(schedule.inverse_step(i, x_prev, x_t, output), x_t, rtol=1e-7, atol=1e-6)
        if schedule.prediction != "sample" or schedule.noise[i + 1] >= 0.1 * schedule.noise[i]:
            assert torch.allclose(schedule.inverse_step(i, x_prev, drawn(30), other), x_t, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.5, 0.999])
@pytest.mark.parametrize(
    "scheduler",
    [
        DDIM(),
        DDIM(set_alpha_to_one=False, steps_offset=1, beta_schedule="scaled_linear"),
        DDIM(prediction_type="v_prediction", timestep_spacing="trailing"),
        DDIM(prediction_type="sample", timestep_spacing="trailing"),
        ZERO(prediction_type="v_prediction"),
        ZERO(prediction_type="sample"),
    ],
    ids=["epsilon", "as Stable Diffusion", "v_prediction", "sample", "v from zero signal", "sample from zero signal"],
)
def test_a_step_is_that_of_diffusers_ddim(scheduler: Any, eta: float) -> None:
    schedule, theirs = Schedule.ddim(model(scheduler), 5, eta), exact(DDIMScheduler.from_config(scheduler.config))
    theirs.set_timesteps(5)
    assert schedule.timesteps == tuple(theirs.timesteps.tolist())
    x, output = drawn(0), drawn(10)
    for i, t in enumerate(theirs.timesteps):
        z = drawn(100 + 10 * i)
        expected = theirs.step(output, t, x, eta=eta, variance_noise=z if eta else None).prev_sample
        ours = schedule.step(i, x, output, output, z if eta else None)
        assert torch.allclose(ours, expected, rtol=1e-9, atol=1e-9)


def test_at_eta_one_a_step_from_zero_signal_has_fresh_noise_alone() -> None:
    """Where diffusers takes the root of a number that rounding has made negative."""
    schedule = Schedule.ddim(model(ZERO(prediction_type="v_prediction")), 5, 1.0)
    x, output, z = drawn(0), drawn(10), drawn(20)
    assert schedule.signal[0] == 0 and schedule.sigma(0) == pytest.approx(schedule.noise[1])
    expected = schedule.signal[1] * -output + schedule.noise[1] * z
    assert torch.allclose(schedule.step(0, x, output, output, z), expected, atol=1e-7)


def test_unevenly_spaced_timesteps_meet() -> None:
    """Where one step ends the next begins; diffusers' DDIM takes equal distances whatever the spacing."""
    scheduler = DDIM(timestep_spacing="linspace")
    schedule = Schedule.ddim(model(scheduler), 4)
    alphas = scheduler.alphas_cumprod.double().sqrt().tolist()
    assert schedule.timesteps == (999, 666, 333, 0)
    assert schedule.signal == (*(alphas[t] for t in schedule.timesteps), 1.0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_step_is_that_of_diffusers_flows(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    check_flow(Schedule.ddim(model(scheduler), 5), FlowMatchEulerDiscreteScheduler.from_config(scheduler.config), {})


def check_flow(schedule: Schedule, theirs: Any, told: dict[str, Any]) -> None:
    theirs.set_timesteps(**({"num_inference_steps": 5} | told))
    assert schedule.timesteps == tuple(theirs.timesteps.tolist()) and not schedule.stochastic
    x, output = drawn(0), drawn(10)
    for i, t in enumerate(theirs.timesteps):
        expected = theirs.step(output, t, x).prev_sample
        assert torch.allclose(schedule.step(i, x, output, output), expected, atol=1e-6)


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_the_timesteps_of_flux_depend_on_the_size_of_the_image(tokens: int) -> None:
    """mu is 0.5 at 256 tokens and 1.15 at 4,096; sigma becomes e^mu / (e^mu + 1 / sigma - 1)."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 1}
    more = {"in_channels": 4, "joint_attention_dim": 4, "pooled_projection_dim": 4, "axes_dims_rope": (2, 2, 4)}
    network, side = FluxTransformer2DModel(**sizes, **more), 2 * math.isqrt(tokens)
    given = {"encoder_hidden_states": torch.zeros(1, 2, 4), "pooled_projections": torch.zeros(1, 4)}
    denoiser = Denoiser(network, scheduler, "flux", condition=Condition(given), sample_shape=(1, side, side))
    schedule = Schedule.ddim(denoiser, 5)
    mu = calculate_shift(tokens)
    check_flow(
        schedule,
        FlowMatchEulerDiscreteScheduler.from_config(scheduler.config),
        {"num_inference_steps": None, "sigmas": [1.0, 0.8, 0.6, 0.4, 0.2], "mu": mu},
    )
    assert mu == pytest.approx(0.5 + 0.65 * (tokens - 256) / 3840)
    for i, sigma in enumerate((1.0, 0.8, 0.6, 0.4, 0.2, 0.0)):
        expected = math.exp(mu) / (math.exp(mu) + 1 / sigma - 1) if sigma else 0.0
        assert schedule.noise[i] == pytest.approx(expected, abs=1e-6)


def test_a_step_of_a_consistency_model_is_diffusers_with_our_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, theirs = Schedule.ddim(model(LCM()), 4), exact(LCM())
    theirs.set_timesteps(4)
    assert schedule.timesteps == tuple(theirs.timesteps.tolist()) and schedule.stochastic
    x, output = drawn(0), drawn(10)
    for i, t in enumerate(theirs.timesteps):
        z = drawn(100 + 10 * i)
        monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, z=z, **__: z)
        expected = theirs.step(output, t, x).prev_sample
        assert torch.allclose(schedule.step(i, x, output, output, z), expected, rtol=1e-6, atol=1e-6)
    alone = Schedule.ddim(model(LCM()), 1)
    assert not alone.stochastic and alone.sigma(0) == 0


def test_euler_ancestral_at_the_same_timesteps_is_ddim_with_eta_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its coordinates x / a, of turbo models: sigma_up a_prev is the standard deviation that eta 1 adds."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    schedule = Schedule.ddim(model(DDIM(timestep_spacing="trailing", **settings)), 4, eta=1.0)
    theirs = EulerAncestralDiscreteScheduler(timestep_spacing="trailing", **settings)
    theirs.set_timesteps(4)
    assert schedule.timesteps == tuple(theirs.timesteps.tolist())
    x, output = drawn(0), drawn(10)
    for i, t in enumerate(theirs.timesteps):
        z = drawn(100 + 10 * i)
        monkeypatch.setattr(scheduling_euler_ancestral_discrete, "randn_tensor", lambda *_, z=z, **__: z)
        theirs.scale_model_input(x, t)
        expected = schedule.signal[i + 1] * theirs.step(output, t, x / schedule.signal[i]).prev_sample
        assert torch.allclose(schedule.step(i, x, output, output, z), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_a_chain_has_as_many_steps_as_were_asked_for(spacing: str) -> None:
    """diffusers' own trailing timesteps are one more, and the last is -1, at 61 steps and many other numbers."""
    denoiser = model(DDIM(timestep_spacing=spacing))
    for steps in (*range(1, 260), 999, 1000):
        timesteps = Schedule.ddim(denoiser, steps).timesteps
        assert len(timesteps) == steps and min(timesteps) >= 0


def test_what_is_looked_at_for_features_is_late() -> None:
    t, a = level_at(model(DDIM()), 0.05)
    assert (t, a) == (50, pytest.approx(float(DDIM().alphas_cumprod[50]) ** 0.5))
    assert level_at(model(DDIM()), 1.0)[0] == 999, "there is none after the last"
    assert level_at(model(FlowMatchEulerDiscreteScheduler(shift=3.0)), 0.05) == (50, 0.95)


@pytest.mark.parametrize(
    ("scheduler", "steps", "eta", "sentence"),
    [
        (DDIM(), 0, 0.0, "steps: got 0; a chain has 1 to 1000 steps with model 'tiny'"),
        (DDIM(), 1001, 0.0, "steps: got 1001; a chain has 1 to 1000 steps with model 'tiny'"),
        (DDIM(), 5, -0.1, "eta: got -0.1; allowed: 0 (DDIM) to 1 (DDPM's variance)"),
        (DDIM(), 5, 1.5, "eta: got 1.5; allowed: 0 (DDIM) to 1 (DDPM's variance)"),
        (
            DDIM(steps_offset=1),
            1000,
            0.0,
            "steps: got 1000; the chain would begin at timestep 1000, and model 'tiny' knows 0 to 999: take fewer "
            "steps",
        ),
        (
            LCM(num_train_timesteps=40),
            20,
            0.0,
            "steps: got 20; model 'tiny' has no such chain: `original_steps`: 50 cannot be larger than "
            "`self.config.train_timesteps`: 40 as the unet model trained with this scheduler can only handle maximal "
            "40 timesteps.",
        ),
        (
            FlowMatchEulerDiscreteScheduler(),
            5,
            0.5,
            "eta: got 0.5; model 'tiny' is a flow, whose steps have no eta: 0",
        ),
        (LCM(), 4, 1.0, "eta: got 1.0; model 'tiny' is a consistency model, whose steps have no eta: 0"),
        (LCM(), 51, 0.0, "steps: got 51; model 'tiny' is a consistency model of 1 to 50 steps"),
        (
            ZERO(),
            5,
            0.0,
            "model 'tiny' predicts the noise and begins at zero signal (rescale_betas_zero_snr), "
            "where noise tells nothing of the image: such a schedule needs v_prediction or sample",
        ),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(scheduler: Any, steps: int, eta: float, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Schedule.ddim(model(scheduler), steps, eta)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("window", "chosen"),
    [
        (None, [1, 1, 1, 1, 1]),
        ((800, 0), [1, 1, 1, 1, 1]),
        ((600, 200), [0, 1, 1, 1, 0]),
        ((600, 0), [0, 1, 1, 1, 1]),
        ((799, 1), [0, 1, 1, 1, 0]),
        ((400, 400), [0, 0, 1, 0, 0]),
        ((599, 201), [0, 0, 1, 0, 0]),
    ],
)
def test_a_window_holds_both_its_ends(window: tuple[int, int] | None, chosen: list[int]) -> None:
    schedule = Schedule.ddim(model(DDIM()), 5)
    assert schedule.timesteps == (800, 600, 400, 200, 0)
    assert [int(inside) for inside in schedule.steps_in_window(window)] == chosen


def test_a_window_begins_within_the_training_timesteps_of_the_model() -> None:
    long, usual = model(DDIM(num_train_timesteps=4000)), model(DDIM())
    for denoiser, window in ((long, (4000, 2000)), (usual, (1000, 0)), (usual, None)):
        check_window(denoiser, window)
    for denoiser, window, total in ((long, (4001, 0), 4000), (usual, (4000, 2000), 1000)):
        with pytest.raises(UserError) as caught:
            check_window(denoiser, window)
        assert str(caught.value) == (
            f"window: got {list(window)}; allowed: [high, low] with {total} >= high > low >= 0, for model 'tiny' has "
            f"{total} training timesteps"
        )
