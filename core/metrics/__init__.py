"""Measure how good a DirectionSet is: one table of metrics, the same for the sets of every method."""

from typing import Literal

from core.metrics.evaluation import Evaluation, evaluate, measure
from core.metrics.strength import calibrate, moved
from core.metrics.traversals import Traversals, draw_traversals

__all__ = ["METRICS", "Evaluation", "Traversals", "calibrate", "draw_traversals", "evaluate", "measure", "moved"]

# Name -> whether larger or smaller values are better. `evaluate` reports these metrics and no others.
METRICS: dict[str, Literal["max", "min"]] = {
    "factor_score": "max",
    "factor_coverage": "max",
    "purity": "max",
    "told_apart": "max",
    "identifiability": "max",
    "strength_error": "min",
    "fidelity_kid": "min",
    "globality": "max",
    "diversity": "max",
    "monotonicity": "max",
    "evenness": "max",
    "locality": "max",
    "disentanglement": "max",
    "coverage": "max",
    "second_disentanglement": "max",
    "second_coverage": "max",
    "fid": "min",
    "inception_kid": "min",
    "lpips": "min",
    "identity": "max",
}
