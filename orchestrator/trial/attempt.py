"""How a trial trains, and how it goes on when memory runs out: the same batches, in smaller parts.

It starts with what `orchestrate plan` says (`footprint.choose`). From there micro-batches shrink, and at the smallest
every step is run again, then block by block. Where nothing is differentiated, half as many samples are drawn at a time.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from core.chain.gradient import KeepSteps
from core.methods import learned
from orchestrator.spec import Sweep
from orchestrator.trial.footprint import Case, choose
from orchestrator.trial.outcome import out_of_memory
from orchestrator.trial.settings import POLICIES

T = TypeVar("T")

# What takes less memory, where micro-batches cannot be smaller.
_THEN = {
    "full_graph": "checkpoint_steps",
    "keep_steps": "checkpoint_steps",
    "checkpoint_steps": "checkpoint_blocks",
    "deepspeed": "checkpoint_blocks",
}


class NothingFits(MemoryError):
    """Not even the smallest part fits: there is nothing left to try."""


@dataclass
class DrawBatch:
    """A sweep whose `sampler.batch` has come down to what fits."""

    sweep: Sweep
    retries: int = 0  # after running out of memory

    @property
    def batch(self) -> int:
        """Samples drawn at a time."""
        return self.sweep.sampler.batch

    def run(self, work: Callable[[Sweep], T]) -> T:
        """What `work` gives for the sweep, started over with half the batch until that fits; it stays so small.

        Raises NothingFits where one sample at a time is too much.
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

    def told(self) -> dict[str, str | int]:
        """For the record; nothing where memory has not run out."""
        return {"sampler_batch": self.batch, "out_of_memory_retries": self.retries} if self.retries else {}


@dataclass(frozen=True)
class Attempt:
    """Settings that change no result beyond rounding, only memory and time."""

    settings: learned.Settings  # with a micro-batch
    policy: str
    draw_batch: int
    retries: int = 0  # after running out of memory

    @classmethod
    def first(cls, case: Case, device: int) -> "Attempt":
        """What `choose` says for a device of so many bytes, as in a plan."""
        found = choose(case, device)
        settings = replace(case.settings, micro_batch=found.micro_batch, gradient=found.gradient)
        return cls(settings, found.policy, found.draw_batch)

    @classmethod
    def resumed(cls, settings: learned.Settings, kept: Mapping[str, Any]) -> "Attempt":
        """The attempt that `kept` came from, so that a trial goes on to the very same numbers."""
        gradient = POLICIES[kept["policy"]] if kept["memory"] is None else KeepSteps(kept["memory"])
        settings = replace(settings, micro_batch=kept["micro_batch"], gradient=gradient)
        return cls(settings, kept["policy"], kept["draw_batch"], kept["retries"])

    def kept(self) -> dict[str, Any]:
        """For a checkpoint."""
        memory = self.settings.gradient.memory if isinstance(self.settings.gradient, KeepSteps) else None
        parts = {"micro_batch": self.settings.micro_batch, "memory": memory, "draw_batch": self.draw_batch}
        return {"policy": self.policy, **parts, "retries": self.retries}

    def smaller(self, sizes: Sequence[int], training: bool) -> "Attempt":
        """Half as much at a time, of what was going on. Raises NothingFits where it cannot be less.

        sizes: the micro-batches that divide a worker's share; training: whether the gradient was being taken, or
        samples were drawn.
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
                gradient = KeepSteps(gradient.memory * half // size)  # as many steps, each so much smaller
            return replace(again, settings=replace(self.settings, micro_batch=half, gradient=gradient))
        policy = _THEN.get(self.policy)
        if policy is None:
            raise NothingFits(
                f"not even micro_batch {size} with policy {self.policy} fits: use a device with more memory, lower "
                "train.pool, or set train.precision: bf16"
            )
        return replace(again, settings=replace(self.settings, gradient=POLICIES[policy]), policy=policy)

    def after(self, measured: DrawBatch) -> "Attempt":
        """The attempt with as many samples drawn at a time as fitted while its directions were measured."""
        return replace(self, draw_batch=measured.batch, retries=self.retries + measured.retries)

    def applied(self, sweep: Sweep) -> Sweep:
        """The sweep with as many samples drawn at a time as this attempt says."""
        return with_batch(sweep, self.draw_batch)

    def told(self) -> dict[str, str | int]:
        """For the record."""
        return {
            "gradient": self.policy,
            "micro_batch": self.settings.micro_batch or self.settings.batch,
            "sampler_batch": self.draw_batch,
            "out_of_memory_retries": self.retries,
        }


def as_fits(draw: Callable[[int], T], batch: int) -> T:
    """What `draw` gives for so many samples at a time, or for half as many after every time that memory runs out."""
    while True:
        try:
            return draw(batch)
        except Exception as error:
            if batch == 1 or not out_of_memory(error):
                raise
        batch //= 2
        release()


def with_batch(sweep: Sweep, batch: int) -> Sweep:
    """The sweep with so many samples drawn at a time."""
    return sweep.model_copy(update={"sampler": sweep.sampler.model_copy(update={"batch": batch})})


def release() -> None:
    """Free what an attempt held. Only outside the `except` that caught its error, which holds on to all of it."""
    gc.collect()
    torch.cuda.empty_cache()
