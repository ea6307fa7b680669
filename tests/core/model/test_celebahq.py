"""The architecture that sweeps/celeba.yaml trains on, with random weights: it cuts, and one iteration runs."""

import json
import math

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from core import Denoiser, Schedule
from core.chain.gradient import CheckpointSteps
from core.methods.learned.training import Learner, Settings
from core.model.catalogue import architecture_folder

CONFIG = json.loads((architecture_folder("google/ddpm-celebahq-256") / "unet" / "config.json").read_text())


def test_its_size_is_the_published_one() -> None:
    with torch.device("meta"):
        unet = UNet2DModel.from_config(CONFIG)
    denoiser = Denoiser(unet, DDIMScheduler(), "celebahq", digest="none")
    assert denoiser.sample_shape == (3, 256, 256) and denoiser.h_shape == (512, 8, 8)
    assert sum(p.numel() for p in unet.parameters()) == 113_673_219


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_training_iteration() -> None:
    torch.manual_seed(0)
    smaller = UNet2DModel.from_config(CONFIG, sample_size=32)  # a sixty-fourth of the pixels, through the same network
    denoiser = Denoiser(smaller, DDIMScheduler(), "celebahq", digest="random")
    assert denoiser.sample_shape == (3, 32, 32) and denoiser.h_shape == (512, 1, 1)
    settings = Settings(
        directions=2,
        batch=2,
        pool=2,
        injection="asymmetric",
        window=(600, 0),
        gradient=CheckpointSteps(),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        learner = Learner(denoiser, Schedule.ddim(denoiser, 2), settings)
        terms = learner.iterate(0)
    finally:
        torch.set_num_threads(threads)
    assert all(math.isfinite(value) for value in terms.values())
    assert learner.explorer.shift.coordinates.grad.abs().sum() > 0
