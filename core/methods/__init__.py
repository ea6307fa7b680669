"""The methods that find direction sets, each a module with `Settings` and `find(denoiser, schedule, settings, ...)`.

Every `find` also takes `batch` and `cache`, which a trial passes; `guided` and `supervised` take a predictor,
`attributes`. A method that trains also has a `Learner`.
"""

from types import ModuleType

from core.methods import guided, jacobian, learned, pca, random, sae, semantic, supervised

METHODS: dict[str, ModuleType] = {
    "learned": learned,
    "guided": guided,
    "pca": pca,
    "jacobian": jacobian,
    "semantic": semantic,
    "sae": sae,
    "supervised": supervised,
    "random": random,
}

__all__ = ["METHODS", "guided", "jacobian", "learned", "pca", "random", "sae", "semantic", "supervised"]
