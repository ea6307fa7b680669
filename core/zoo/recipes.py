"""The recipes of the embedded models: the data, architecture, seed and training phases that decide their weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.zoo import autoencoders, faces, mnist
from core.zoo.autoencoders import AutoencoderRecipe


@dataclass(frozen=True)
class Phase:
    """A phase of training on one noise schedule; the next phase starts from its averaged weights."""

    steps: int
    beta_end: float
    learning_rate: float
    colour_weight: float = 0.0  # weight of the error in each channel's mean, added to the plain error
    input_only: bool = False  # samples with dropped skips keep only that of the first convolution
    no_skips_from: int = 1000  # timestep from which they lose that one too


@dataclass(frozen=True)
class PredictorRecipe:
    """The settings that decide the weights of an attribute predictor (core.predictors.attribute_net)."""

    samples: int  # training images
    steps: int
    width: int = 24
    body: str = "strided"
    blur: float = 0.0  # largest weight of the mean of 3x3 pixels in a training image
    seed: int = 0  # of the images and the initial weights; the next one is that of batches, noise and blur


@dataclass(frozen=True)
class Recipe:
    """The settings that decide an embedded model's weights."""

    data: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]  # (count, generator) -> images, targets
    samples: int
    unet: dict[str, Any]
    phases: tuple[Phase, ...]
    batch: int
    attributes: tuple[str, ...] = ()
    predictors: Mapping[str, PredictorRecipe] = field(default_factory=dict)  # by folder; empty: those of another model
    classify: bool = False
    autoencoder: AutoencoderRecipe | None = None  # None: a pixel model
    sentences: bool = False  # a UNet2DConditionModel with a text encoder
    prediction: str = "epsilon"  # or "v_prediction": what the UNet's output is
    skip_dropout: float = 0.5
    averaging: float = 0.999
    seed: int = 0


def _render_faces(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    factors = faces.sample_factors(count, generator)
    return torch.cat([faces.render(part) for part in torch.split(factors, 500)]), factors


def _unet(
    size: int, channels: int, widths: tuple[int, ...], attention: str = "Attn", attended: int = 1, **more: Any
) -> dict[str, Any]:
    """Return the configuration of a UNet with attention of a kind in its `attended` deepest levels."""
    plain = len(widths) - attended
    return {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": widths,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D",) * plain + (f"{attention}DownBlock2D",) * attended,
        "up_block_types": (f"{attention}UpBlock2D",) * attended + ("UpBlock2D",) * plain,
        **more,
    }


RECIPES = {
    "toyfaces": Recipe(
        data=_render_faces,
        samples=30_000,
        unet=_unet(faces.SIZE, 3, (16, 32, 64, 64)),
        # With beta_end 0.02 almost no signal is left at the chain's start, where a small error in the predicted noise
        # is a large error in colour. A milder schedule and the colour term keep the tint in bounds.
        # The mouth is so small that a skip at full resolution other than the first can carry it past h.
        phases=(
            Phase(8_000, 0.02, 2e-3),
            Phase(2_400, 0.012, 6e-4, colour_weight=30.0),
            Phase(2_500, 0.012, 1e-3, colour_weight=30.0, input_only=True),
        ),
        batch=64,
        attributes=faces.FACTORS,
        predictors={
            "attributes": PredictorRecipe(30_000, 2_500),
            # It judges what was found with the other one: the two share no image, no seed and no convolution.
            "second_attributes": PredictorRecipe(16_000, 3_000, width=12, body="residual", blur=0.5, seed=11),
        },
    ),
    # Velocity, because noise that is predicted not quite exactly leaves grain on a black ground.
    "mnist": Recipe(
        data=mnist.load,
        samples=30_000,
        unet=_unet(mnist.SIZE, 1, (16, 32, 64, 64), attended=2, attention_head_dim=32),
        phases=(Phase(7_000, 0.012, 2e-3), Phase(2_500, 0.012, 1e-3, input_only=True, no_skips_from=400)),
        batch=64,
        attributes=mnist.CLASSES,
        predictors={"classifier": PredictorRecipe(30_000, 3_000)},
        prediction="v_prediction",
        classify=True,
    ),
    # Latents are less smooth than pixels: a UNet this narrow cannot reproduce the noise itself exactly enough, and at
    # the chain's start a small error in the predicted noise is a large error in the face. There, velocity is the face.
    # Velocity also permits training without any skip (`no_skips_from`): noise cannot be predicted then, but a face can.
    # Glasses, eyes and mouth then have no way around h.
    # The colour term is the error in each latent channel's mean, which sets the picture's tint.
    "toyfaces-latent": Recipe(
        data=_render_faces,
        samples=30_000,
        unet=_unet(faces.SIZE // 2, 3, (24, 48, 64)),
        phases=(
            Phase(7_000, 0.012, 2e-3, colour_weight=20.0, input_only=True),
            Phase(2_000, 0.012, 1.5e-3, colour_weight=20.0, input_only=True, no_skips_from=400),
        ),
        batch=32,
        prediction="v_prediction",
        autoencoder=autoencoders.VQ,
    ),
    "toyfaces-text": Recipe(
        data=_render_faces,
        samples=30_000,
        unet=_unet(faces.SIZE // 2, 4, (24, 40, 48), "CrossAttn", cross_attention_dim=64, attention_head_dim=8),
        phases=(
            Phase(6_000, 0.012, 2e-3, colour_weight=20.0, input_only=True),
            Phase(2_500, 0.012, 1.5e-3, colour_weight=20.0, input_only=True, no_skips_from=400),
        ),
        batch=32,
        prediction="v_prediction",
        autoencoder=autoencoders.KL,
        sentences=True,
    ),
}
