"""Train the networks of a trial with DeepSpeed, one engine for each network: initialise, step, save, load, close.

ZeRO partitions the state of the trained networks (shift control and reconstructor in one engine, discriminator in the
other) over the workers of a trial and can keep it on the CPU or on an NVMe disk. The frozen denoiser stays outside: it
has nothing to optimise.
"""

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]  # its stub leaves it out

from core.chain.gradient import Step
from core.methods.trained.optimiser import Group
from orchestrator.spec.sections import DeepSpeed
from orchestrator.trial import operators
from orchestrator.trial.engine_state import EngineError, Snapshot, load, snapshot

# isort: split
import deepspeed
from deepspeed.runtime.zero import parameter_offload
from deepspeed.utils import groups

__all__ = ["EngineError", "EngineOptimiser", "Engines", "checkpoint"]


class Losses(nn.Module):
    """The module that an engine calls in place of its network: it returns the loss of the next micro-batch.

    Computing that loss may call the network any number of times. An engine counts micro-batches, and ZeRO-3 gathers
    parameters, by the calls of its module.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, micro_losses: Iterator[Tensor]) -> Tensor:
        """Return the next loss of `micro_losses`."""
        return next(micro_losses)


class EngineOptimiser:
    """A network under a DeepSpeed engine, as an optimiser of a method that trains (core.methods.trained.optimiser)."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def update(self, micro_losses: Iterable[Tensor]) -> None:
        """Back-propagate each micro-batch's mean loss; the engine divides by their number and steps after the last."""
        losses = iter(micro_losses)
        for _ in range(self.engine.gradient_accumulation_steps()):
            self.engine.backward(self.engine(losses))
            self.engine.step()


class Engines:
    """The engines of one trial. `make` creates the optimisers of a `ChainLearner`."""

    def __init__(self, settings: DeepSpeed, micro_batch: int) -> None:
        self.settings, self.micro_batch = settings, micro_batch
        self.engines: dict[str, Any] = {}
        _rendezvous()
        if "nvme" in (settings.offload_optimizer, settings.offload_param):
            operators.load("AsyncIOBuilder")

    def make(self, name: str, module: nn.Module, groups: list[Group], micro_batches: int) -> EngineOptimiser:
        """Return the optimiser of `module`, a new engine named `name`. It steps after `micro_batches` micro-batches."""
        config = {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": micro_batches,
            "gradient_clipping": self.settings.gradient_clipping or 0.0,
            "zero_optimization": self._zero(module),
            "zero_force_ds_cpu_optimizer": False,  # without a compiler torch's optimiser is used
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
            zero["memory_efficient_linear"] = False  # True would replace torch's linear for good, in the denoiser too
        for name, device in self._offloaded():
            zero[name] = {"device": device, "nvme_path": self.settings.nvme_path}
        if self.settings.offload_param == "nvme":
            zero["offload_param"]["buffer_size"] = count  # no parameter is larger; 400 MB by default
        return zero

    def _offloaded(self) -> Iterator[tuple[str, str]]:
        for name in ("offload_optimizer", "offload_param"):
            if (device := getattr(self.settings, name)) != "none":
                yield name, device

    def snapshot(self, iteration: int) -> Snapshot:
        """Return the state of all engines at `iteration`. Every worker has to call this; only the first gets it."""
        return snapshot(self.engines, iteration)

    def load(self, folder: Path) -> int:
        """Restore the state that a snapshot wrote and return its iteration. Every worker has to call this.

        Raises EngineError where the state cannot be read or does not fit.
        """
        return load(self.engines, folder)

    def close(self) -> None:
        """Destroy all engines, so that the next trial of this process can make its own."""
        for engine in self.engines.values():
            engine.destroy()
        self.engines.clear()
        parameter_offload.FWD_MODULE_STACK.clear()  # otherwise ZeRO-3 keeps the networks of every trial of this process


def checkpoint(step: Step, i: int, x: Tensor) -> Tensor:
    """Return step(i, x) by DeepSpeed's checkpointing: a GPU's x stays in the CPU's memory until the step runs again."""
    _rendezvous()
    if not deepspeed.checkpointing.is_configured():
        # On a CPU there is nowhere to move x, and DeepSpeed would lose it.
        deepspeed.checkpointing.configure(None, checkpoint_in_cpu=torch.cuda.is_available())
    x_prev: Tensor = deepspeed.checkpointing.non_reentrant_checkpoint(step, i, x)
    return x_prev


def _adam(groups: list[Group], offload: bool) -> torch.optim.Optimizer:
    parameters = [{"params": group.parameters, "lr": group.rate, "betas": group.betas} for group in groups]
    if offload and operators.adam_problem() is None:
        with operators.build_lock():
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            _remember_the_processor()
            optimiser: torch.optim.Optimizer = DeepSpeedCPUAdam(parameters, adamw_mode=False)
        return optimiser
    return torch.optim.Adam(parameters)


def _remember_the_processor() -> None:
    """Let cpuinfo ask what the processor is once. It takes a second, and DeepSpeed asks for every Adam."""
    # Imported here, because that starts processes.
    import cpuinfo  # type: ignore[import-untyped]  # it has no types

    if not hasattr(cpuinfo.get_cpu_info, "cache_info"):
        cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)


def _rendezvous() -> None:
    """Connect DeepSpeed to the process group of this trial: Ray Train's, or a new one of this process alone.

    Left to itself, DeepSpeed would open a port to the whole network for other processes. A process alone needs none.
    """
    # Collectives through shared memory need a compiler, and busy-wait.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        os.environ.update(alone)  # without all five DeepSpeed looks for MPI
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    _forget_former_group()
    deepspeed.init_distributed(verbose=False)


def _forget_former_group() -> None:
    """Remove DeepSpeed's copy of a process group that was destroyed between two trials of this process."""
    clone = groups._WORLD_GROUP
    if clone is not None and clone not in torch.distributed.distributed_c10d._world.pg_map:
        groups._release_process_group_references()
        deepspeed.comm.comm.cdb = None
