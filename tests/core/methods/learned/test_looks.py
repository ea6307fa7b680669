"""What reconstructor and consistency see: pixels, the denoiser's maps, or a vision model's features."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from core import Denoiser, Schedule
from core.chain.sample_maps import sample_maps
from core.errors import ModelError, UserError
from core.methods import learned
from core.methods.learned import looks, losses
from core.methods.learned.looks import PIXELS, Units
from core.methods.learned.training import Learner, Settings
from core.methods.sources import DENOISER
from core.predictors.vision import Extractor, open_vision

SETTINGS = Settings(directions=3, batch=4, pool=32, iterations=2, shift_scale=2.0, start="random")
ROWS = torch.tensor([3, 5, 8, 2])


@pytest.fixture(params=[DENOISER, "vision"])
def settings(request: pytest.FixtureRequest, vision_folder: Path) -> Settings:
    return replace(SETTINGS, look=DENOISER if request.param == DENOISER else str(vision_folder))


def raw(denoiser: Denoiser, look: str) -> Callable[[Tensor], Tensor]:
    """What is seen of samples, by the definitions."""
    if look == DENOISER:
        return lambda x_0: torch.cat([adaptive_avg_pool2d(each, 8) for each in sample_maps(denoiser, x_0)], dim=1)
    embed_through = open_vision(look, "look").embed_through
    assert embed_through is not None
    return lambda x_0: embed_through(x_0)[:, :, None, None]


def gradient_of(learner: Learner) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in learner.explorer.parameters()])


def test_channels_are_seen_in_their_own_units() -> None:
    seen = torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1.0, 40.0])[
        :, None, None
    ] + torch.tensor([5.0, 0.0, -3.0]).reshape(3, 1, 1)
    found = Units.of(seen)(seen).transpose(0, 1).flatten(1)
    assert torch.allclose(found.mean(dim=1), torch.zeros(3), atol=1e-4)
    assert found.std(dim=1)[1:] == pytest.approx([1, 1], abs=1e-4)
    assert 0 < found.std(dim=1)[0] < 1, "one that hardly varies does not become as large as the others"


def test_pixels_are_seen_as_they_are(denoiser: Denoiser, schedule: Schedule) -> None:
    learner = Learner(denoiser, schedule, SETTINGS)
    assert SETTINGS.look == PIXELS and learner.units is None
    plain = learner._plain(ROWS)
    assert learner._look(plain) is plain.images


def test_what_is_seen_is_in_units_of_the_unshifted_samples(
    denoiser: Denoiser, schedule: Schedule, settings: Settings
) -> None:
    learner = Learner(denoiser, schedule, settings)
    see = raw(denoiser, settings.look)
    expected = Units.of(see(learner.pool.x_0))(see(learner.pool.x_0[ROWS]))
    found = learner._look(learner._plain(ROWS))
    assert torch.allclose(found, expected, atol=1e-4) and found.dtype == torch.float32


def test_reconstructor_and_consistency_see_it_and_the_other_terms_do_not(
    denoiser: Denoiser, schedule: Schedule, settings: Settings
) -> None:
    """The terms by the formulas, on what is seen; locality is of pixels in any case."""
    learner = Learner(denoiser, schedule, settings)
    k, magnitude = torch.tensor([0, 0, 2, 2]), torch.tensor([0.5, -1.0, 0.25, 0.75])
    plain, shifted = learner._plain(ROWS), learner._shifted(ROWS, k, magnitude)
    _, values = learner._loss(plain, shifted, k, magnitude)
    seen, changed = learner._look(plain), learner._look(shifted)
    logits, strength = learner.explorer.reconstructor(seen, changed)
    assert values["direction_loss"] == pytest.approx(losses.direction_loss(logits, k).item(), rel=1e-5)
    assert values["strength_loss"] == pytest.approx(losses.strength_loss(strength, magnitude).item(), rel=1e-5)
    change = (changed - seen).flatten(1) * magnitude.sign()[:, None]
    unlike = 1 - torch.cosine_similarity(change[0::2], change[1::2]).mean()
    assert values["consistency_loss"] == pytest.approx(unlike.item(), rel=1e-4)
    even = losses.locality_loss(plain.images, shifted.images, magnitude)
    assert values["locality_loss"] == pytest.approx(even.item(), rel=1e-5)


def test_the_gradient_of_consistency_goes_through_what_sees(
    denoiser: Denoiser, schedule: Schedule, settings: Settings
) -> None:
    """Against differences of the term along its gradient, which goes through the frozen network and the whole chain."""
    learner = Learner(denoiser, schedule, settings)
    k, magnitude = torch.tensor([0, 0]), torch.tensor([1.0, 1.0])
    table = next(learner.explorer.shift.parameters())

    def term() -> Tensor:
        with torch.no_grad():
            seen = learner._look(learner._plain(ROWS[:2]))
        return losses.consistency_loss(seen, learner._look(learner._shifted(ROWS[:2], k, magnitude)), magnitude)

    (slope,) = torch.autograd.grad(term(), table)
    assert slope.norm() > 0
    step, way = 1e-2 * table.detach().norm(), slope / slope.norm()
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            table.add_(sign * step * way)
            ends.append(term().item())
            table.sub_(sign * step * way)
    assert (ends[0] - ends[1]) / (2 * float(step)) == pytest.approx(float(slope.norm()), rel=0.05)


def test_micro_batches_do_not_change_what_is_learned(
    denoiser: Denoiser, schedule: Schedule, settings: Settings
) -> None:
    whole, cut = (Learner(denoiser, schedule, replace(settings, micro_batch=size)) for size in (None, 2))
    terms, same = whole.iterate(0), cut.iterate(0)
    assert {name: pytest.approx(value, rel=1e-3) for name, value in terms.items()} == same
    difference = gradient_of(cut) - gradient_of(whole)
    assert difference.norm() < 2e-3 * gradient_of(whole).norm()


def test_a_set_says_what_saw(denoiser: Denoiser, schedule: Schedule, vision_folder: Path) -> None:
    vision = open_vision(str(vision_folder), "look")
    found = learned.find(denoiser, schedule, replace(SETTINGS, look=str(vision_folder)), vision=vision)
    assert found.provenance["seen_by"] == vision.name and found.provenance["settings"]["look"] == str(vision_folder)
    assert "seen_by" not in learned.find(denoiser, schedule, replace(SETTINGS, iterations=1)).provenance


def test_a_vision_model_without_a_gradient(
    denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = Extractor("Blind", lambda images: images.flatten(1))
    monkeypatch.setattr(looks, "open_vision", lambda where, role, device: blind)
    sentence = (
        r"^look: no gradient comes back from what 'a/b' sees; give a vision model whose processor does nothing but "
        r"resize, crop, rescale and normalise, or denoiser \(method semantic takes any\)$"
    )
    with pytest.raises(UserError, match=sentence):
        Learner(denoiser, schedule, replace(SETTINGS, look="a/b"))


def test_a_vision_model_that_is_not_there(denoiser: Denoiser, schedule: Schedule) -> None:
    with pytest.raises(ModelError, match=r"^look './gone' is not there: give a folder or a hub id of an image model"):
        Learner(denoiser, schedule, replace(SETTINGS, look="./gone"))


def test_features_can_be_followed_back_to_the_images(vision_folder: Path) -> None:
    vision = open_vision(str(vision_folder), "look")
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert vision.embed_through is not None
    features = vision.embed_through(pictures.requires_grad_())
    assert torch.allclose(features, vision.embed(pictures.detach()), atol=0.05 * float(features.detach().std()))
    (gradient,) = torch.autograd.grad(features.square().sum(), pictures)
    assert gradient.isfinite().all() and (gradient.flatten(1).abs().amax(dim=1) > 0).all()
