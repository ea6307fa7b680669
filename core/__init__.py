"""Interpretable editing directions in the h-space of pretrained diffusion models.

Names are loaded when they are first used, so that `import core` is free.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.chain import invert, sample
    from core.denoiser import Denoiser
    from core.directions import DirectionSet
    from core.randomness import noise
    from core.schedule import Schedule
    from core.shift import ShiftControl

_HOME = {
    "Denoiser": "core.denoiser",
    "DirectionSet": "core.directions",
    "Schedule": "core.schedule",
    "ShiftControl": "core.shift",
    "invert": "core.chain",
    "noise": "core.randomness",
    "sample": "core.chain",
}

__all__ = ["Denoiser", "DirectionSet", "Schedule", "ShiftControl", "invert", "noise", "sample"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'core' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
