"""DeepSpeed: one engine for each network of a trial; initialise, step, save, load, close.

ZeRO partitions the state of the trained networks (shift control and reconstructor in one engine, discriminator in the
other) and can keep their optimiser on the CPU. The frozen denoiser stays outside: it has nothing to optimise.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]  # its stub leaves it out

from core.errors import first_line
from core.optimiser import Group
from orchestrator import statefile
from orchestrator.spec.sections import DeepSpeed

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported

# ninja is installed beside this Python, which need not be on the user's path.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

import deepspeed  # noqa: E402  # after the accelerator is named
from deepspeed.accelerator import get_accelerator  # noqa: E402
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine  # noqa: E402

_TAG = "state"


class EngineError(RuntimeError):
    """A checkpoint of an engine that cannot be read or written. Never answered by a silent fresh start."""


class StateFiles(CheckpointEngine):  # type: ignore[misc]  # DeepSpeed has no types
    """How an engine's state comes to disk and back: as state files (orchestrator.statefile) instead of pickles.

    DeepSpeed names its files itself, *_states.pt, and looks for those names; a state file is a folder of that name.
    """

    def create(self, info: Any) -> None:
        """Nothing to prepare."""

    def commit(self, info: Any) -> bool:
        """Every file is written when `save` returns."""
        return True

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        try:
            statefile.write(_needed(state_dict), Path(path))
        except statefile.StateFileError as error:
            raise EngineError(f"a checkpoint could not be written to {path}: {error}") from error

    def load(self, path: str, map_location: Any = None) -> Any:
        """On the CPU, from where DeepSpeed copies to wherever its own tensors are."""
        try:
            return statefile.read(Path(path))
        except statefile.StateFileError as error:
            raise EngineError(str(error)) from error


class EngineOptimiser:
    """A module under a DeepSpeed engine, as the learned method sees it (core.optimiser.Optimiser)."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def update(self, micro_losses: Iterable[Tensor]) -> None:
        """Back-propagate each micro-batch's mean loss; the engine divides by their number and steps after the last."""
        for loss in micro_losses:
            self.engine.backward(loss)
            self.engine.step()


class Engines:
    """The engines of one trial. `make` is what `core.methods.learned.Learner` asks for an optimiser."""

    def __init__(self, settings: DeepSpeed, micro_batch: int) -> None:
        self.settings, self.micro_batch = settings, micro_batch
        self.engines: dict[str, Any] = {}
        _single_process_rendezvous()

    def make(self, name: str, module: nn.Module, groups: list[Group], micro_batches: int) -> EngineOptimiser:
        offload = self.settings.offload_optimizer == "cpu"
        config = {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": micro_batches,
            "zero_optimization": self._zero(module),
            "zero_force_ds_cpu_optimizer": False,  # where no compiler is, torch's optimiser takes over
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": self.settings.precision == "bf16"},
            "steps_per_print": 1 << 30,
        }
        engine, *_ = deepspeed.initialize(model=module, optimizer=_adam(groups, offload), config=config)
        engine.checkpoint_engine = StateFiles()
        self.engines[name] = engine
        return EngineOptimiser(engine)

    def _zero(self, module: nn.Module) -> dict[str, Any]:
        # One bucket holds every gradient. By default it has room for 500 million, which takes 2 GB.
        count = sum(parameter.numel() for parameter in module.parameters())
        zero = {"stage": self.settings.zero, "reduce_bucket_size": count}
        return {**zero, "offload_optimizer": {"device": "cpu"}} if self.settings.offload_optimizer == "cpu" else zero

    def save(self, folder: Path, iteration: int) -> None:
        """Weights, optimisers and the iteration they belong to, one sub-folder an engine. Every rank calls it."""
        for name, engine in self.engines.items():
            state = {"iteration": iteration}
            engine.save_checkpoint(str(folder / name), tag=_TAG, client_state=state, save_latest=False)
            for program in (folder / name).glob("*.py"):  # DeepSpeed adds programs that read pickles
                program.unlink(missing_ok=True)

    def load(self, folder: Path) -> int:
        """Restore what `save` wrote and return its iteration. Raises EngineError where anything is missing."""
        iterations = set()
        for name, engine in self.engines.items():
            if not (folder / name / _TAG).is_dir():
                raise EngineError(f"checkpoint {folder} holds no state of the engine '{name}'")
            try:
                _, state = engine.load_checkpoint(str(folder / name), tag=_TAG)
                iterations.add(int(state["iteration"]))
                _catch_up(engine.basic_optimizer)
            except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:  # a file is missing
                raise EngineError(f"checkpoint {folder} is no state of '{name}': {first_line(error)}") from error
        if len(iterations) != 1:
            raise EngineError(f"checkpoint {folder} mixes iterations {sorted(iterations)}")
        return iterations.pop()

    def close(self) -> None:
        for engine in self.engines.values():
            engine.destroy()
        self.engines.clear()


def _catch_up(optimiser: Any) -> None:
    """Take a new DeepSpeedCPUAdam through the steps that its state has behind it.

    It multiplies the powers of its betas up, step by step, and no checkpoint has them. Computed in one go, as it does
    in a new process, they differ in the last digit, and so does all that follows.
    """
    if type(optimiser).__name__ != "DeepSpeedCPUAdam":
        return
    steps = max((int(state["step"]) for state in optimiser.state.values() if "step" in state), default=0)
    nothing = [torch.zeros(1) for _ in range(4)]  # a parameter, its gradient, and their averages
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            told = (group[name] for name in ("eps", "weight_decay", "bias_correction"))
            optimiser.ds_opt_adam.adam_update(optimiser.opt_id, step, group["lr"], *group["betas"], *told, *nothing)


def _needed(state: dict[str, Any]) -> dict[str, Any]:
    """The state that DeepSpeed's own reading asks for, without what it puts beside that as objects.

    loss_scaler           scales the loss for fp16 alone. For fp32 and bf16 it is the constant 1 of a new engine.
    param_slice_mappings  where each parameter lies in the flat group; a new engine works that out from its
                          parameters. Only DeepSpeed's conversion to other numbers of processes reads it.
    zero_stage            which programs outside DeepSpeed's engine ask for; a new engine has it from its settings.
    """
    optimiser = state.get("optimizer_state_dict")
    if optimiser is None:
        return state
    scaler = optimiser.get("loss_scaler")
    if scaler is not None and (scaler.dynamic or scaler.cur_scale != 1):
        raise EngineError("a loss is scaled, which no checkpoint would tell")
    left_out = {"loss_scaler", "param_slice_mappings", "zero_stage"}
    return {**state, "optimizer_state_dict": {key: item for key, item in optimiser.items() if key not in left_out}}


def compiler_missing() -> str | None:
    """Why DeepSpeed's own optimiser cannot be built here, in one sentence; None where it can."""
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if not missing:
        return None
    return f"{' and '.join(missing)} not found: DeepSpeed's compiled Adam is replaced by torch's (slower offload)"


def build_ops() -> None:
    """Compile the operator that trials use, Adam on the CPU, so that no trial waits for it."""
    if compiler_missing() is None:
        with _operators():
            get_accelerator().create_op_builder("CPUAdamBuilder").load(verbose=False)


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
    """A folder of our own for this torch, Python and processor: operators are compiled for the very processor."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    try:
        processor = next(line for line in open("/proc/cpuinfo") if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    kind = hashlib.sha256(processor.encode()).hexdigest()[:8]
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


def _single_process_rendezvous() -> None:
    """Tell torch.distributed that this process is the whole world, unless Ray Train has set one up already.

    DeepSpeed would open a port, to every machine around, for others to meet it at; here nobody comes.
    """
    if torch.distributed.is_initialized():
        return
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.update(alone)  # without all five DeepSpeed looks for MPI
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    # Collectives through shared memory want a compiler and spin while they wait; one process has nobody to wait for.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
