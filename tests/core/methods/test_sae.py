"""Directions of `sae` are entries of a dictionary of h, as strong at each step and place as their activation varies."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from torch import Tensor

from core import Denoiser, DirectionSet, Schedule, noise
from core.chain.sampling import trajectory
from core.errors import NonFiniteError, UserError
from core.methods import sae
from core.methods.sae import Seen, Settings, Steps
from core.randomness import generator
from core.samples.cache import SampleCache
from core.samples.training import training_seeds
from core.statistics import sparse_autoencoder
from core.statistics.sparse_autoencoder import SparseAutoencoder

SAMPLES = 40
SETTINGS = Settings(directions=3, seen="whole", width=24, active=4, samples=SAMPLES, iterations=20, sigmas=2.0)


@pytest.fixture
def h(denoiser: Denoiser, schedule: Schedule) -> Tensor:
    """h of the samples [T, N, C, H, W], drawn all at once."""
    return trajectory(denoiser, schedule, noise(training_seeds(SAMPLES), denoiser.sample_shape))[1]


def full(directions: DirectionSet) -> Tensor:
    """Shifts at scale 1: [K, T, C, H, W]."""
    return directions.table * directions.sigma[:, :, None, None, None]


def given(monkeypatch: pytest.MonkeyPatch, network: SparseAutoencoder) -> list[Tensor]:
    """Let the method learn this network; what it was to learn from is kept in the list."""
    rows: list[Tensor] = []
    real = create_autospec(sparse_autoencoder.learn, side_effect=lambda seen, *_: rows.append(seen) or network)
    monkeypatch.setattr(sparse_autoencoder, "learn", real)
    return rows


def network_of(dimensions: int, width: int = 24, active: int = 4) -> SparseAutoencoder:
    random = generator("network", dimensions)
    entries = torch.randn(width, dimensions, generator=random)
    entries = entries / entries.norm(dim=1, keepdim=True)
    return SparseAutoencoder(torch.randn(dimensions, width, generator=random), entries, active)


@pytest.mark.parametrize("seen", sae.SEEN)
def test_a_direction_is_its_entry_as_strong_as_its_activation_varies(
    denoiser: Denoiser, schedule: Schedule, h: Tensor, monkeypatch: pytest.MonkeyPatch, seen: Seen
) -> None:
    steps, samples, channels, height, width = h.shape
    network = network_of(channels * height * width if seen == "whole" else channels)
    learnt_from = given(monkeypatch, network)
    found = sae.find(denoiser, schedule, replace(SETTINGS, seen=seen))
    expected, energies = torch.zeros(24, *h[:, 0].shape), torch.zeros(24)
    places = [(y, x) for y in range(height) for x in range(width)] if seen == "places" else [(0, 0)]
    for t in range(steps):
        at = {
            "whole": lambda y, x, t=t: h[t].flatten(1),
            "places": lambda y, x, t=t: h[t, :, :, y, x],
            "pooled": lambda y, x, t=t: h[t].mean(dim=(2, 3)),
        }[seen]
        rows = torch.stack([at(y, x) for y, x in places], dim=1)  # [N, P, D]
        mean = rows.mean(dim=(0, 1))
        spread = (rows - mean).square().mean().sqrt()
        for p, (y, x) in enumerate(places):
            activations = network.activations((rows[:, p] - mean) / spread)
            energies += activations.square().mean(dim=0) / (steps * len(places))
            shift = spread * network.entries * activations.std(dim=0, unbiased=False)[:, None]
            if seen == "whole":
                expected[:, t] = shift.reshape(24, channels, height, width)
            elif seen == "pooled":
                expected[:, t] = shift[:, :, None, None]
            else:
                expected[:, t, :, y, x] = shift
    best = energies.argsort(descending=True)[:3]
    assert torch.allclose(full(found), 2 * expected[best], rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    [rows] = learnt_from
    assert rows.shape == (steps * samples * len(places), network.entries.shape[1])
    assert torch.allclose(rows.reshape(steps, -1).square().mean(dim=1), torch.ones(steps), rtol=1e-4)
    assert found.timesteps == schedule.timesteps and found.provenance["method"] == "sae"


@pytest.mark.parametrize(("steps", "shifted"), [("early", [True, True, False]), ("late", [False, True, True])])
def test_steps_that_are_not_looked_at_are_not_shifted(
    denoiser: Denoiser, schedule: Schedule, steps: Steps, shifted: list[bool]
) -> None:
    found = sae.find(denoiser, schedule, replace(SETTINGS, steps=steps))
    assert (found.sigma > 0).tolist() == [shifted] * 3


def test_entries_that_no_row_and_that_most_rows_use_are_left_out_and_counted(
    denoiser: Denoiser, schedule: Schedule, h: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(h[0, 0].numel(), active=24)
    network.encoder[:, 5] = 0  # never active
    rows = (h - h.mean(dim=1, keepdim=True)).flatten(2)
    rows = (rows / rows.square().mean(dim=(1, 2), keepdim=True).sqrt()).flatten(0, 1)
    shares = ((rows @ network.encoder) > 0).float().mean(dim=0)
    alive = 24 - int((shares > 0.5).sum()) - 1
    given(monkeypatch, network)
    found = sae.find(denoiser, schedule, replace(SETTINGS, directions=alive))
    assert (found.provenance["dead"], found.provenance["dense"]) == (1, 24 - alive - 1) and 0 < alive < 23
    left = (rows - network.rebuilt(network.activations(rows))).square().sum() / rows.square().sum()
    assert found.provenance["explained"] == pytest.approx(1 - float(left), abs=1e-3)
    few = replace(SETTINGS, directions=alive + 1)
    told = f"^directions: got {alive + 1}; of the 24 entries {alive} are used by some and not by most of what is seen "
    with pytest.raises(UserError, match=told):
        sae.find(denoiser, schedule, few)


def test_no_more_numbers_are_held_than_there_is_room_for(
    denoiser: Denoiser, schedule: Schedule, h: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of the rows is learned from; how the entries are used is counted over all."""
    network, counted, activations = network_of(h.shape[2]), [0], SparseAutoencoder.activations
    learnt_from = given(monkeypatch, network)

    def counting(self: SparseAutoencoder, rows: Tensor) -> Tensor:
        counted[0] += len(rows)
        return activations(self, rows)

    monkeypatch.setattr(SparseAutoencoder, "activations", counting)
    monkeypatch.setattr(sae, "_HELD", h.numel() // 4)
    sae.find(denoiser, schedule, replace(SETTINGS, seen="places"), batch=8)
    all_rows = h.numel() // h.shape[2]
    assert len(learnt_from[0]) == all_rows // 4 and counted[0] == all_rows


def test_a_cache_changes_nothing(denoiser: Denoiser, schedule: Schedule, tmp_path: Path) -> None:
    alone = sae.find(denoiser, schedule, SETTINGS, batch=8)
    cached = sae.find(denoiser, schedule, SETTINGS, batch=8, cache=SampleCache(tmp_path))
    assert torch.allclose(full(alone), full(cached), atol=1e-3 * float(full(alone).abs().max()))


def test_h_that_is_no_number_is_told(denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = create_autospec(sae.draw_h, side_effect=lambda *_: iter([torch.full((3, 4, 8, 2, 2), torch.nan)]))
    monkeypatch.setattr(sae, "draw_h", broken)
    with pytest.raises(NonFiniteError, match="became NaN or infinite in its training samples"):
        sae.find(denoiser, schedule, SETTINGS)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"seen": "all"}, "seen: got 'all'; allowed: whole, places, pooled"),
        ({"steps": "middle"}, "steps: got 'middle'; allowed: all, early, late"),
        ({"width": 2}, "width: got 2; 3 directions and rows of 4 entries need at least 4"),
        ({"samples": 1}, "samples: got 1; allowed: 2 or more"),
        ({"active": 0}, "active: got 0; allowed: 1 or more"),
        ({"sigmas": 0.0}, "sigmas: got 0.0; allowed: a number above 0"),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        replace(SETTINGS, **setting)
    assert str(refused.value) == sentence
