"""How embedded models are made: skips that are dropped, sentences that are read, autoencoders that are trained."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor

from core.predictors.attribute_net import AttributeNet
from core.zoo import autoencoders, faces
from core.zoo.autoencoders import encode, place_codebook, train_autoencoder
from core.zoo.recipes import RECIPES, Phase, PredictorRecipe
from core.zoo.sentences import MAX_TOKENS, UNPROMPTED, WORDS, describe, make_tokenizer, sentence, tokens_of, word
from core.zoo.skips import dropped_skips
from core.zoo.train import autoencoder_folder, disturbed, train_attributes, train_denoiser

_SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}


def _unet(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "plain":
        return UNet2DModel(in_channels=3, out_channels=3, **_SMALL)
    told = {**_SMALL, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    told["up_block_types"] = ("CrossAttnUpBlock2D", "UpBlock2D")
    return UNet2DConditionModel(in_channels=3, out_channels=3, cross_attention_dim=8, attention_head_dim=2, **told)


def _run(unet: Any, x: Tensor) -> Tensor:
    told = (torch.ones(len(x), 2, 8),) if isinstance(unet, UNet2DConditionModel) else ()
    eps: Tensor = unet(x, torch.tensor([5] * len(x)), *told).sample
    return eps


def _skips(unet: Any, x: Tensor, dropped: Tensor, input_only: bool, drop_all: Tensor | None = None) -> list[Tensor]:
    """What the decoder gets through skips, in its own order, while some samples' are dropped."""
    seen: list[Tensor] = []
    taken = [
        (resnet, own)
        for block, own in zip(unet.up_blocks, ((16, 8), (8, 8)), strict=True)
        for resnet, own in zip(block.resnets, own, strict=True)
    ]
    for resnet, channels in taken:
        resnet.register_forward_pre_hook(lambda _m, inputs, c=channels: seen.append(inputs[0][:, -c:].detach()))
    with dropped_skips(unet, dropped, input_only, drop_all):
        _run(unet, x)
    return seen


@pytest.mark.parametrize("kind", ("plain", "told"))
@pytest.mark.parametrize(("input_only", "kept"), ((False, [False, False, True, True]), (True, [False] * 3 + [True])))
def test_skips_of_the_dropped_samples_are_zero(kind: str, input_only: bool, kept: list[bool]) -> None:
    x = torch.randn(2, 3, 8, 8)
    skips = _skips(_unet(kind), x, torch.tensor([True, False]), input_only)
    assert [bool(skip[0].abs().sum() > 0) for skip in skips] == kept
    assert all(bool(skip[1].abs().sum() > 0) for skip in skips), "the other sample has all of its skips"


@pytest.mark.parametrize("kind", ("plain", "told"))
@pytest.mark.parametrize("input_only", (False, True))
def test_blind_samples_have_none_if_they_are_dropped(kind: str, input_only: bool) -> None:
    x, dropped, drop_all = torch.randn(3, 3, 8, 8), torch.tensor([True, True, False]), torch.tensor([True, False, True])
    skips = _skips(_unet(kind), x, dropped, input_only, drop_all)
    assert [bool(part.abs().sum() > 0) for part in skips[-1]] == [False, True, True]
    assert not any(bool(skip[0].abs().sum() > 0) for skip in skips)


@pytest.mark.parametrize("kind", ("plain", "told"))
def test_skips_are_whole_again_after_an_error(kind: str) -> None:
    unet, x = _unet(kind), torch.randn(2, 3, 8, 8)
    before = _run(unet, x)
    with pytest.raises(ZeroDivisionError), dropped_skips(unet, torch.tensor([True, True])):
        assert not torch.equal(_run(unet, x), before)
        raise ZeroDivisionError
    assert torch.equal(_run(unet, x), before)


def test_sentences() -> None:
    assert sentence({}) == "a face"
    assert sentence({"glasses": "no glasses", "hair_colour": "blond"}) == "a face with blond hair and no glasses"
    assert sentence({"background": "orange"}) == "a face with an orange background"
    everything = {"hair_length": "short", "hair_colour": "dark", "glasses": "glasses", "background": "blue"}
    assert sentence(everything) == "a face with short dark hair, glasses and a blue background"


def test_words_divide_a_factor_into_equal_parts() -> None:
    assert [word("hair_colour", value) for value in (-1.0, -0.34, -0.32, 0.32, 0.34, 1.0)] == [
        "dark", "dark", "brown", "brown", "blond", "blond",
    ]  # fmt: skip
    assert [word("glasses", value) for value in (-0.01, 0.01)] == ["no glasses", "glasses"]


def test_each_word_is_one_token_and_every_sentence_fits() -> None:
    tokenizer = make_tokenizer()
    longest = sentence({factor: max(words, key=len) for factor, words in WORDS.items()})
    tokens = tokens_of(tokenizer, [longest, "", "a face"])
    words = longest.replace(",", " ,").split()
    assert tokens.shape == (3, MAX_TOKENS)
    assert tokenizer.convert_ids_to_tokens(tokens[0])[1 : len(words) + 1] == [text + "</w>" for text in words]
    assert tokens[0, len(words) + 1] == tokenizer.eos_token_id and len(words) + 2 <= MAX_TOKENS
    assert set(tokens[1, 1:].tolist()) == {tokenizer.eos_token_id}


def test_faces_are_described_truly_and_sometimes_not_at_all() -> None:
    factors = faces.sample_factors(2000, torch.Generator().manual_seed(0))
    told = describe(factors, torch.Generator().manual_seed(1))
    assert told == describe(factors, torch.Generator().manual_seed(1))
    assert abs(told.count("") / len(told) - UNPROMPTED) < 0.03
    blond = factors[[i for i, text in enumerate(told) if "blond" in text], faces.FACTORS.index("hair_colour")]
    assert len(blond) > 200 and (blond > 1 / 3).all()
    assert Counter("background" in text for text in told)[True] / len(told) == pytest.approx(0.6 * 0.88, abs=0.05)


def test_a_codebook_is_placed_on_latents() -> None:
    model = autoencoders.VQ.make(**{**autoencoders.VQ.config, "num_vq_embeddings": 5})
    latents = torch.arange(2 * 3 * 4).reshape(2, 3, 2, 2).float()
    place_codebook(model, latents, torch.Generator().manual_seed(0))
    rows = {tuple(row) for row in latents.movedim(1, -1).flatten(0, -2).tolist()}
    entries = {tuple(row) for row in model.quantize.embedding.weight.tolist()}
    assert len(entries) == 5 and entries <= rows


@pytest.mark.slow
@pytest.mark.parametrize("name", ("toyfaces-latent", "toyfaces-text"))
def test_latent_models_are_made_from_nothing(name: str, tmp_path: Path) -> None:
    """A few steps of everything: latents have a standard deviation of 1, twice the same weights, no path of ours."""
    recipe, (images, factors) = _hasty(name)
    assert recipe.autoencoder is not None
    made = [train_autoencoder(recipe.autoencoder, images, seed=0) for _ in range(2)]
    assert float(encode(made[0], images).std()) * made[0].config.scaling_factor == pytest.approx(1, abs=1e-3)
    for model, folder in zip(made, (tmp_path / "a", tmp_path / "b"), strict=True):
        model.save_pretrained(autoencoder_folder(recipe, folder))
        train_denoiser(recipe, images, factors, folder)
    written = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in written)
    assert not any(str(tmp_path) in file.read_text() for file in (tmp_path / "a").rglob("*.json"))


def test_a_predictor_is_made_from_its_recipe_alone(tmp_path: Path) -> None:
    first, second = (
        PredictorRecipe(4, 2, width=8, body=body, blur=blur, seed=seed)
        for body, blur, seed in (("strided", 0.0, 0), ("residual", 0.5, 3))
    )
    for folder, predictor in (("a", first), ("b", second), ("c", second), ("d", replace(second, seed=4))):
        train_attributes(RECIPES["toyfaces"], predictor, tmp_path / folder)
    a, b, c, d = ((tmp_path / folder / "attributes.safetensors").read_bytes() for folder in "abcd")
    assert b == c and len({a, b, d}) == 3
    assert AttributeNet.load(tmp_path / "b").settings["body"] == "residual"


def test_images_are_disturbed_by_noise_and_blur() -> None:
    step = torch.ones(64, 1, 8, 8)
    step[..., 4:] = -1.0
    plain, blurred = (
        disturbed(step, blur, torch.Generator().manual_seed(0)).mean(dim=(1, 2)) for blur in (0.0, 0.6)
    )  # [64, 8]: rows, whose noise is averaged away
    assert (plain - step[:, 0, 0]).abs().max() < 0.12 and (plain - step[:, 0, 0]).abs().max() > 0.01
    beside = 1 - blurred[:, 3]  # the mean of 3x3 pixels beside the edge is 1/3
    assert beside.max() == pytest.approx(0.6 * 2 / 3, abs=0.1) and beside.min() == pytest.approx(0, abs=0.1)
    assert (1 - blurred[:, 0]).abs().max() < 0.12, "far from the edge nothing is blurred"


def _hasty(name: str) -> tuple[Any, tuple[Tensor, Tensor]]:
    """A recipe of a few steps, and its images and factors."""
    recipe = RECIPES[name]
    assert recipe.autoencoder is not None
    config = {**recipe.autoencoder.config, **({"num_vq_embeddings": 8} if name.endswith("latent") else {})}
    recipe = replace(
        recipe,
        samples=8,
        batch=2,
        phases=(Phase(2, 0.012, 1e-3, input_only=True, no_skips_from=400),),
        autoencoder=replace(recipe.autoencoder, config=config, steps=2, batch=2),
    )
    return recipe, recipe.data(recipe.samples, torch.Generator().manual_seed(0))
