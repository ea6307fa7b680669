"""How a chain keeps memory down while it is differentiated, as values.

All policies give the same samples and the same gradients; they differ in how many of the T steps keep their graph until
the way back, and in what happens to the others, which keep x_t and are run again. With A the bytes of one step's graph,
X those of one x_t and k the steps kept:

    policy               memory            work, in forward passes run again
    FullGraph()          T A               none
    KeepSteps(memory)    T X + k A         T - k
    CheckpointSteps()    T X + A           T - 1
    CheckpointBlocks()   T X + less than A 2 T: each step once, and each of its blocks once more

The kept steps are the last ones: on the way back their graphs are freed before the first step is run again. One is kept
for nothing, since its memory is needed in any case. Storing fewer than all x_t (Griewank and Walther's Revolve) would
save nothing worth having: a step's graph is 90 (toyfaces) to 1,200 times (256x256 images) as large as its x_t.
`predict` says how much memory a training step takes, before it is taken.
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
Costs = Callable[[], Sequence[StepCost]]  # what each step's graph takes; counted only where a policy asks


class GradientPolicy(Protocol):
    """Which steps keep their graph.

    by_blocks: whether a step that is run again keeps no graph of its blocks either.
    """

    by_blocks: ClassVar[bool] = False

    def kept(self, costs: Costs, steps: int, device: torch.device) -> int:
        """How many of the last steps keep their graph."""

    def checkpoint(self, step: Step, i: int, x: Tensor) -> Tensor:
        """step(i, x), of which nothing but x is kept and which runs again on the way back."""
        # The chain draws no random numbers (its noise is given), so there is no generator state to keep.
        x_prev: Tensor = checkpoint(step, i, x, use_reentrant=False, preserve_rng_state=False)
        return x_prev


@dataclass(frozen=True)
class FullGraph(GradientPolicy):
    """Keep every step's graph: fastest, memory T A. Also the right choice where nothing is differentiated."""

    def kept(self, costs: Costs, steps: int, device: torch.device) -> int:
        return steps


@dataclass(frozen=True)
class CheckpointSteps(GradientPolicy):
    """Keep only x_t and run each step but the last again on the way back.

    The idea of Zhang et al. (arXiv 2310.09912): any gradient through the whole generative process, in nearly the
    memory of a single step.
    """

    def kept(self, costs: Costs, steps: int, device: torch.device) -> int:
        return min(1, steps)


@dataclass(frozen=True)
class KeepSteps(GradientPolicy):
    """Keep the graphs of as many of the last steps as `memory` bytes hold, and of one in any case.

    "auto" is what the device has free when the chain starts, less a tenth and what a step takes beside its graph. More
    memory is never slower.
    """

    memory: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.memory != "auto" and self.memory < 0:
            raise UserError(f"memory: got {self.memory}; allowed: bytes, 0 or more, or 'auto'")

    def kept(self, costs: Costs, steps: int, device: torch.device) -> int:
        memory = self.memory
        if memory == "auto":
            memory = int(0.9 * free_memory(device)) - max(cost.work for cost in costs())
        return fitting([cost.graph for cost in costs()], memory)


@dataclass(frozen=True)
class CheckpointBlocks(GradientPolicy):
    """Run each step again, block by block: for models of which not even one step's graph fits."""

    by_blocks: ClassVar[bool] = True

    def kept(self, costs: Costs, steps: int, device: torch.device) -> int:
        return 0


def fitting(graphs: Sequence[int], memory: int) -> int:
    """How many of the last graphs, of these bytes, fit in `memory`; never less than the one that is needed anyway."""
    kept, total = 0, 0
    for graph in reversed(graphs):
        total += graph
        if total > memory:
            break
        kept += 1
    return max(kept, min(1, len(graphs)))


def run(policy: GradientPolicy, step: Step, x: Tensor, steps: range, costs: Costs) -> Tensor:
    """Run `steps` from `x`, so that gradients flow back through all of them as the policy says."""
    if not torch.is_grad_enabled():
        recomputed = 0
    else:
        recomputed = len(steps) - policy.kept(costs, len(steps), x.device)
    for i in steps[:recomputed]:
        x = policy.checkpoint(step, i, x)
    for i in steps[recomputed:]:
        x = step(i, x)
    return x


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still take on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    import psutil  # the GPU benchmark's machine need not have it

    return int(psutil.virtual_memory().available)


@dataclass(frozen=True)
class Prediction:
    """Peak bytes of one forward and backward pass through the chain, by parts.

    What a GPU's allocator rounds up and what cuDNN takes for itself while it works come on top.
    """

    network: int  # the frozen weights
    states: int  # x_t of every step, and its noise where steps add some
    graphs: int  # what the steps that are kept hold
    work: int  # the most that a step holds beyond its graph or, run again, with it, on its way forward and back
    kept: int  # steps whose graph is kept

    @property
    def peak(self) -> int:
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
) -> Prediction:
    """What the gradient of a chain with a shift in `window` takes in memory, counted without running it.

    The step is run on tensors without data (torch's meta device), where every storage that it creates, and when it is
    freed, can be followed. A denoiser without weights will do (`Denoiser.blueprint`).

    batch: samples at a time; precision: the network's (default: as it is); memory: bytes of the device, for
    KeepSteps("auto") in place of what is free here.
    """
    policy = policy or FullGraph()
    blueprint = denoiser.blueprint(precision)
    network, state = blueprint.weight_bytes(), _state_bytes(blueprint, batch)
    if policy.by_blocks:
        blueprint = _by_blocks(blueprint)
    inside = schedule.inside(window)
    first = inside.index(True)
    costs = chain_costs(blueprint, schedule, batch, injection, inside, range(first, len(schedule)))
    states = state * (len(costs) + 1 + (len(schedule) if schedule.stochastic else 0))
    if policy == KeepSteps() and memory is not None:
        policy = KeepSteps(max(memory - network - states - max(cost.work for cost in costs), 0))
    kept = policy.kept(lambda: costs, len(costs), denoiser.device)
    again = costs[: len(costs) - kept]
    graphs = sum(cost.graph for cost in costs[len(again) :])
    # The most is held when the way back begins, with all kept graphs, or when a step runs again and these are gone.
    work = max((cost.work for cost in costs[len(again) :]), default=0)
    alone = max((cost.again for cost in again), default=0)
    return Prediction(network, states, graphs, max(work, alone - graphs), kept)


@lru_cache(maxsize=16)
def _by_blocks(blueprint: Denoiser) -> Denoiser:
    """The same object for the same blueprint, so that its steps are counted once; itself, if it is so already."""
    cut = blueprint.cut.by_blocks()
    return blueprint if cut is blueprint.cut else blueprint.with_cut(cut)


def _state_bytes(denoiser: Denoiser, batch: int) -> int:
    size = torch.Size(denoiser.sample_shape).numel()
    return batch * size * torch.promote_types(denoiser.dtype, torch.float32).itemsize
