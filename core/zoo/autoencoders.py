"""Train the autoencoders of the embedded latent models: images 32x32 to latents 16x16, and back.

`VQModel` has a codebook, as in latent diffusion (Rombach et al., arXiv 2112.10752), `AutoencoderKL` a posterior, as in
Stable Diffusion. The loss of both has an edge term, so that eyes and mouth, a pixel wide, stay sharp without a critic.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from core.zoo import faces


@dataclass(frozen=True)
class AutoencoderRecipe:
    """The settings that decide an autoencoder's weights, together with the images."""

    make: Callable[..., Any]  # VQModel or AutoencoderKL
    config: dict[str, Any]
    steps: int
    batch: int = 32
    learning_rate: float = 2e-3
    edge_weight: float = 1.0
    prior_weight: float = 1e-3  # of the latents' distance from a standard normal distribution
    jitter: float = 0.2  # noise on a VQModel's latents until it has a codebook; as large as the codebook's spacing


def architecture(latent_channels: int, **more: Any) -> dict[str, Any]:
    """Return the configuration that both classes share: a small encoder and decoder with one halving of the resolution.

    more: options to add or to replace.
    """
    return {
        "sample_size": faces.SIZE,
        "block_out_channels": (16, 40),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": latent_channels,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        **more,
    }


VQ = AutoencoderRecipe(VQModel, architecture(3, num_vq_embeddings=1024), steps=2_000)
KL = AutoencoderRecipe(AutoencoderKL, architecture(4), steps=2_000, batch=16)


def train_autoencoder(recipe: AutoencoderRecipe, images: Tensor, seed: int) -> Any:
    """Train an autoencoder and return it. Its `scaling_factor` gives scaled latents a standard deviation of 1."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = recipe.make(**recipe.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.steps, pct_start=0.1)
    codebook_from = recipe.steps // 2 if isinstance(model, VQModel) else recipe.steps
    started, running = time.monotonic(), 0.0
    for step in range(recipe.steps):
        if step == codebook_from:
            place_codebook(model, encode(model, images[:2_000]), generator)
        x = images[torch.randint(len(images), (recipe.batch,), generator=generator)]
        decoded, distance = _pass(model, x, recipe, generator, quantise=step >= codebook_from)
        error = decoded - x
        loss = error.abs().mean() + recipe.edge_weight * _edges(error).abs().mean() + distance
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        running += (error.abs().mean().item() - running) / min(step + 1, 100)
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - started
            print(f"autoencoder {step + 1}/{recipe.steps}  error {running:.4f}  {seconds:.0f} s", flush=True)
    model.eval().requires_grad_(False)
    model.register_to_config(scaling_factor=round(1 / float(encode(model, images[:2_000]).std()), 5))
    return model


def _pass(
    model: Any, x: Tensor, recipe: AutoencoderRecipe, generator: torch.Generator, quantise: bool
) -> tuple[Tensor, Tensor]:
    """Return (x encoded and decoded, the loss term of the latents)."""
    if isinstance(model, AutoencoderKL):
        posterior = model.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        return model.decode(z).sample, recipe.prior_weight * posterior.kl().mean() / math.prod(z.shape[1:])
    z = model.encode(x).latents
    prior = recipe.prior_weight * z.square().mean() / 2
    if quantise:
        output = model.decode(z)
        return output.sample, prior + output.commit_loss.mean()
    jittered = z + recipe.jitter * torch.randn(z.shape, generator=generator)
    return model.decode(jittered, force_not_quantize=True).sample, prior


def _edges(images: Tensor) -> Tensor:
    """Return the differences between neighbouring pixels, across and down: [N, 2 C H (W - 1)] for square images."""
    across, down = images.diff(dim=3), images.diff(dim=2)
    return torch.cat([across.flatten(1), down.flatten(1)], dim=1)


@torch.no_grad()
def place_codebook(model: Any, latents: Tensor, generator: torch.Generator) -> None:
    """Set the codebook's entries to latents drawn at random, so that it is dense where the latents are.

    The entries of an untrained codebook are all near the origin, and all but a few of them would never be used.
    latents: [N, C, H, W].
    """
    vectors = latents.movedim(1, -1).flatten(0, -2)  # [N H W, C]
    entries = model.quantize.embedding.weight
    entries.copy_(vectors[torch.randperm(len(vectors), generator=generator)[: len(entries)]])


@torch.no_grad()
def encode(model: Any, images: Tensor) -> Tensor:
    """Return the unscaled latents [N, C, H / 2, W / 2] of images [N, 3, H, W]; for a posterior, its mean."""
    if isinstance(model, AutoencoderKL):
        return torch.cat([model.encode(part).latent_dist.mean for part in torch.split(images, 250)])
    return torch.cat([model.encode(part).latents for part in torch.split(images, 250)])


@torch.no_grad()
def decode(model: Any, latents: Tensor) -> Tensor:
    """Return the images [N, 3, 2 H, 2 W] of unscaled latents [N, C, H, W], decoded as the pipelines do."""
    return torch.cat([model.decode(part).sample for part in torch.split(latents, 250)])
