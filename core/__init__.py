"""Interpretable editing directions in the h-space of pretrained diffusion models.

Names are loaded when they are first used, so that `import core` is free.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.chain.sampling import invert, sample
    from core.chain.schedule import Schedule
    from core.directions.direction_set import DirectionSet
    from core.methods.trained.shift_control import ShiftControl
    from core.model.denoiser import Denoiser
    from core.randomness import noise

_HOME = {
    "Denoiser": "core.model.denoiser",
    "DirectionSet": "core.directions.direction_set",
    "Schedule": "core.chain.schedule",
    "ShiftControl": "core.methods.trained.shift_control",
    "invert": "core.chain.sampling",
    "noise": "core.randomness",
    "sample": "core.chain.sampling",
}

__all__ = ["Denoiser", "DirectionSet", "Schedule", "ShiftControl", "invert", "noise", "sample"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'core' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
