"""Every way to a direction set. Each method is a module with `Settings` and `find(denoiser, schedule, settings)`."""

from types import ModuleType

from core.methods import learned, random

METHODS: dict[str, ModuleType] = {"learned": learned, "random": random}

__all__ = ["METHODS", "learned", "random"]
