"""How a trial trains, and how it goes on when memory runs out: the same batches, in smaller parts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.gradient import CheckpointBlocks, KeepSteps
from core.methods import learned
from orchestrator.footprint import Case, choose
from orchestrator.spec import Sweep


@dataclass(frozen=True)
class Attempt:
    """Settings that change no result beyond rounding, only memory and time."""

    settings: learned.Settings  # with a micro-batch
    policy: str
    draw_batch: int
    retries: int = 0  # after running out of memory

    @classmethod
    def first(cls, case: Case, device: int) -> "Attempt":
        """What `choose` says for a device of so many bytes, counted only where the file leaves a choice."""
        sweep, settings = case.sweep, case.settings
        if sweep.gradient.policy not in ("auto", "keep_steps") and sweep.train.micro_batch:
            return cls(settings, sweep.gradient.policy, sweep.sampler.batch)
        found = choose(case, device)
        settings = replace(settings, micro_batch=found.micro_batch, gradient=found.gradient)
        return cls(settings, found.policy, found.draw_batch)

    def smaller(self, sizes: Sequence[int], training: bool) -> "Attempt":
        """Half as much at a time, of what was going on. Raises MemoryError where it cannot be less.

        sizes: the micro-batches that divide a worker's share; training: whether the gradient was being taken, or
        samples were drawn.
        """
        again = replace(self, retries=self.retries + 1)
        if not training:
            if self.draw_batch == 1:
                raise MemoryError("not even one sample fits: use a device with more memory, or lower train.pool")
            return replace(again, draw_batch=self.draw_batch // 2)
        size, gradient = self.settings.micro_batch or self.settings.batch, self.settings.gradient
        half = max((other for other in sizes if other <= size // 2), default=None)
        if half is not None:
            if isinstance(gradient, KeepSteps) and gradient.memory != "auto":
                gradient = KeepSteps(gradient.memory // 2)  # as many steps, of half the size
            return replace(again, settings=replace(self.settings, micro_batch=half, gradient=gradient))
        if self.policy == "checkpoint_blocks":
            raise MemoryError(
                f"not even micro_batch {size} with policy checkpoint_blocks fits: use a device with more memory, lower "
                "train.pool, or set train.precision: bf16"
            )
        settings = replace(self.settings, gradient=CheckpointBlocks())
        return replace(again, settings=settings, policy="checkpoint_blocks")

    def applied(self, sweep: Sweep) -> Sweep:
        """The sweep with as many samples drawn at a time as this attempt says."""
        sampler = sweep.sampler.model_copy(update={"batch": self.draw_batch})
        return sweep.model_copy(update={"sampler": sampler})

    def told(self) -> dict[str, str | int]:
        """For the record."""
        return {
            "gradient": self.policy,
            "micro_batch": self.settings.micro_batch or self.settings.batch,
            "sampler_batch": self.draw_batch,
            "out_of_memory_retries": self.retries,
        }
