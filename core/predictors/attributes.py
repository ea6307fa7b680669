"""The value that every attribute predictor is: names, and a function from images to scores."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from core.errors import UserError

_SHOWN = 20  # names in a message; a classifier may have a thousand


@dataclass(frozen=True)
class Attributes:
    """A predictor as a value: `score(images [N, C, H, W]) -> [N, A]`, one column for each name."""

    names: tuple[str, ...]
    score: Callable[[Tensor], Tensor]

    def index(self, name: str) -> int:
        """Return the column of an attribute. Raises UserError, with the nearest spelling, where there is none."""
        if name in self.names:
            return self.names.index(name)
        known = ", ".join(self.names[:_SHOWN])
        rest = f" and {len(self.names) - _SHOWN} more" if len(self.names) > _SHOWN else ""
        near = difflib.get_close_matches(name, self.names, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"attribute '{name}' is not one that the predictor knows: {known}{rest}{hint}")
