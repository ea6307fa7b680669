"""Decide which schedulers of models are supported, and what a chain takes from them.

Diffusion samplers are run as DDIM: their timesteps and noise levels are kept, the steps are DDIM's. Consistency models
(LCM) and flows are run unchanged.
"""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from core.errors import ModelError, first_line
from core.model.architecture import class_of
from core.quiet import quiet_diffusers

_FLOW = "FlowMatchEulerDiscreteScheduler"
_THEMSELVES = ("DDIMScheduler", "LCMScheduler", _FLOW)
# Of the same timesteps and noise levels as DDIM's scheduler.
_AS_DDIM = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler", "PNDMScheduler")
_INVERSE = "DPMSolverMultistepInverseScheduler"
# With timesteps and noise levels of their own, the latter as sigma = s / a.
_BY_SIGMAS = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
)
# A clipped x_0 has no gradient where it is clipped, and the code of both papers turns clipping off.
PLAIN = {"clip_sample": False}
_SAME = 1e-5  # of a sigma: how near a scheduler's float32 has to be to the level of a timestep to be that level


def refuse_kind(kind: str, name: str) -> None:
    """Raise ModelError for a scheduler whose noise is not known to be one of those in core.chain.schedule."""
    if kind not in (*_THEMSELVES, *_AS_DDIM, *_BY_SIGMAS, _INVERSE):
        raise ModelError(
            f"model '{name}' has a {kind}; only diffusion with a cumulative alpha (DDPM and its samplers), "
            "consistency models (LCM) and flow matching (Euler) are supported"
        )


def as_run(scheduler: Any, name: str) -> Any:
    """Return the scheduler that this package runs in place of `scheduler`. Raises ModelError for an unsupported one."""
    kind = type(scheduler).__name__
    refuse_kind(kind, name)
    # An option that the scheduler's class does not know is a leftover that its own chain does not heed either.
    options = inspect.signature(type(scheduler)).parameters
    known = {option: value for option, value in scheduler.config.items() if option in options}
    _refuse_options(kind, known, name)
    if kind in (*_THEMSELVES, *_BY_SIGMAS):
        return scheduler
    instead = "DPMSolverMultistepScheduler" if kind == _INVERSE else "DDIMScheduler"
    # An option that is missing in its file has the default of its class; diffusers would take that of the other class.
    try:
        with quiet_diffusers():
            return class_of({"_class_name": instead}).from_config({**known, "_use_default_values": []}, **PLAIN)
    except Exception as error:
        raise ModelError(f"model '{name}': its {kind} cannot be run as a {instead}: {first_line(error)}") from error


def sampler_of(scheduler: Any) -> str:
    """Return the name of diffusers' scheduler whose steps a chain of this one takes, at the timesteps of this one."""
    kind = type(scheduler).__name__
    return kind if kind in _THEMSELVES else "DDIMScheduler"


def diffusion_levels(scheduler: Any, steps: int) -> tuple[list[float], list[float]]:
    """Return (timesteps, cumulative alphas before each step and after the last) of a diffusion scheduler's chain.

    Raises ValueError, or what else the scheduler raises, for a number of steps that it cannot have.
    """
    with quiet_diffusers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from diffusers' own computation of tables
        scheduler.set_timesteps(steps)
    timesteps, alphas = scheduler.timesteps.tolist(), scheduler.alphas_cumprod.double().tolist()
    if type(scheduler).__name__ == "DDIMScheduler":
        timesteps, final = _as_many(timesteps, steps), float(scheduler.final_alpha_cumprod)
        return timesteps, [*(alphas[t] if t < len(alphas) else 0.0 for t in timesteps), final]
    sigmas = scheduler.sigmas.double().tolist()
    if scheduler.order == 2:  # these have another evaluation between two steps
        timesteps, sigmas = timesteps[::2], [sigmas[0], *sigmas[1::2]]
    timesteps = _as_many(timesteps, steps)
    levels = [_alpha(sigma, t, alphas) for t, sigma in zip(timesteps, sigmas, strict=False)]
    to_the_end = scheduler.config.get("final_sigmas_type") != "sigma_min"
    return timesteps, [*levels, 1.0 if to_the_end else _alpha(sigmas[-1], 0, alphas)]


def _as_many(timesteps: list[Any], steps: int) -> list[Any]:
    """Return the timesteps, whole ones as int, without the -1 that diffusers' rounding adds to some trailing chains."""
    return [int(t) if t == int(t) else t for t in timesteps if t >= 0][:steps]


def _alpha(sigma: float, t: float, alphas: list[float]) -> float:
    """Return the cumulative alpha of a sigma: that of the timestep itself where the sigma is the timestep's."""
    alpha = 1 / (1 + sigma**2)
    if t != int(t) or t >= len(alphas):
        return alpha
    own = alphas[int(t)]
    return own if own and abs((1 / own - 1) ** 0.5 - sigma) <= _SAME * sigma else alpha


def _refuse_options(kind: str, config: Mapping[str, Any], name: str) -> None:
    """Raise ModelError where options of a supported scheduler select unsupported noise."""
    if odd := next((option for option in ("stochastic_sampling", "invert_sigmas") if config.get(option)), None):
        raise ModelError(f"model '{name}' has a flow with {odd}, which is not supported")
    if config.get("use_flow_sigmas"):
        raise ModelError(f"model '{name}' has a {kind} with use_flow_sigmas; a flow needs a {_FLOW}")
    if config.get("timestep_type") == "continuous":
        raise ModelError(f"model '{name}' has a {kind} with continuous timesteps, which are not supported")
    if config.get("thresholding"):
        raise ModelError(
            f"model '{name}' has a {kind} with thresholding, which clips the image at every step and leaves no "
            "gradient there: to run its chain without, set thresholding to false in its scheduler_config.json"
        )
    if kind != _FLOW and config["prediction_type"] not in ("epsilon", "v_prediction", "sample"):
        raise ModelError(
            f"model '{name}' predicts '{config['prediction_type']}'; allowed: epsilon, v_prediction, sample, or a flow "
            f"with a {_FLOW}"
        )
