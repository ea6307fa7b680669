"""What ships: the renderer is deterministic, the models load, the predictors are as good as their cards say."""

import pytest
import torch
from torch.nn import Conv2d

from core import Schedule, noise, sample
from core.chain.sampling import invert
from core.methods import supervised
from core.predictors.attribute_net import AttributeNet
from core.predictors.embedded import (
    digit_classifier,
    embedded_predictor,
    predictor_folder,
    second_embedded_predictor,
)
from core.zoo import MODELS, faces, mnist, model_folder
from core.zoo.measures import autoencoder_quality, digit_quality, load, predictor_quality, prompt_accuracy


def test_rendering_is_deterministic_and_in_range() -> None:
    factors = faces.sample_factors(4, torch.Generator().manual_seed(0))
    images = faces.render(factors)
    assert images.shape == (4, 3, 32, 32) and images.abs().max() <= 1
    assert torch.equal(images, faces.render(factors))
    assert torch.allclose(faces.render(factors[2:3])[0], images[2], atol=1e-6)


@pytest.mark.parametrize("factor", faces.FACTORS)
def test_every_factor_shows(factor: str) -> None:
    row = faces.factor_sweep(factor)
    steps = (row[1:] - row[:-1]).abs().flatten(1).max(1).values
    assert (steps > 0.02).all(), "a part of the factor's range changes nothing"


def test_factors_of_the_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"factors: got shape \[2, 3\], expected \[N, 9\] \(skin, hair_colour, "):
        faces.render(torch.zeros(2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_embedded_models_draw_images(name: str) -> None:
    denoiser, attributes = load(name), embedded_predictor(name)
    assert attributes is not None
    with torch.no_grad():
        x_0 = sample(denoiser, Schedule.ddim(denoiser, 6), noise(range(4), denoiser.sample_shape))
        images = denoiser.images(x_0)
    assert -1.6 < images.min() < -0.3 and 0.3 < images.max() < 1.6
    assert attributes.score(images).shape == (4, len(attributes.names))


@pytest.mark.parametrize("name", MODELS)
def test_embedded_models_are_small_and_documented(name: str) -> None:
    files = [file for file in model_folder(name).rglob("*") if file.is_file()]
    assert max(file.stat().st_size for file in files) <= 5_000_000
    card = (model_folder(name) / "README.md").read_text()
    assert "h steers" in card and "samples.png" in card and (model_folder(name) / "samples.png").is_file()


@pytest.mark.parametrize("name", MODELS)
def test_embedded_models_know_no_machine(name: str) -> None:
    """diffusers writes down where a model was loaded from."""
    for file in model_folder(name).rglob("*.json"):
        assert "_name_or_path" not in file.read_text(), file


@pytest.mark.slow
@pytest.mark.parametrize("name", ("toyfaces-latent", "toyfaces-text"))
def test_latents_keep_the_face(name: str) -> None:
    quality = autoencoder_quality(name)
    assert quality["error"] < 0.04 and quality["read"] > 0.8


@pytest.mark.slow
def test_what_sentences_say_of_colours_is_obeyed() -> None:
    """The card says how little hair length and glasses are."""
    obeyed = prompt_accuracy("toyfaces-text", guidance=2.0, prompts=48)
    assert obeyed["hair_colour"] >= 0.9 and obeyed["background"] >= 0.9


@pytest.mark.slow
def test_the_face_predictor_reads_every_factor() -> None:
    assert all(value >= 0.98 for value in predictor_quality().values())


@pytest.mark.slow
def test_the_second_face_predictor_reads_every_factor_nearly_as_well() -> None:
    first, second = predictor_quality(), predictor_quality(second=True)
    assert all(second[factor] >= 0.98 and first[factor] - second[factor] < 0.02 for factor in faces.FACTORS)


def test_the_two_face_predictors_are_different_networks() -> None:
    first, second = (AttributeNet.load(predictor_folder(second)) for second in (False, True))
    assert first.settings["body"] != second.settings["body"]
    strides = [max(layer.stride[0] for layer in net.modules() if isinstance(layer, Conv2d)) for net in (first, second)]
    assert strides == [2, 1], "one makes images smaller by strides, the other by poolings alone"
    assert first.state_dict().keys() != second.state_dict().keys()
    assert sum(file.stat().st_size for file in predictor_folder(second=True).iterdir()) <= 1_000_000


@pytest.mark.parametrize("name", MODELS)
def test_models_have_a_second_predictor(name: str) -> None:
    second = second_embedded_predictor(name)
    first = embedded_predictor(name)
    assert first is not None and second is not None and second.names == first.names
    if name == "mnist":
        images, _ = mnist.load(16, torch.Generator().manual_seed(0))
        assert second.score(images).shape == (16, len(second.names)) and not second.differentiable
        assert not torch.allclose(second.score(images), first.score(images), atol=0.01)
    else:
        factors = faces.sample_factors(16, torch.Generator().manual_seed(10**6))
        assert second.names == faces.FACTORS and second.score(faces.render(factors)).shape == (16, 9)


@pytest.mark.slow
def test_digits_that_trained_nothing_are_read_and_samples_are_digits() -> None:
    quality = digit_quality(load("mnist"), samples=100)
    assert quality["accuracy"] >= 0.98 and quality["sure"] >= 0.8


@pytest.mark.slow
def test_a_real_digit_that_trained_nothing_is_inverted_and_edited() -> None:
    """It is drawn again, leans further along the slant that samples taught, and stays the digit that it is."""
    denoiser, attributes = load("mnist"), embedded_predictor("mnist")
    assert attributes is not None
    images, classes = (each[:16] for each in mnist.held_out())
    schedule = Schedule.ddim(denoiser, 20)
    directions = supervised.find(denoiser, schedule, supervised.Settings(attributes=("slant",), samples=256))
    with torch.no_grad():
        x_T = invert(denoiser, schedule, images)
        again = sample(denoiser, schedule, x_T)
        ends = [sample(denoiser, schedule, x_T, directions.shift("slant", scale)) for scale in (-0.5, 0.5)]
    assert (again - images).square().mean().sqrt() < 0.1
    slants = [attributes.score(each)[:, attributes.index("slant")] for each in (ends[0], again, ends[1])]
    assert (slants[0] < slants[1]).float().mean() > 0.9 and (slants[1] < slants[2]).float().mean() > 0.9
    read = [digit_classifier().score(each).argmax(1) == classes for each in (again, *ends)]
    assert all(each.float().mean() >= 0.9 for each in read)


def test_other_models_have_no_predictor() -> None:
    assert embedded_predictor("google/ddpm-celebahq-256") is None
    assert second_embedded_predictor("google/ddpm-celebahq-256") is None
