"""The contract between families and methods: each method finds a set in each family, saved, applied, measured.

On tiny random pipelines (tests/families.py), in the precision that real models have.
"""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import core.methods.jacobian
import core.methods.random
import core.metrics.evaluation
from core import Denoiser, DirectionSet, Schedule, noise
from core.methods import METHODS, guided, jacobian, learned, pca, random, sae, semantic, supervised
from core.methods.jacobian import spectrum
from core.metrics import METRICS, evaluate, factors
from core.metrics.identifiability import identifiability
from core.model.pretrained import weight_digest
from core.pictures.masks import find_mask
from core.predictors.attributes import Attributes
from core.predictors.vision import Extractor
from core.randomness import REPORT_SEEDS
from tests import families
from tests.contracts.conftest import QUIET, USES, Folder, Load

pytestmark = QUIET

STEPS = 2
TEXT = {"prompts": ("a face", "a blue dog")}
CONDITIONAL = {"shifted": "conditional"}
# What differs from conftest.USES: several prompts, and in two families a shift of the conditional half.
MORE: dict[str, dict[str, Any]] = {
    **{name: TEXT if "prompts" in use else {} for name, use in USES.items()},
    "sd": {**TEXT, **CONDITIONAL},
    "dit": {"classes": (1, 5), **CONDITIONAL},
}
SETTINGS: dict[str, Any] = {
    "learned": learned.Settings(directions=2, batch=2, pool=8, iterations=1),
    "guided": guided.Settings(batch=2, pool=8, iterations=1),
    "pca": pca.Settings(directions=3, samples=6),
    "jacobian": jacobian.Settings(directions=3, tolerance=1e-2, max_passes=5),
    "semantic": semantic.Settings(directions=3, samples=6),
    "sae": sae.Settings(directions=3, width=12, active=2, samples=6, iterations=3),
    "supervised": supervised.Settings(samples=8, extremes=2),
    "random": random.Settings(directions=3),
}
LED = ("guided", "supervised")  # by the attributes of a predictor, of which each has its direction
BOX = {"pixel": (2, 4, 14, 12)}  # of others, whose images are four times as large as their latents:
WIDE_BOX = (4, 8, 28, 24)
# They need a second predictor or a network that judges.
NOT_MEASURED = {"second_disentanglement", "second_coverage", "fid", "inception_kid", "lpips", "identity"}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spread of h and the factors are of 8 samples instead of 256; the judge of a set learns for 2 iterations."""
    monkeypatch.setattr(core.metrics.evaluation, "FACTOR_SEEDS", factors.SEEDS[:8])
    monkeypatch.setattr(core.metrics.evaluation, "identifiability", partial(identifiability, iterations=2))
    for module in (core.methods.random, core.methods.jacobian):
        monkeypatch.setattr(module, "SPREAD_SAMPLES", 8)


class Looking:
    """Three attributes that any image has, the mean of each channel; and what was looked at."""

    def __init__(self) -> None:
        self.shapes: set[torch.Size] = set()
        self.attributes = Attributes.of(("red", "green", "blue"), self._score)

    def _score(self, images: Tensor) -> Tensor:
        self.shapes.add(images.shape[1:])
        return images.float().mean(dim=(2, 3))


def find(denoiser: Denoiser, method: str, name: str, looking: Looking) -> DirectionSet:
    settings = SETTINGS[method]
    if method == "jacobian":
        settings = replace(settings, box=BOX.get(name, WIDE_BOX))
    more = {"attributes": looking.attributes} if method in LED else {}
    found: DirectionSet = METHODS[method].find(denoiser, Schedule.ddim(denoiser, STEPS), settings, batch=8, **more)
    return found


@pytest.mark.parametrize("look", ["denoiser", "vision"])
@pytest.mark.parametrize("name", families.FAMILIES)
def test_what_learned_looks_at_is_its_maps_or_its_images(load: Load, name: str, look: str) -> None:
    denoiser, looking = load(name, torch.float32, **MORE[name]), Looking()
    vision = Extractor("means", looking.attributes.score, looking.attributes.score_through)
    settings = replace(SETTINGS["learned"], look=look)
    more = {"vision": vision} if look == "vision" else {}
    learner = learned.Learner(denoiser, Schedule.ddim(denoiser, STEPS), settings, **more)
    start, terms = learner.directions().table, learner.iterate(0)
    assert all(math.isfinite(value) for value in terms.values())
    assert (learner.directions().table - start).norm() > 1e-4
    assert looking.shapes == ({torch.Size(denoiser.image_shape)} if look == "vision" else set()), "never latents"


@pytest.mark.parametrize("method", ["learned", "guided"])
@pytest.mark.parametrize("space", ["latents", "pixels"])
@pytest.mark.parametrize("name", families.FAMILIES)
def test_an_iteration_moves_the_directions_and_leaves_the_network_as_it_was(
    load: Load, name: str, space: str, method: str
) -> None:
    denoiser = load(name, torch.float32, **MORE[name], space=space)
    parts = [denoiser.network, *([denoiser.codec.network] if denoiser.codec else [])]
    before = weight_digest(*parts)
    looking = Looking()
    more = {"attributes": looking.attributes} if method in LED else {}
    learner = METHODS[method].Learner(denoiser, Schedule.ddim(denoiser, STEPS), SETTINGS[method], **more)
    start, critic = learner.directions().table, [weight.clone() for weight in learner.discriminator.parameters()]
    if method == "learned":
        assert learner.explorer.reconstructor.body[0].weight.shape[1] == 2 * denoiser.judged_shape[0]
    terms = learner.iterate(0)
    assert all(math.isfinite(value) for value in terms.values()) and "fidelity_loss" in terms
    moved = learner.directions().table.sub(start).flatten(1).norm(dim=1)
    assert (moved > 1e-4).sum() >= min(len(moved), SETTINGS[method].batch // 2), "one for each pair of samples"
    assert looking.shapes <= {torch.Size(denoiser.image_shape)}, "images, never latents"
    assert any(not torch.equal(*pair) for pair in zip(learner.discriminator.parameters(), critic, strict=True))
    assert weight_digest(*parts) == before
    assert all(weight.grad is None and not weight.requires_grad for part in parts for weight in part.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_set_of_every_method_is_saved_applied_and_measured(
    load: Load, folder: Folder, name: str, method: str, tmp_path: Path
) -> None:
    denoiser, looking = load(name, torch.float32, **MORE[name], space="pixels"), Looking()
    find(denoiser, method, name, looking).save(tmp_path / "set")
    found = DirectionSet.load(tmp_path / "set")
    assert found.h_shape == denoiser.h_shape and found.table.isfinite().all() and (found.sigma.sum(1) > 0).all()
    assert found.provenance["use"] == denoiser.use.to_json() and found.provenance["tap"] == denoiser.cut.module()
    assert method not in LED or found.names == ("red", "green", "blue")
    pipeline = families.loads(folder(name))
    drawn = [torch.as_tensor(pipeline(**families.asks(name)).images)]
    with found.applied(families.denoiser(pipeline), 0, 3.0):
        drawn.append(torch.as_tensor(pipeline(**families.asks(name)).images))
    assert drawn[1].isfinite().all() and (drawn[1] - drawn[0]).abs().max() > 1e-4
    schedule = Schedule.ddim(denoiser, STEPS)
    measured = evaluate(denoiser, schedule, found, REPORT_SEEDS[:3], REPORT_SEEDS[3:8], looking.attributes)
    assert measured.figures.keys() == METRICS.keys() - NOT_MEASURED
    assert all(math.isfinite(value) for value in measured.metrics.values())
    assert looking.shapes == {torch.Size(denoiser.image_shape)}  # images, never latents


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pixel", "sd", "dit", "sd3", "flux"])
def test_singular_vectors_are_those_of_the_whole_matrix_in_the_box(load: Load, name: str) -> None:
    """Pooled, so that the whole Jacobian is small; in float64."""
    denoiser = load(name, **MORE[name], form="pooled")
    x, t, box = noise([0], denoiser.sample_shape, torch.float64), 300.0, BOX.get(name, WIDE_BOX)
    mask = find_mask(denoiser, box)
    factor = denoiser.image_shape[1] // denoiser.sample_shape[1]
    expected = torch.zeros(1, *denoiser.sample_shape[1:])
    expected[:, box[1] // factor : box[3] // factor, box[0] // factor : box[2] // factor] = 1
    assert torch.equal(mask, expected)
    features = denoiser.encode(x, t)
    origin = torch.zeros(1, *denoiser.h_shape, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(lambda delta: denoiser.decode(features, delta) * mask, origin)
    _, values, vectors = torch.linalg.svd(matrix.reshape(-1, origin.numel()), full_matrices=False)
    found = spectrum(denoiser, x, t, 3, mask, tolerance=1e-9)
    assert found.converged and torch.allclose(found.values, values[:3], rtol=1e-6)
    assert torch.allclose((found.vectors.flatten(1) * vectors[:3]).sum(1).abs(), torch.ones(3).double(), atol=1e-6)


@pytest.mark.slow
def test_a_real_image_of_a_latent_model_is_inverted_where_its_latents_are(load: Load) -> None:
    denoiser = load("latent", torch.float32)
    images = noise([5], denoiser.image_shape).clamp(-1, 1)
    assert supervised.mean_h(denoiser, Schedule.ddim(denoiser, STEPS), images).shape == (STEPS, *denoiser.h_shape)
