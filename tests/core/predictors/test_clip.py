"""Attributes by words: a score is the difference of CLIP's own two logits, and words are read as they are meant."""

import json
from pathlib import Path

import pytest
import torch

from core.errors import ModelError, UserError
from core.pictures.traversal_grid import to_picture
from core.predictors import classifier
from core.predictors.clip import WORDS, parse_words


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of a few thousand parameters that spells its words letter by letter."""
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    folder: Path = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {"vocab_size": len(tokens), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **small}
    vision = {"image_size": 16, "patch_size": 8, **small}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    transformers.CLIPImageProcessorPil(**size).save_pretrained(folder)
    return folder


def test_a_score_is_how_much_nearer_one_text_is_than_its_opposite(clip_folder: Path) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    words = parse_words("smile, a red car|a blue car")
    attributes = classifier.load(str(clip_folder), "tiny", words=words)
    assert attributes is not None and attributes.names == ("smile", "a red car")
    net, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), AutoTokenizer.from_pretrained(clip_folder)
    pixels = AutoImageProcessor.from_pretrained(clip_folder, backend="pil")(
        [to_picture(image) for image in images], return_tensors="pt"
    )
    for column, (more, less) in enumerate(words.values()):
        tokens = tokenizer([more, less], return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = net(**tokens, **pixels).logits_per_image
        assert torch.allclose(attributes.score(images)[:, column], logits[:, 0] - logits[:, 1], atol=1e-5)
    assert attributes.score(images).std(dim=0).min() > 1e-4, "the pictures do not matter"


def test_without_words_the_known_ones_are_asked(clip_folder: Path) -> None:
    attributes = classifier.load(str(clip_folder), "tiny")
    assert attributes is not None and attributes.names == tuple(WORDS)


def test_words_are_known_ones_or_texts_against_their_opposite() -> None:
    assert parse_words("smile") == {"smile": WORDS["smile"]}
    assert parse_words(" a cat | a dog , fog") == {"a cat": ("a cat", "a dog"), "fog": ("fog", "a photo")}


@pytest.mark.parametrize("given", ["", " , ", "smile,smile", "|a dog"])
def test_words_that_name_nothing_or_one_thing_twice_are_refused(given: str) -> None:
    with pytest.raises(UserError, match="words: got .*; allowed: .*'smile, a red car|a blue car'"):
        parse_words(given)


def test_words_for_a_predictor_that_has_its_own_are_refused() -> None:
    with pytest.raises(UserError, match="'toyfaces' has attributes of its own; only a CLIP model takes words"):
        classifier.load(None, "toyfaces", words=parse_words("smile"))


def test_a_clip_model_without_its_tokenizer_is_told(clip_folder: Path, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / file).write_bytes((clip_folder / file).read_bytes())
    with pytest.raises(ModelError, match="is incomplete: .* lacks tokenizer.json or vocab.json"):
        classifier.load(str(tmp_path), "tiny")


def test_its_scores_can_be_followed_back_to_the_images(clip_folder: Path) -> None:
    attributes = classifier.load(str(clip_folder), "tiny")
    assert attributes is not None and attributes.score_through is not None
    images = (torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1).requires_grad_()
    scores = attributes.score_through(images)
    assert torch.allclose(scores, attributes.score(images.detach()), atol=0.05 * float(scores.detach().std()))
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), images)
    assert gradient.isfinite().all() and (gradient.flatten(1).abs().max(dim=1).values > 0).all()
