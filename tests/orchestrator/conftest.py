"""A model small enough that a whole sweep of real parts takes a minute, and a sweep file for it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")

SWEEP = """\
name: tiny
model: {model}
sampler: {{steps: 2}}
train: {{iterations: 4, batch: 4, micro_batch: 2, pool: 32}}
search:
  directions: {{choice: [3, 4]}}
  shift_scale: {{float: [0.5, 2.0], log: true}}
  discriminator_weight: {{float: [0.01, 1.0], log: true}}
objectives: [{{identifiability: max}}, {{fidelity_kid: min}}]
scheduler: {{asha: {{metric: identifiability, grace: 2, reduction: 2}}}}
evaluate: {{every: 2, seeds: 6}}
budget: {{trials: 3}}
deepspeed: {{zero: 2, offload_optimizer: cpu}}
gradient: {{policy: full_graph}}
export: {{register: tiny-directions}}
"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with random weights: 8x8 images, h of 8x2x2."""
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 8, 8),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny model"  # a space: paths are quoted where they must be
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def sweep_file(tiny_model: Path, tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(SWEEP.format(model=tiny_model))
    return file


Orchestrate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def orchestrate(tmp_path: Path) -> Orchestrate:
    """The command line in a process of its own, with `tmp_path` as working folder."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)

    return run
