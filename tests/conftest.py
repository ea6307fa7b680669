"""A denoiser small enough for exact comparisons: random weights, float64, 8x8 images, h of 8x2x2.

`make test` runs two files of tests at a time, one file in one process. Those that kill processes and take machines away
stay together, one after the other.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from core import Denoiser

os.environ.setdefault("OMP_NUM_THREADS", "1")

_ONE_AFTER_THE_OTHER = ("cluster", "faults")


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests share a process of xdist's."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        item.add_marker(pytest.mark.xdist_group("faults" if folder in _ONE_AFTER_THE_OTHER else item.path.stem))


@pytest.fixture(scope="session")
def tiny_denoiser() -> "Denoiser":
    import torch
    from diffusers import DDIMScheduler, UNet2DModel

    from core.denoiser import Denoiser

    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(4, 8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=8,
        )
    return Denoiser(unet.double(), DDIMScheduler(clip_sample=False), "tiny")


@pytest.fixture(scope="session")
def single_denoiser(tiny_denoiser: "Denoiser") -> "Denoiser":
    """The tiny model in the precision that is trained in."""
    from core.denoiser import Denoiser

    unet = tiny_denoiser.network.__class__.from_config(tiny_denoiser.network.config)
    unet.load_state_dict(tiny_denoiser.network.state_dict())
    return Denoiser(unet, tiny_denoiser.scheduler, "tiny")
