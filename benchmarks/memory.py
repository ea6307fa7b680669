"""What the gradient of a chain through large models takes in memory, and which GPUs hold it: counted, not measured.

python -m benchmarks.memory          writes results/memory_predicted.md; needs no GPU and no weights
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from benchmarks.common import RESULTS
from core import Denoiser, Schedule
from core.chain.gradient import CheckpointBlocks, CheckpointSteps, GradientPolicy, KeepSteps, PredictedMemory, predict
from core.execution.lean import lean
from core.execution.streaming import offloaded, partitioned
from orchestrator.plan.memory_table import COMMON_GPUS
from orchestrator.spec import size_bytes
from orchestrator.trial.memory import usable

STEPS = 20
MICRO_BATCHES = (1, 2)
MODELS = {
    "SD 1.5, 512 x 512": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "SDXL, 1024 x 1024": "stabilityai/stable-diffusion-xl-base-1.0",
    "Flux.1-dev, 1024 x 1024": "black-forest-labs/FLUX.1-dev",
}
_POLICIES = {"keep_steps": KeepSteps(), "checkpoint_steps": CheckpointSteps(), "checkpoint_blocks": CheckpointBlocks()}
_PARTS = 4  # processes of the partitioned rows
_TEXT = f"""# Memory of the gradient through a chain, predicted

**None of this was measured on a GPU.** Every figure is `core.chain.gradient.predict`: the step runs, forward and back,
on torch's meta device, and the bytes of every storage are followed there. What an allocator rounds up and what cuDNN
takes for itself come on top; a tenth of every GPU is left for them. That such counts are what a run holds is proved on
small networks, on a CPU (`tests/core/execution/test_streaming.py`, `tests/core/chain/test_gradient.py`).

{STEPS} steps, all shifted, symmetric injection, bfloat16, no classifier-free guidance (which doubles the rows of a
sample; Flux.1-dev is told its guidance instead). Weights are those of the denoiser, of the autoencoder, and of one
prompt's embeddings; the trained parts and the pool are not in the figures.

Resident: all weights on the GPU; UNets lean. Offloaded: those of the blocks in the CPU's memory. Over {_PARTS}:
partitioned over the processes of a trial with {_PARTS} GPUs. GB are 10^9 bytes. keep_steps: the peak with all {STEPS}
steps kept, and under each GPU how many it can keep; one kept is checkpoint_steps. Of a streamed network, a kept step
holds what enters its blocks.
"""


@dataclass(frozen=True)
class Row:
    """One way to take the gradient: its peak by parts, and what each GPU says to it."""

    name: str
    micro_batch: int
    said: PredictedMemory
    verdicts: tuple[str, ...]

    def __str__(self) -> str:
        said = self.said
        parts = (said.network, said.states + said.graphs, said.work, said.peak)
        cells = (self.name, str(self.micro_batch), *(f"{part / 1e9:.2f}" for part in parts), *self.verdicts)
        return f"| {' | '.join(cells)} |"


def ways(denoiser: Denoiser) -> dict[str, Denoiser]:
    """Where the weights may be, of a denoiser without any."""
    return {
        "resident": lean(denoiser),
        "offloaded": offloaded(denoiser, "meta"),
        f"over {_PARTS}": partitioned(denoiser, "meta", 0, _PARTS),
    }


def rows(denoiser: Denoiser, micro_batches: Iterable[int] = MICRO_BATCHES, steps: int = STEPS) -> list[Row]:
    """Every way with every policy, for each micro-batch."""
    schedule, where = Schedule.ddim(denoiser, steps), ways(denoiser)
    return [
        _row(f"{place}, {name}", way, schedule, micro_batch, policy)
        for micro_batch in micro_batches
        for place, way in where.items()
        for name, policy in _POLICIES.items()
    ]


def _row(name: str, denoiser: Denoiser, schedule: Schedule, micro_batch: int, policy: GradientPolicy) -> Row:
    whole = predict(denoiser, schedule, micro_batch, policy, memory=1 << 60)
    verdicts = []
    for device in COMMON_GPUS:
        room = usable(size_bytes(device))
        said = predict(denoiser, schedule, micro_batch, policy, memory=room)
        kept = f"{said.kept} of {len(schedule)}" if isinstance(policy, KeepSteps) else "yes"
        verdicts.append(kept if said.peak <= room else "no")
    return Row(name, micro_batch, whole, tuple(verdicts))


def document(tables: dict[str, list[Row]]) -> str:
    """The page."""
    heads = ["", "micro-batch", "weights", "kept until the way back", "work of a step", "peak, GB", *COMMON_GPUS]
    rule = "|" + "---|" * len(heads)
    parts = [
        "\n".join([f"## {name}", "", f"| {' | '.join(heads)} |", rule, *map(str, found)])
        for name, found in tables.items()
    ]
    return "\n\n".join([_TEXT.strip(), *parts, f"torch {torch.__version__}"]) + "\n"


def main() -> None:
    tables = {}
    for name, model in MODELS.items():
        denoiser = Denoiser.without_weights(model, torch.bfloat16)
        count = sum(weight.numel() for weight in denoiser.network.parameters())
        tables[f"{name}: {count / 1e9:.2f} billion weights"] = rows(denoiser)
    (RESULTS / "memory_predicted.md").write_text(document(tables))


if __name__ == "__main__":
    main()
