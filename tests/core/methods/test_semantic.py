"""Semantic directions are regressions of h on what is seen in the samples: by the denoiser or by a vision model."""

from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
from torch import Tensor

from core import Denoiser, DirectionSet, Schedule, noise
from core.chain.sample_maps import sample_maps
from core.chain.sampling import trajectory
from core.errors import ModelError, NonFiniteError, UserError
from core.methods import semantic
from core.methods.semantic import Settings
from core.methods.sources import features_of_maps, find_sources
from core.predictors.vision import Extractor, open_vision
from core.samples import draw
from core.samples.cache import SampleCache
from core.samples.draw import IMAGES
from core.samples.training import training_seeds

SAMPLES = 40
FLATTEST = Settings(directions=3, samples=SAMPLES, sigmas=2.0)
COMPONENTS = Settings(directions=3, samples=SAMPLES, sigmas=2.0, sources="components")


@pytest.fixture
def schedule(single_denoiser: Denoiser) -> Schedule:
    return Schedule.ddim(single_denoiser, 3)


@pytest.fixture
def drawn(single_denoiser: Denoiser, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """The samples [N, C, H, W] and their h [T, N, C, H, W], drawn all at once."""
    return trajectory(single_denoiser, schedule, noise(training_seeds(SAMPLES), single_denoiser.sample_shape))


def full(directions: DirectionSet) -> Tensor:
    """Shifts at scale 1: [K, T, C, H, W]."""
    return directions.table * directions.sigma[:, :, None, None, None]


def regression(h: Tensor, scores: Tensor) -> Tensor:
    """The slopes of h [T, N, ...] on scores [N, K] and a constant, by least squares: [K, T, ...]."""
    design = torch.cat([scores, torch.ones(len(scores), 1)], dim=1).double()
    steps = [torch.linalg.lstsq(design, each.flatten(1).double()).solution[:-1] for each in h]
    return torch.stack(steps, dim=1).unflatten(2, h.shape[2:])


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether both are the same up to the sign of each direction."""
    expected = expected.to(found)
    signs = (found * expected).flatten(1).sum(dim=1).sign()[:, None, None, None, None]
    return torch.allclose(found * signs, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_a_direction_is_the_regression_of_h_on_a_source(
    single_denoiser: Denoiser, schedule: Schedule, drawn: tuple[Tensor, Tensor]
) -> None:
    x_0, h = drawn
    _, values = find_sources(single_denoiser, x_0, 3)
    found = semantic.find(single_denoiser, schedule, FLATTEST)
    assert agree(full(found), 2 * regression(h, values[:, :3]))
    assert found.timesteps == schedule.timesteps and found.provenance["method"] == "semantic"


def test_components_are_those_of_the_features_each_in_its_own_units(
    single_denoiser: Denoiser, schedule: Schedule, drawn: tuple[Tensor, Tensor]
) -> None:
    x_0, h = drawn
    features = features_of_maps(sample_maps(single_denoiser, x_0)).double()
    deviation = features.std(dim=0)
    rows = (features - features.mean(dim=0)) / deviation.clamp(min=0.01 * deviation.mean())
    left, _, _ = torch.linalg.svd(rows, full_matrices=False)
    scores = left[:, :3] / left[:, :3].std(dim=0)
    found = semantic.find(single_denoiser, schedule, COMPONENTS)
    assert agree(full(found), 2 * regression(h, scores))


@pytest.mark.parametrize("settings", [FLATTEST, COMPONENTS])
def test_the_batch_changes_nothing(single_denoiser: Denoiser, schedule: Schedule, settings: Settings) -> None:
    at_once = semantic.find(single_denoiser, schedule, settings)
    assert agree(full(semantic.find(single_denoiser, schedule, settings, batch=7)), full(at_once))


def test_a_vision_model_sees_images(
    single_denoiser: Denoiser, schedule: Schedule, drawn: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it sees decides: here the means of the four quarters, of which three vary most."""
    x_0, h = drawn

    def quarters(images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2)[:, 0].flatten(1) * torch.tensor([1.0, 2.0, 3.0, 0.0])

    opened = create_autospec(open_vision, return_value=Extractor("Quarters", quarters))
    monkeypatch.setattr(semantic, "open_vision", opened)
    settings = Settings(directions=3, samples=SAMPLES, sigmas=1.0, look="some/model", sources="components")
    found = semantic.find(single_denoiser, schedule, settings)
    opened.assert_called_once_with("some/model", "look", single_denoiser.device)
    seen = quarters(single_denoiser.images(x_0))[:, :3]
    spanned = regression(h, seen).flatten(1)
    shifts = full(found).flatten(1).double()
    rest = shifts - shifts @ torch.linalg.pinv(spanned) @ spanned
    assert rest.norm() < 1e-3 * shifts.norm(), "directions go with what was seen and nothing else"


def test_what_a_real_vision_model_sees(single_denoiser: Denoiser, schedule: Schedule, vision_folder: Path) -> None:
    settings = Settings(directions=2, samples=8, look=str(vision_folder))
    vision = open_vision(settings.look, "look")
    features, places = semantic.looked_at(single_denoiser, schedule, settings, vision, batch=3)
    assert features.shape[0] == 8 and places.shape == (8, 3, 256) and features.std(dim=0).max() > 0
    found = semantic.find(single_denoiser, schedule, settings)
    assert len(found) == 2 and found.provenance["seen_by"] == vision.name and vision.name.startswith("ViTModel ")


def test_a_vision_model_that_is_not_there(single_denoiser: Denoiser, schedule: Schedule) -> None:
    with pytest.raises(ModelError, match=r"^look './gone' is not there: give a folder or a hub id of an image model"):
        semantic.find(single_denoiser, schedule, Settings(2, "./gone", samples=4))


def test_more_directions_than_are_seen(
    single_denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Extractor("One", lambda images: images.mean(dim=(1, 2, 3))[:, None])
    monkeypatch.setattr(semantic, "open_vision", create_autospec(open_vision, return_value=one))
    sentence = r"^directions: got 3; what 'a/b' sees of model 'tiny' varies in 1 dimensions over 40 samples$"
    for sources in semantic.KINDS:
        settings = Settings(directions=3, samples=SAMPLES, look="a/b", sources=sources)
        with pytest.raises(UserError, match=sentence):
            semantic.find(single_denoiser, schedule, settings)


def test_features_that_are_no_numbers(
    single_denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = Extractor("Blind", lambda images: torch.full((len(images), 4), torch.nan))
    monkeypatch.setattr(semantic, "open_vision", create_autospec(open_vision, return_value=blind))
    with pytest.raises(NonFiniteError, match=r"^look: what 'a/b' sees of model 'tiny' is NaN or infinite$"):
        semantic.find(single_denoiser, schedule, Settings(2, "a/b", samples=4))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"directions": 0}, "directions: got 0; allowed: 1 or more"),
        ({"seed": -1}, "seed: got -1; allowed: 0 or more"),
        ({"sources": "flat"}, "sources: got 'flat'; allowed: flattest, components"),
        ({"samples": 16}, "samples: got 16; 16 sources need at least 17 samples"),
        ({"sigmas": 0.0}, "sigmas: got 0.0; allowed: a number above 0"),
    ],
)
def test_settings_that_are_refused(wrong: dict, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Settings(**wrong)
    assert str(caught.value) == sentence


def test_samples_that_are_no_numbers(
    single_denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told before a vision model makes pictures of them."""
    drawn = {IMAGES: torch.full((4, *single_denoiser.sample_shape), torch.nan)}
    monkeypatch.setattr(semantic, "draw", create_autospec(semantic.draw, return_value=iter([drawn])))
    with pytest.raises(NonFiniteError, match=r"^samples of model 'tiny' became NaN or infinite$"):
        semantic.find(single_denoiser, schedule, Settings(2, samples=4))


def test_with_a_cache_each_chain_runs_once(
    single_denoiser: Denoiser, schedule: Schedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_autospec(draw._chain, side_effect=draw._chain)
    monkeypatch.setattr(draw, "_chain", run)
    settings = Settings(2, samples=32)
    found = semantic.find(single_denoiser, schedule, settings, 16, SampleCache(tmp_path))
    assert run.call_count == 2
    assert agree(full(semantic.find(single_denoiser, schedule, settings, 16)), full(found))


def test_more_directions_than_h_has_dimensions(single_denoiser: Denoiser, schedule: Schedule) -> None:
    with pytest.raises(UserError, match="^directions: got 33; h of model 'tiny' has 32 dimensions$"):
        semantic.find(single_denoiser, schedule, Settings(33, samples=34))
