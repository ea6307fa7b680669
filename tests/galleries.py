"""Sets and images made up for the gallery: each frame one colour, by which a test knows it again."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from core import DirectionSet
from core.directions.dials import Dial
from core.metrics import Traversals
from orchestrator.bundle.gallery import ShownSet

SCALES = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)


def colour(m: int, k: int, place: int) -> tuple[int, int, int]:
    """Of the frame of sample m and direction k at one of the scales; `place` 3 of 7 is the unshifted one."""
    return (40 + 30 * place, 50 + 40 * m, 0 if place == len(SCALES) // 2 else 10 + 20 * k)


def flat_images(samples: int, count: int, size: int = 8) -> Traversals:
    half = len(SCALES) // 2
    places = [place for place in range(len(SCALES) + 1) if place != half]
    colours = [[[colour(m, k, place) for place in places] for k in range(count)] for m in range(samples)]
    shifted = _images(torch.tensor(colours), size)
    return Traversals(_images(torch.tensor([colour(m, 0, half) for m in range(samples)]), size), shifted, SCALES)


def _images(colours: Tensor, size: int) -> Tensor:
    values = colours.float() / 127.5 - 1
    return values[..., None, None].expand(*colours.shape, size, size).contiguous()


def directions(names: Sequence[str], steps: int = 2, seed: int = 0, **given: Any) -> DirectionSet:
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(len(names), steps, 8, generator=generator)
    table = torch.nn.functional.normalize(flat, dim=2).reshape(len(names), steps, 2, 2, 2)
    return DirectionSet(
        table, torch.ones(len(names), steps), tuple(range(900, 0, -900 // steps))[:steps], tuple(names), **given
    )


def dial(score: float = 0.5, low: float = -1.2, high: float = 1.7, named_by: str = "", **effects: float) -> Dial:
    return Dial(low, high, consistency=score, distinctness=1.0, effects=effects, named_by=named_by)


def measured(title: str = "A set") -> ShownSet:
    """Three directions, the last of which is the best."""
    dials = (
        dial(0.3, smile=0.1, age=-1.5),
        dial(0.5, low=-3.0, high=3.0, smile=0.9, age=0.2),
        dial(0.8, named_by="attributes", smile=2.0, age=0.0),
    )
    return ShownSet(directions(("older", "direction_1", "smile"), dials=dials), flat_images(2, 3), title)


def unmeasured(names: Sequence[str] = ("first", "second")) -> ShownSet:
    return ShownSet(directions(names), flat_images(2, len(names)), "Nobody's")


def turned(shown: ShownSet, title: str) -> ShownSet:
    """The same directions, pointing the other way and in the opposite order."""
    table = -shown.directions.table.flip(0)
    names = tuple(f"{name} again" for name in reversed(shown.directions.names))
    return ShownSet(replace(shown.directions, table=table, names=names), shown.traversals, title)
