"""A sample depends on its seed alone."""

import subprocess
import sys

import pytest
import torch

from core import noise
from core.randomness import generator, step_noise


def test_a_sample_is_the_same_in_every_batch() -> None:
    batch = noise(range(4), (3, 2, 2))
    for seed in range(4):
        assert torch.equal(noise([seed], (3, 2, 2))[0], batch[seed])


@pytest.mark.slow
def test_a_sample_is_the_same_in_every_process() -> None:
    code = "from core import noise; print(noise([5], (4,)).tolist())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{noise([5], (4,)).tolist()}\n"}


def test_streams_of_a_seed_share_no_numbers() -> None:
    x_T, z = noise([0], (64,)), step_noise([0], (64,), 3)
    drawn = torch.cat([x_T, *z])
    assert len(drawn.flatten().unique()) == drawn.numel()
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.5


def test_generators_depend_on_every_part() -> None:
    draws = {torch.rand(1, generator=generator(*parts)).item() for parts in (("a", 1), ("a", 2), ("b", 1), ("a", 1, 0))}
    assert len(draws) == 4
