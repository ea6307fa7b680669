"""Makes the embedded models: `python -m core.zoo.train {toyfaces,digits} [--to FOLDER]`.

Data, architecture, seed and step count stand in `RECIPES`; nothing else decides the weights. The denoiser is trained
with its skips dropped for half of each batch (`core.denoiser.without_skips`), so that h steers every factor.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from core.denoiser import Denoiser, without_skips
from core.zoo import digits, faces, model_folder
from core.zoo.attributes import AttributeNet


@dataclass(frozen=True)
class Phase:
    """A stretch of training on one noise schedule; the next one starts from its averaged weights."""

    steps: int
    beta_end: float
    learning_rate: float
    colour_weight: float = 0.0  # of the error in each channel's mean, beside the plain one
    input_only: bool = False  # samples without skips keep that of the first convolution only


@dataclass(frozen=True)
class Recipe:
    """Everything that decides an embedded model's weights."""

    data: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]  # (count, generator) -> images, targets
    samples: int
    unet: dict[str, Any]
    phases: tuple[Phase, ...]
    batch: int
    attributes: tuple[str, ...]
    attribute_steps: int
    classify: bool
    skip_dropout: float = 0.5
    averaging: float = 0.999
    seed: int = 0


def _render_faces(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    factors = faces.sample_factors(count, generator)
    return torch.cat([faces.render(part) for part in torch.split(factors, 500)]), factors


def _unet(size: int, channels: int, widths: tuple[int, ...]) -> dict[str, Any]:
    plain = len(widths) - 1
    return {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": widths,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D",) * plain + ("AttnDownBlock2D",),
        "up_block_types": ("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
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
        classify=False,
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
}


def train_denoiser(recipe: Recipe, images: Tensor, folder: Path, first: int = 0) -> None:
    """All phases from `first` on (which starts from the weights in `folder`), saved into `folder`."""
    torch.manual_seed(recipe.seed)
    unet = UNet2DModel(**recipe.unet)
    if first:  # by weights alone: a loaded configuration would carry this machine's path
        unet.load_state_dict(UNet2DModel.from_pretrained(folder / "unet").state_dict())
    for number, phase in enumerate(recipe.phases[first:], start=first):
        unet = train_phase(recipe, phase, number, unet, images, folder)


def train_phase(
    recipe: Recipe, phase: Phase, number: int, unet: UNet2DModel, images: Tensor, folder: Path
) -> UNet2DModel:
    """Denoising score matching with epsilon prediction (Ho et al., arXiv 2006.11239); returns the averaged weights."""
    generator = torch.Generator().manual_seed(recipe.seed + number)
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="linear", beta_end=phase.beta_end, clip_sample=False
    )
    denoiser = Denoiser(unet, scheduler, "training")
    unet.train().requires_grad_(True)
    averaged = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(recipe.averaging))  # type: ignore[no-untyped-call]  # torch's stub
    optimizer = torch.optim.AdamW(unet.parameters(), lr=phase.learning_rate, weight_decay=1e-4)
    warm_up = 200
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1.0, (n + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * n / phase.steps))
    )
    started, running = time.monotonic(), 0.0
    for step in range(1, phase.steps + 1):
        x_0 = images[torch.randint(len(images), (recipe.batch,), generator=generator)]
        noise = torch.randn(x_0.shape, generator=generator)
        # One timestep from each of `batch` equal strata: the same expectation, less variance.
        strata = (torch.arange(recipe.batch) + torch.rand(recipe.batch, generator=generator)) / recipe.batch
        t = (strata * 1000).long()
        dropped = torch.rand(recipe.batch, generator=generator) < recipe.skip_dropout
        features = without_skips(denoiser.encode(scheduler.add_noise(x_0, noise, t), t), dropped, phase.input_only)
        error = denoiser.decode(features) - noise
        loss = error.square().mean() + phase.colour_weight * error.mean(dim=(2, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
        averaged.update_parameters(unet)
        running += (error.square().mean().item() - running) / min(step, 200)
        if step % 200 == 0:
            print(
                f"phase {number}: {step}/{phase.steps}  error {running:.4f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if step % 1000 == 0 or step == phase.steps:
            DDIMPipeline(averaged.module, scheduler).save_pretrained(folder, safe_serialization=True)
    return averaged.module


def train_attributes(recipe: Recipe, images: Tensor, targets: Tensor, folder: Path) -> None:
    """A small network that reads the attributes off an image; mildly noised inputs make it robust to samples."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    net = AttributeNet(images.shape[1], recipe.attributes)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=recipe.attribute_steps)
    loss_of = torch.nn.functional.cross_entropy if recipe.classify else torch.nn.functional.mse_loss
    for step in range(1, recipe.attribute_steps + 1):
        chosen = torch.randint(len(images), (128,), generator=generator)
        x = images[chosen]
        x = x + 0.06 * torch.rand(len(x), 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
        loss = loss_of(net(x), targets[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        optimizer.step()
        rate.step()
        if step % 200 == 0:
            print(f"attributes {step}/{recipe.attribute_steps}  loss {loss.item():.5f}", flush=True)
    net.save(folder / "attributes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--to", type=Path, help="output folder (default: where the package looks for the model)")
    parser.add_argument("--first-phase", type=int, default=0, help="continue from the saved weights with this phase")
    parser.add_argument("--only", choices=("denoiser", "attributes"), help="make one of the two networks")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.model]
    folder = arguments.to or model_folder(arguments.model)
    images, targets = recipe.data(recipe.samples, torch.Generator().manual_seed(recipe.seed))
    if arguments.only != "denoiser":
        seen = slice(digits.TRAINED) if recipe.classify else slice(None)
        train_attributes(recipe, images[seen], targets[seen], folder)
    if arguments.only != "attributes":
        train_denoiser(recipe, images, folder, arguments.first_phase)


if __name__ == "__main__":
    main()
