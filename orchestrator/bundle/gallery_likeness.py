"""Which direction of one set is most like which of another: |cosine| of their tables, over the steps both have."""

import torch
from torch import Tensor

from core.directions.direction_set import DirectionSet


def incomparable(a: DirectionSet, b: DirectionSet) -> str:
    """Why the directions of two sets cannot be compared; empty where they can."""
    digests = [each.provenance.get("weight_digest") for each in (a, b)]
    if None not in digests and digests[0] != digests[1]:
        return "they are of different models"
    if a.h_shape != b.h_shape:
        return f"one is for h of {list(a.h_shape)}, the other of {list(b.h_shape)}"
    if not _steps(a, b):
        return "their chains have no timestep in common"
    return ""


@torch.no_grad()
def cosines(a: DirectionSet, b: DirectionSet) -> Tensor:
    """[K of a, K of b], signed: the mean over the steps both have, a step where either does nothing left out."""
    total, count = torch.zeros(len(a), len(b)), torch.zeros(len(a), len(b))
    for i, j in _steps(a, b):
        acting = (a.sigma[:, i, None] > 0) & (b.sigma[None, :, j] > 0)
        product = a.table[:, i].float().flatten(1) @ b.table[:, j].float().flatten(1).T
        total += torch.where(acting, product, 0.0).cpu()
        count += acting.cpu()
    return total / count.clamp(min=1)


def _steps(a: DirectionSet, b: DirectionSet) -> list[tuple[int, int]]:
    """The steps of both tables that belong together."""
    if a.table.shape[1] == 1 or b.table.shape[1] == 1:
        most = max(a.table.shape[1], b.table.shape[1])
        return [(s % a.table.shape[1], s % b.table.shape[1]) for s in range(most)]
    places = {t: j for j, t in enumerate(b.timesteps)}
    return [(i, places[t]) for i, t in enumerate(a.timesteps) if t in places]
