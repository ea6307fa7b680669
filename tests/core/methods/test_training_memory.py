"""What the trained parts take is what they take: counted without data, compared with a real training step."""

from dataclasses import replace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch

from core import Denoiser, Schedule
from core.chain.step_memory import MemoryCounter
from core.methods import training_memory
from core.methods.learned.training import Learner, Settings
from core.methods.trained.discriminator import fidelity_loss
from core.methods.training_memory import drawing_bytes, pool_bytes, trained_bytes

SETTINGS = Settings(directions=3, batch=8, pool=32, start="random")


@pytest.fixture(scope="module")
def denoiser(single_denoiser: Denoiser) -> Denoiser:
    return single_denoiser


def counted(denoiser: Denoiser, batch: int = 8, optimiser: int = 8, **changes: Any) -> int:
    schedule = Schedule.ddim(denoiser, 3)
    return trained_bytes(denoiser.blueprint(), schedule, replace(SETTINGS, **changes), batch, optimiser)


@pytest.mark.slow
def test_parameters_gradients_and_adam_are_in_it(denoiser: Denoiser) -> None:
    learner = Learner(denoiser, Schedule.ddim(denoiser, 3), SETTINGS)
    modules = learner.explorer, learner.discriminator
    parameters = sum(p.numel() for module in modules for p in module.parameters())
    buffers = sum(b.nbytes for module in modules for b in module.buffers())
    assert counted(denoiser, 2, 8) - counted(denoiser, 2, 0) == 8 * parameters
    assert counted(denoiser, 2, 0) > 4 * parameters + buffers
    assert counted(denoiser, 2, 0) < 1.5 * (8 * parameters + buffers)  # small images: activations are few


@pytest.mark.slow
def test_losses_grow_with_the_micro_batch(denoiser: Denoiser) -> None:
    """And are what a real pass through the trained parts holds, which other samples do not change."""
    learner = Learner(denoiser, Schedule.ddim(denoiser, 3), SETTINGS)
    own = [t for module in (learner.explorer, learner.discriminator) for t in (*module.parameters(), *module.buffers())]

    def real(batch: int) -> int:
        x = torch.randn(batch, 3, 8, 8)
        k, magnitude = torch.zeros(batch, dtype=torch.long), torch.ones(batch)
        shifted_x = torch.randn(batch, 3, 8, 8, requires_grad=True)
        rows = torch.arange(batch) % 32
        with MemoryCounter([*own, *denoiser.tensors(), x, shifted_x, k, magnitude, rows]) as counter:
            with torch.no_grad():
                plain = learner._seen(rows, x)
            shifted = learner._seen(rows, shifted_x)
            loss, _ = learner._loss(plain, shifted, k, magnitude)
            fidelity = fidelity_loss(learner.discriminator(shifted.images, shifted.maps))
            (loss + fidelity).backward()
        return int(counter.peak)

    many, few = counted(denoiser, 256) - counted(denoiser, 128), real(256) - real(128)
    assert 0.9 * few < many < 2 * few  # the discriminator's own step is in it too


def test_maps_are_counted_where_something_looks_at_them(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """The discriminator, the purity, or the slopes from which directions start; and not counted otherwise."""
    maps = sum(each.nbytes for each in training_memory.sample_maps(denoiser, torch.zeros(32, *denoiser.sample_shape)))
    looking = create_autospec(training_memory.sample_maps, side_effect=training_memory.sample_maps)
    monkeypatch.setattr(training_memory, "sample_maps", looking)
    none = {"discriminator_weight": 0.0, "purity_weight": 0.0}
    without = counted(denoiser, 32, **none)
    assert not looking.called
    for change in ({"purity_weight": 1.0}, {"start": "slopes"}):
        looking.reset_mock()
        assert counted(denoiser, 32, **{**none, **change}) > without + maps, change
        assert looking.call_count == 2, "of the samples and of the shifted ones"
    looking.reset_mock()
    assert counted(denoiser, 32, purity_weight=0.0) > without and looking.call_count == 2
    looking.reset_mock()
    assert counted(denoiser, 32, **none, look="denoiser") > without + maps and looking.call_count == 2


@pytest.mark.slow
def test_what_is_left_out_takes_nothing(denoiser: Denoiser) -> None:
    assert counted(denoiser, discriminator_weight=0.0) < counted(denoiser)
    assert counted(denoiser, parametrisation="per_step") > counted(denoiser)
    assert counted(denoiser, directions=6) > counted(denoiser)


def test_the_pool_is_two_images_a_sample(denoiser: Denoiser) -> None:
    learner = Learner(denoiser, Schedule.ddim(denoiser, 3), SETTINGS)
    assert pool_bytes(denoiser, SETTINGS) == learner.pool.x_0.nbytes + learner.pool.x_t.nbytes


def test_drawing_grows_with_the_samples_drawn_at_a_time(denoiser: Denoiser) -> None:
    one, two, four = (drawing_bytes(denoiser.blueprint(), Schedule.ddim(denoiser, 3), n) for n in (2, 4, 8))
    assert one > 2 * 4 * 3 * 8 * 8 and four - two == pytest.approx(2 * (two - one), rel=0.01)
