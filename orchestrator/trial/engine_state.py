"""The state of DeepSpeed's engines, whole: gathered from all workers of a trial, checked, and put back into others.

A checkpoint holds what is trained and nothing of how it was partitioned, so that a trial goes on with any number of
workers and any ZeRO stage: <folder>/<engine> is a state file (orchestrator.store.state_file) of

    parameter/NAME                  what Adam descends
    exp_avg/NAME, exp_avg_sq/NAME   its moments, once a step was made
    buffer/NAME                     what a network measures as it goes

all in float32, and of the iteration and the number of steps that they belong to.
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
    """A checkpoint of an engine that cannot be read or written. Never answered by a silent fresh start."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a trial's engines, whole, on the first worker; the other workers hold nothing of it."""

    iteration: int
    tensors: Mapping[str, dict[str, Tensor]]  # of each engine
    steps: Mapping[str, int]

    def write(self, folder: Path) -> None:
        """One sub-folder for each engine. It asks no other worker, so that it may be tried again."""
        for name, tensors in self.tensors.items():
            write_state(folder / name, tensors, {"iteration": self.iteration, "steps": self.steps[name]})


def snapshot(engines: Mapping[str, Any], iteration: int) -> Snapshot:
    """The engines' state, of which every worker has a part. Every worker calls it."""
    tensors = {name: _gathered(engine) for name, engine in engines.items()}
    return Snapshot(iteration, tensors, {name: _steps(engine) for name, engine in engines.items()})


def load(engines: Mapping[str, Any], folder: Path) -> int:
    """Restore what a snapshot wrote and return its iteration; every worker calls it.

    Raises EngineError where anything is missing or is not what this trial trains.
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
    """How many steps the engine's Adam has made."""
    return max((int(state["step"]) for state in engine.basic_optimizer.state.values() if "step" in state), default=0)


def _gathered(engine: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU; none on any worker but the first."""
    first, network = torch.distributed.get_rank() == 0, engine.module.network
    _link(engine)
    kinds = ("parameter", *_MOMENTS) if _steps(engine) else ("parameter",)
    found = {}
    for name, parameter in network.named_parameters():
        for kind in kinds:
            whole = _get(engine, parameter, kind)  # every worker takes part
            if first:
                found[f"{kind}/{name}"] = whole.detach().to("cpu", copy=True)
    for name, buffer in network.named_buffers() if first else ():
        found[f"buffer/{name}"] = buffer.to("cpu", torch.float32, copy=True)
    return found


def _get(engine: Any, parameter: nn.Parameter, kind: str) -> Tensor:
    """A whole parameter in float32, or a moment of it."""
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
    """What Adam descends in ZeRO-0: the parameter, or its float32 copy where it is trained in half precision."""
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
    """Raise ValueError where these are not the tensors of a checkpoint of `module`."""
    shapes = {f"buffer/{name}": buffer.shape for name, buffer in module.named_buffers()}
    for kind in ("parameter", *(_MOMENTS if steps else ())):
        for name, parameter in module.named_parameters():
            shapes[f"{kind}/{name}"] = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 keeps it apart
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
    _begin(engine, steps)
    for name, buffer in engine.module.network.named_buffers():
        buffer.copy_(tensors[f"buffer/{name}"])
    for name, parameter in engine.module.network.named_parameters():
        for kind in ("parameter", *(_MOMENTS if steps else ())):
            _set(engine, parameter, kind, tensors[f"{kind}/{name}"])
    _catch_up(engine.basic_optimizer, steps)


def _begin(engine: Any, steps: int) -> None:
    """Make the state that Adam makes itself in its first step, as after `steps` of them."""
    optimiser, stage = engine.basic_optimizer, engine.zero_optimization_stage()
    flat = engine.optimizer.fp32_partitioned_groups_flat if stage == 3 else _descended(optimiser)
    counter = steps if type(optimiser).__name__ == "DeepSpeedCPUAdam" else torch.tensor(float(steps))
    for tensor in flat if steps else ():
        step = counter.clone() if isinstance(counter, Tensor) else counter
        optimiser.state[tensor] = {"step": step, **{moment: torch.zeros_like(tensor) for moment in _MOMENTS}}
    _link(engine)


def _link(engine: Any) -> None:
    """Let ZeRO-1 and 2 find the moments of a parameter. They look once, in the first step, of the first group only."""
    if engine.zero_optimization_stage() not in (1, 2):
        return
    zero, state = engine.optimizer, engine.basic_optimizer.state
    for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        lazy_init_hp_params_optimizer_state(parameters, flat, state)


def _descended(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [tensor for group in optimiser.param_groups for tensor in group["params"]]


@torch.no_grad()
def _set(engine: Any, parameter: nn.Parameter, kind: str, whole: Tensor) -> None:
    """The opposite of `_get`."""
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
    if kind == "parameter":  # what is trained with, beside what Adam descends
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=stage == 3):
            parameter.data.copy_(whole)


def _part(parameter: Any, whole: Tensor) -> Tensor:
    """What ZeRO-3 gives this worker of a whole parameter: equal parts, the last ones filled up with zeros."""
    size = parameter.ds_tensor.ds_numel
    start = torch.distributed.get_rank() * size
    part = whole.flatten()[start : start + size]
    return torch.cat([part, part.new_zeros(size - len(part))])


def _catch_up(optimiser: Any, steps: int) -> None:
    """Take a new DeepSpeedCPUAdam through the steps that its state has behind it.

    It multiplies the powers of its betas up, step by step, and no checkpoint has them. Computed in one go, as it does
    in a new process, they differ in the last digit, and so does all that follows.
    """
    if type(optimiser).__name__ != "DeepSpeedCPUAdam":
        return
    nothing = [torch.zeros(1) for _ in range(4)]  # a parameter, its gradient, and their averages
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            told = (group[name] for name in ("eps", "weight_decay", "bias_correction"))
            optimiser.ds_opt_adam.adam_update(optimiser.opt_id, step, group["lr"], *group["betas"], *told, *nothing)
