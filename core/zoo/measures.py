"""Measurements of an embedded model for its card: how h steers, how well latents decode, whether prompts are obeyed."""

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from core import Denoiser, Schedule, noise, sample
from core.chain.sampling import trajectory
from core.metrics.features import denoiser_features, standardise
from core.metrics.fidelity import kid
from core.predictors.attribute_net import AttributeNet
from core.predictors.attributes import Attributes
from core.predictors.embedded import digit_classifier, embedded_predictor, predictor_folder, second_embedded_predictor
from core.randomness import REPORT_SEEDS, SELECT_SEEDS
from core.zoo import faces, mnist, model_folder
from core.zoo.autoencoders import decode, encode
from core.zoo.recipes import RECIPES
from core.zoo.sentences import WORDS, describe_words, sentence
from core.zoo.train import load_autoencoder

STEPS = 20
GUIDANCE = 2.0
SURE = 0.9  # probability of a digit
_OPEN = "a face"  # the sentence that names nothing


def load(name: str) -> Denoiser:
    """Load an embedded model. A text-to-image model gets the prompt that names nothing."""
    if RECIPES[name].sentences:
        return Denoiser.from_pretrained(name, prompts=[_OPEN], guidance=GUIDANCE)
    return Denoiser.from_pretrained(name)


@torch.no_grad()
def steering(
    denoiser: Denoiser, attributes: Attributes, samples: int = 512, shifted: int = 32
) -> dict[str, tuple[float, float]]:
    """Return for each attribute (how far h moves it, the standard deviation of its score over samples).

    The first is half of (score at scale +1 minus score at scale -1), in units of that standard deviation, as the mean
    over `shifted` other samples. Scale 1 is the difference in mean h, at all steps, between the tenths of `samples`
    with the highest and with the lowest scores.
    """
    schedule = Schedule.ddim(denoiser, STEPS)
    x_T = noise(SELECT_SEEDS[:samples], denoiser.sample_shape)
    drawn = [trajectory(denoiser, schedule, part) for part in torch.split(x_T, 64)]
    scores = torch.cat([attributes.score(denoiser.images(x)) for x, _ in drawn])  # [N, A]
    h = torch.cat([states for _, states in drawn], dim=1)  # [T, N, C, H, W]
    fresh = noise(REPORT_SEEDS[:shifted], denoiser.sample_shape)
    moved = {}
    for a, name in enumerate(attributes.names):
        order = scores[:, a].argsort()
        tenth = samples // 10
        difference = h[:, order[-tenth:]].mean(1) - h[:, order[:tenth]].mean(1)  # [T, C, H, W]

        def ends(scale: float, delta: Tensor = difference, column: int = a) -> Tensor:
            x_0 = sample(denoiser, schedule, fresh, lambda i: scale * delta[i].expand(shifted, -1, -1, -1))
            return attributes.score(denoiser.images(x_0))[:, column]

        spread = float(scores[:, a].std())
        moved[name] = float((ends(1.0) - ends(-1.0)).mean()) / 2 / spread, spread
    return moved


@torch.no_grad()
def predictor_quality(second: bool = False) -> dict[str, float]:
    """Return the R^2 of each factor of faces on fresh renders. second: of the predictor that only measures."""
    net = AttributeNet.load(predictor_folder(second))
    factors = faces.sample_factors(1000, torch.Generator().manual_seed(10**6))
    error = (net(faces.render(factors)) - factors).square().mean(0)
    return dict(zip(faces.FACTORS, (1 - error / factors.var(0)).tolist(), strict=True))


@torch.no_grad()
def digit_quality(denoiser: Denoiser, samples: int = 600) -> dict[str, float]:
    """Return how well digits are read, and drawn.

    accuracy: the share of digits that the classifier reads of those that trained nothing; sure: the share of samples of
    whose digit it is surer than SURE; sure_of_real: the same of those digits; kid: how much further samples are from
    those digits than as many training digits are, in the denoiser's features; kid_error: half its 95 % interval.
    """
    classifier = digit_classifier()
    real, classes = mnist.held_out()
    trained, _ = mnist.load(samples, torch.Generator().manual_seed(1))
    x_T = noise(REPORT_SEEDS[:samples], denoiser.sample_shape)
    schedule = Schedule.ddim(denoiser, STEPS)
    drawn = torch.cat([sample(denoiser, schedule, part) for part in torch.split(x_T, 100)])
    scores = [classifier.score(images) for images in (drawn, real)]
    sure, sure_of_real = (float((each.softmax(1).amax(1) > SURE).float().mean()) for each in scores)
    features = [denoiser_features(denoiser, images) for images in (drawn, trained, real)]
    of_drawn, of_trained, of_real = (standardise(each, features[-1]) for each in features)
    distance = kid(of_drawn[:, None], of_trained, of_real)
    low, high = distance.interval
    return {
        "accuracy": float((scores[1].argmax(1) == classes).float().mean()),
        "sure": sure,
        "sure_of_real": sure_of_real,
        "kid": distance.value,
        "kid_error": (high - low) / 2,
    }


@torch.no_grad()
def agreement(denoiser: Denoiser, samples: int = 256) -> dict[str, float]:
    """Return for each attribute the correlation of the scores of both predictors over samples of a model."""
    predictors = [each(denoiser.name) for each in (embedded_predictor, second_embedded_predictor)]
    first, second = (each for each in predictors if each is not None)
    schedule = Schedule.ddim(denoiser, STEPS)
    x_T = noise(SELECT_SEEDS[:samples], denoiser.sample_shape)
    images = torch.cat([denoiser.images(sample(denoiser, schedule, part)) for part in torch.split(x_T, 64)])
    scores = zip(first.score(images).T, second.score(images).T, strict=True)
    correlations = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in scores]
    return dict(zip(first.names, correlations, strict=True))


@torch.no_grad()
def autoencoder_quality(name: str) -> dict[str, float]:
    """Return the quality of fresh renders that are encoded and decoded.

    error: root mean square error, on the range from -1 to 1; read: the lowest R^2 of the predictor over the factors.
    """
    factors = faces.sample_factors(1000, torch.Generator().manual_seed(10**6))
    images = faces.render(factors)
    autoencoder = load_autoencoder(RECIPES[name], model_folder(name))
    decoded = decode(autoencoder, encode(autoencoder, images))
    error = (AttributeNet.load(predictor_folder())(decoded) - factors).square().mean(0)
    return {
        "error": float((decoded - images).square().mean().sqrt()),
        "read": float((1 - error / factors.var(0)).min()),
    }


@torch.no_grad()
def prompt_accuracy(name: str, guidance: float, prompts: int = 200) -> dict[str, float]:
    """Return for each factor of `WORDS` the share of samples on the named side of the middle (1/2 is chance).

    "brown" and "grey" name the middle itself and are not counted.
    """
    attributes = embedded_predictor(name)
    assert attributes is not None
    factors = faces.sample_factors(prompts, torch.Generator().manual_seed(10**6 + 1))
    named = describe_words(factors, torch.Generator().manual_seed(10**6 + 2))
    pipeline = StableDiffusionPipeline.from_pretrained(model_folder(name))
    pipeline.set_progress_bar_config(disable=True)
    x_T = noise(REPORT_SEEDS[:prompts], (4, faces.SIZE // 2, faces.SIZE // 2))
    drawn = pipeline(
        [sentence(words) for words in named],
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=x_T,
        output_type="pt",
    ).images
    scores = attributes.score(drawn * 2 - 1)  # [prompts, A]
    right: dict[str, list[bool]] = {factor: [] for factor in WORDS}
    for words, score in zip(named, scores, strict=True):
        for factor, word in words.items():
            side = WORDS[factor].index(word) - (len(WORDS[factor]) - 1) / 2
            if side:
                right[factor].append(bool(score[attributes.index(factor)] * side > 0))
    return {factor: sum(answers) / len(answers) for factor, answers in right.items()}
