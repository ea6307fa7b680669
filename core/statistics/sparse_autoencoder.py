"""Learn a sparse autoencoder: a dictionary with more entries than dimensions, of which each row needs only a few.

Each row is written as a sum of `active` entries with positive weights, those of its largest activations (TopK: Gao et
al., arXiv 2406.04093). Where rows are mixtures of many causes of which few are present in each, entries tend to follow
single causes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.randomness import generator

BATCH = 256
RATE = 3e-3
_REVIVED = 1 / 32  # weight of the loss that brings back entries which nothing uses, as in the paper
_PATIENCE = 50  # batches after which an entry that none of them used counts as dead


@dataclass(frozen=True)
class SparseAutoencoder:
    """A dictionary of W unit vectors of D dimensions, and the encoder that tells which of them a row is made of."""

    encoder: Tensor  # [D, W], float32 as all
    entries: Tensor  # [W, D]
    active: int

    def activations(self, rows: Tensor) -> Tensor:
        """Return by how much of each entry rows [N, D] are made of: [N, W], positive in at most `active` of each."""
        return _largest(rows @ self.encoder, self.active)

    def rebuilt(self, activations: Tensor) -> Tensor:
        """Return the rows [N, D] that are made of these amounts of the entries [N, W]."""
        return activations @ self.entries


@torch.enable_grad()
def learn(rows: Tensor, width: int, active: int, iterations: int, seed: int = 0) -> SparseAutoencoder:
    """Return an autoencoder of rows [N, D] with `width` entries of which each row uses at most `active`.

    rows: float32, of about mean 0 and mean square 1. It is learned by Adam, BATCH rows at a time, on the rows' device.
    An entry starts as a row; an entry that no row of the last batches used is moved towards what the others leave (AuxK
    of the paper). Depends on the rows and the seed alone. Raises ValueError where `active` is not within 1 to `width`.
    """
    if not 1 <= active <= width:
        raise ValueError(f"active: got {active}; allowed: 1 to the width, {width}")
    random = generator("sparse autoencoder", seed)
    first = rows[torch.randint(len(rows), (width,), generator=random)]
    first = first + 0.01 * torch.randn(first.shape, generator=random).to(first)  # two entries may start from one row
    entries = _units(first).requires_grad_()
    encoder = entries.detach().T.clone().requires_grad_()
    optimiser = torch.optim.Adam([encoder, entries], lr=RATE)
    unused = torch.zeros(width, device=rows.device)
    for _ in range(iterations):
        batch = rows[torch.randint(len(rows), (BATCH,), generator=random)]
        amounts = batch @ encoder
        used = _largest(amounts, active)
        left = batch - used @ entries
        loss = left.square().mean()
        unused = torch.where((used > 0).any(dim=0), 0, unused + 1)
        if (dead := unused >= _PATIENCE).any():
            revived = _largest(amounts.masked_fill(~dead, -torch.inf), min(2 * active, int(dead.sum())))
            loss = loss + _REVIVED * (left.detach() - revived @ entries).square().mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        with torch.no_grad():
            entries.copy_(_units(entries))
    return SparseAutoencoder(encoder.detach(), entries.detach(), active)


def _largest(amounts: Tensor, count: int) -> Tensor:
    """Return the `count` largest of each row [N, W] where they are positive, 0 elsewhere."""
    values, places = amounts.topk(count, dim=1)
    return torch.zeros_like(amounts).scatter(1, places, values.clamp(min=0))


def _units(vectors: Tensor) -> Tensor:
    lengths: Tensor = vectors.norm(dim=1, keepdim=True)
    return vectors / lengths.clamp(min=1e-12)
