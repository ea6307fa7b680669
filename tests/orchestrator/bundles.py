"""Direction sets of tiny models, as trials and exports leave them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from core.chain.schedule import Schedule
from core.directions.dials import Dial
from core.directions.direction_set import DirectionSet
from core.metrics import Traversals
from core.metrics.calibration import Calibrated
from core.model.denoiser import Denoiser
from core.randomness import generator
from orchestrator.store.folder import SweepFolder

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


def a_set(trial_id: str, method: str = "learned") -> DirectionSet:
    """A set that is a trial's own: its numbers and the name of its first direction follow from the trial's id."""
    table = torch.randn(2, 2, 4, 1, 1, generator=generator("a set", trial_id))
    table = table / table.flatten(2).norm(dim=2)[..., None, None, None]
    origin = {"model": "toyfaces", "method": method, "weight_digest": "ab" * 32}
    sigma = torch.tensor([[1.0, 0.5], [2.0, 1.0]])
    return DirectionSet(table, sigma, (500, 0), (trial_id, "second"), {}, origin)


def dialled(directions: DirectionSet) -> Calibrated:
    """The set with dials, and images that somebody might have drawn of it."""
    dials = (Dial(-1.0, 2.0, 0.5, 0.8, 1.5, {"smile": 0.9, "age": -0.3}, "attributes"), Dial(-3.0, 3.0, 0.9, 0.9))
    shifted = torch.rand(2, 2, 4, 3, 8, 8) * 2 - 1
    drawn = Traversals(torch.zeros(2, 3, 8, 8), shifted, (-2.0, -1.0, 1.0, 2.0))
    return Calibrated(replace(directions, dials=dials), drawn)


def keep_set(folder: SweepFolder, trial_id: str, step: int, directions: DirectionSet | None) -> None:
    """A checkpoint, with a set where the trial was measured."""

    def write(to: Path) -> None:
        if directions is not None:
            (to / "directions").mkdir()
            directions.write(to / "directions")
            Image.new("RGB", (4, 4)).save(to / "traversal.png")

    folder.trial(trial_id).save(step, write)
