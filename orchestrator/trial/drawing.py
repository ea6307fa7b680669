"""Samples drawn where nothing is differentiated: half as many at a time after every time that memory runs out."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from orchestrator.spec import Sweep
from orchestrator.trial.outcome import out_of_memory

T = TypeVar("T")


class NothingFits(MemoryError):
    """Not even the smallest part fits: there is nothing left to try."""


@dataclass
class Drawing:
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
