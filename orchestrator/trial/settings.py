"""From a trial's parameters to the settings of its method: names lose the method's prefix, words become values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from core.chain.gradient import CheckpointBlocks, CheckpointSteps, FullGraph, GradientPolicy, KeepSteps, Step
from core.methods import METHODS
from core.samples.training import SPREAD_SAMPLES
from orchestrator.spec import Sweep


@dataclass(frozen=True)
class DeepSpeedSteps(CheckpointSteps):
    """CheckpointSteps by DeepSpeed's own checkpointing, which moves a GPU's x_t to the CPU's memory."""

    def checkpoint(self, step: Step, i: int, x: Tensor) -> Tensor:
        from orchestrator.trial.engine import checkpoint  # a plan is made without DeepSpeed

        return checkpoint(step, i, x)


POLICIES: dict[str, GradientPolicy] = {
    "auto": KeepSteps(),  # until the device is known: orchestrator.trial.footprint
    "full_graph": FullGraph(),
    "keep_steps": KeepSteps(),
    "checkpoint_steps": CheckpointSteps(),
    "checkpoint_blocks": CheckpointBlocks(),
    "deepspeed": DeepSpeedSteps(),
}


def settings_of(parameters: Mapping[str, Any], sweep: Sweep) -> Any:
    """The `Settings` of the trial's method; what it has no parameter for is the sweep's, or the method's default.

    Raises UserError where the method refuses them.
    """
    method = parameters["method"]
    given = dict(_translated(name, value) for name, value in parameters.items() if name != "method")
    return METHODS[method].Settings(**{"seed": sweep.seed, **_of_sweep(method, given, sweep), **given})


def samples_of(settings: Any) -> int:
    """How many training samples a method draws at most."""
    return int(getattr(settings, "pool", 0) or getattr(settings, "samples", SPREAD_SAMPLES))


def _translated(name: str, value: Any) -> tuple[str, Any]:
    """A parameter as a field of its method's settings: ("jacobian.step", "every") -> ("step", None)."""
    field = name.rpartition(".")[2]
    match name, value:
        case "supervised.attribute", _:
            return "attributes", () if value == "all" else (value,)
        case "jacobian.step", "every":
            return field, None
        case "jacobian.mask" | "jacobian.box" | "supervised.balance" | "supervised.pairs", "none":
            return field, None
        case "jacobian.box", _:
            return field, tuple(map(int, value.split(",")))
        case _:
            return field, value


def _of_sweep(method: str, given: Mapping[str, Any], sweep: Sweep) -> dict[str, Any]:
    """What a method takes from the sweep as a whole."""
    if method == "supervised" and given.get("pairs") is None:  # pairs are labelled already
        return {"predictor": sweep.predictor}
    if method != "learned":
        return {}
    return {
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
