"""Any image classifier as named scores: the numbers are its own, and what is not one gets one sentence."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.errors import ModelError, UserError
from core.pictures.traversal_grid import to_picture
from core.predictors import classifier
from core.predictors.attributes import Attributes
from core.predictors.classifier import log_odds, unique_names
from core.predictors.embedded import embedded_predictor, second_embedded_predictor

LABELS = ("smile", "hat", "smile")


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random classifiers as they are published: `vit` and `resnet` (exclusive labels), `multi` (independent ones)."""
    transformers = pytest.importorskip("transformers")
    folder: Path = tmp_path_factory.mktemp("classifiers")
    labels = dict(enumerate(LABELS))
    transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        shape = {"image_size": 16, "patch_size": 8, "id2label": labels, "initializer_range": 0.5}
        for name, problem in (("vit", None), ("multi", "multi_label_classification")):
            config = transformers.ViTConfig(**small, **shape, problem_type=problem)
            transformers.ViTForImageClassification(config).save_pretrained(folder / name)
            transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / name)
        config = transformers.ResNetConfig(
            embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", id2label=labels
        )
        transformers.ResNetForImageClassification(config).save_pretrained(folder / "resnet")
        transformers.ConvNextImageProcessorPil(size={"shortest_edge": 32}).save_pretrained(folder / "resnet")
    return folder


@pytest.fixture
def vit(classifiers: Path, tmp_path: Path) -> Path:
    """A copy of `vit` to break."""
    for file in (classifiers / "vit").iterdir():
        (tmp_path / "vit").mkdir(exist_ok=True)
        (tmp_path / "vit" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "vit"


def load(folder: Path) -> Attributes:
    attributes = classifier.load(str(folder), "tiny")
    assert attributes is not None
    return attributes


def images(channels: int = 3) -> Tensor:
    return torch.rand(4, channels, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def logits_by_hand(folder: Path, pictures: Tensor) -> Tensor:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    net = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits: Tensor = net(**processor([to_picture(x) for x in pictures], return_tensors="pt")).logits
    return logits


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_scores_of_exclusive_labels_are_log_odds(classifiers: Path, name: str) -> None:
    attributes = load(classifiers / name)
    p = logits_by_hand(classifiers / name, images()).double().softmax(dim=1)
    scores = attributes.score(images())
    assert attributes.names == ("smile_0", "hat", "smile_2")
    assert torch.allclose(scores, torch.log(p / (1 - p)), rtol=1e-4, atol=1e-5)
    assert scores.std(dim=0).min() > 1e-4, "the pictures do not matter"


def test_scores_of_independent_labels_are_their_logits(classifiers: Path) -> None:
    scores = load(classifiers / "multi").score(images())
    assert torch.allclose(scores, logits_by_hand(classifiers / "multi", images()), rtol=1e-5, atol=1e-6)


def test_the_picture_is_what_the_classifiers_own_preprocessing_makes_of_it(classifiers: Path) -> None:
    """By hand for a picture of one colour: nothing to resize, (x + 1) / 2 normalised with mean and deviation 0.5."""
    from transformers import AutoModelForImageClassification

    level = 51 / 127.5 - 1
    net = AutoModelForImageClassification.from_pretrained(classifiers / "multi").eval()
    with torch.no_grad():
        expected = net(torch.full((1, 3, 16, 16), level)).logits
    scores = load(classifiers / "multi").score(torch.full((1, 3, 8, 8), level))
    assert torch.allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_greyscale_images_are_repeated(classifiers: Path) -> None:
    attributes = load(classifiers / "vit")
    grey = images(1)
    assert torch.equal(attributes.score(grey), attributes.score(grey.expand(-1, 3, -1, -1)))


def test_a_score_does_not_depend_on_the_batch(classifiers: Path) -> None:
    attributes = load(classifiers / "resnet")
    alone = torch.cat([attributes.score(image[None]) for image in images()])
    assert torch.allclose(alone, attributes.score(images()), rtol=1e-4, atol=1e-5)


def test_log_odds_are_exact_where_probabilities_are_not() -> None:
    logits = torch.tensor([[0.0, 100.0, -3.0], [2.0, 2.0, -1000.0]])
    odds = log_odds(logits, exclusive=True)
    assert odds.dtype == torch.float64 and torch.isfinite(odds).all()
    assert odds[0, 1] == pytest.approx(100 - float(torch.tensor([0.0, -3.0]).logsumexp(0)), abs=1e-4)
    assert odds[0, 0] == pytest.approx(-100, abs=1e-4)
    two = torch.tensor([[1.5, -2.0]])
    assert torch.allclose(log_odds(two, exclusive=True), torch.tensor([[3.5, -3.5]], dtype=torch.float64))
    assert torch.allclose(log_odds(logits + 7, exclusive=True), odds, atol=1e-4)
    assert torch.equal(log_odds(logits, exclusive=False), logits)


def test_labels_that_occur_twice_get_their_number() -> None:
    assert unique_names(["crane", "dog", "crane"]) == ("crane_0", "dog", "crane_2")


def test_without_a_name_it_is_the_models_own() -> None:
    own, expected = classifier.load(None, "mnist"), embedded_predictor("mnist")
    assert own is not None and expected is not None and own.names == expected.names
    assert classifier.load(None, "google/ddpm-celebahq-256") is None


def test_a_second_predictor_without_a_name_is_the_second_of_the_model(classifiers: Path) -> None:
    """And with a name it is that one, of any model."""
    own, expected, images = (
        classifier.load_second(None, "toyfaces"),
        second_embedded_predictor("toyfaces"),
        torch.zeros(1, 3, 32, 32),
    )
    assert own is not None and expected is not None and torch.equal(own.score(images), expected.score(images))
    first = embedded_predictor("toyfaces")
    assert first is not None and not torch.equal(own.score(images), first.score(images))
    assert classifier.load_second(None, "google/ddpm-celebahq-256") is None
    named = classifier.load_second(str(classifiers / "vit"), "toyfaces")
    assert named is not None and named.names == unique_names(list(LABELS))


def test_unknown_attributes_get_the_nearest_name() -> None:
    attributes = Attributes(("skin", "smile"), torch.Tensor.cpu)
    assert attributes.index("smile") == 1
    message = r"attribute 'smiel' is not one that the predictor knows: skin, smile; did you mean 'smile'\?"
    with pytest.raises(UserError, match=message):
        attributes.index("smiel")
    with pytest.raises(UserError, match="knows: skin, smile$"):
        attributes.index("xyz")
    with pytest.raises(UserError, match="knows: 0, 1, .*, 19 and 5 more$"):
        Attributes(tuple(str(n) for n in range(25)), torch.Tensor.cpu).index("x")


def rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_folders_that_hold_no_classifier_are_told(vit: Path) -> None:
    config, weights = vit / "config.json", vit / "model.safetensors"
    whole = config.read_text()
    for content, message in (
        ("[", "config.json is not a model configuration"),
        ("[]", "config.json is not a model configuration"),
        ("{}", "vit' is a model of unknown kind: a transformers image classifier or a CLIP model is needed"),
        (
            '{"architectures": ["BertModel"]}',
            "vit' is a BertModel: a transformers image classifier or a CLIP model is needed",
        ),
    ):
        config.write_text(content)
        with pytest.raises(ModelError, match=message):
            load(vit)
    config.write_text(whole)
    kept = weights.read_bytes()
    weights.write_bytes(b"broken")
    with pytest.raises(ModelError, match="predictor '.*vit' cannot be read from .*vit: [^\n]*$"):
        load(vit)
    weights.unlink()
    with pytest.raises(ModelError, match="vit' has no safetensors weights in .*vit$"):
        load(vit)
    (vit / "pytorch_model.bin").write_bytes(kept)
    with pytest.raises(
        ModelError, match="in .*vit, only pytorch_model.bin, and pickles are not read: they can run code"
    ):
        load(vit)
    (vit / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="vit' is incomplete: .*vit lacks preprocessor_config.json"):
        load(vit)
    config.unlink()
    with pytest.raises(ModelError, match="vit lacks config.json and preprocessor_config.json"):
        load(vit)


def test_a_network_without_a_trained_head_is_not_a_classifier(vit: Path) -> None:
    """transformers would make up the missing weights at random."""
    from safetensors.torch import load_file, save_file

    weights = load_file(vit / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, vit / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="vit' is not a trained classifier: its weights lack classifier.weight"):
        load(vit)


def test_preprocessing_that_does_not_fit_is_told_before_it_is_needed(vit: Path) -> None:
    rewrite(vit / "preprocessor_config.json", size={"height": 24, "width": 24})
    with pytest.raises(ModelError, match="predictor '.*vit' cannot score an RGB picture: [^\n]*24"):
        load(vit)


def test_names_that_lead_nowhere_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    for name in ("/nowhere/vit", "vit", "./a/b"):
        with pytest.raises(ModelError, match=f"predictor '{name}' is not there: give a folder or a hub id of an image"):
            classifier.load(name, "tiny")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("a long story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    message = r"predictor 'a/b' is neither a folder here nor could it be fetched from the hub: it is"
    with pytest.raises(ModelError, match=message):
        classifier.load("a/b", "tiny")


def test_nothing_is_said_while_loading(classifiers: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    try:
        load(classifiers / "vit")
        assert capfd.readouterr() == ("", "") and logging.is_progress_bar_enabled()
    finally:
        logging.disable_progress_bar()


@pytest.mark.parametrize("name", ["vit", "resnet", "multi"])
def test_scores_can_be_followed_back_to_the_images(classifiers: Path, name: str) -> None:
    attributes, pictures = load(classifiers / name), images().requires_grad_()
    assert attributes.score_through is not None
    scores = attributes.score_through(pictures)
    assert torch.allclose(
        scores, attributes.score(pictures.detach()).to(scores), atol=0.05 * float(scores.detach().std())
    )
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), pictures)
    assert gradient.isfinite().all() and (gradient.flatten(1).abs().max(dim=1).values > 0).all()


def test_the_gradient_of_a_certain_label_is_finite() -> None:
    """Where 1 - p is rounded to 0 its logarithm has none: that of the other labels stands in its place."""
    logits = torch.tensor([[0.0, 100.0, -3.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_odds(logits, exclusive=True)[0, 1], logits)
    others = torch.tensor([0.0, -3.0]).double().softmax(dim=0)
    assert torch.allclose(gradient[0], torch.tensor([-float(others[0]), 1.0, -float(others[1])]).double())


def test_predictors_of_the_embedded_models_are_differentiable() -> None:
    for found, shape in (
        (embedded_predictor("toyfaces"), (3, 32, 32)),
        (second_embedded_predictor("toyfaces"), (3, 32, 32)),
        (embedded_predictor("mnist"), (1, 32, 32)),
    ):
        assert found is not None and found.score_through is not None
        pictures = (torch.rand(2, *shape, generator=torch.Generator().manual_seed(3)) * 2 - 1).requires_grad_()
        assert not found.score(pictures).requires_grad
        assert torch.equal(found.score_through(pictures), found.score(pictures))
        for column in range(len(found.names)):
            (gradient,) = torch.autograd.grad(found.score_through(pictures)[:, column].sum(), pictures)
            assert gradient.isfinite().all() and gradient.abs().max() > 0
