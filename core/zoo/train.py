"""Train the embedded models: `python -m core.zoo.train NAME [--to FOLDER]`, NAME one of `core/zoo/recipes.py`.

The denoiser is trained with its skips dropped for half of each batch (`core.zoo.skips`), so that h steers every factor.
A latent denoiser is trained on the latents of its autoencoder, which is trained first.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    LDMPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from core.predictors.attribute_net import AttributeNet
from core.zoo import model_folder
from core.zoo.autoencoders import encode, train_autoencoder
from core.zoo.recipes import RECIPES, Phase, PredictorRecipe, Recipe
from core.zoo.sentences import describe, make_text_encoder, make_tokenizer, tokens_of
from core.zoo.skips import dropped_skips

PARTS = ("autoencoder", "denoiser", "attributes", "second_attributes", "classifier")
_WEIGHTS = "diffusion_pytorch_model.safetensors"


class Networks(nn.Module):
    """The networks that are trained together: the UNet and, for a text-to-image model, the text encoder."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.unet: Any = (UNet2DConditionModel if recipe.sentences else UNet2DModel)(**recipe.unet)
        self.tokenizer = make_tokenizer() if recipe.sentences else None
        self.text_encoder = make_text_encoder(self.tokenizer) if recipe.sentences else None

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor | None) -> Tensor:
        """Return the UNet's output for x_t [N, C, H, W] at timesteps t [N], with prompt tokens [N, 24] or None."""
        context = () if tokens is None or self.text_encoder is None else (self.text_encoder(tokens)[0],)
        output: Tensor = self.unet(x_t, t, *context).sample
        return output

    def load(self, folder: Path) -> None:
        """Load the weights of a pipeline folder, but no configuration, which would contain this machine's path."""
        self.unet.load_state_dict(load_file(folder / "unet" / _WEIGHTS))
        if self.text_encoder is not None:
            self.text_encoder.load_state_dict(load_file(folder / "text_encoder" / "model.safetensors"))

    def pipeline(self, scheduler: DDIMScheduler, autoencoder: Any) -> Any:
        """Return the diffusers pipeline of these networks."""
        if autoencoder is None:
            return DDIMPipeline(self.unet, scheduler)
        if self.text_encoder is None:
            return LDMPipeline(autoencoder, self.unet, scheduler)
        return StableDiffusionPipeline(
            autoencoder,
            self.text_encoder,
            self.tokenizer,
            self.unet,
            scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def autoencoder_folder(recipe: Recipe, folder: Path) -> Path:
    """Return the folder of the autoencoder inside a pipeline folder."""
    return folder / ("vae" if recipe.sentences else "vqvae")


def load_autoencoder(recipe: Recipe, folder: Path) -> Any:
    """Load the trained autoencoder of a latent model, frozen; return None for a pixel model."""
    if recipe.autoencoder is None:
        return None
    source = autoencoder_folder(recipe, folder)
    kind: Any = recipe.autoencoder.make
    model = kind(**recipe.autoencoder.config, scaling_factor=kind.load_config(source)["scaling_factor"])
    model.load_state_dict(load_file(source / _WEIGHTS))
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Material:
    """The training data of a denoiser: x_0 [M, C, H, W], images or scaled latents, and their factors [M, 9].

    factors: the targets of the recipe's data, which only text-to-image models use.
    """

    x_0: Tensor
    factors: Tensor
    autoencoder: Any  # None for a pixel model


def train_denoiser(recipe: Recipe, images: Tensor, factors: Tensor, folder: Path, first: int = 0) -> None:
    """Train a denoiser in all phases from number `first` on and save it into `folder`.

    Where `first` is above 0, training starts from the weights in `folder`.
    """
    autoencoder = load_autoencoder(recipe, folder)
    x_0 = images if autoencoder is None else encode(autoencoder, images) * autoencoder.config.scaling_factor
    torch.manual_seed(recipe.seed)
    networks = Networks(recipe)
    if first:
        networks.load(folder)
    for number, phase in enumerate(recipe.phases[first:], start=first):
        networks = train_phase(recipe, phase, number, networks, Material(x_0, factors, autoencoder), folder)


def train_phase(
    recipe: Recipe, phase: Phase, number: int, networks: Networks, material: Material, folder: Path
) -> Networks:
    """Train one phase by denoising score matching (Ho et al., arXiv 2006.11239) and return the averaged weights."""
    generator = torch.Generator().manual_seed(recipe.seed + number)
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_end=phase.beta_end,
        clip_sample=False,
        prediction_type=recipe.prediction,
        steps_offset=int(recipe.sentences),  # Stable Diffusion's pipeline requires 1
    )
    networks.train().requires_grad_(True)
    averaged = AveragedModel(networks, multi_avg_fn=get_ema_multi_avg_fn(recipe.averaging))  # type: ignore[no-untyped-call]  # torch's stub
    averaged_networks: Any = averaged.module
    optimizer = torch.optim.AdamW(networks.parameters(), lr=phase.learning_rate, weight_decay=1e-4)
    warm_up = 200
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1.0, (n + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * n / phase.steps))
    )
    started, running = time.monotonic(), 0.0
    for step in range(1, phase.steps + 1):
        error = prediction_error(recipe, phase, networks, scheduler, material, generator)
        loss = error.square().mean() + phase.colour_weight * error.mean(dim=(2, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        rate.step()
        averaged.update_parameters(networks)
        running += (error.square().mean().item() - running) / min(step, 200)
        if step % 200 == 0:
            seconds = time.monotonic() - started
            print(f"phase {number}: {step}/{phase.steps}  error {running:.4f}  {seconds:.0f} s", flush=True)
        if step % 1000 == 0 or step == phase.steps:
            averaged_networks.pipeline(scheduler, material.autoencoder).save_pretrained(folder, safe_serialization=True)
    return cast(Networks, averaged_networks)


def prediction_error(
    recipe: Recipe,
    phase: Phase,
    networks: Networks,
    scheduler: DDIMScheduler,
    material: Material,
    generator: torch.Generator,
) -> Tensor:
    """Return the UNet's output minus its target on a random batch, a random part without skips: [batch, C, H, W].

    The target is the noise, or the velocity alpha eps - sigma x_0 (Salimans & Ho, arXiv 2202.00512).
    """
    chosen = torch.randint(len(material.x_0), (recipe.batch,), generator=generator)
    x_0 = material.x_0[chosen]
    noise = torch.randn(x_0.shape, generator=generator)
    # One timestep from each of `batch` equal strata: the same expectation, less variance.
    strata = (torch.arange(recipe.batch) + torch.rand(recipe.batch, generator=generator)) / recipe.batch
    t = (strata * 1000).long()
    dropped = torch.rand(recipe.batch, generator=generator) < recipe.skip_dropout
    tokens = tokens_of(networks.tokenizer, describe(material.factors[chosen], generator)) if recipe.sentences else None
    with dropped_skips(networks.unet, dropped, phase.input_only, t >= phase.no_skips_from):
        output: Tensor = networks(scheduler.add_noise(x_0, noise, t), t, tokens)
    target: Tensor = noise if recipe.prediction == "epsilon" else scheduler.get_velocity(x_0, noise, t)
    return output - target


def train_attributes(recipe: Recipe, predictor: PredictorRecipe, folder: Path) -> None:
    """Train a small network that predicts the attributes or the class of an image, and save it into `folder`.

    Its inputs are mildly noised, and blurred as the recipe says, which makes it robust on samples of the denoiser.
    """
    images, targets = recipe.data(predictor.samples, torch.Generator().manual_seed(predictor.seed))
    torch.manual_seed(predictor.seed)
    generator = torch.Generator().manual_seed(predictor.seed + 1)
    net = AttributeNet(images.shape[1], recipe.attributes, predictor.width, predictor.body)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=predictor.steps)
    loss_of = torch.nn.functional.cross_entropy if recipe.classify else torch.nn.functional.mse_loss
    for step in range(1, predictor.steps + 1):
        chosen = torch.randint(len(images), (128,), generator=generator)
        x = disturbed(images[chosen], predictor.blur, generator)
        loss = loss_of(net(x), targets[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        optimizer.step()
        rate.step()
        if step % 200 == 0:
            print(f"{folder.name} {step}/{predictor.steps}  loss {loss.item():.5f}", flush=True)
    net.save(folder)


def disturbed(images: Tensor, blur: float, generator: torch.Generator) -> Tensor:
    """Return images [N, C, H, W], each with noise of a random strength, mixed with its blur by up to `blur`."""
    count = len(images)
    if blur:
        means = torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
        images = images.lerp(means, blur * torch.rand(count, 1, 1, 1, generator=generator))
    strength = 0.06 * torch.rand(count, 1, 1, 1, generator=generator)
    return images + strength * torch.randn(images.shape, generator=generator)


def main() -> None:
    """Train the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--to", type=Path, help="output folder (default: where the package looks for the model)")
    parser.add_argument("--first-phase", type=int, default=0, help="continue from the saved weights with this phase")
    parser.add_argument("--only", choices=PARTS, help="make one of the networks")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.model]
    folder = arguments.to or model_folder(arguments.model)
    for name, predictor in recipe.predictors.items():
        if arguments.only in (None, name):
            train_attributes(recipe, predictor, folder / name)
    if arguments.only in recipe.predictors:
        return
    images, targets = recipe.data(recipe.samples, torch.Generator().manual_seed(recipe.seed))
    if recipe.autoencoder and arguments.only in (None, "autoencoder"):
        autoencoder = train_autoencoder(recipe.autoencoder, images, recipe.seed)
        autoencoder.save_pretrained(autoencoder_folder(recipe, folder))
    if arguments.only in (None, "denoiser"):
        train_denoiser(recipe, images, targets, folder, arguments.first_phase)


if __name__ == "__main__":
    main()
