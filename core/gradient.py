"""How a chain keeps memory down while it is differentiated, as values.

A policy runs the T steps of a chain. All of them give the same samples and the same gradients; they differ in what they
keep. With A the bytes one step's graph holds and X the bytes of one x_t:

    policy              memory        work, in UNet passes a step
    FullGraph()         T A           1 forward + 1 backward
    CheckpointSteps()   T X + A       2 forward + 1 backward
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.utils.checkpoint import checkpoint

Step = Callable[[int, Tensor], Tensor]  # (step index, x_t) -> x_prev


class GradientPolicy(Protocol):
    """Runs `steps` steps from `x`, so that gradients can flow back through all of them."""

    def run(self, step: Step, x: Tensor, steps: int) -> Tensor: ...


@dataclass(frozen=True)
class FullGraph:
    """Keep every step's graph: fastest, memory T A. Also the right choice where nothing is differentiated."""

    def run(self, step: Step, x: Tensor, steps: int) -> Tensor:
        for i in range(steps):
            x = step(i, x)
        return x


@dataclass(frozen=True)
class CheckpointSteps:
    """Keep only x_t and run each step again on the way back: memory T X + A, one more forward a step.

    The idea of Zhang et al. (arXiv 2310.09912): any gradient through the whole generative process, in nearly the
    memory of a single step.
    """

    def run(self, step: Step, x: Tensor, steps: int) -> Tensor:
        for i in range(steps):
            # The chain draws no random numbers (its noise is given), so there is no generator state to keep.
            x = checkpoint(step, i, x, use_reentrant=False, preserve_rng_state=False)
        return x
