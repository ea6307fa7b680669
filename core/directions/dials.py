"""Dials: the measured properties of each direction, such as its usable range of scales and its effects.

`core.metrics.calibration` measures dials; `core.directions.direction_set` stores them in a set's file.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

NAMED_BY = ("", "attributes", "clip", "hand")
_ROUNDING = 1e-6  # hundredths; a number that is a hundredth but for rounding is not rounded further


@dataclass(frozen=True)
class Dial:
    """The measured properties of one direction. Scale 1.0 moves images equally far for each in a calibrated set.

    low, high: the range of scales around 0 in which images stay as faithful as `core.metrics.calibration` asks.
    consistency: how similarly the direction changes different samples, 0 to 1.
    distinctness: how much its change differs from that of the most similar other direction, 0 to 1.
    own: the scale at which it is as long as its method left it; metrics were measured at this scale.
    effects: how far scale 1 moves each attribute, signed, in standard deviations of it over unshifted samples.
    named_by: the source of its name, "attributes", "clip" or "hand"; "" where the name says nothing.
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
        """Return the interpretability, 0 to 1: high where samples change alike and no other direction does the same."""
        return self.consistency * self.distinctness

    @property
    def range(self) -> tuple[float, float]:
        """Return (low, high), rounded inward to hundredths: as it is shown, and as an edit is checked against it."""
        return math.ceil(self.low * 100 - _ROUNDING) / 100 + 0.0, math.floor(self.high * 100 + _ROUNDING) / 100 + 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the dial as a mapping that JSON can hold."""
        return {**asdict(self), "effects": dict(self.effects)}
