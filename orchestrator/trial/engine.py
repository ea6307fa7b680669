"""DeepSpeed: one engine for each network of a trial; initialise, step, save, load, close.

ZeRO partitions the state of the trained networks (shift control and reconstructor in one engine, discriminator in the
other) over the workers of a trial and can keep it on the CPU or on an NVMe disk. The frozen denoiser stays outside: it
has nothing to optimise.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]  # its stub leaves it out

from core.chain.gradient import Step
from core.methods.learned.optimiser import Group
from orchestrator.spec.sections import DeepSpeed
from orchestrator.trial import operators
from orchestrator.trial.engine_state import EngineError, Snapshot, load, snapshot

# isort: split
import deepspeed
from deepspeed.runtime.zero import parameter_offload
from deepspeed.utils import groups

__all__ = ["EngineError", "EngineOptimiser", "Engines", "checkpoint"]


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
    """A network under a DeepSpeed engine, as the learned method sees it (core.methods.learned.optimiser.Optimiser)."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def update(self, micro_losses: Iterable[Tensor]) -> None:
        """Back-propagate each micro-batch's mean loss; the engine divides by their number and steps after the last."""
        losses = iter(micro_losses)
        for _ in range(self.engine.gradient_accumulation_steps()):
            self.engine.backward(self.engine(losses))
            self.engine.step()


class Engines:
    """The engines of one trial. `make` is what `core.methods.learned.training.Learner` asks for an optimiser."""

    def __init__(self, settings: DeepSpeed, micro_batch: int) -> None:
        self.settings, self.micro_batch = settings, micro_batch
        self.engines: dict[str, Any] = {}
        _rendezvous()
        if "nvme" in (settings.offload_optimizer, settings.offload_param):
            operators.load("AsyncIOBuilder")

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
        """The state of all engines, and the iteration that it belongs to. Every worker calls it, the first has it."""
        return snapshot(self.engines, iteration)

    def load(self, folder: Path) -> int:
        """Restore what a snapshot wrote and return its iteration; every worker calls it. Raises EngineError."""
        return load(self.engines, folder)

    def close(self) -> None:
        for engine in self.engines.values():
            engine.destroy()
        self.engines.clear()
        parameter_offload.FWD_MODULE_STACK.clear()  # ZeRO-3 would keep the networks of every trial of this process


def checkpoint(step: Step, i: int, x: Tensor) -> Tensor:
    """step(i, x) by DeepSpeed's checkpointing: a GPU's x waits in the CPU's memory for the step to run again."""
    _rendezvous()
    if not deepspeed.checkpointing.is_configured():
        # On a CPU there is nowhere to move x, and DeepSpeed would lose it.
        deepspeed.checkpointing.configure(None, checkpoint_in_cpu=torch.cuda.is_available())
    x_prev: Tensor = deepspeed.checkpointing.non_reentrant_checkpoint(step, i, x)
    return x_prev


def _adam(groups: list[Group], offload: bool) -> torch.optim.Optimizer:
    parameters = [{"params": group.parameters, "lr": group.rate, "betas": group.betas} for group in groups]
    if offload and operators.compiler_missing() is None:
        with operators.guarded():
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
