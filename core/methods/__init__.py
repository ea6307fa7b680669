"""The methods that find direction sets, each a module with `Settings` and `find(denoiser, schedule, settings, ...)`.

Every `find` also takes `batch` and `cache`, which a trial passes.
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
