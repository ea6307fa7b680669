"""The schedulers that a model may come with: which are run, and as what.

Of all samplers of diffusion the noise is taken, a cumulative alpha, and the spacing of timesteps; the steps are DDIM's.
Consistency models and flows are run as they are.
"""

from collections.abc import Mapping
from typing import Any

from core.errors import ModelError, first_line
from core.model.architecture import class_of
from core.quiet import quiet_diffusers

_FLOW = "FlowMatchEulerDiscreteScheduler"
_THEMSELVES = ("DDIMScheduler", "LCMScheduler", _FLOW)
_AS_DDIM = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMParallelScheduler",
    "DDIMInverseScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSDEScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
)
_UNSAID_SPACING = "linspace"  # of the single-step DPM solver, which has no word for it
# A clipped x_0 is not differentiable where it matters, and both papers' code turns clipping off.
PLAIN = {"clip_sample": False, "thresholding": False}


def refuse_kind(kind: str, name: str) -> None:
    """Raises ModelError for a scheduler whose noise is not known to be one of those that core.chain.schedule has."""
    if kind not in (*_THEMSELVES, *_AS_DDIM):
        raise ModelError(
            f"model '{name}' has a {kind}; only diffusion with a cumulative alpha (DDPM and its samplers), "
            "consistency models (LCM) and flow matching (Euler) are supported"
        )


def as_run(scheduler: Any, name: str) -> Any:
    """The scheduler as this package runs it. Raises ModelError for one that it cannot run."""
    kind = type(scheduler).__name__
    refuse_kind(kind, name)
    _refuse_options(kind, scheduler.config, name)
    if kind in _THEMSELVES:
        return scheduler
    # diffusers would give DDIM's own values to what the scheduler's file leaves out, and not those it is run with.
    full = {"timestep_spacing": _UNSAID_SPACING, **scheduler.config, "_use_default_values": []}
    try:
        with quiet_diffusers():
            return class_of({"_class_name": "DDIMScheduler"}).from_config(full, **PLAIN)
    except Exception as error:
        raise ModelError(f"model '{name}': its {kind} cannot be run as DDIM: {first_line(error)}") from error


def _refuse_options(kind: str, config: Mapping[str, Any], name: str) -> None:
    """Raises ModelError where a scheduler of a known kind is set to noise of another."""
    if odd := next((option for option in ("stochastic_sampling", "invert_sigmas") if config.get(option)), None):
        raise ModelError(f"model '{name}' has a flow with {odd}, which is not supported")
    if config.get("use_flow_sigmas"):
        raise ModelError(f"model '{name}' has a {kind} with use_flow_sigmas; a flow needs a {_FLOW}")
    if config.get("timestep_type") == "continuous":
        raise ModelError(f"model '{name}' has a {kind} with continuous timesteps, which are not supported")
    if kind != _FLOW and config["prediction_type"] not in ("epsilon", "v_prediction", "sample"):
        raise ModelError(
            f"model '{name}' predicts '{config['prediction_type']}'; allowed: epsilon, v_prediction, sample, or a flow "
            f"with a {_FLOW}"
        )
