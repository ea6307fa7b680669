"""The autoencoder of a latent model, in the units that its pipeline of diffusers has."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from core import noise
from core.model.codec import Codec

MEAN, DEVIATION = (0.5, -1.0), (2.0, 4.0)


def codec(**config: Any) -> Codec:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoencoderKL(
            block_out_channels=(4,),
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            latent_channels=2,
            norm_num_groups=2,
            **config,
        )
    return Codec(network.double(), (2, 4, 4))


@pytest.mark.parametrize(
    ("config", "scale", "shift"),
    [
        ({"scaling_factor": 0.25}, (4.0, 4.0), (0.0, 0.0)),
        ({"scaling_factor": 0.5, "shift_factor": 0.75}, (2.0, 2.0), (0.75, 0.75)),
        # As StableDiffusionXLPipeline decodes: latents * latents_std / scaling_factor + latents_mean.
        ({"scaling_factor": 0.5, "latents_mean": MEAN, "latents_std": DEVIATION}, (4.0, 8.0), MEAN),
    ],
    ids=["scale", "scale and shift", "mean and deviation"],
)
def test_latents_are_in_the_pipelines_units(
    config: dict[str, Any], scale: tuple[float, float], shift: tuple[float, float]
) -> None:
    found = codec(**config)
    unit, origin = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (scale, shift))
    x_0 = noise([0, 1], found.sample_shape, torch.float64)
    with torch.no_grad():
        assert torch.allclose(found.images(x_0), found.network.decode(x_0 * unit + origin).sample, rtol=1e-12)
        images = found.images(x_0)
        mean = found.network.encode(images).latent_dist.mode()
        assert torch.allclose(found.x_0(images), (mean - origin) / unit, rtol=1e-12)
