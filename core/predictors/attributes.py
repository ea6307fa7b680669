"""The value that every attribute predictor is: names, and a function from images to scores."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import UserError

_SHOWN = 20  # names in a message; a classifier may have a thousand


@dataclass(frozen=True)
class Attributes:
    """A predictor as a value: `score(images [N, C, H, W]) -> [N, A]`, one column for each name.

    score_through: scores that are differentiable in the images, equal to `score` but for rounding; None where there are
    none.
    """

    names: tuple[str, ...]
    score: Callable[[Tensor], Tensor]
    score_through: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(cls, names: tuple[str, ...], score_through: Callable[[Tensor], Tensor]) -> "Attributes":
        """Return the predictor of a differentiable function; its `score` is the same function without a gradient."""
        return cls(names, torch.no_grad()(score_through), score_through)

    @property
    def differentiable(self) -> bool:
        """Whether a gradient goes from the scores back to the images."""
        return self.score_through is not None

    def index(self, name: str) -> int:
        """Return the column of an attribute. Raises UserError, with the nearest spelling, where there is none."""
        if name in self.names:
            return self.names.index(name)
        known = ", ".join(self.names[:_SHOWN])
        rest = f" and {len(self.names) - _SHOWN} more" if len(self.names) > _SHOWN else ""
        near = difflib.get_close_matches(name, self.names, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"attribute '{name}' is not one that the predictor knows: {known}{rest}{hint}")
