"""Choose how a trial trains, and continue after memory ran out: with the same batches, in smaller parts.

The first attempt uses the settings that `orchestrate plan` shows (`orchestrator.trial.memory.choose`). After each
out-of-memory error the micro-batch shrinks. At the smallest micro-batch every step is run again, then every block.
Where memory ran out while samples were drawn, without a gradient, half as many samples are drawn at a time.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from core.chain.gradient import KeepSteps
from core.methods.trained.training_settings import TrainingSettings
from orchestrator.spec import Sweep
from orchestrator.trial.memory import Case, choose
from orchestrator.trial.outcome import out_of_memory
from orchestrator.trial.settings import POLICIES

T = TypeVar("T")

# policy -> the policy that takes less memory, used where the micro-batch cannot shrink further
_SMALLER_POLICY = {
    "full_graph": "checkpoint_steps",
    "keep_steps": "checkpoint_steps",
    "checkpoint_steps": "checkpoint_blocks",
    "deepspeed": "checkpoint_blocks",
}


class NothingFits(MemoryError):
    """The error that not even the smallest part fits in memory: no smaller setting is left to try."""


@dataclass
class DrawBatch:
    """A sweep whose `sampler.batch` has been reduced to what fits in memory."""

    sweep: Sweep
    retries: int = 0  # after running out of memory

    @property
    def batch(self) -> int:
        """The number of samples drawn at a time."""
        return self.sweep.sampler.batch

    def run(self, work: Callable[[Sweep], T]) -> T:
        """Return `work(sweep)`, started over with half the batch until that fits. The reduced batch is kept.

        Raises NothingFits where one sample at a time does not fit.
        """
        while True:
            try:
                return work(self.sweep)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if self.batch == 1:
                    raise NothingFits(
                        "not even one sample at a time (sampler.batch 1) fits: use a device with more memory, give "
                        "each trial more of it, or set train.precision: bf16"
                    ) from error
            self.sweep, self.retries = with_batch(self.sweep, self.batch // 2), self.retries + 1
            release()

    def as_tags(self) -> dict[str, str | int]:
        """Return the batch and the number of retries, for the report; an empty dict where memory has not run out."""
        return {"sampler_batch": self.batch, "out_of_memory_retries": self.retries} if self.retries else {}


@dataclass(frozen=True)
class Attempt:
    """The settings of an attempt that change memory and time, and results only by rounding."""

    settings: TrainingSettings  # with a micro-batch
    policy: str
    draw_batch: int
    retries: int = 0  # after running out of memory

    @classmethod
    def first(cls, case: Case, device: int) -> "Attempt":
        """Return the attempt that `choose` picks for a device of `device` bytes, as `orchestrate plan` does."""
        footprint = choose(case, device)
        settings = replace(case.settings, micro_batch=footprint.micro_batch, gradient=footprint.gradient)
        return cls(settings, footprint.policy, footprint.draw_batch)

    @classmethod
    def resumed(cls, settings: TrainingSettings, kept: Mapping[str, Any]) -> "Attempt":
        """Return the attempt whose `kept()` is `kept`, so that a trial continues to exactly the same numbers."""
        gradient = POLICIES[kept["policy"]] if kept["memory"] is None else KeepSteps(kept["memory"])
        settings = replace(settings, micro_batch=kept["micro_batch"], gradient=gradient)
        return cls(settings, kept["policy"], kept["draw_batch"], kept["retries"])

    def kept(self) -> dict[str, Any]:
        """Return the attempt as plain values for a checkpoint."""
        memory = self.settings.gradient.memory if isinstance(self.settings.gradient, KeepSteps) else None
        parts = {"micro_batch": self.settings.micro_batch, "memory": memory, "draw_batch": self.draw_batch}
        return {"policy": self.policy, **parts, "retries": self.retries}

    def smaller(self, sizes: Sequence[int], training: bool) -> "Attempt":
        """Return an attempt that takes half as much at a time. Raises NothingFits where nothing smaller is left.

        sizes: the micro-batches that divide a worker's share of the batch; training: whether memory ran out while the
        gradient was computed, and not while samples were drawn.
        """
        again = replace(self, retries=self.retries + 1)
        if not training:
            if self.draw_batch == 1:
                raise NothingFits("not even one sample fits: use a device with more memory, or lower train.pool")
            return replace(again, draw_batch=self.draw_batch // 2)
        size, gradient = self.settings.micro_batch or self.settings.batch, self.settings.gradient
        half = max((other for other in sizes if other <= size // 2), default=None)
        if half is not None:
            if isinstance(gradient, KeepSteps) and gradient.memory != "auto":
                gradient = KeepSteps(gradient.memory * half // size)  # as many steps, since each shrinks alike
            return replace(again, settings=replace(self.settings, micro_batch=half, gradient=gradient))
        policy = _SMALLER_POLICY.get(self.policy)
        if policy is None:
            raise NothingFits(
                f"not even micro_batch {size} with policy {self.policy} fits: use a device with more memory, lower "
                "train.pool, or set train.precision: bf16"
            )
        return replace(again, settings=replace(self.settings, gradient=POLICIES[policy]), policy=policy)

    def after(self, measured: DrawBatch) -> "Attempt":
        """Return the attempt with the draw batch that fitted while its directions were measured; add those retries."""
        return replace(self, draw_batch=measured.batch, retries=self.retries + measured.retries)

    def applied(self, sweep: Sweep) -> Sweep:
        """Return the sweep with this attempt's `draw_batch` as `sampler.batch`."""
        return with_batch(sweep, self.draw_batch)

    def as_tags(self) -> dict[str, str | int]:
        """Return the policy, batch sizes and number of retries, for the report."""
        return {
            "gradient": self.policy,
            "micro_batch": self.settings.micro_batch or self.settings.batch,
            "sampler_batch": self.draw_batch,
            "out_of_memory_retries": self.retries,
        }


def halving_batch(draw: Callable[[int], T], batch: int) -> T:
    """Return `draw(batch)`, or `draw` of half the batch after every time that memory runs out."""
    while True:
        try:
            return draw(batch)
        except Exception as error:
            if batch == 1 or not out_of_memory(error):
                raise
        batch //= 2
        release()


def with_batch(sweep: Sweep, batch: int) -> Sweep:
    """Return the sweep with `sampler.batch` set to `batch`."""
    return sweep.model_copy(update={"sampler": sweep.sampler.model_copy(update={"batch": batch})})


def release() -> None:
    """Free the memory of an attempt. Call it outside the `except` clause, whose error refers to that memory."""
    gc.collect()
    torch.cuda.empty_cache()
