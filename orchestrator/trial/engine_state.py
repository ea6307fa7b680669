"""Gather the state of DeepSpeed's engines from all workers of a trial, check it, and restore it in other workers.

A checkpoint holds what is trained and nothing about its partitioning, so that a trial continues with any number of
workers and any ZeRO stage: <folder>/<engine> is a state file (orchestrator.store.state_file) of

    parameter/NAME                  the parameter that Adam updates
    exp_avg/NAME, exp_avg_sq/NAME   its moments, once a step was made
    buffer/NAME                     the buffers of the network, which it updates while it trains

all in float32, with the iteration and the number of steps as facts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import first_line
from orchestrator.store.state_file import StateFileError, read_state, write_state

# isort: split
import deepspeed
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

_MOMENTS = ("exp_avg", "exp_avg_sq")


class EngineError(RuntimeError):
    """The error of a checkpoint of an engine that cannot be read or written. It never leads to a silent fresh start."""


@dataclass(frozen=True)
class Snapshot:
    """The whole state of a trial's engines, on the first worker; on other workers `tensors` holds empty dicts."""

    iteration: int
    tensors: Mapping[str, dict[str, Tensor]]  # by engine
    steps: Mapping[str, int]

    def write(self, folder: Path) -> None:
        """Write one sub-folder for each engine. Needs no other worker, so a failed call may be repeated."""
        for name, tensors in self.tensors.items():
            write_state(folder / name, tensors, {"iteration": self.iteration, "steps": self.steps[name]})


def snapshot(engines: Mapping[str, Any], iteration: int) -> Snapshot:
    """Return the state of the engines, gathered from all workers. Every worker has to call this."""
    tensors = {name: _gathered(engine) for name, engine in engines.items()}
    return Snapshot(iteration, tensors, {name: _steps(engine) for name, engine in engines.items()})


def load(engines: Mapping[str, Any], folder: Path) -> int:
    """Restore the state that a snapshot wrote and return its iteration. Every worker has to call this.

    Raises EngineError where anything is missing or does not fit the networks of this trial.
    """
    iterations = set()
    for name, engine in engines.items():
        if not (folder / name).is_dir():
            raise EngineError(f"checkpoint {folder} holds no state of the engine '{name}'")
        try:
            tensors, facts = read_state(folder / name)
            iteration, steps = _whole(facts, "iteration"), _whole(facts, "steps")
            _check(tensors, engine.module.network, steps)
        except (StateFileError, ValueError) as error:
            raise EngineError(f"checkpoint {folder} is no state of '{name}': {first_line(error)}") from error
        _restore(engine, tensors, steps)
        iterations.add(iteration)
    if len(iterations) != 1:
        raise EngineError(f"checkpoint {folder} mixes iterations {sorted(iterations)}")
    return iterations.pop()


def _steps(engine: Any) -> int:
    """Return how many steps the engine's Adam has made."""
    return max((int(state["step"]) for state in engine.basic_optimizer.state.values() if "step" in state), default=0)


def _gathered(engine: Any) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, on the CPU; an empty dict on every worker but the first."""
    first, network = torch.distributed.get_rank() == 0, engine.module.network
    _link(engine)
    kinds = ("parameter", *_MOMENTS) if _steps(engine) else ("parameter",)
    tensors = {}
    for name, parameter in network.named_parameters():
        for kind in kinds:
            whole = _get(engine, parameter, kind)  # every worker takes part
            if first:
                tensors[f"{kind}/{name}"] = whole.detach().to("cpu", copy=True)
    for name, buffer in network.named_buffers() if first else ():
        tensors[f"buffer/{name}"] = buffer.to("cpu", torch.float32, copy=True)
    return tensors


def _get(engine: Any, parameter: nn.Parameter, kind: str) -> Tensor:
    """Return a whole parameter in float32 (`kind` "parameter"), or one of its moments."""
    if engine.zero_optimization_stage() == 0:
        master = _master(engine, parameter)
        state = master if kind == "parameter" else engine.basic_optimizer.state[master][kind]
    elif kind == "parameter":
        state = safe_get_full_fp32_param(parameter)
    else:
        state = safe_get_full_optimizer_state(parameter, kind)
    whole: Tensor = state
    return whole


def _master(engine: Any, parameter: nn.Parameter) -> Tensor:
    """Return the tensor that Adam updates in ZeRO-0: the parameter, or its float32 copy if it is in half precision."""
    if parameter.dtype == torch.float32:
        return parameter
    wrapper = engine.optimizer
    pairs = zip(sum(wrapper.fp16_groups, []), sum(wrapper.fp32_groups, []), strict=True)
    master: Tensor = next(copy for half, copy in pairs if half is parameter)
    return master


def _whole(facts: Mapping[str, Any], name: str) -> int:
    value = facts.get(name)
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is no whole number")
    return value


def _check(tensors: Mapping[str, Tensor], module: nn.Module, steps: int) -> None:
    """Raise ValueError where `tensors` are not those of a checkpoint of `module`."""
    shapes = {f"buffer/{name}": buffer.shape for name, buffer in module.named_buffers()}
    for kind in ("parameter", *(_MOMENTS if steps else ())):
        for name, parameter in module.named_parameters():
            shapes[f"{kind}/{name}"] = getattr(parameter, "ds_shape", parameter.shape)  # whole, in ZeRO-3
    for name in sorted(shapes.keys() ^ tensors.keys()):
        raise ValueError(f"it lacks '{name}'" if name in shapes else f"its '{name}' is not trained here")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != torch.float32:
            got = f"{list(tensor.shape)} in {str(tensor.dtype)[6:]}"
            raise ValueError(f"its '{name}' is {got}, not {list(shape)} in float32")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"its '{name}' is not finite")


def _restore(engine: Any, tensors: Mapping[str, Tensor], steps: int) -> None:
    """Put checked tensors into an engine that has not made a step."""
    _create_adam_state(engine, steps)
    for name, buffer in engine.module.network.named_buffers():
        buffer.copy_(tensors[f"buffer/{name}"])
    for name, parameter in engine.module.network.named_parameters():
        for kind in ("parameter", *(_MOMENTS if steps else ())):
            _set(engine, parameter, kind, tensors[f"{kind}/{name}"])
    _replay_steps(engine.basic_optimizer, steps)


def _create_adam_state(engine: Any, steps: int) -> None:
    """Create the state that Adam itself creates in its first step, as it is after `steps` steps."""
    optimiser, stage = engine.basic_optimizer, engine.zero_optimization_stage()
    flat = engine.optimizer.fp32_partitioned_groups_flat if stage == 3 else _descended(optimiser)
    counter = steps if type(optimiser).__name__ == "DeepSpeedCPUAdam" else torch.tensor(float(steps))
    for tensor in flat if steps else ():
        step = counter.clone() if isinstance(counter, Tensor) else counter
        optimiser.state[tensor] = {"step": step, **{moment: torch.zeros_like(tensor) for moment in _MOMENTS}}
    _link(engine)


def _link(engine: Any) -> None:
    """Let ZeRO-1 and 2 find the moments of a parameter. DeepSpeed links only the first group, in the first step."""
    if engine.zero_optimization_stage() not in (1, 2):
        return
    zero, state = engine.optimizer, engine.basic_optimizer.state
    for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        lazy_init_hp_params_optimizer_state(parameters, flat, state)


def _descended(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [tensor for group in optimiser.param_groups for tensor in group["params"]]


@torch.no_grad()
def _set(engine: Any, parameter: nn.Parameter, kind: str, whole: Tensor) -> None:
    """Set a whole parameter or moment: the inverse of `_get`."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        _get(engine, parameter, kind).copy_(whole)
    elif stage == 3:
        part = _part(parameter, whole)
        if kind == "parameter":
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, kind)
    elif kind == "parameter":
        safe_set_full_fp32_param(parameter, whole)
    else:
        safe_set_full_optimizer_state(parameter, whole, kind)
    if kind == "parameter":  # also the copy that the network computes with, beside the one that Adam updates
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=stage == 3):
            parameter.data.copy_(whole)


def _part(parameter: Any, whole: Tensor) -> Tensor:
    """Return this worker's part of a whole parameter in ZeRO-3: equal parts, the last ones padded with zeros."""
    size = parameter.ds_tensor.ds_numel
    start = torch.distributed.get_rank() * size
    part = whole.flatten()[start : start + size]
    return torch.cat([part, part.new_zeros(size - len(part))])


def _replay_steps(optimiser: Any, steps: int) -> None:
    """Bring a new DeepSpeedCPUAdam to the internal state that it has after `steps` steps.

    It multiplies up the powers of its betas step by step, and no checkpoint holds them. In a new process it computes
    them at once; that differs in the last digit, and so would all later numbers.
    """
    if type(optimiser).__name__ != "DeepSpeedCPUAdam":
        return
    nothing = [torch.zeros(1) for _ in range(4)]  # a parameter, its gradient, and their averages
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            constants = (group[name] for name in ("eps", "weight_decay", "bias_correction"))
            optimiser.ds_opt_adam.adam_update(
                optimiser.opt_id, step, group["lr"], *group["betas"], *constants, *nothing
            )
