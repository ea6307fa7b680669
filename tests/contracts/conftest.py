"""The families of models that the contracts are proved on: tests/families.py's tiny random pipelines, saved and loaded.

A new family adds a line to USES.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core import Denoiser, Schedule, noise, sample
from core.randomness import step_noise
from tests.families import FAMILIES, WARNINGS, saved

QUIET = [pytest.mark.filterwarnings(f"ignore:{text}:{kind.__name__}") for text, kind in WARNINGS]
PROMPT = {"prompts": ("a face",)}
USES: dict[str, dict[str, Any]] = {
    "pixel": {},
    "latent": {},
    "sd": {**PROMPT, "guidance": 7.5, "negative_prompt": "blurry"},
    "sd2": {**PROMPT, "guidance": 7.5},
    "sd2-zsnr": {**PROMPT, "guidance": 7.5},
    "sdxl": {**PROMPT, "guidance": 5.0},
    "sdxl-turbo": PROMPT,
    "lcm": {**PROMPT, "guidance": 8.5},
    "dit": {"classes": (1,), "guidance": 4.0},
    "pixart": {**PROMPT, "guidance": 4.5},
    "sd3": {**PROMPT, "guidance": 7.0},
    "flux": {**PROMPT, "size": 32},
    "flux-schnell": {**PROMPT, "size": 32},
}
UNETS = ("pixel", "latent", "sd", "sd2", "sd2-zsnr", "sdxl", "sdxl-turbo", "lcm")
TRANSFORMERS = ("dit", "pixart", "sd3", "flux", "flux-schnell")
LATENT = FAMILIES[1:]
QUICK = ("pixel", "sd", "flux")  # a UNet of pixels, one of latents with a prompt, a transformer
TOKENS = 16  # of a text that are kept: enough for a contract
Folder = Callable[[str], Path]
Load = Callable[..., Denoiser]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A kind of each is quick, all the others are proved with the slow tests."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            if item.callspec.params.get("name") in set(FAMILIES) - set(QUICK):
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """folder(family): where it is saved, once."""
    place = tmp_path_factory.mktemp("families")
    return cache(lambda name: saved(name, place / name))


@pytest.fixture(scope="session")
def load(folder: Folder) -> Load:
    """load(family, **use): each use is loaded once."""

    @cache
    def loaded(name: str, dtype: torch.dtype, use: tuple[Any, ...]) -> Denoiser:
        found = Denoiser.from_pretrained(folder(name), dtype, **dict(use))
        given, other = (
            {key: rows[:, :TOKENS] if key.startswith("encoder_") else rows for key, rows in told.items()}
            for told in (found.condition.given, found.condition.unconditional)
        )
        found.condition = replace(found.condition, given=given, unconditional=other)
        return found

    return lambda name, dtype=torch.float64, **use: loaded(name, dtype, tuple({**USES[name], **use}.items()))


def start(denoiser: Denoiser, count: int = 2) -> Tensor:
    return noise(range(count), denoiser.sample_shape, torch.float64)


def random_shift(denoiser: Denoiser, count: int = 2, size: float = 1.0) -> Tensor:
    return size * noise(range(100, 100 + count), denoiser.h_shape, torch.float64)


def chain(denoiser: Denoiser, schedule: Schedule, x: Tensor, *arguments: Any) -> Tensor:
    """The chain, with the noise that a consistency model needs."""
    z = step_noise(range(len(x)), denoiser.sample_shape, len(schedule), torch.float64) if schedule.stochastic else None
    return sample(denoiser, schedule, x, *arguments, step_noise=z)
