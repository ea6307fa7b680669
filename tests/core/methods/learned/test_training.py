"""The learned method: it learns, it does not depend on how a batch is cut, and it says where it breaks."""

import inspect
import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from core import Denoiser, Schedule, noise, sample
from core.chain.gradient import CheckpointSteps
from core.chain.sample_maps import sample_maps
from core.errors import NonFiniteError, UserError
from core.methods import learned, random
from core.methods.learned.training import PAIRED, Learner, Settings
from core.methods.sources import features_of_maps, find_sources
from core.methods.trained import chain_learner
from core.methods.trained.chain_learner import Seen, Workers
from core.methods.trained.optimiser import Group, Optimiser, TorchOptimiser
from core.methods.trained.starts import leading_components, pure_directions, spread_of
from core.randomness import CALIBRATION_SEEDS, REPORT_SEEDS, SELECT_SEEDS, TRAIN_SEEDS, generator, step_noise
from core.samples.training import draw_pool, measured_spread, training_seeds

SETTINGS = Settings(directions=3, batch=4, pool=32, iterations=3, shift_scale=2.0, start="random")


def run(denoiser: Denoiser, schedule: Schedule, settings: Settings, iterations: int = 3) -> tuple[Learner, list[dict]]:
    learner = Learner(denoiser, schedule, settings)
    return learner, [learner.iterate(n) for n in range(iterations)]


def gradient_of(learner: Learner) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in learner.explorer.parameters()])


def apart(found: Tensor, expected: Tensor) -> float:
    """How far apart two gradients are, in lengths of the second: single entries near 0 differ with the processor."""
    return float((found - expected).norm() / expected.norm())


def loss_by_hand(learner: Learner, plain: Seen, shifted: Seen, k: Tensor, magnitude: Tensor) -> Tensor:
    """The formula at the head of core.methods.learned.training, a term a line, with the weights as numbers.

    Without the discriminator's term.
    """
    settings = learner.settings
    logits, strength = learner.explorer.reconstructor(plain.images, shifted.images)
    cross_entropy = (logits.exp().sum(1).log() - logits[torch.arange(len(k)), k]).mean()
    error = 6 * (strength - magnitude).abs().mean()
    change = adaptive_avg_pool2d(shifted.images - plain.images, 8).flatten(1)
    change = magnitude.sign()[:, None] * change / change.norm(dim=1, keepdim=True)
    unlike = (1 - (change[0::2] * change[1::2]).sum(1)).mean()
    read = (features_of_maps(shifted.maps) - features_of_maps(plain.maps)) @ learner.sources.weights
    read = magnitude.sign()[:, None] * read
    read = (read[0::2] + read[1::2]) / 2
    own = k[0::2]
    counts = own < learner.sources.count
    impure = (1 - read[torch.arange(len(own)), own] / read.norm(dim=1))[counts].mean()
    places = magnitude.sign()[:, None, None, None] * adaptive_avg_pool2d(shifted.images - plain.images, 16)
    size = ((places[0::2] + places[1::2]) / 2).norm(dim=1).flatten(1)
    even = (size.sum(dim=1) / (16 * size.norm(dim=1))).mean()
    ours = settings.consistency_weight * unlike + settings.purity_weight * impure + settings.locality_weight * even
    return cross_entropy + 0.25 * error + ours


def fooled(learner: Learner, shifted: Seen) -> Tensor:
    return (1 + (-learner.discriminator(shifted.images, shifted.maps)).exp()).log().mean()


@pytest.mark.parametrize("sources", [3, 2])
def test_the_loss_is_the_formula(denoiser: Denoiser, schedule: Schedule, sources: int) -> None:
    """A direction beyond the number of sources that there are has none of its own: its pair is not looked at."""
    learner = Learner(denoiser, schedule, replace(SETTINGS, consistency_weight=0.4, purity_weight=0.7))
    learner.sources = replace(learner.sources, count=sources)
    rows = torch.tensor([4, 9, 30, 2])
    plain, shifted = learner._plain(rows), learner._seen(rows, noise(range(10, 14), denoiser.sample_shape))
    batch = plain, shifted, torch.tensor([0, 0, 2, 2]), torch.tensor([0.5, -1.0, 0.25, 0.75])
    loss, _ = learner._loss(*batch)
    assert loss.item() == pytest.approx(loss_by_hand(learner, *batch).item(), rel=1e-4)


def test_an_iteration_descends_the_formula_and_then_the_discriminators_own(
    denoiser: Denoiser, schedule: Schedule
) -> None:
    """Of the batch that the iteration draws; both losses look at the same shifted images."""
    learner = Learner(denoiser, schedule, replace(SETTINGS, discriminator_weight=0.7, micro_batch=2))
    descended: dict[str, list[float]] = {"explorer": [], "discriminator": []}
    trained: dict[str, list[bool]] = {"explorer": [], "discriminator": []}

    def keeping(name: str) -> Any:
        def update(losses: Iterable[Tensor]) -> None:
            for loss in losses:
                descended[name].append(loss.item())
                trained[name].append(all(p.requires_grad for p in learner.discriminator.parameters()))

        optimiser = create_autospec(Optimiser, instance=True)
        optimiser.update.side_effect = update
        return optimiser

    learner.explorer_optimiser, learner.discriminator_optimiser = keeping("explorer"), keeping("discriminator")
    terms = learner.iterate(5)
    rows = torch.randint(32, (4,), generator=generator("rows", 0, 5))
    k, magnitude = learner._draw(5, 4)
    for part in (slice(0, 2), slice(2, 4)):
        plain, drawn = learner._plain(rows[part]), slice(part.start // 2, part.start // 2 + 1)
        table = learner.explorer.shift()[k[part], 0] * (magnitude[part] * 2.0)[:, None, None, None]
        shift = [spread * table for spread in learner.explorer.shift.spread]
        x_0 = sample(denoiser, schedule, learner.pool.x_t[rows[part]], shift.__getitem__)
        shifted = Seen(rows[part], x_0, x_0, tuple(sample_maps(denoiser, x_0)))
        by_hand = loss_by_hand(learner, plain, shifted, k[part], magnitude[part]) + 0.7 * fooled(learner, shifted)
        assert descended["explorer"][drawn] == [pytest.approx(by_hand.item(), rel=1e-4)]
        real, fake = (learner.discriminator(each.images, each.maps) for each in (plain, shifted))
        own = ((1 + (-real).exp()).log() + (1 + fake.exp()).log()).mean()
        assert descended["discriminator"][drawn] == [pytest.approx(own.item(), rel=1e-4)]
    assert trained == {"explorer": [False] * 2, "discriminator": [True] * 2}
    assert terms["critic_loss"] == pytest.approx(sum(descended["discriminator"]) / 2)
    weighted = terms["direction_loss"] + 0.25 * terms["strength_loss"] + 0.7 * terms["fidelity_loss"]
    weighted += 1.0 * terms["consistency_loss"] + 30.0 * terms["purity_loss"] + 100.0 * terms["locality_loss"]
    assert weighted == pytest.approx(sum(descended["explorer"]) / 2, rel=1e-5)


def test_directions_and_magnitudes_are_drawn_evenly_with_both_signs(denoiser: Denoiser, schedule: Schedule) -> None:
    """k uniform, two samples each; |m| uniform in [floor, 1]; the sign a coin of its own for every sample."""
    learner = Learner(denoiser, schedule, replace(SETTINGS, strength_floor=0.2))
    k, m = learner._draw(0, 9000)
    assert torch.equal(k[0::2], k[1::2])
    assert [float((k == each).float().mean()) for each in range(3)] == pytest.approx([1 / 3] * 3, abs=0.03)
    assert 0.2 <= m.abs().min() < 0.201 and 0.999 < m.abs().max() <= 1
    assert float(m.abs().mean()) == pytest.approx(0.6, abs=0.01) and float(m.abs().var()) == pytest.approx(
        0.64 / 12, abs=0.003
    )
    assert float((m > 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float((m[0::2].sign() * m[1::2].sign()).mean()) == pytest.approx(0, abs=0.05), "signs within a pair"
    assert float((m.abs() * m.sign()).mean()) == pytest.approx(0, abs=0.03), "size and sign"
    assert torch.equal(learner._draw(0, 9000)[1], m) and not torch.equal(learner._draw(1, 9000)[1], m)
    assert len(learner._draw(0, 5)[0]) == 5 and len(learner._draw(0, 5)[1]) == 5


def test_each_part_has_its_own_optimiser_and_rate(denoiser: Denoiser, schedule: Schedule) -> None:
    """Two networks descend together at two rates; the discriminator alone has less momentum."""
    make = create_autospec(TorchOptimiser)
    settings = replace(SETTINGS, direction_rate=0.5, reconstructor_rate=0.3, discriminator_rate=0.1, micro_batch=2)
    learner = Learner(denoiser, schedule, settings, Workers(make))
    (explorer, critic) = (call.args for call in make.call_args_list)
    assert explorer[:2] == ("explorer", learner.explorer) and critic[:2] == ("discriminator", learner.discriminator)
    assert explorer[3] == critic[3] == 2, "micro-batches of a step"
    groups = [(group.rate, group.betas, list(map(id, group.parameters))) for group in (*explorer[2], *critic[2])]
    parts = (learner.explorer.shift, learner.explorer.reconstructor, learner.discriminator)
    assert groups == [
        (rate, betas, [id(parameter) for parameter in part.parameters()])
        for part, rate, betas in zip(parts, (0.5, 0.3, 0.1), ((0.9, 0.99), (0.9, 0.99), (0.5, 0.99)), strict=True)
    ]


def test_an_update_is_one_step_of_adam_on_the_mean_of_the_losses() -> None:
    """The first step of Adam is as long as the rate, whatever the gradient; the second tells the momentum apart."""
    found, expected = (torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    optimiser = TorchOptimiser("any", torch.nn.Module(), [Group([found], 0.1, (0.5, 0.75))], 2)
    adam = torch.optim.Adam([expected], lr=0.1, betas=(0.5, 0.75))
    for target in (3.0, -1.0):
        optimiser.update((found - target).square().sum() * weight for weight in (1.0, 3.0))
        adam.zero_grad()
        (2 * (expected - target).square().sum()).backward()
        assert torch.allclose(found.grad, expected.grad)
        adam.step()
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("start", ["slopes", "pca", "random"])
def test_directions_start_where_they_are_told_to(denoiser: Denoiser, schedule: Schedule, start: str) -> None:
    settings = replace(SETTINGS, start=start, seed=1, orthonormal=False, window=(schedule.timesteps[1], 0))
    learner = Learner(denoiser, schedule, settings)
    pool, h = draw_pool(denoiser, schedule, training_seeds(32, 1), first=1)
    assert learner.pool.seeds == pool.seeds and torch.equal(learner.pool.x_t, pool.x_t)
    sources, values = find_sources(denoiser, pool.x_0, 3, seed=1)
    assert torch.equal(learner.sources.weights, sources.weights) and torch.equal(learner.unshifted, values)
    expected = {
        "slopes": lambda: pure_directions(learner._slopes(pool, spread_of(h), lambda s: sources.read(s.maps)), 3, 3),
        "pca": lambda: leading_components(h, 3, "shared"),
        "random": lambda: torch.randn(3, 1, h[0, 0].numel(), generator=generator("directions", 1)),
    }[start]()
    cosines = torch.cosine_similarity(learner.explorer.shift().flatten(2), expected, dim=2)
    assert torch.allclose(cosines, torch.ones(3, 1), atol=1e-4)
    spread = (h - h.mean(1, keepdim=True)).flatten(2).square().sum(2).mean(1).sqrt()
    assert torch.allclose(learner.explorer.shift.spread, spread, rtol=1e-5)


def test_the_reconstructor_begins_in_the_units_of_the_directions_as_they_start(
    denoiser: Denoiser, schedule: Schedule
) -> None:
    """Root mean squares over the first 32 samples of the pool, whatever the batch they are drawn in."""
    settings = replace(SETTINGS, pool=34, start="random")
    learner = Learner(denoiser, schedule, settings, draw_batch=20)
    k, magnitude = learner._draw(-1, 32)
    with torch.no_grad():
        shifted = learner._shifted(torch.arange(32), k, magnitude).images
    x_0, network = learner.pool.x_0[:32], learner.explorer.reconstructor
    assert float(network.image_rms) == pytest.approx(float(x_0.square().mean().sqrt()), rel=1e-4)
    assert float(network.difference_rms) == pytest.approx(float((shifted - x_0).square().mean().sqrt()), rel=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_is_trained_on_is_what_the_chain_draws(denoiser: Denoiser, eta: float) -> None:
    """From x_T, with the sample's own noise, in the window and with the injection of the settings."""
    schedule = Schedule.ddim(denoiser, 4, eta)
    window = (schedule.timesteps[1],) * 2
    learner = Learner(denoiser, schedule, replace(SETTINGS, shift_scale=100.0, injection="asymmetric", window=window))
    rows, k, magnitude = torch.tensor([4, 1]), torch.tensor([2, 0]), torch.tensor([0.5, -0.75])
    seeds = [training_seeds(32)[4], training_seeds(32)[1]]
    x_T = noise(seeds, denoiser.sample_shape)
    z = step_noise(seeds, denoiser.sample_shape, 4) if eta else None
    control = learner.explorer.shift
    shift = [100.0 * spread * magnitude[:, None, None, None] * control()[k, 0] for spread in control.spread]
    with torch.no_grad():
        expected = sample(denoiser, schedule, x_T, shift.__getitem__, "asymmetric", None, window, z)
        found = learner._shifted(rows, k, magnitude)
        plain = sample(denoiser, schedule, x_T, step_noise=z)
        assert torch.equal(found.rows, rows) and torch.equal(found.images, found.x_0)
        assert apart(found.x_0 - plain, expected - plain) < 0.01
        for each, by_hand in zip(found.maps, sample_maps(denoiser, found.x_0), strict=True):
            assert torch.equal(each, by_hand)


def test_what_is_found_is_what_the_iterations_make_of_it(denoiser: Denoiser, schedule: Schedule) -> None:
    """Scale 1 is the largest magnitude trained with; everyone who listens hears of every iteration."""
    settings = replace(SETTINGS, iterations=2, pool=8)
    learner, terms = run(denoiser, schedule, settings, 2)
    heard: list[tuple[int, Any]] = []
    found = learned.find(denoiser, schedule, settings, progress=lambda n, told: heard.append((n, told)))
    assert heard == list(enumerate(terms))
    assert torch.equal(found.table, learner.explorer.shift().detach().expand(-1, 3, -1, -1, -1))
    assert torch.allclose(found.sigma, 2.0 * learner.explorer.shift.spread.expand(3, 3))
    assert found.provenance["settings"]["gradient"] == "FullGraph"


def test_samples_are_drawn_as_many_at_a_time_as_asked(
    denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = create_autospec(draw_pool, side_effect=draw_pool)
    monkeypatch.setattr(chain_learner, "draw_pool", drawing)
    learned.find(denoiser, schedule, replace(SETTINGS, iterations=0, pool=8), batch=3)
    assert (
        inspect.signature(draw_pool).bind(*drawing.call_args.args, **drawing.call_args.kwargs).arguments["batch"] == 3
    )


def test_samples_that_are_not_compared_need_no_pairs() -> None:
    assert replace(SETTINGS, micro_batch=1, **dict.fromkeys(PAIRED, 0.0)).micro_batch == 1


@pytest.mark.slow
def test_it_learns_to_tell_directions_apart(denoiser: Denoiser, schedule: Schedule) -> None:
    _, terms = run(denoiser, schedule, replace(SETTINGS, batch=16), 150)
    first, last = (sum(t["direction_loss"] for t in part) / 10 for part in (terms[:10], terms[-10:]))
    assert last < 0.6 * math.log(3) < first * 0.75


@pytest.mark.slow
def test_runs_are_repeatable_and_differ_by_seed(denoiser: Denoiser, schedule: Schedule) -> None:
    torch.manual_seed(1)
    _, once = run(denoiser, schedule, SETTINGS)
    torch.manual_seed(2)
    _, again = run(denoiser, schedule, SETTINGS)
    assert once == again
    assert run(denoiser, schedule, replace(SETTINGS, seed=1))[1] != once


def test_micro_batches_do_not_change_what_is_learned(denoiser: Denoiser, schedule: Schedule) -> None:
    whole, terms = run(denoiser, schedule, SETTINGS, 1)
    cut, same = run(denoiser, schedule, replace(SETTINGS, micro_batch=2), 1)
    assert {k: pytest.approx(v, rel=1e-4) for k, v in terms[0].items()} == same[0]
    assert apart(gradient_of(cut), gradient_of(whole)) < 1e-3


@pytest.mark.slow
def test_checkpointing_does_not_change_what_is_learned(denoiser: Denoiser, schedule: Schedule) -> None:
    _, plain = run(denoiser, schedule, SETTINGS)
    _, checkpointed = run(denoiser, schedule, replace(SETTINGS, gradient=CheckpointSteps()))
    for one, other in zip(plain, checkpointed, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_workers_share_a_batch(denoiser: Denoiser, schedule: Schedule) -> None:
    """Two workers' gradients average to those of one, and together they see every sample once."""
    alone, _ = run(denoiser, schedule, SETTINGS, 1)
    halves = [Learner(denoiser, schedule, SETTINGS, Workers(rank=rank, world=2)) for rank in (0, 1)]
    for half in halves:
        half.iterate(0)
    assert apart(sum(map(gradient_of, halves)) / 2, gradient_of(alone)) < 1e-3


def test_without_a_weight_there_is_no_discriminator(denoiser: Denoiser, schedule: Schedule) -> None:
    learner, terms = run(denoiser, schedule, replace(SETTINGS, discriminator_weight=0.0), 1)
    assert learner.discriminator_optimiser is None
    assert terms[0].keys() == {
        "direction_loss",
        "strength_loss",
        "consistency_loss",
        "purity_loss",
        "locality_loss",
        "training_accuracy",
    }


def test_maps_are_made_only_where_something_looks_at_them(denoiser: Denoiser, schedule: Schedule) -> None:
    """The discriminator, the purity or the start from slopes."""
    rows, none = torch.tensor([0, 1]), {"discriminator_weight": 0.0, "purity_weight": 0.0}
    learner, terms = run(denoiser, schedule, replace(SETTINGS, **none), 1)
    assert terms[0].keys() == {
        "direction_loss",
        "strength_loss",
        "consistency_loss",
        "locality_loss",
        "training_accuracy",
    }
    assert learner._plain(rows).maps == () and not hasattr(learner, "sources")
    for weight in none:
        learner = Learner(denoiser, schedule, replace(SETTINGS, **{**none, weight: 1.0}))
        maps = learner._plain(rows).maps
        assert [each.shape for each in maps] == [each.shape for each in sample_maps(denoiser, learner.pool.x_0[:2])]


def test_the_discriminator_begins_in_the_units_of_the_pools_maps(denoiser: Denoiser, schedule: Schedule) -> None:
    """Of its first 256 samples, whatever the batch that they are drawn in."""
    learner = Learner(denoiser, schedule, replace(SETTINGS, pool=258, purity_weight=0.0), draw_batch=100)
    units = learner.discriminator.units()
    for i, each in enumerate(sample_maps(denoiser, learner.pool.x_0[:256])):
        assert torch.allclose(units[f"heads.{i}.mean"], each.mean(dim=(0, 2, 3)), atol=1e-5)
        assert torch.allclose(units[f"heads.{i}.deviation"], each.std(dim=(0, 2, 3)), rtol=1e-4)


def nonlinear(seen: Seen) -> Tensor:
    """Two numbers of a sample."""
    return torch.stack([seen.x_0.square().mean(dim=(1, 2, 3)), seen.images[:, 0].sin().sum(dim=(1, 2))], dim=1)


def exact_learner(denoiser: Denoiser, steps: int = 3, eta: float = 0.0, **changes: Any) -> Learner:
    """A learner in float64 that looks at nothing but samples."""
    none = {"discriminator_weight": 0.0, "purity_weight": 0.0, "pool": 34}
    return Learner(denoiser, Schedule.ddim(denoiser, steps, eta), replace(SETTINGS, **{**none, **changes}))


@pytest.mark.parametrize("parametrisation", ["shared", "per_step"])
@pytest.mark.parametrize("injection", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("eta", "windowed"), [(0.0, False), (0.0, True), (1.0, False), (1.0, True)])
def test_slopes_are_differences_of_what_the_chain_draws(
    tiny_denoiser: Denoiser, parametrisation: str, injection: str, eta: float, windowed: bool
) -> None:
    """Of the mean over the first 32 samples of the pool, with a shift of all steps in their spreads, or one of each."""
    schedule = Schedule.ddim(tiny_denoiser, 3, eta)
    window = (schedule.timesteps[1],) * 2 if windowed else None
    changes = {"parametrisation": parametrisation, "injection": injection, "window": window}
    learner = exact_learner(tiny_denoiser, eta=eta, **changes)
    spread = torch.tensor([3.0, 0.5, 2.0])
    slopes = learner._slopes(learner.pool, spread, nonlinear)
    count = 3 if parametrisation == "per_step" else 1
    assert slopes.shape == (2, count, tiny_denoiser.h_shape[0] * 4) and slopes.dtype == torch.float32
    seeds = training_seeds(34)[:32]
    x_T = noise(seeds, tiny_denoiser.sample_shape).double()
    z = step_noise(seeds, tiny_denoiser.sample_shape, 3, torch.float64) if eta else None
    numbers = torch.Generator().manual_seed(0)
    for _ in range(2):
        change = torch.randn(count, *tiny_denoiser.h_shape, generator=numbers, dtype=torch.float64)
        ends = []
        for size in (1e-4, -1e-4):
            shift = [size * s * each for s, each in zip(spread, change.expand(3, -1, -1, -1), strict=True)]
            with torch.no_grad():
                x_0 = sample(tiny_denoiser, schedule, x_T, shift.__getitem__, injection, None, window, z)
            ends.append(nonlinear(Seen(torch.arange(32), x_0, x_0, ())).mean(dim=0))
        found = (slopes.double() * change.flatten(1)).sum(dim=(1, 2))
        assert found.tolist() == pytest.approx(((ends[0] - ends[1]) / 2e-4).tolist(), rel=1e-4)
    if windowed and parametrisation == "per_step":
        assert slopes[:, 1].any() and not slopes[:, [0, 2]].any(), "no shift outside the window"


def test_slopes_do_not_depend_on_micro_batches_or_on_what_is_kept(tiny_denoiser: Denoiser) -> None:
    """CheckpointSteps runs steps again; a kind of it that can be run again only once is left for its plain kind."""

    class Once(CheckpointSteps):
        def checkpoint(self, step: Any, i: int, x: Tensor) -> Tensor:
            raise AssertionError("its graph could be used only once")

    spread = torch.tensor([3.0, 0.5, 2.0])
    whole = exact_learner(tiny_denoiser, batch=32, parametrisation="per_step")
    expected = whole._slopes(whole.pool, spread, nonlinear)
    for change in ({"micro_batch": 2}, {"micro_batch": 4, "gradient": CheckpointSteps()}, {"gradient": Once()}):
        learner = exact_learner(tiny_denoiser, parametrisation="per_step", **change)
        assert torch.allclose(learner._slopes(learner.pool, spread, nonlinear), expected, rtol=1e-5, atol=1e-7), change


@pytest.mark.parametrize("parametrisation", ["shared", "per_step"])
def test_a_start_from_slopes_raises_the_own_source_more_than_all_else(denoiser: Denoiser, parametrisation: str) -> None:
    """To first order, of everything that is read: in the mean over samples, as slopes are. Also without purity."""
    settings = replace(SETTINGS, start="slopes", purity_weight=0.0, pool=12, parametrisation=parametrisation)
    learner = Learner(denoiser, Schedule.ddim(denoiser, 3), settings)
    spread, read = learner.explorer.shift.spread, learner.sources.read
    slopes = learner._slopes(learner.pool, spread, lambda seen: read(seen.maps))
    effect = torch.einsum("rsd,ksd->kr", slopes, learner.explorer.shift().detach().flatten(2))
    assert learner.sources.count == 3 and effect.shape == (3, 11)
    own = effect.diagonal()
    others = effect.clone()
    others[range(3), range(3)] = 0
    assert (own > 0).all() and (own > 2 * others.abs().max(dim=1).values).all(), effect


def test_the_discriminator_only_learns_from_its_own_loss(denoiser: Denoiser, schedule: Schedule) -> None:
    learner = Learner(denoiser, schedule, SETTINGS)
    before = [p.detach().clone() for p in learner.discriminator.parameters()]
    learner.discriminator_optimiser = type("Idle", (), {"update": lambda self, losses: None})()
    learner.iterate(0)
    assert all(p.grad is None for p in learner.discriminator.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, learner.discriminator.parameters(), strict=True))


def test_the_set_says_where_it_comes_from(denoiser: Denoiser, schedule: Schedule) -> None:
    directions = learned.find(denoiser, schedule, SETTINGS)
    assert directions.table.shape == (3, 3, *denoiser.h_shape) and directions.timesteps == schedule.timesteps
    assert torch.allclose(directions.table.flatten(2).norm(dim=2), torch.ones(3, 3), atol=1e-5)
    assert directions.provenance["method"] == "learned"
    assert directions.provenance["weight_digest"] == denoiser.digest
    assert directions.provenance["settings"]["shift_scale"] == 2.0


@pytest.mark.parametrize("parametrisation", ["shared", "per_step", "time"])
@pytest.mark.parametrize("start", ["slopes", "pca", "random"])
def test_every_parametrisation_trains(denoiser: Denoiser, schedule: Schedule, parametrisation: str, start: str) -> None:
    learner, terms = run(denoiser, schedule, replace(SETTINGS, parametrisation=parametrisation, start=start), 2)
    assert all(math.isfinite(value) for value in terms[-1].values())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.explorer.shift.parameters())


def test_a_stochastic_chain_trains(denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(denoiser, 3, eta=1.0)
    assert run(denoiser, schedule, SETTINGS, 1)[1][0]["direction_loss"] > 0


def test_a_loss_that_is_not_finite_names_the_term(denoiser: Denoiser, schedule: Schedule) -> None:
    learner = Learner(denoiser, schedule, SETTINGS)
    before = [p.detach().clone() for p in learner.explorer.parameters()]
    learner.explorer.reconstructor.which[-1].bias.data.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="direction_loss became nan at iteration 0"):
        learner.iterate(0)
    learner.explorer.reconstructor.which[-1].bias.data.zero_()
    shift = [p for p in learner.explorer.shift.parameters()]
    assert torch.equal(shift[0], before[0])


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_told_before_anything_is_learned(schedule: Schedule) -> None:
    broken = Denoiser.from_pretrained("toyfaces")
    next(broken.network.parameters()).data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="^h of model 'toyfaces' became NaN or infinite in its training samples$"):
        Learner(broken, schedule, SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch": 3}, "micro_batch: got 3; it must divide the batch of 4"),
        (
            {"micro_batch": 1, "purity_weight": 0.0},
            "micro_batch: got 1; samples are compared in pairs: give an even number, or consistency_weight 0",
        ),
        (
            {"batch": 5, "consistency_weight": 0.0},
            "micro_batch: got 5; samples are compared in pairs: give an even number, or purity_weight 0",
        ),
        (
            {"batch": 5, "consistency_weight": 0.0, "purity_weight": 0.0},
            "micro_batch: got 5; samples are compared in pairs: give an even number, or locality_weight 0",
        ),
        ({"injection": "both"}, "injection: got 'both'; allowed: symmetric, asymmetric"),
        ({"parametrisation": "mlp"}, "parametrisation: got 'mlp'; allowed: shared, per_step, time"),
        ({"start": "zero"}, "start: got 'zero'; allowed: slopes, pca, random"),
        ({"directions": 1}, "directions: got 1; the reconstructor needs at least 2 to tell apart"),
    ],
)
def test_settings_that_cannot_be(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SETTINGS, **change)


def test_a_batch_that_workers_cannot_share(denoiser: Denoiser, schedule: Schedule) -> None:
    with pytest.raises(UserError, match="batch: got 4; 3 workers with micro-batches of 1 must share it"):
        Learner(denoiser, schedule, SETTINGS, Workers(world=3))


@pytest.mark.slow
def test_random_directions_are_orthonormal_and_as_long_as_asked(denoiser: Denoiser, schedule: Schedule) -> None:
    directions = random.find(denoiser, schedule, random.Settings(4, 1.5))
    flat = directions.table[:, 0].flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(4), atol=1e-5)
    half = random.find(denoiser, schedule, random.Settings(4, 0.75, seed=1), batch=100)
    spread = measured_spread(denoiser, schedule, training_seeds(256, 1)).float()
    assert torch.allclose(half.sigma, 0.75 * spread.expand(4, 3)), "of the samples of its own seed"
    assert torch.allclose(directions.sigma, 2 * half.sigma, rtol=0.2) and len(set(half.sigma[0].tolist())) == 3
    assert torch.equal(half.table[:, 0], half.table[:, 2]) and not torch.allclose(half.table, directions.table)


def test_seeds_to_train_select_report_and_calibrate_are_disjoint() -> None:
    ranges = (SELECT_SEEDS, REPORT_SEEDS, CALIBRATION_SEEDS, TRAIN_SEEDS)
    assert all(a.stop <= b.start for a, b in zip(ranges, ranges[1:], strict=False))
    runs = [training_seeds(count, seed) for seed in range(3) for count in (4096, 1)]
    assert all(not set(a) & set(b) for a, b in itertools.combinations(runs, 2) if a[0] != b[0])
    assert training_seeds(2, 2**32 - 1)[-1] in TRAIN_SEEDS


@pytest.mark.parametrize(
    ("count", "seed", "message"),
    [
        (4, -1, "seed: got -1; allowed: 0 to 4294967295"),
        (4, 2**32, "seed: got 4294967296; allowed: 0 to 4294967295"),
        (0, 0, "samples: got 0; a run looks at 1 to 1048576"),
    ],
)
def test_training_samples_that_no_run_has(count: int, seed: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        training_seeds(count, seed)
