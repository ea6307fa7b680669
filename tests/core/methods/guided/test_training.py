"""The guided method: it pursues what it is told, does not depend on how a batch is cut, and refuses what cannot be."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from core import Denoiser, Schedule
from core.errors import NonFiniteError, UserError
from core.methods import guided, supervised
from core.methods.guided import Learner, Settings, losses, starts
from core.methods.trained.chain_learner import Seen
from core.methods.trained.starts import spread_of
from core.model.cuts.hooked import HookedCut
from core.predictors.attributes import Attributes
from core.samples.training import draw_pool, training_seeds

SETTINGS = Settings(batch=4, pool=32, iterations=3, shift_scale=1.0)
NAMES = ("red", "green", "blue")


def channel_means(images: Tensor) -> Tensor:
    return images.mean(dim=(2, 3))


COLOURS = Attributes.of(NAMES, channel_means)


def learner_of(denoiser: Denoiser, schedule: Schedule, attributes: Attributes = COLOURS, **changes: Any) -> Learner:
    return Learner(denoiser, schedule, replace(SETTINGS, **changes), attributes=attributes)


def pairs(learner: Learner) -> tuple[Tensor, Tensor, Tensor]:
    """The whole pool, along every direction in turn: rows, directions and magnitudes."""
    rows = torch.arange(len(learner.pool.x_0))
    k = (rows // 2) % learner.count
    return rows, k, torch.where(rows % 3 == 0, -1.0, 1.0).to(learner.unshifted)


def mixing_denoiser() -> Denoiser:
    """A network whose h mixes the colours of an image, each dimension all three: a colour alone is a mixture of h."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        layers = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 6, 1), nn.ConvTranspose2d(6, 3, 4, 4)
        network = nn.Sequential(*layers).requires_grad_(False)
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
    cut = HookedCut(network, "1", "spatial", call=lambda network, x, t, inputs: network(x))
    return Denoiser(network, scheduler, "mixing", cut=cut, sample_shape=(3, 8, 8))


@torch.no_grad()
def share_of_own(learner: Learner) -> float:
    """The share of its own attribute in what a direction changes, at the largest magnitude, over the whole pool."""
    rows, k, magnitude = pairs(learner)
    shifted = channel_means(learner._shifted(rows, k, magnitude).images)
    scores = channel_means(learner.pool.x_0)
    change = (shifted - scores) / scores.std(dim=0, correction=0)
    effect = losses.effects(change, magnitude)
    return 1 - float(losses.share_loss(effect, k[0::2]))


def loss_of(learner: Learner) -> Tensor:
    rows, k, magnitude = pairs(learner)
    loss, _ = learner._loss(learner._plain(rows), learner._shifted(rows, k, magnitude), k, magnitude)
    return loss


def test_the_loss_is_the_formula(denoiser: Denoiser, schedule: Schedule) -> None:
    """At the head of core.methods.guided.training, over all attributes of the predictor: those not pursued count."""
    learner = learner_of(denoiser, schedule, start="random", effect_weight=0.3, target=2.0)
    rows, k = torch.tensor([3, 9, 4, 7]), torch.tensor([0, 0, 2, 2])
    m = torch.tensor([0.5, -1.0, -0.25, 0.75])
    plain, shifted = learner._plain(rows), learner._shifted(rows, k, m)
    loss, terms = learner._loss(plain, shifted, k, m)
    unit = channel_means(learner.pool.x_0).std(dim=0, correction=0)
    c = (channel_means(shifted.images) - channel_means(plain.images)) / unit * m.sign()[:, None]
    c = torch.stack([c[:2].mean(0), c[2:].mean(0)])
    own = torch.stack([c[0, 0], c[1, 2]])
    share = (1 - own / c.abs().sum(1)).mean()
    short = (1 - own / (2.0 * torch.tensor([0.75, 0.5]))).clamp(min=0).mean()
    assert terms == {
        "share_loss": pytest.approx(share.item(), rel=1e-3),
        "effect_loss": pytest.approx(short.item(), rel=1e-3),
    }
    assert loss.item() == pytest.approx((share + 0.3 * short).item(), rel=1e-3)


def test_only_the_named_attributes_have_directions_and_all_are_looked_at(
    denoiser: Denoiser, schedule: Schedule
) -> None:
    settings = replace(SETTINGS, attributes=("blue", "red"))
    found = guided.find(denoiser, schedule, settings, COLOURS)
    assert found.names == ("blue", "red") and len(found) == 2
    learner = Learner(denoiser, schedule, settings, attributes=COLOURS)
    assert learner.unshifted.shape == (32, 3) and learner.columns == [2, 0]
    rows, k, magnitude = pairs(learner)
    with torch.no_grad():
        seen = learner._shifted(rows, k, magnitude)
    change = (channel_means(seen.images) - learner.unshifted) / learner.deviation
    effect = losses.effects(change, magnitude)
    own = torch.tensor([2, 0])[k[0::2]]
    _, terms = learner._loss(learner._plain(rows), seen, k, magnitude)
    assert terms["share_loss"] == pytest.approx(float(losses.share_loss(effect, own)), rel=1e-5)


def test_one_attribute_is_enough(denoiser: Denoiser, schedule: Schedule) -> None:
    """Of three, and of a predictor that has one: then only the effect counts, for there is nothing else to keep."""
    assert len(guided.find(denoiser, schedule, replace(SETTINGS, attributes=("green",)), COLOURS)) == 1
    alone = Attributes.of(("red",), lambda images: channel_means(images)[:, :1])
    learner = learner_of(denoiser, schedule, alone, start="random", discriminator_weight=0, effect_weight=0)
    learner.iterate(0)
    assert learner.names == ("red",) and not learner.explorer.shift.coordinates.grad.any()
    learner = learner_of(denoiser, schedule, alone, start="random", discriminator_weight=0)
    learner.iterate(0)
    assert learner.explorer.shift.coordinates.grad.abs().max() > 1e-6


def test_the_gradient_comes_through_predictor_and_chain(tiny_denoiser: Denoiser) -> None:
    """In float64, against differences of the loss along random changes of the directions."""
    learner = learner_of(tiny_denoiser, Schedule.ddim(tiny_denoiser, 3), start="random", pool=8, discriminator_weight=0)
    learner.explorer.double()
    coordinates = learner.explorer.shift.coordinates
    assert loss_of(learner).dtype == torch.float64
    (gradient,) = torch.autograd.grad(loss_of(learner), coordinates)
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        step = 1e-5 * torch.randn(coordinates.shape, generator=random, dtype=torch.float64)
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                coordinates += sign * step
                ends.append(loss_of(learner))
                coordinates -= sign * step
        slope = float(ends[0] - ends[1]) / 2
        assert abs(slope) > 1e-8 and float((gradient * step).sum()) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("start", ["supervised", "random"])
@pytest.mark.parametrize("parametrisation", ["shared", "per_step"])
def test_training_raises_the_share_of_the_own_attribute(start: str, parametrisation: str) -> None:
    """Of a network in which only a mixture of h changes one colour and no other."""
    denoiser = mixing_denoiser()
    settings = {"batch": 16, "start": start, "direction_rate": 0.1, "parametrisation": parametrisation}
    learner = learner_of(denoiser, Schedule.ddim(denoiser, 3), **settings)
    before = share_of_own(learner)
    for n in range(60):
        learner.iterate(n)
    assert before < 0.7 and share_of_own(learner) > 0.9


def test_a_supervised_start_is_what_that_method_finds_on_the_same_samples(
    denoiser: Denoiser, schedule: Schedule
) -> None:
    learner = learner_of(denoiser, schedule, start="supervised", parametrisation="per_step")
    same = supervised.Settings(samples=32, extremes=3)
    expected = supervised.find(denoiser, schedule, same, COLOURS)
    assert torch.allclose(learner.directions().table, expected.table, atol=1e-4)
    shared = learner_of(denoiser, schedule, start="supervised").directions().table
    settings = replace(SETTINGS, start="supervised", attributes=("blue", "red"))
    few = Learner(denoiser, schedule, settings, attributes=COLOURS)
    assert torch.equal(few.directions().table, shared[[2, 0]])
    _, h = draw_pool(denoiser, schedule, training_seeds(32, 0))
    mean = (expected.table.flatten(2) * (expected.sigma / spread_of(h))[:, :, None]).mean(dim=1)
    assert torch.allclose(shared[:, 0].flatten(1), mean / mean.norm(dim=1, keepdim=True), atol=1e-4)


def effects_to_first_order(learner: Learner, attributes: Attributes = COLOURS) -> Tensor:
    """How many deviations each direction changes every score by, per spread of h: [K, A]."""

    def scores(seen: Seen) -> Tensor:
        return attributes.score_through(seen.images) / learner.deviation

    slopes = learner._slopes(learner.pool, learner.explorer.shift.spread, scores)
    return torch.einsum("asd,ksd->ka", slopes, learner.explorer.shift().detach().flatten(2))


@pytest.mark.parametrize("parametrisation", ["shared", "per_step"])
def test_a_start_from_slopes_raises_its_own_attribute_and_no_other(
    denoiser: Denoiser, schedule: Schedule, parametrisation: str
) -> None:
    """To first order, in the order of the directions; also none of those that are not pursued."""
    learner = learner_of(denoiser, schedule, parametrisation=parametrisation)
    effect = effects_to_first_order(learner)
    own = effect.diagonal()
    assert (own > 0).all()
    assert ((effect - torch.diag(own)).abs() < 0.1 * own[:, None]).all(), effect
    settings = replace(SETTINGS, parametrisation=parametrisation, attributes=("blue", "red"))
    few = Learner(denoiser, schedule, settings, attributes=COLOURS)
    assert torch.allclose(few.directions().table, learner.directions().table[[2, 0]], atol=1e-4)


@pytest.mark.parametrize("parametrisation", ["shared", "per_step"])
def test_a_start_from_slopes_is_pure_also_at_full_magnitude_where_effects_are_linear(parametrisation: str) -> None:
    denoiser = mixing_denoiser()
    learner = learner_of(denoiser, Schedule.ddim(denoiser, 3), parametrisation=parametrisation)
    assert share_of_own(learner) > 0.95


def test_a_start_from_slopes_weighs_scores_by_their_deviation(denoiser: Denoiser, schedule: Schedule) -> None:
    """A predictor whose scores of one attribute are a thousand times as large starts from the same directions."""
    large = Attributes.of(NAMES, lambda images: channel_means(images) * torch.tensor([1.0, 1000.0, 1.0]))
    found, same = (learner_of(denoiser, schedule, each).directions().table for each in (large, COLOURS))
    assert torch.allclose(found, same, atol=1e-3)


def test_a_start_from_few_samples_takes_one_on_each_side() -> None:
    h = torch.arange(24.0).reshape(2, 3, 4, 1, 1)
    found = starts.differences_of_means(h, torch.tensor([[0.2], [0.9], [0.1]]), "per_step")
    assert torch.allclose(found, ((h[:, 1] - h[:, 2]).flatten(1) / spread_of(h)[:, None])[None])


def test_a_batch_may_be_cut_into_pairs(denoiser: Denoiser, schedule: Schedule) -> None:
    gradients = []
    for micro in (8, 2):
        learner = learner_of(denoiser, schedule, batch=8, micro_batch=micro)
        learner.iterate(0)
        gradients.append(learner.explorer.shift.coordinates.grad)
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-3


def test_an_attribute_that_does_not_vary_is_refused_only_where_it_is_pursued(
    denoiser: Denoiser, schedule: Schedule
) -> None:
    flat = Attributes.of(("red", "flat"), lambda images: channel_means(images)[:, :2] * torch.tensor([1.0, 0.0]))
    with pytest.raises(UserError, match="^attribute 'flat' does not vary: the predictor scores all 32 samples alike$"):
        guided.find(denoiser, schedule, SETTINGS, flat)
    terms = Learner(denoiser, schedule, replace(SETTINGS, attributes=("red",)), attributes=flat).iterate(0)
    assert all(math.isfinite(value) for value in terms.values())


def test_scores_that_are_not_finite_are_refused(denoiser: Denoiser, schedule: Schedule) -> None:
    broken = Attributes.of(NAMES, lambda images: channel_means(images) * torch.tensor([1.0, math.nan, 1.0]))
    for asked in ((), ("green",), ("red",)):
        with pytest.raises(UserError, match="^attribute 'green': the predictor gives scores that are NaN or infinite$"):
            guided.find(denoiser, schedule, replace(SETTINGS, attributes=asked), broken)


def test_a_score_that_becomes_nan_in_training_is_named(denoiser: Denoiser, schedule: Schedule) -> None:
    calls: list[int] = []

    def later(images: Tensor) -> Tensor:
        calls.append(1)
        return channel_means(images) * (1.0 if len(calls) < 2 else math.nan)

    with pytest.raises(NonFiniteError, match="^share_loss became nan at iteration 0$"):
        guided.find(denoiser, schedule, SETTINGS, Attributes.of(NAMES, later))


def test_a_predictor_is_needed_through_which_a_gradient_comes(denoiser: Denoiser, schedule: Schedule) -> None:
    with pytest.raises(UserError, match="^predictor: no gradient comes back from its scores; give one with score_thro"):
        guided.find(denoiser, schedule, SETTINGS, Attributes(NAMES, channel_means))
    with pytest.raises(
        UserError, match=r"^predictor: model '.*' has none of its own; give a folder or hub id of an im"
    ):
        guided.find(denoiser, schedule, SETTINGS)
    with pytest.raises(UserError, match="^attribute 'gren' is not one .*; did you mean 'green'\\?$"):
        guided.find(denoiser, schedule, replace(SETTINGS, attributes=("gren",)), COLOURS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start": "pca"}, "start: got 'pca'; allowed: slopes, supervised, random"),
        ({"batch": 5}, "micro_batch: got 5; effects are averaged over pairs of samples: give an even number"),
        ({"batch": 6, "micro_batch": 3}, "micro_batch: got 3; effects are averaged over pairs of samples"),
        ({"effect_weight": -1.0}, "effect_weight: got -1.0; it must be a finite number of at least 0"),
        ({"effect_weight": math.nan}, "effect_weight: got nan; it must be a finite number of at least 0"),
        ({"target": 0.0}, "target: got 0.0; it must be a finite number above 0"),
        ({"target": math.inf}, "target: got inf; it must be a finite number above 0"),
        ({"attributes": ("a", "b", "a")}, "attributes: got a, b, a; each may be given once"),
    ],
)
def test_settings_that_cannot_be_are_told(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        replace(SETTINGS, **changes)
    assert str(caught.value).startswith(sentence)


def test_the_latents_of_a_latent_model_are_decoded_for_the_predictor(
    denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What judges get is what they got before; the predictor gets images."""
    monkeypatch.setattr(Denoiser, "images", lambda self, x_0: x_0.repeat_interleave(2, dim=2))
    seen: set[torch.Size] = set()

    def looking(images: Tensor) -> Tensor:
        seen.add(images.shape[1:])
        return channel_means(images)

    guided.find(denoiser, schedule, replace(SETTINGS, iterations=1), Attributes.of(NAMES, looking))
    assert seen == {torch.Size((3, 16, 8))}
