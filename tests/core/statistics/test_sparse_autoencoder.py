"""A sparse autoencoder finds the vectors that rows were made of, and uses few of them for each row."""

from unittest.mock import create_autospec

import pytest
import torch
from torch import Tensor

from core.randomness import generator
from core.statistics import sparse_autoencoder
from core.statistics.sparse_autoencoder import SparseAutoencoder, learn


def mixtures(count: int = 1000, width: int = 12, dimensions: int = 8, present: int = 2) -> tuple[Tensor, Tensor]:
    """Rows [N, D], of mean square 1, each a positive mixture of `present` of the unit vectors [W, D]."""
    random = generator("mixtures")
    causes = torch.randn(width, dimensions, generator=random)
    causes = causes / causes.norm(dim=1, keepdim=True)
    chosen = torch.rand(count, width, generator=random).argsort(dim=1)[:, :present]
    amounts = torch.zeros(count, width).scatter(1, chosen, 0.5 + torch.rand(count, present, generator=random))
    rows = amounts @ causes
    return rows / rows.square().mean().sqrt(), causes


def test_each_row_uses_its_largest_positive_activations() -> None:
    random = generator("rows")
    rows, encoder = torch.randn(50, 4, generator=random), torch.randn(4, 9, generator=random)
    network = SparseAutoencoder(encoder, torch.eye(9, 4), active=3)
    found = network.activations(rows)
    for row, amounts in zip(found, rows @ encoder, strict=True):
        largest = sorted(amounts.tolist(), reverse=True)[:3]
        assert sorted(row[row > 0].tolist(), reverse=True) == [each for each in largest if each > 0]
    assert torch.equal(network.rebuilt(found), found @ torch.eye(9, 4))


def test_it_finds_what_the_rows_are_made_of() -> None:
    """Half as many causes again as there are dimensions, three of them in each row."""
    rows, causes = mixtures(2000, 48, 32, 3)
    network = learn(rows, width=48, active=3, iterations=1000)
    closest = (network.entries @ causes.T).amax(dim=0)  # of each cause
    assert (closest > 0.95).sum() >= 36
    left = rows - network.rebuilt(network.activations(rows))
    assert left.square().mean() < 0.15 * rows.square().mean()
    assert network.entries.norm(dim=1).allclose(torch.ones(48))


def test_it_depends_on_rows_and_seed_alone() -> None:
    rows, _ = mixtures(100)
    before = torch.random.get_rng_state()
    first, again, other = (learn(rows, 12, 2, 5, seed) for seed in (0, 0, 1))
    assert torch.equal(first.entries, again.entries) and torch.equal(first.encoder, again.encoder)
    assert not torch.allclose(first.entries, other.entries)
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_entry_that_nothing_uses_is_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that start from rows of which hardly any others are like."""
    rows = torch.cat([mixtures(2000)[0], -mixtures(20)[0]])
    chosen = create_autospec(torch.randint)
    monkeypatch.setattr(torch, "randint", chosen)

    def dead(patience: int) -> int:
        monkeypatch.setattr(sparse_autoencoder, "_PATIENCE", patience)
        batches = torch.arange(300 * 256).remainder(2000).reshape(300, 256)
        chosen.side_effect = [torch.arange(2000, 2020), *batches]
        network = learn(rows, 20, 1, 300)
        return int((network.activations(rows[:2000]) == 0).all(dim=0).sum())

    assert dead(5) < dead(10**6)


@pytest.mark.parametrize("active", [0, 5])
def test_a_row_is_made_of_one_to_all_entries(active: int) -> None:
    with pytest.raises(ValueError, match=f"^active: got {active}; allowed: 1 to the width, 4$"):
        learn(mixtures(10)[0], 4, active, 1)
