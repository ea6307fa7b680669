"""Which schedulers are run, and that each is run on its own noise."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from core.chain.schedule import Schedule
from core.errors import ModelError
from core.model.denoiser import Denoiser
from core.model.pretrained import ModelFolder, load_scheduler
from core.model.schedulers import as_run
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


@OLD_NUMPY
@pytest.mark.parametrize(
    "kind",
    [
        "DDPMScheduler",
        "DDIMScheduler",
        "DDIMInverseScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "SASolverScheduler",
    ],
)
def test_what_a_file_leaves_out_is_what_its_own_class_has(tmp_path: Path, kind: str) -> None:
    own, found = getattr(diffusers, kind)(), read(tmp_path, kind)
    assert type(found).__name__ == "DDIMScheduler"
    assert torch.equal(found.alphas_cumprod, own.alphas_cumprod)
    assert found.config["timestep_spacing"] == own.config.get("timestep_spacing", "linspace")
    last = own.alphas_cumprod[0] if own.config.get("set_alpha_to_one") is False else torch.tensor(1.0)
    assert torch.equal(found.final_alpha_cumprod, last)
    assert not found.config["clip_sample"] and not found.config["thresholding"]


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
    with pytest.raises(ModelError, match="^model 'tiny': its DDPMScheduler cannot be run as DDIM: sigmoid is not "):
        as_run(diffusers.DDPMScheduler(beta_schedule="sigmoid"), "tiny")


def test_a_class_that_is_no_word_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        read(tmp_path, ["DDIMScheduler"])
    assert str(caught.value) == f"model 'tiny': {tmp_path / 'scheduler_config.json'} is not a diffusers configuration"
