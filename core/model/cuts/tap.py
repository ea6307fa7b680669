"""The tap: where in a network h is read and shifted, and how the values there are laid out as h [N, C, H, W].

form       h_shape    what has a shift of its own
spatial    (C, H, W)  every place of a UNet's map; every image token of a transformer, on its grid
tokens     (C, L, 1)  the same places or tokens, as a sequence
pooled     (C, 1, 1)  every channel: the mean over all places is h, and a shift is added to all of them
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from core.errors import UserError

Form = Literal["spatial", "tokens", "pooled"]
FORMS = ("spatial", "tokens", "pooled")


@dataclass(frozen=True)
class Tap:
    """A place in a network. name: "mid_block", or "blocks.N" of a transformer.

    grid: rows and columns of its places, or (L, 1) where they have none; output: the number of the output, where the
    submodule has several and a hook has to choose.
    """

    name: str
    form: Form
    channels: int
    grid: tuple[int, int]
    output: int | None = None

    @classmethod
    def from_hidden(
        cls, name: str, form: Form, hidden: Tensor, grid: tuple[int, int] | None = None, output: int | None = None
    ) -> "Tap":
        """Return the tap whose values are `hidden`: maps [N, C, H, W], or tokens [N, L, C] on a grid of L places.

        Raises UserError for a form that the tap cannot have.
        """
        if form not in FORMS:
            raise UserError(f"form: got '{form}'; allowed: {', '.join(FORMS)}")
        if hidden.ndim == 4:
            return cls(name, form, hidden.shape[1], (hidden.shape[2], hidden.shape[3]), output)
        if hidden.ndim != 3:
            raise UserError(
                f"tap: '{name}' gives {list(hidden.shape)}; maps [N, C, H, W] or tokens [N, L, C] are needed"
            )
        tokens, channels = hidden.shape[1:]
        if grid is not None and prod(grid) == tokens:
            return cls(name, form, channels, grid, output)
        if form == "spatial":
            raise UserError(f"form: got 'spatial'; the {tokens} tokens at '{name}' are on no grid: tokens or pooled")
        return cls(name, form, channels, (tokens, 1), output)

    @property
    def h_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of h."""
        if self.form == "pooled":
            return self.channels, 1, 1
        return (self.channels, *self.grid) if self.form == "spatial" else (self.channels, prod(self.grid), 1)

    def h(self, hidden: Tensor) -> Tensor:
        """Return the values at the tap as h: [N, *h_shape]."""
        if hidden.ndim == 4 and self.form == "spatial":
            return hidden
        places = hidden.flatten(2) if hidden.ndim == 4 else hidden.mT  # [N, C, L]
        if self.form == "pooled":
            places = places.mean(dim=2, keepdim=True)
        return places.reshape(len(hidden), *self.h_shape)

    def maps(self, hidden: Tensor) -> Tensor:
        """Return the values at the tap as maps [N, C, rows, columns], whatever the form."""
        return hidden if hidden.ndim == 4 else hidden.mT.reshape(len(hidden), self.channels, *self.grid)

    def shifted(self, hidden: Tensor, delta_h: Tensor | None) -> Tensor:
        """Return the values at the tap with delta_h [N or 1, *h_shape] added, in the layout of `hidden`."""
        if delta_h is None:
            return hidden
        delta = delta_h.to(hidden.dtype)
        if hidden.ndim == 4:
            return hidden + (delta.reshape(len(delta), *hidden.shape[1:]) if self.form == "tokens" else delta)
        return hidden + delta.flatten(2).mT


def halved(delta_h: Tensor | None, rows: int, both: bool) -> Tensor | None:
    """Return the shift of a guided batch, [unconditional, conditional]: of both halves, or only of the second.

    delta_h: [rows or 1, ...] -> [2 rows or 1, ...].
    """
    if delta_h is None or (both and len(delta_h) == 1):
        return delta_h
    if both:
        return torch.cat([delta_h, delta_h])
    full = delta_h.expand(rows, *delta_h.shape[1:])
    return torch.cat([torch.zeros_like(full), full])
