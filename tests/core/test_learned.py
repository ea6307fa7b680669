"""The learned method: it learns, it does not depend on how a batch is cut, and it says where it breaks."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from core import Denoiser, Schedule
from core.errors import NonFiniteError, UserError
from core.gradient import CheckpointSteps
from core.methods import learned, random
from core.methods.learned import Learner, Settings
from core.pool import training_seeds
from core.randomness import CALIBRATION_SEEDS, REPORT_SEEDS, SELECT_SEEDS, TRAIN_SEEDS

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
    for one, other in zip(whole.explorer.parameters(), cut.explorer.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-6)


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
    for whole, *parts in zip(*(learner.explorer.parameters() for learner in (alone, *halves)), strict=True):
        assert torch.allclose(whole.grad, (parts[0].grad + parts[1].grad) / 2, rtol=1e-3, atol=1e-6)


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
