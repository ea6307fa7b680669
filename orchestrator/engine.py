"""DeepSpeed: one engine for each network of a trial; initialise, step, save, load, close.

ZeRO partitions the state of the trained networks (shift control and reconstructor in one engine, discriminator in the
other) over the workers of a trial and can keep it on the CPU or on an NVMe disk. The frozen denoiser stays outside: it
has nothing to optimise.

A checkpoint holds what is trained and nothing of how it was partitioned, so that a trial goes on with any number of
workers and any ZeRO stage: <folder>/<engine> is a state file (orchestrator.statefile) of

    parameter/NAME                  what Adam descends
    exp_avg/NAME, exp_avg_sq/NAME   its moments, once a step was made
    buffer/NAME                     what a network measures as it goes

all in float32, and of the iteration and the number of steps that they belong to.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]  # its stub leaves it out

from core.errors import first_line
from core.gradient import Step
from core.optimiser import Group
from orchestrator import statefile
from orchestrator.spec.sections import DeepSpeed

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported

# ninja is installed beside this Python, which need not be on the user's path.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

import deepspeed  # noqa: E402  # after the accelerator is named
from deepspeed.accelerator import get_accelerator  # noqa: E402
from deepspeed.runtime.zero import parameter_offload  # noqa: E402
from deepspeed.utils import (  # noqa: E402
    groups,
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


class Losses(nn.Module):
    """A network as an engine calls it: the loss of a micro-batch, from whatever the network is called for meanwhile.

    An engine counts micro-batches, and ZeRO-3 puts parameters together, by the calls of its module.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, micro_losses: Iterator[Tensor]) -> Tensor:
        return next(micro_losses)


class EngineOptimiser:
    """A network under a DeepSpeed engine, as the learned method sees it (core.optimiser.Optimiser)."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def update(self, micro_losses: Iterable[Tensor]) -> None:
        """Back-propagate each micro-batch's mean loss; the engine divides by their number and steps after the last."""
        losses = iter(micro_losses)
        for _ in range(self.engine.gradient_accumulation_steps()):
            self.engine.backward(self.engine(losses))
            self.engine.step()


@dataclass(frozen=True)
class Snapshot:
    """The state of a trial's engines, whole, on the first worker; the other workers hold nothing of it."""

    iteration: int
    tensors: Mapping[str, dict[str, Tensor]]  # of each engine
    steps: Mapping[str, int]

    def write(self, folder: Path) -> None:
        """One sub-folder for each engine. It asks no other worker, so that it may be tried again."""
        for name, tensors in self.tensors.items():
            statefile.write(folder / name, tensors, {"iteration": self.iteration, "steps": self.steps[name]})


class Engines:
    """The engines of one trial. `make` is what `core.methods.learned.Learner` asks for an optimiser."""

    def __init__(self, settings: DeepSpeed, micro_batch: int) -> None:
        self.settings, self.micro_batch = settings, micro_batch
        self.engines: dict[str, Any] = {}
        _rendezvous()
        if "nvme" in (settings.offload_optimizer, settings.offload_param):
            _load("AsyncIOBuilder")

    def make(self, name: str, module: nn.Module, groups: list[Group], micro_batches: int) -> EngineOptimiser:
        config = {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": micro_batches,
            "gradient_clipping": self.settings.gradient_clipping or 0.0,
            "zero_optimization": self._zero(module),
            "zero_force_ds_cpu_optimizer": False,  # where no compiler is, torch's optimiser takes over
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": self.settings.precision == "bf16"},
            "steps_per_print": 1 << 30,
        }
        adam = _adam(groups, self.settings.offload_optimizer != "none")
        engine, *_ = deepspeed.initialize(model=Losses(module), optimizer=adam, config=config)
        self.engines[name] = engine
        return EngineOptimiser(engine)

    def _zero(self, module: nn.Module) -> dict[str, Any]:
        # One bucket holds every gradient. By default it has room for 500 million, which takes 2 GB.
        count = sum(parameter.numel() for parameter in module.parameters())
        zero: dict[str, Any] = {"stage": self.settings.zero, "reduce_bucket_size": count}
        if self.settings.zero == 3:
            zero["stage3_param_persistence_threshold"] = 0  # small parameters are partitioned like all others
            zero["memory_efficient_linear"] = False  # it would replace torch's for good, the denoiser's too
        for name, device in self._offloaded():
            zero[name] = {"device": device, "nvme_path": self.settings.nvme_path}
        if self.settings.offload_param == "nvme":
            zero["offload_param"]["buffer_size"] = count  # that of a parameter at the most; 400 MB by default
        return zero

    def _offloaded(self) -> Iterator[tuple[str, str]]:
        for name in ("offload_optimizer", "offload_param"):
            if (device := getattr(self.settings, name)) != "none":
                yield name, device

    def snapshot(self, iteration: int) -> Snapshot:
        """The engines' state, of which every worker has a part. Every worker calls it."""
        tensors = {name: _gathered(engine) for name, engine in self.engines.items()}
        return Snapshot(iteration, tensors, {name: _steps(engine) for name, engine in self.engines.items()})

    def save(self, folder: Path, iteration: int) -> None:
        """Write the engines' state and the iteration that it belongs to. Every worker calls it, the first writes."""
        snapshot = self.snapshot(iteration)
        if torch.distributed.get_rank() == 0:
            snapshot.write(folder)

    def load(self, folder: Path) -> int:
        """Restore what `save` wrote and return its iteration; every worker calls it.

        Raises EngineError where anything is missing or is not what this trial trains.
        """
        iterations = set()
        for name, engine in self.engines.items():
            if not (folder / name).is_dir():
                raise EngineError(f"checkpoint {folder} holds no state of the engine '{name}'")
            try:
                tensors, facts = statefile.read(folder / name)
                iteration, steps = _whole(facts, "iteration"), _whole(facts, "steps")
                _check(tensors, engine.module.network, steps)
            except (statefile.StateFileError, ValueError) as error:
                raise EngineError(f"checkpoint {folder} is no state of '{name}': {first_line(error)}") from error
            _restore(engine, tensors, steps)
            iterations.add(iteration)
        if len(iterations) != 1:
            raise EngineError(f"checkpoint {folder} mixes iterations {sorted(iterations)}")
        return iterations.pop()

    def close(self) -> None:
        for engine in self.engines.values():
            engine.destroy()
        self.engines.clear()
        parameter_offload.FWD_MODULE_STACK.clear()  # ZeRO-3 would keep the networks of every trial of this process


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


def checkpoint(step: Step, i: int, x: Tensor) -> Tensor:
    """step(i, x) by DeepSpeed's checkpointing: a GPU's x waits in the CPU's memory for the step to run again."""
    _rendezvous()
    if not deepspeed.checkpointing.is_configured():
        # On a CPU there is nowhere to move x, and DeepSpeed would lose it.
        deepspeed.checkpointing.configure(None, checkpoint_in_cpu=torch.cuda.is_available())
    x_prev: Tensor = deepspeed.checkpointing.non_reentrant_checkpoint(step, i, x)
    return x_prev


def compiler_missing() -> str | None:
    """Why DeepSpeed's own optimiser cannot be built here, in one sentence; None where it can."""
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if not missing:
        return None
    return f"{' and '.join(missing)} not found: DeepSpeed's compiled Adam is replaced by torch's (slower offload)"


def missing(settings: DeepSpeed) -> str | None:
    """Why these settings cannot work on this machine, in one sentence; None where they can."""
    if "nvme" not in (settings.offload_optimizer, settings.offload_param):
        return None
    if compiler_missing() or not deepspeed.ops.__compatible_ops__.get("async_io", False):
        needed = "g++, ninja and libaio's headers (package libaio-dev)"
        return f"deepspeed: offloading to nvme needs {needed}, which are not all here"
    if not os.access(str(settings.nvme_path), os.W_OK | os.X_OK):
        return f"deepspeed.nvme_path: {settings.nvme_path} is not a folder that can be written to"
    return None


def build_ops() -> None:
    """Compile the operator that trials use, Adam on the CPU, so that no trial waits for it."""
    if compiler_missing() is None:
        _load("CPUAdamBuilder")


def _load(builder: str) -> None:
    """Compile an operator where that was not done before; DeepSpeed has it from then on."""
    with _operators():
        get_accelerator().create_op_builder(builder).load(verbose=False)


@contextmanager
def _operators() -> Iterator[None]:
    """The folder of compiled operators, to one process at a time.

    torch guards a build by a file that a killed process leaves behind, for which every later one waits for ever. Here
    the kernel guards the folder; whoever has it knows that torch's guards in it are nobody's.
    """
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(_operators_folder())))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "in_use", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in folder.glob("**/lock"):
            left.unlink(missing_ok=True)
        yield


def _operators_folder() -> Path:
    """A folder of our own for this torch, processor and environment.

    Operators are compiled for the very processor, and again by every environment that finds another one's.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    try:
        processor = next(line for line in open("/proc/cpuinfo") if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    kind = hashlib.sha256(f"{processor}{sys.prefix}".encode()).hexdigest()[:8]
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return Path(cache) / "h-space-orchestrator" / f"torch-{torch.__version__}-{python}-{platform.machine()}-{kind}"


def _adam(groups: list[Group], offload: bool) -> torch.optim.Optimizer:
    parameters = [{"params": group.parameters, "lr": group.rate, "betas": group.betas} for group in groups]
    if offload and compiler_missing() is None:
        with _operators():
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            optimiser: torch.optim.Optimizer = DeepSpeedCPUAdam(parameters, adamw_mode=False)
        return optimiser
    return torch.optim.Adam(parameters)


def _rendezvous() -> None:
    """Bring DeepSpeed to the process group of this trial: Ray Train's, or this process alone.

    Alone DeepSpeed would open a port, to every machine around, for others to meet it at; here nobody comes.
    """
    # Collectives through shared memory want a compiler and spin while they wait.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        os.environ.update(alone)  # without all five DeepSpeed looks for MPI
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    _forget_former_group()
    deepspeed.init_distributed(verbose=False)


def _forget_former_group() -> None:
    """Let go of a process group that was destroyed between two trials of this process; DeepSpeed keeps a copy."""
    clone = groups._WORLD_GROUP
    if clone is not None and clone not in torch.distributed.distributed_c10d._world.pg_map:
        groups._release_process_group_references()
        deepspeed.comm.comm.cdb = None
