"""DeepSpeed: one engine for each network of a trial; initialise, step, save, load, close.

ZeRO partitions the state of the trained networks (shift control and reconstructor in one engine, discriminator in the
other) and can keep their optimiser on the CPU. The frozen denoiser stays outside: it has nothing to optimise.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.optimiser import Group
from orchestrator.spec.sections import DeepSpeed

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported

# ninja is installed beside this Python, which need not be on the user's path.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

import deepspeed  # noqa: E402  # after the accelerator is named
from deepspeed.accelerator import get_accelerator  # noqa: E402

_TAG = "state"


class EngineError(RuntimeError):
    """A checkpoint of an engine that cannot be read. Never answered by a silent fresh start."""


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
            engine.save_checkpoint(str(folder / name), tag=_TAG, client_state={"iteration": iteration})

    def load(self, folder: Path) -> int:
        """Restore what `save` wrote and return its iteration. Raises EngineError where anything is missing."""
        iterations = set()
        for name, engine in self.engines.items():
            if not (folder / name / _TAG).is_dir():
                raise EngineError(f"checkpoint {folder} holds no state of the engine '{name}'")
            _, state = engine.load_checkpoint(str(folder / name), tag=_TAG)
            iterations.add(int(state["iteration"]))
        if len(iterations) != 1:
            raise EngineError(f"checkpoint {folder} mixes iterations {sorted(iterations)}")
        return iterations.pop()

    def close(self) -> None:
        for engine in self.engines.values():
            engine.destroy()
        self.engines.clear()


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

    Without all five variables DeepSpeed looks for MPI; with its default port two trials on a node collide.
    """
    if torch.distributed.is_initialized():
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(alone)
    # Collectives through shared memory want a compiler and spin while they wait; one process has nobody to wait for.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
