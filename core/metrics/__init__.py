"""How good a DirectionSet is: one table of metrics, measured in the same way whatever method made the set."""

from typing import Literal

from core.metrics.evaluation import Evaluation, evaluate
from core.metrics.strength import calibrate, moved
from core.metrics.traversals import Traversals, draw_traversals

__all__ = ["METRICS", "Evaluation", "Traversals", "calibrate", "draw_traversals", "evaluate", "moved"]

# Name -> which way is better. Closed: `evaluate` reports these and no others.
METRICS: dict[str, Literal["max", "min"]] = {
    "identifiability": "max",
    "strength_error": "min",
    "fidelity_kid": "min",
    "globality": "max",
    "diversity": "max",
    "monotonicity": "max",
    "disentanglement": "max",
    "coverage": "max",
    "fid": "min",
    "inception_kid": "min",
    "lpips": "min",
    "identity": "max",
}
