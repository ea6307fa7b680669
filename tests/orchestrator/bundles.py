"""A direction set of a tiny model in a folder, as an export leaves it: four directions with dials, three steps."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from core.denoiser import Denoiser
from core.dials import Dial
from core.directions import DirectionSet
from core.randomness import generator
from core.schedule import Schedule

NAMES = ("smile", "yaw", "hair colour", "a=b")
_SCORES = (0.2, 0.9, 0.5, 0.1)


def tiny_set(
    model: str | Path, /, steps: int = 3, dials: bool = True, names: Sequence[str] = NAMES, **provenance: Any
) -> DirectionSet:
    """Random directions, long enough to change what the model draws."""
    denoiser = Denoiser.from_pretrained(model)
    schedule = Schedule.ddim(denoiser, steps)
    table = torch.randn(len(names), len(schedule), *denoiser.h_shape, generator=generator("tiny set"))
    table = table / table.flatten(2).norm(dim=2)[..., None, None, None]
    told = {"model": str(model), "weight_digest": denoiser.digest, "steps": steps, "eta": 0.0, **provenance}
    sigma = torch.full((len(names), len(schedule)), 20.0)
    found = DirectionSet(table, sigma, schedule.timesteps, tuple(names), {}, told)
    scores = [_SCORES[k % len(_SCORES)] for k in range(len(names))]
    return replace(found, dials=tuple(Dial(-1.5, 2.5, score, 1.0) for score in scores)) if dials else found


def tiny_bundle(model: str | Path, folder: Path, /, **given: Any) -> Path:
    tiny_set(model, **given).save(folder)
    return folder
