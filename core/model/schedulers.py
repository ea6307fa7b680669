"""Decide which schedulers of models are supported, and turn them into the schedulers that are run.

Diffusion samplers are run as DDIM: their noise levels (the cumulative alpha) and timestep spacing are kept, the steps
are DDIM's. Consistency models (LCM) and flows are run unchanged.
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
_UNSAID_SPACING = "linspace"  # of the single-step DPM solver, whose configuration does not name it
# A clipped x_0 has no gradient where it is clipped, and the code of both papers turns clipping off.
PLAIN = {"clip_sample": False, "thresholding": False}


def refuse_kind(kind: str, name: str) -> None:
    """Raise ModelError for a scheduler whose noise is not known to be one of those in core.chain.schedule."""
    if kind not in (*_THEMSELVES, *_AS_DDIM):
        raise ModelError(
            f"model '{name}' has a {kind}; only diffusion with a cumulative alpha (DDPM and its samplers), "
            "consistency models (LCM) and flow matching (Euler) are supported"
        )


def as_run(scheduler: Any, name: str) -> Any:
    """Return the scheduler that this package runs in place of `scheduler`. Raises ModelError for an unsupported one."""
    kind = type(scheduler).__name__
    refuse_kind(kind, name)
    _refuse_options(kind, scheduler.config, name)
    if kind in _THEMSELVES:
        return scheduler
    # Options missing in the scheduler's file keep the defaults of its class; diffusers would take DDIM's defaults.
    full = {"timestep_spacing": _UNSAID_SPACING, **scheduler.config, "_use_default_values": []}
    try:
        with quiet_diffusers():
            return class_of({"_class_name": "DDIMScheduler"}).from_config(full, **PLAIN)
    except Exception as error:
        raise ModelError(f"model '{name}': its {kind} cannot be run as DDIM: {first_line(error)}") from error


def _refuse_options(kind: str, config: Mapping[str, Any], name: str) -> None:
    """Raise ModelError where options of a supported scheduler select unsupported noise."""
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
