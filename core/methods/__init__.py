"""Every way to a direction set: each method is a module with `Settings` and `find(denoiser, schedule, settings, ...)`.

A trial also gives every `find` its `batch` and its `cache`.
"""

from types import ModuleType

from core.methods import jacobian, learned, pca, random, supervised

METHODS: dict[str, ModuleType] = {
    "learned": learned,
    "pca": pca,
    "jacobian": jacobian,
    "supervised": supervised,
    "random": random,
}

__all__ = ["METHODS", "jacobian", "learned", "pca", "random", "supervised"]
