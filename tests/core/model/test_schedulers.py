"""Which schedulers are run, and that each is run on its own noise."""

import inspect
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import pytest

from core.chain.schedule import Schedule
from core.errors import ModelError
from core.model.denoiser import Denoiser
from core.model.pretrained import ModelFolder, load_scheduler
from core.model.schedulers import as_run, sampler_of
from tests.core.model.test_denoiser import tiny_unet

FLOW = "FlowMatchEulerDiscreteScheduler"
KINDS = (
    "only diffusion with a cumulative alpha (DDPM and its samplers), consistency models (LCM) and flow matching "
    "(Euler) are supported"
)

OLD_NUMPY = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of how diffusers' own code fills its tables


def read(folder: Path, kind: object, **told: object) -> Any:
    """The scheduler of a file that says this and no more."""
    (folder / "scheduler_config.json").write_text(json.dumps({"_class_name": kind, **told}))
    return load_scheduler(ModelFolder("tiny", folder))


LIKE_DDIM = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler")
BY_SIGMAS = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
)  # DPMSolverSDEScheduler needs a package that this one does not bring
STEPS = 5
SPACED = [
    (kind, {"timestep_spacing": spacing, "steps_offset": offset})
    for kind in (*LIKE_DDIM, "PNDMScheduler", *BY_SIGMAS)
    for spacing, offset in (("leading", 1), ("linspace", 0), ("trailing", 0))
    if (kind, spacing) != ("DDIMInverseScheduler", "linspace")  # which it does not have
]
SHAPED = [
    (kind, {option: True})
    for kind in BY_SIGMAS
    for option in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
    if option in inspect.signature(getattr(diffusers, kind)).parameters
]
OTHERWISE = [
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
    ("UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "lambda_min_clipped": -5.1}),
    ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ("DDPMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {"sigma_min": 0.1, "sigma_max": 9.0, "use_karras_sigmas": True}),
    ("DDIMScheduler", {"set_alpha_to_one": False}),
    ("PNDMScheduler", {"set_alpha_to_one": True}),
]


def chain_of(own: Any) -> tuple[list[float], list[float]]:
    """The timesteps of diffusers' own scheduler, and sigma = s / a before each step and after the last."""
    own.set_timesteps(STEPS)
    kind, timesteps = type(own).__name__, own.timesteps.tolist()
    if kind in BY_SIGMAS:
        sigmas = own.sigmas.tolist()
        if own.order == 2:  # every other one is in between
            timesteps, sigmas = timesteps[::2], [sigmas[0], *sigmas[1::2]]
        ends_in_noise = own.config.get("final_sigmas_type") == "sigma_min"
        return timesteps, [*sigmas[:STEPS], sigmas[-1] if ends_in_noise else 0.0]
    if kind == "PNDMScheduler":  # whose timesteps have one twice
        timesteps = own._timesteps.tolist()[::-1]
    alphas = own.alphas_cumprod[sorted(timesteps, reverse=True)].tolist()
    last = float(own.alphas_cumprod[0]) if own.config.get("set_alpha_to_one") is False else 1.0
    return sorted(timesteps, reverse=True), [(1 / a - 1) ** 0.5 if a else math.inf for a in (*alphas, last)]


@OLD_NUMPY
@pytest.mark.parametrize(("kind", "told"), [*SPACED, *SHAPED, *OTHERWISE, *((kind, {}) for kind in BY_SIGMAS)])
def test_timesteps_and_noise_are_those_of_the_models_own_scheduler(
    tmp_path: Path, kind: str, told: dict[str, Any]
) -> None:
    file = {**told, "use_karras_sigmas": told.get("use_karras_sigmas", False), "set_alpha_to_one": False, **told}
    known = inspect.signature(getattr(diffusers, kind)).parameters
    timesteps, sigmas = chain_of(getattr(diffusers, kind)(**{k: v for k, v in file.items() if k in known}))
    schedule = Schedule.ddim(Denoiser(tiny_unet(), read(tmp_path, kind, **file), "tiny"), STEPS)
    assert schedule.timesteps == tuple(timesteps)
    found = [s / a if a else math.inf for a, s in zip(schedule.signal, schedule.noise, strict=True)]
    assert found == pytest.approx(sigmas, rel=1e-4, abs=1e-6)


@OLD_NUMPY
@pytest.mark.parametrize("kind", (*LIKE_DDIM, "PNDMScheduler", *BY_SIGMAS))
def test_what_a_file_leaves_out_is_what_its_own_class_has(tmp_path: Path, kind: str) -> None:
    """A chain of PNDM ends at the noise of t=0, one of DDIM without noise, where their files say nothing."""
    timesteps, sigmas = chain_of(getattr(diffusers, kind)())
    schedule = Schedule.ddim(Denoiser(tiny_unet(), read(tmp_path, kind), "tiny"), STEPS)
    assert schedule.timesteps == tuple(timesteps)
    found = [s / a if a else math.inf for a, s in zip(schedule.signal, schedule.noise, strict=True)]
    assert found == pytest.approx(sigmas, rel=1e-4, abs=1e-6)


@OLD_NUMPY
def test_a_scheduler_that_inverts_is_run_as_the_one_that_draws(tmp_path: Path) -> None:
    told = {"use_karras_sigmas": True, "timestep_spacing": "trailing"}
    chains = [
        Schedule.ddim(Denoiser(tiny_unet(), read(tmp_path, f"DPMSolverMultistep{kind}", **told), "tiny"), STEPS)
        for kind in ("InverseScheduler", "Scheduler")
    ]
    assert chains[0].timesteps == chains[1].timesteps and chains[0].noise == chains[1].noise


@OLD_NUMPY
@pytest.mark.parametrize("kind", BY_SIGMAS)
def test_no_pass_of_a_chain_does_nothing(kind: str) -> None:
    for steps in (1, 2, 7, 61):
        schedule = Schedule.ddim(Denoiser(tiny_unet(), getattr(diffusers, kind)(), "tiny"), steps)
        assert len(schedule) == steps and all(s > after for s, after in pairwise(schedule.noise))


def test_an_option_that_the_schedulers_class_does_not_know_is_not_obeyed(tmp_path: Path) -> None:
    """Left over from another class, as in many published files; the class's own chain does not heed it either."""
    leftover = {"set_alpha_to_one": False, "thresholding": True, "timestep_spacing": "leading"}
    for kind, more in (("EulerDiscreteScheduler", leftover), ("DDPMScheduler", {"set_alpha_to_one": False})):
        for scheduler in (read(tmp_path, kind, **more), read(tmp_path, kind, timestep_spacing="leading")):
            schedule = Schedule.ddim(Denoiser(tiny_unet(), scheduler, "tiny"), STEPS)
            assert schedule.noise[-1] == 0 and schedule.timesteps == (800, 600, 400, 200, 0)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_clipping_is_off_but_thresholding_is_refused(tmp_path: Path, kind: str) -> None:
    assert not read(tmp_path, kind).config.get("clip_sample")
    sentence = (
        f"model 'tiny' has a {kind} with thresholding, which clips the image at every step and leaves no gradient "
        "there: to run its chain without, set thresholding to false in its scheduler_config.json"
    )
    for make in (
        lambda: read(tmp_path, kind, thresholding=True),
        lambda: as_run(getattr(diffusers, kind)(thresholding=True), "tiny"),
    ):
        with pytest.raises(ModelError) as caught:
            make()
        assert str(caught.value) == sentence


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "DDPMScheduler"])
def test_the_name_on_a_card_is_that_of_the_steps(kind: str) -> None:
    assert sampler_of(as_run(getattr(diffusers, kind)(), "tiny")) == "DDIMScheduler"
    assert sampler_of(as_run(diffusers.LCMScheduler(), "tiny")) == "LCMScheduler"


@pytest.mark.parametrize("kind", ["LCMScheduler", FLOW])
def test_consistency_models_and_flows_are_run_as_they_are(tmp_path: Path, kind: str) -> None:
    assert type(read(tmp_path, kind)).__name__ == kind
    scheduler = getattr(diffusers, kind)()
    assert as_run(scheduler, "tiny") is scheduler


@pytest.mark.parametrize("given", ["DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
def test_a_scheduler_that_is_given_by_hand_is_the_one_of_a_file(tmp_path: Path, given: str) -> None:
    scheduler = getattr(diffusers, given)(beta_end=0.03)
    by_hand = Denoiser(tiny_unet(), scheduler, "tiny")
    scheduler.save_config(tmp_path)
    of_file = Denoiser(tiny_unet(), load_scheduler(ModelFolder("tiny", tmp_path)), "tiny")
    assert Schedule.ddim(by_hand, 4) == Schedule.ddim(of_file, 4)


@pytest.mark.parametrize(
    "kind",
    [
        "MyScheduler",
        "IPNDMScheduler",
        "TCDScheduler",
        "CogVideoXDDIMScheduler",
        "CogVideoXDPMScheduler",
        "DDPMWuerstchenScheduler",
        "LTXEulerAncestralRFScheduler",
        "EDMEulerScheduler",
        "FlowMatchHeunDiscreteScheduler",
    ],
)
def test_a_scheduler_whose_noise_is_not_known_to_be_of_these_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelError) as caught:
        read(tmp_path, kind)
    assert str(caught.value) == f"model 'tiny' has a {kind}; {KINDS}"


def test_and_one_that_is_given_by_hand() -> None:
    class Own:
        config: dict[str, object] = {}

    with pytest.raises(ModelError) as caught:
        Denoiser(tiny_unet(), Own(), "tiny")
    assert str(caught.value) == f"model 'tiny' has a Own; {KINDS}"


@pytest.mark.parametrize(
    ("kind", "told", "sentence"),
    [
        (
            "DPMSolverMultistepScheduler",
            {"use_flow_sigmas": True},
            f"model 'tiny' has a DPMSolverMultistepScheduler with use_flow_sigmas; a flow needs a {FLOW}",
        ),
        (
            "UniPCMultistepScheduler",
            {"prediction_type": "flow_prediction"},
            f"model 'tiny' predicts 'flow_prediction'; allowed: epsilon, v_prediction, sample, or a flow with a {FLOW}",
        ),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous"},
            "model 'tiny' has a EulerDiscreteScheduler with continuous timesteps, which are not supported",
        ),
        (FLOW, {"invert_sigmas": True}, "model 'tiny' has a flow with invert_sigmas, which is not supported"),
        (
            FLOW,
            {"stochastic_sampling": True},
            "model 'tiny' has a flow with stochastic_sampling, which is not supported",
        ),
    ],
)
def test_a_known_scheduler_that_is_set_to_other_noise_is_refused(
    tmp_path: Path, kind: str, told: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelError) as caught:
        read(tmp_path, kind, **told)
    assert str(caught.value) == sentence
    with pytest.raises(ModelError) as caught:
        Denoiser(tiny_unet(), getattr(diffusers, kind)(**told), "tiny")
    assert str(caught.value) == sentence


def test_noise_that_ddim_has_not_is_told() -> None:
    with pytest.raises(ModelError, match="^model 'tiny': its DDPMScheduler cannot be run as a DDIMScheduler: sigmoid"):
        as_run(diffusers.DDPMScheduler(beta_schedule="sigmoid"), "tiny")


def test_a_class_that_is_no_word_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        read(tmp_path, ["DDIMScheduler"])
    assert str(caught.value) == f"model 'tiny': {tmp_path / 'scheduler_config.json'} is not a diffusers configuration"
