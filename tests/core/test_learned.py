"""The learned method: it learns, it does not depend on how a batch is cut, and it says where it breaks."""

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
from core.errors import NonFiniteError, UserError
from core.gradient import CheckpointSteps
from core.methods import learned, random
from core.methods.learned import Learner, Settings
from core.optimiser import Optimiser
from core.pool import training_seeds
from core.randomness import CALIBRATION_SEEDS, REPORT_SEEDS, SELECT_SEEDS, TRAIN_SEEDS, generator

SETTINGS = Settings(directions=3, batch=4, pool=32, iterations=3, shift_scale=2.0)


@pytest.fixture(scope="module")
def denoiser(single_denoiser: Denoiser) -> Denoiser:
    return single_denoiser


@pytest.fixture(scope="module")
def schedule(denoiser: Denoiser) -> Schedule:
    return Schedule.ddim(denoiser, 3)


def run(denoiser: Denoiser, schedule: Schedule, settings: Settings, iterations: int = 3) -> tuple[Learner, list[dict]]:
    learner = Learner(denoiser, schedule, settings)
    return learner, [learner.iterate(n) for n in range(iterations)]


def gradient_of(learner: Learner) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in learner.explorer.parameters()])


def apart(found: Tensor, expected: Tensor) -> float:
    """How far apart two gradients are, in lengths of the second: single entries near 0 differ with the processor."""
    return float((found - expected).norm() / expected.norm())


def explorer_loss_by_hand(learner: Learner, x_0: Tensor, shifted: Tensor, k: Tensor, magnitude: Tensor) -> Tensor:
    """The formula at the head of core.methods.learned, a term a line, with the weights as numbers."""
    settings = learner.settings
    logits, strength = learner.explorer.reconstructor(x_0, shifted)
    cross_entropy = (logits.exp().sum(1).log() - logits[torch.arange(len(k)), k]).mean()
    error = 6 * (strength - magnitude).abs().mean()
    fooled = (1 + (-learner.discriminator(shifted)).exp()).log().mean()
    change = adaptive_avg_pool2d(shifted - x_0, 8).flatten(1)
    change = magnitude.sign()[:, None] * change / change.norm(dim=1, keepdim=True)
    unlike = (1 - (change[0::2] * change[1::2]).sum(1)).mean()
    return cross_entropy + 0.25 * error + settings.discriminator_weight * fooled + settings.consistency_weight * unlike


def test_the_loss_is_the_formula(denoiser: Denoiser, schedule: Schedule) -> None:
    learner = Learner(denoiser, schedule, replace(SETTINGS, discriminator_weight=0.7, consistency_weight=0.4))
    x_0, shifted = (noise(range(first, first + 4), denoiser.seen_shape) for first in (0, 10))
    batch = x_0, shifted, torch.tensor([0, 0, 2, 2]), torch.tensor([0.5, -1.0, 0.25, 0.75])
    loss, _ = learner._explorer_loss(*batch)
    assert loss.item() == pytest.approx(explorer_loss_by_hand(learner, *batch).item(), rel=1e-5)


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

    learner.explorer_optimiser, learner.critic_optimiser = keeping("explorer"), keeping("discriminator")
    terms = learner.iterate(5)
    rows = torch.randint(32, (4,), generator=generator("rows", 0, 5))
    k, magnitude = learner._draw(5, 4)
    for part in (slice(0, 2), slice(2, 4)):
        x_0, drawn = learner.pool.x_0[rows[part]], slice(part.start // 2, part.start // 2 + 1)
        table = learner.explorer.shift()[k[part], 0] * (magnitude[part] * 2.0)[:, None, None, None]
        shift = [spread * table for spread in learner.explorer.shift.spread]
        shifted = sample(denoiser, schedule, learner.pool.x_t[rows[part]], shift.__getitem__)
        by_hand = explorer_loss_by_hand(learner, x_0, shifted, k[part], magnitude[part])
        assert descended["explorer"][drawn] == [pytest.approx(by_hand.item(), rel=1e-4)]
        real, fake = learner.discriminator(x_0), learner.discriminator(shifted)
        own = ((1 + (-real).exp()).log() + (1 + fake.exp()).log()).mean()
        assert descended["discriminator"][drawn] == [pytest.approx(own.item(), rel=1e-4)]
    assert trained == {"explorer": [False] * 2, "discriminator": [True] * 2}
    assert terms["critic_loss"] == pytest.approx(sum(descended["discriminator"]) / 2)
    weighted = terms["direction_loss"] + 0.25 * terms["strength_loss"] + 0.7 * terms["fidelity_loss"]
    assert weighted + 3.0 * terms["consistency_loss"] == pytest.approx(sum(descended["explorer"]) / 2, rel=1e-5)


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


def test_it_learns_to_tell_directions_apart(denoiser: Denoiser, schedule: Schedule) -> None:
    _, terms = run(denoiser, schedule, replace(SETTINGS, batch=16), 150)
    first, last = (sum(t["direction_loss"] for t in part) / 10 for part in (terms[:10], terms[-10:]))
    assert last < 0.6 * math.log(3) < first * 0.75


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


def test_checkpointing_does_not_change_what_is_learned(denoiser: Denoiser, schedule: Schedule) -> None:
    _, plain = run(denoiser, schedule, SETTINGS)
    _, checkpointed = run(denoiser, schedule, replace(SETTINGS, gradient=CheckpointSteps()))
    for one, other in zip(plain, checkpointed, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_workers_share_a_batch(denoiser: Denoiser, schedule: Schedule) -> None:
    """Two workers' gradients average to those of one, and together they see every sample once."""
    alone, _ = run(denoiser, schedule, SETTINGS, 1)
    halves = [Learner(denoiser, schedule, SETTINGS, rank=rank, world=2) for rank in (0, 1)]
    for half in halves:
        half.iterate(0)
    assert apart(sum(map(gradient_of, halves)) / 2, gradient_of(alone)) < 1e-3


def test_without_a_weight_there_is_no_discriminator(denoiser: Denoiser, schedule: Schedule) -> None:
    learner, terms = run(denoiser, schedule, replace(SETTINGS, discriminator_weight=0.0), 1)
    assert learner.critic_optimiser is None
    assert terms[0].keys() == {"direction_loss", "strength_loss", "consistency_loss", "training_accuracy"}


def test_the_discriminator_only_learns_from_its_own_loss(denoiser: Denoiser, schedule: Schedule) -> None:
    learner = Learner(denoiser, schedule, SETTINGS)
    before = [p.detach().clone() for p in learner.discriminator.parameters()]
    learner.critic_optimiser = type("Idle", (), {"update": lambda self, losses: None})()
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
@pytest.mark.parametrize("start", ["flattest", "pca", "random"])
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


def test_weights_that_are_no_numbers_are_told_before_anything_is_learned(schedule: Schedule) -> None:
    broken = Denoiser.from_pretrained("toyfaces")
    next(broken.network.parameters()).data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="^h of model 'toyfaces' became NaN or infinite in its training samples$"):
        Learner(broken, schedule, SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch": 3}, "micro_batch: got 3; it must divide the batch of 4"),
        ({"micro_batch": 1}, "micro_batch: got 1; samples are compared in pairs: give an even number, or consistency_"),
        ({"injection": "both"}, "injection: got 'both'; allowed: symmetric, asymmetric"),
        ({"parametrisation": "mlp"}, "parametrisation: got 'mlp'; allowed: shared, per_step, time"),
        ({"start": "zero"}, "start: got 'zero'; allowed: flattest, pca, random"),
        ({"directions": 1}, "directions: got 1; the reconstructor needs at least 2 to tell apart"),
    ],
)
def test_settings_that_cannot_be(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SETTINGS, **change)


def test_a_batch_that_workers_cannot_share(denoiser: Denoiser, schedule: Schedule) -> None:
    with pytest.raises(UserError, match="batch: got 4; 3 workers with micro-batches of 1 must share it"):
        Learner(denoiser, schedule, SETTINGS, world=3)


def test_random_directions_are_orthonormal_and_as_long_as_asked(denoiser: Denoiser, schedule: Schedule) -> None:
    directions = random.find(denoiser, schedule, random.Settings(4, 1.5))
    flat = directions.table[:, 0].flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(4), atol=1e-5)
    half = random.find(denoiser, schedule, random.Settings(4, 0.75))
    assert torch.allclose(directions.sigma, 2 * half.sigma)


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
