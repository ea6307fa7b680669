"""What is known of one direction of a set: how far its scale may be turned, what it does, and how well one can tell.

`core.metrics.calibration` measures dials; `core.directions.direction_set` keeps them in a set's file.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

NAMED_BY = ("", "attributes", "clip", "hand")


@dataclass(frozen=True)
class Dial:
    """One direction's dial. Scale 1.0 moves images equally far for every direction of a calibrated set.

    low, high: the scales, about 0, between which images stay as faithful as `core.metrics.calibration` asks;
    consistency: how alike it changes different samples, 0 to 1; distinctness: how little its change is like that of the
    direction most like it, 0 to 1; effects: how far scale 1 moves each attribute, in standard deviations of the
    attribute over unshifted samples, signed; own: the scale at which it is as long as its method left it, where metrics
    were measured; named_by: whether its name comes from "attributes", from "clip", by "hand", or, "", says nothing.
    """

    low: float
    high: float
    consistency: float
    distinctness: float
    own: float = 1.0
    effects: Mapping[str, float] = field(default_factory=dict)
    named_by: str = ""

    @property
    def score(self) -> float:
        """Interpretability, 0 to 1: it does one thing to every sample, and no other direction does it too."""
        return self.consistency * self.distinctness

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "effects": dict(self.effects)}
