"""Gradient policies: how a chain limits its memory while it is differentiated, and how much memory that takes.

All policies give the same samples and the same gradients. They differ in how many of the T steps keep their graph for
the backward pass; the other steps keep x_t and are run again. With A the bytes of one step's graph, X those of one x_t
and k the number of kept steps:

    policy               memory            work, in forward passes run again
    FullGraph()          T A               none
    KeepSteps(memory)    T X + k A         T - k
    CheckpointSteps()    T X + A           T - 1
    CheckpointBlocks()   T X + less than A 2 T: each step once, and each of its blocks once more

The kept steps are the last ones: the backward pass frees their graphs before it runs the first step again. Keeping one
step costs nothing, since its memory is needed in any case. Storing fewer than all x_t (Griewank and Walther's Revolve)
would save too little: a step's graph is 90 (toyfaces) to 1,200 times (256x256 images) as large as its x_t.
`predict` returns how much memory a training step takes without running it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from core.chain.schedule import Schedule
from core.chain.step import Injection
from core.chain.step_memory import StepCost, chain_costs
from core.errors import UserError
from core.model.denoiser import Denoiser

Step = Callable[[int, Tensor], Tensor]  # (step index, x_t) -> x_prev
Costs = Callable[[], Sequence[StepCost]]  # () -> the cost of each step; called only by policies that need it


class GradientPolicy(Protocol):
    """The choice of the steps that keep their graph, and how the others are run again.

    by_blocks: whether a step that is run again also keeps only the inputs of its blocks, and runs them again.
    """

    by_blocks: ClassVar[bool] = False

    def kept_steps(self, costs: Costs, steps: int, device: torch.device) -> int:
        """Return how many of the last steps keep their graph, for a chain of `steps` steps on `device`."""

    def checkpoint(self, step: Step, i: int, x: Tensor) -> Tensor:
        """Return step(i, x), keeping only x; the step runs again in the backward pass."""
        # The chain draws no random numbers (its noise is given), so there is no generator state to keep.
        x_prev: Tensor = checkpoint(step, i, x, use_reentrant=False, preserve_rng_state=False)
        return x_prev


@dataclass(frozen=True)
class FullGraph(GradientPolicy):
    """The policy that keeps every step's graph: fastest, memory T A. Use it too where nothing is differentiated."""

    def kept_steps(self, costs: Costs, steps: int, device: torch.device) -> int:
        """Return `steps`."""
        return steps


@dataclass(frozen=True)
class CheckpointSteps(GradientPolicy):
    """The policy that keeps only x_t and runs each step but the last again in the backward pass.

    The idea of Zhang et al. (arXiv 2310.09912): any gradient through the whole generative process, in nearly the
    memory of a single step.
    """

    def kept_steps(self, costs: Costs, steps: int, device: torch.device) -> int:
        """Return 1, or 0 for a chain without steps."""
        return min(1, steps)


@dataclass(frozen=True)
class KeepSteps(GradientPolicy):
    """The policy that keeps the graphs of as many of the last steps as fit in `memory` bytes, and always of one.

    "auto" is 90 % of the free memory of the device when the chain starts, less what a step takes beside its graph.
    More memory is never slower.
    """

    memory: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.memory != "auto" and self.memory < 0:
            raise UserError(f"memory: got {self.memory}; allowed: bytes, 0 or more, or 'auto'")

    def kept_steps(self, costs: Costs, steps: int, device: torch.device) -> int:
        """Return how many of the last graphs fit in the memory, at least one."""
        memory = self.memory
        if memory == "auto":
            memory = int(0.9 * free_memory(device)) - max(cost.extra_peak for cost in costs())
        return count_fitting([cost.graph for cost in costs()], memory)


@dataclass(frozen=True)
class CheckpointBlocks(GradientPolicy):
    """The policy that runs every step again, block by block: for models where not even one step's graph fits."""

    by_blocks: ClassVar[bool] = True

    def kept_steps(self, costs: Costs, steps: int, device: torch.device) -> int:
        """Return 0."""
        return 0


def count_fitting(graphs: Sequence[int], memory: int) -> int:
    """Return how many of the last `graphs` fit in `memory`, both in bytes: at least one, which is needed anyway."""
    kept, total = 0, 0
    for graph in reversed(graphs):
        total += graph
        if total > memory:
            break
        kept += 1
    return max(kept, min(1, len(graphs)))


def run(policy: GradientPolicy, step: Step, x: Tensor, steps: range, costs: Costs) -> Tensor:
    """Run `steps` from `x` under a gradient policy and return the last state."""
    if not torch.is_grad_enabled():
        recomputed = 0
    else:
        recomputed = len(steps) - policy.kept_steps(costs, len(steps), x.device)
    for i in steps[:recomputed]:
        x = policy.checkpoint(step, i, x)
    for i in steps[recomputed:]:
        x = step(i, x)
    return x


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process could still take on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    import psutil  # the GPU benchmark's machine need not have it

    return int(psutil.virtual_memory().available)


@dataclass(frozen=True)
class PredictedMemory:
    """The peak bytes of one forward and backward pass through the chain, by parts.

    Not included: the rounding of a GPU's allocator and the workspace of cuDNN.
    """

    network: int  # the frozen weights
    states: int  # x_t of every step, and its noise where steps add some
    graphs: int  # the graphs of the kept steps
    work: int  # the most that is held at any time beyond the graphs of the kept steps
    kept: int  # number of steps whose graph is kept; not bytes

    @property
    def peak(self) -> int:
        """Return the sum of all parts, in bytes."""
        return self.network + self.states + self.graphs + self.work


def predict(
    denoiser: Denoiser,
    schedule: Schedule,
    batch: int,
    policy: GradientPolicy | None = None,
    precision: torch.dtype | None = None,
    injection: Injection = "symmetric",
    window: tuple[int, int] | None = None,
    memory: int | None = None,
) -> PredictedMemory:
    """Return the memory that the gradient of a chain with a shift in `window` takes, without running the chain.

    Each kind of step is run on tensors without data (torch's meta device), where the creation and the end of every
    storage can be followed. A denoiser without weights is enough (`Denoiser.blueprint`).

    batch: samples at a time; precision: that of the network (default: the denoiser's own).
    memory: bytes of the device, for KeepSteps("auto"); it replaces the memory that is free on this machine.
    """
    policy = policy or FullGraph()
    blueprint = denoiser.blueprint(precision)
    network, state = blueprint.weight_bytes(), _state_bytes(blueprint, batch)
    if policy.by_blocks:
        blueprint = _by_blocks(blueprint)
    inside = schedule.steps_in_window(window)
    first = inside.index(True)
    costs = chain_costs(blueprint, schedule, batch, injection, inside[first:])
    states = state * (len(costs) + 1 + (len(schedule) if schedule.stochastic else 0))
    if policy == KeepSteps() and memory is not None:
        policy = KeepSteps(max(memory - network - states - max(cost.extra_peak for cost in costs), 0))
    kept = policy.kept_steps(lambda: costs, len(costs), denoiser.device)
    rerun = costs[: len(costs) - kept]
    graphs = sum(cost.graph for cost in costs[len(rerun) :])
    # The peak is when the backward pass begins, with all kept graphs, or when these are freed and a step runs again.
    work = max((cost.extra_peak for cost in costs[len(rerun) :]), default=0)
    alone = max((cost.rerun_peak for cost in rerun), default=0)
    return PredictedMemory(network, states, graphs, max(work, alone - graphs), kept)


@lru_cache(maxsize=16)
def _by_blocks(blueprint: Denoiser) -> Denoiser:
    """Return `blueprint` cut by blocks: the same object on each call, so that its steps are counted once.

    Returns `blueprint` itself where it is cut so already.
    """
    cut = blueprint.cut.by_blocks()
    return blueprint if cut is blueprint.cut else blueprint.with_cut(cut)


def _state_bytes(denoiser: Denoiser, batch: int) -> int:
    size = torch.Size(denoiser.sample_shape).numel()
    return batch * size * denoiser.chain_dtype.itemsize
