"""Random numbers that depend only on a seed and a purpose, never on the batch, the worker or the trial.

Each sample has its own generator, on the CPU, so that its noise is the same in a batch of one and of a hundred, on any
device, in any process.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

# Disjoint ranges of seeds, to choose a direction set by, to report it on, to calibrate it on and to train it on.
SELECT_SEEDS = range(1 << 30, 2 << 30)
REPORT_SEEDS = range(2 << 30, 3 << 30)
CALIBRATION_SEEDS = range(3 << 30, 4 << 30)
TRAIN_SEEDS = range(1 << 52, 2 << 52)


def generator(*purpose: int | str) -> torch.Generator:
    """Return a CPU generator seeded by the parts of `purpose` alone, the same in every process and on every machine."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in purpose).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def noise(
    seeds: Sequence[int],
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    stream: str = "x_T",
) -> Tensor:
    """Return standard normal samples [len(seeds), *shape], each from its own seed.

    stream: the name of one of several independent streams of a seed.
    """
    drawn = [torch.randn(tuple(shape), generator=generator(stream, int(seed)), dtype=torch.float64) for seed in seeds]
    return torch.stack(drawn).to(device=device, dtype=dtype)


def step_noise(
    seeds: Sequence[int],
    shape: Sequence[int],
    steps: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the z_t of a stochastic chain (eta > 0): [steps, len(seeds), *shape].

    They share no number with x_T (Haas et al.).
    """
    return torch.stack([noise(seeds, shape, dtype, device, stream=f"z_{i}") for i in range(steps)])
