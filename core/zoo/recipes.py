"""What decides the embedded models' weights: data, architecture, seed and steps of each, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.zoo import autoencoders, digits, faces
from core.zoo.autoencoders import AutoencoderRecipe


@dataclass(frozen=True)
class Phase:
    """A stretch of training on one noise schedule; the next one starts from its averaged weights."""

    steps: int
    beta_end: float
    learning_rate: float
    colour_weight: float = 0.0  # of the error in each channel's mean, beside the plain one
    input_only: bool = False  # samples without skips keep that of the first convolution only
    blind_from: int = 1000  # timestep from which they do not even keep that one


@dataclass(frozen=True)
class Recipe:
    """Everything that decides an embedded model's weights."""

    data: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]  # (count, generator) -> images, targets
    samples: int
    unet: dict[str, Any]
    phases: tuple[Phase, ...]
    batch: int
    attributes: tuple[str, ...] = ()  # none: the model goes by the predictor of another one
    attribute_steps: int = 0
    classify: bool = False
    autoencoder: AutoencoderRecipe | None = None  # none: it diffuses pixels
    sentences: bool = False  # a UNet2DConditionModel, told by a text encoder
    prediction: str = "epsilon"  # or "v_prediction": what the UNet's output is
    skip_dropout: float = 0.5
    averaging: float = 0.999
    seed: int = 0


def _render_faces(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    factors = faces.sample_factors(count, generator)
    return torch.cat([faces.render(part) for part in torch.split(factors, 500)]), factors


def _unet(size: int, channels: int, widths: tuple[int, ...], deepest: str = "Attn", **more: Any) -> dict[str, Any]:
    plain = len(widths) - 1
    return {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": widths,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D",) * plain + (f"{deepest}DownBlock2D",),
        "up_block_types": (f"{deepest}UpBlock2D",) + ("UpBlock2D",) * plain,
        **more,
    }


RECIPES = {
    "toyfaces": Recipe(
        data=_render_faces,
        samples=30_000,
        unet=_unet(faces.SIZE, 3, (16, 32, 64, 64)),
        # With beta_end 0.02 almost no signal is left at the chain's start, where a small error in predicted noise is a
        # large one in colour; a milder schedule and the colour term keep the tint in bounds.
        # The mouth is small enough to be drawn around h as long as any but the first skip stays at full resolution.
        phases=(
            Phase(8_000, 0.02, 2e-3),
            Phase(2_400, 0.012, 6e-4, colour_weight=30.0),
            Phase(2_500, 0.012, 1e-3, colour_weight=30.0, input_only=True),
        ),
        batch=64,
        attributes=faces.FACTORS,
        attribute_steps=2_500,
    ),
    "digits": Recipe(
        data=digits.load,
        samples=digits.COUNT,
        unet=_unet(digits.SIZE, 1, (24, 48, 64)),
        phases=(Phase(3_000, 0.012, 2e-3, colour_weight=30.0),),
        batch=64,
        attributes=digits.CLASSES,
        attribute_steps=1_200,
        classify=True,
    ),
    # Latents are less smooth than pixels: a UNet this narrow cannot hand noise itself through exactly enough, and at
    # the chain's start a small error in predicted noise is a large one in the face. Velocity is the face there.
    # It also makes blindness possible: without any skip no noise could be predicted, but a face can, and then glasses,
    # eyes and mouth have no way around h.
    # The colour term is the error in each latent channel's mean, of which the picture's tint is made.
    "toyfaces-latent": Recipe(
        data=_render_faces,
        samples=30_000,
        unet=_unet(faces.SIZE // 2, 3, (24, 48, 64)),
        phases=(
            Phase(7_000, 0.012, 2e-3, colour_weight=20.0, input_only=True),
            Phase(2_000, 0.012, 1.5e-3, colour_weight=20.0, input_only=True, blind_from=400),
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
            Phase(2_500, 0.012, 1.5e-3, colour_weight=20.0, input_only=True, blind_from=400),
        ),
        batch=32,
        prediction="v_prediction",
        autoencoder=autoencoders.KL,
        sentences=True,
    ),
}
