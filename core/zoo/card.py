"""Measures an embedded model and writes its card and sample grid: `python -m core.zoo.card {toyfaces,digits}`.

The steering table answers the question that matters for h-space: if h is moved along the difference of means of the
samples with most and least of an attribute, does the attribute move?
"""

import argparse
from dataclasses import asdict

import torch
from torch import Tensor

from core import Denoiser, Schedule, noise, sample
from core.chain import trajectory
from core.pictures import grid
from core.randomness import REPORT_SEEDS, SELECT_SEEDS
from core.zoo import digits, faces, model_folder
from core.zoo.attributes import AttributeNet, Attributes, embedded
from core.zoo.train import RECIPES

_STEPS = 20
_DATA = {
    "toyfaces": "Faces drawn by `core/zoo/faces.py` with nine independent, uniform factors; no person is shown.",
    "digits": "scikit-learn's `load_digits` (1,797 handwritten digits; UCI Optical Recognition of Handwritten Digits), "
    "enlarged from 8x8 to 16x16.",
}


@torch.no_grad()
def steering(denoiser: Denoiser, attributes: Attributes, samples: int = 512, shifted: int = 32) -> dict[str, float]:
    """How far h moves each attribute, in standard deviations: half of (score at +1 minus score at -1).

    Scale 1 is the difference of the mean h (all steps) of the tenth of `samples` with the highest and lowest scores.
    """
    schedule = Schedule.ddim(denoiser, _STEPS)
    x_T = noise(SELECT_SEEDS[:samples], denoiser.sample_shape)
    drawn = [trajectory(denoiser, schedule, part) for part in torch.split(x_T, 64)]
    scores = attributes.score(torch.cat([x for x, _ in drawn]))  # [N, A]
    h = torch.cat([states for _, states in drawn], dim=1)  # [T, N, C, H, W]
    fresh = noise(REPORT_SEEDS[:shifted], denoiser.sample_shape)
    moved = {}
    for a, name in enumerate(attributes.names):
        order = scores[:, a].argsort()
        tenth = samples // 10
        difference = h[:, order[-tenth:]].mean(1) - h[:, order[:tenth]].mean(1)  # [T, C, H, W]

        def ends(scale: float, delta: Tensor = difference, column: int = a) -> Tensor:
            images = sample(denoiser, schedule, fresh, lambda i: scale * delta[i].expand(shifted, -1, -1, -1))
            return attributes.score(images)[:, column]

        moved[name] = float((ends(1.0) - ends(-1.0)).mean() / 2 / scores[:, a].std())
    return moved


@torch.no_grad()
def predictor_quality(name: str) -> dict[str, float]:
    """R^2 of each factor on fresh renders, or the share of all digits that are recognised."""
    net = AttributeNet.load(model_folder(name) / "attributes")
    if name == "digits":
        images, labels = digits.load(digits.COUNT, torch.Generator().manual_seed(0))
        held = slice(digits.TRAINED, None)  # never seen in training
        return {"accuracy": float((net(images[held]).argmax(1) == labels[held]).float().mean())}
    factors = faces.sample_factors(1000, torch.Generator().manual_seed(10**6))
    error = (net(faces.render(factors)) - factors).square().mean(0)
    return dict(zip(faces.FACTORS, (1 - error / factors.var(0)).tolist(), strict=True))


def card(name: str) -> str:
    """The model card in Markdown."""
    denoiser, attributes = Denoiser.from_pretrained(name), embedded(name)
    assert attributes is not None
    recipe = RECIPES[name]
    quality = predictor_quality(name)
    rows = "\n".join(
        f"| {attribute} | {effect:.2f} | {quality.get(attribute, quality.get('accuracy', 0)):.3f} |"
        if attribute not in digits.MEASURES
        else f"| {attribute} | {effect:.2f} | measured on the image |"
        for attribute, effect in steering(denoiser, attributes).items()
    )
    judged = "accuracy of the predictor" if name == "digits" else "R^2 of the predictor"
    phases = "\n".join(f"- phase {i}: {asdict(phase)}" for i, phase in enumerate(recipe.phases))
    parameters = sum(p.numel() for p in denoiser.unet.parameters())
    return f"""# {name}

An unconditional diffusion model small enough to ship: {parameters:,} parameters, images {list(denoiser.sample_shape)},
h-space {list(denoiser.h_shape)}. A diffusers pipeline folder (`unet/`, `scheduler/`) with an attribute predictor
(`attributes/`).

![Samples at {_STEPS} DDIM steps](samples.png)

**Data.** {_DATA[name]}

**Made by** `python -m core.zoo.train {name}` (seed {recipe.seed}, batch {recipe.batch}, averaged weights); this card by
`python -m core.zoo.card {name}`.

{phases}

**h steers.** During training the skip connections below full resolution (with `input_only`: all but that of the first
convolution) are dropped for a random {recipe.skip_dropout:.0%} of each batch, so that what the model draws travels
through h. Inference is the unmodified UNet. `effect`: how far the attribute moves, in standard deviations, when h is
moved along its difference of means at scale 1 ({_STEPS} steps, symmetric injection, held-out seeds).

| attribute | effect | {judged} |
|---|---|---|
{rows}

**Limits.** For demonstrations, tests and method comparisons; its images mean nothing outside this project.
Weights: Apache-2.0, as the project.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    name = parser.parse_args().model
    denoiser = Denoiser.from_pretrained(name)
    images = sample(denoiser, Schedule.ddim(denoiser, _STEPS), noise(REPORT_SEEDS[:40], denoiser.sample_shape))
    grid(images.reshape(4, 10, *denoiser.sample_shape), cell=64).save(model_folder(name) / "samples.png")
    (model_folder(name) / "README.md").write_text(card(name))


if __name__ == "__main__":
    main()
