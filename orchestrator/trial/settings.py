"""Convert a trial's parameters to the settings of its method: drop the method's prefix, replace words by values."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from core.chain.gradient import CheckpointBlocks, CheckpointSteps, FullGraph, GradientPolicy, KeepSteps, Step
from core.methods import METHODS, guided
from core.predictors.attributes import Attributes
from core.samples.training import SPREAD_SAMPLES
from orchestrator.spec import BY_ATTRIBUTES, TRAINED, Sweep


@dataclass(frozen=True)
class DeepSpeedSteps(CheckpointSteps):
    """The policy CheckpointSteps by DeepSpeed's own checkpointing, which moves a GPU's x_t to the CPU's memory."""

    def checkpoint(self, step: Step, i: int, x: Tensor) -> Tensor:
        """Return step(i, x), keeping only x; the step runs again in the backward pass."""
        from orchestrator.trial.engine import checkpoint  # here, because `orchestrate plan` does not need DeepSpeed

        return checkpoint(step, i, x)


POLICIES: dict[str, GradientPolicy] = {
    "auto": KeepSteps(),  # a placeholder: orchestrator.trial.memory chooses for the device
    "full_graph": FullGraph(),
    "keep_steps": KeepSteps(),
    "checkpoint_steps": CheckpointSteps(),
    "checkpoint_blocks": CheckpointBlocks(),
    "deepspeed": DeepSpeedSteps(),
}


def settings_of(parameters: Mapping[str, Any], sweep: Sweep) -> Any:
    """Return the `Settings` of the trial's method. Fields without a parameter come from the sweep or are defaults.

    Raises UserError where the method refuses the settings.
    """
    method = parameters["method"]
    values = dict(_translated(name, value) for name, value in parameters.items() if name != "method")
    return METHODS[method].Settings(**{"seed": sweep.seed, **_of_sweep(method, values, sweep), **values})


def method_of(settings: Any) -> str:
    """Return the method that has these settings."""
    return next(name for name, method in METHODS.items() if type(settings) is method.Settings)


def with_names(settings: Any, attributes: Attributes | None) -> Any:
    """Return the settings with the predictor's names, where they stand for all of its attributes."""
    if isinstance(settings, guided.Settings) and attributes is not None and not settings.attributes:
        return replace(settings, attributes=attributes.names)
    return settings


def samples_of(settings: Any) -> int:
    """Return how many training samples a method draws at most."""
    return int(getattr(settings, "pool", 0) or getattr(settings, "samples", SPREAD_SAMPLES))


def _translated(name: str, value: Any) -> tuple[str, Any]:
    """Return a parameter as a field of its method's settings: ("jacobian.step", "every") -> ("step", None)."""
    field = name.rpartition(".")[2]
    match name, value:
        case "supervised.attribute", _:
            return "attributes", () if value == "all" else (value,)
        case "guided.attributes", _:
            return field, () if value == "all" else tuple(name.strip() for name in value.split(";"))
        case "jacobian.step", "every":
            return field, None
        case "jacobian.mask" | "jacobian.box" | "supervised.balance" | "supervised.pairs", "none":
            return field, None
        case "jacobian.box", _:
            return field, tuple(map(int, value.split(",")))
        case _:
            return field, value


def _of_sweep(method: str, values: Mapping[str, Any], sweep: Sweep) -> dict[str, Any]:
    """Return the fields of the method's settings that come from the sweep itself."""
    if method == "supervised" and values.get("pairs") is None:  # pairs are labelled already
        return {"predictor": sweep.predictor}
    if method not in TRAINED:
        return {}
    predictor = {"predictor": sweep.predictor} if method in BY_ATTRIBUTES else {}
    return predictor | {
        "iterations": sweep.train.iterations,
        "batch": sweep.train.batch,
        "micro_batch": sweep.train.micro_batch,
        "pool": sweep.train.pool,
        "injection": sweep.sampler.injection,
        "window": sweep.sampler.window,
        "strength_floor": sweep.train.strength_floor,
        "gradient": _gradient(sweep),
    }


def _gradient(sweep: Sweep) -> GradientPolicy:
    policy, memory = POLICIES[sweep.gradient.policy], sweep.gradient.bytes
    return policy if memory is None else KeepSteps(memory)
