"""A denoiser small enough for exact comparisons: random weights, float64, 8x8 images, h of 8x2x2.

`make test` runs two files of tests at a time, one file in one process. Those that kill processes and take machines away
stay together, one after the other, and so do those that look at one sweep in a browser.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from core import Denoiser

os.environ.setdefault("OMP_NUM_THREADS", "1")

_TOGETHER = {"cluster": "kills", "faults": "kills", "browser": "browser"}  # by folder; they take long as well


def _group(path: Path) -> str:
    """What a file of tests shares a process of xdist's with."""
    return _TOGETHER.get(path.relative_to(Path(__file__).parent).parts[0], path.as_posix())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that no process has to wait for another at the end."""
    items.sort(key=lambda item: _group(item.path) not in _TOGETHER.values())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(config.rootpath / nodeid.split("::")[0])

    return ByGroup(config, log)


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
