"""Any network at all, shifted through a hook: for families without a cut of their own.

The network runs whole in every pass, for what comes before the tap cannot be kept apart from what comes after it: an
asymmetric step takes two passes, where a network with a cut takes one and a part.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from core.cuts.base import Cut, Features, Given, Network
from core.cuts.tap import Form, Tap
from core.errors import UserError

# (network, x_t [N, *sample_shape], t [N], what else it is told) -> its output [N, *sample_shape]
Call = Callable[[Network, Tensor, Tensor, Given], Tensor]
Grid = Callable[[tuple[int, int, int]], tuple[int, int]]  # sample_shape -> rows and columns of the tokens


class HookedCut(Cut):
    """A network that is called by `call`. tap: the name of a submodule that gives maps or tokens, alone or last in a
    tuple; grid: where its tokens lie, if they do.
    """

    shares = False

    def __init__(
        self,
        network: Network,
        tap: str | None = None,
        form: Form | None = None,
        call: Call | None = None,
        grid: Grid | None = None,
    ) -> None:
        self._call, self._grid = call or _plainly, grid
        super().__init__(network, tap, form)

    def encode(self, x_t: Tensor, t: Tensor, given: Given) -> Features:
        told = {name: rows.to(self.dtype) if rows.is_floating_point() else rows for name, rows in given.items()}

        def run(at_tap: Callable[[Tensor], Tensor]) -> Tensor:
            output: Tensor = self._run(
                _hooked, self.network, self.name, at_tap, self._call, x_t.to(self.dtype), t, told
            )
            return output

        return HookedFeatures(self.tap, run, len(x_t))

    def decode(self, features: Features, delta_h: Tensor | None = None) -> Tensor:
        assert isinstance(features, HookedFeatures)
        return features.run(lambda hidden: self.tap.shifted(hidden, delta_h))

    def on(self, network: Network) -> Self:
        twin = type(self)(network, self.name, self.form, self._call, self._grid)
        twin.tap = self.tap
        return twin

    def grid(self, sample_shape: tuple[int, int, int]) -> tuple[int, int] | None:
        return self._grid(sample_shape) if self._grid else None

    def middle(self) -> str:
        raise UserError(f"tap: a {type(self.network).__name__} has none by itself; name one of its submodules")

    def checked(self, tap: str) -> str:
        if not tap or tap not in dict(self.network.named_modules()):
            raise UserError(f"tap: got '{tap}'; a {type(self.network).__name__} has no submodule of that name")
        return tap


class HookedFeatures(Features):
    """A pass that waits for its shift; what is at the tap without one is looked up when it is asked for."""

    run: Callable[[Callable[[Tensor], Tensor]], Tensor]
    count: int

    def __init__(
        self, tap: Tap, run: Callable[[Callable[[Tensor], Tensor]], Tensor], count: int, guided: bool = False
    ) -> None:
        self.__dict__.update(tap=tap, run=run, count=count, guided=guided)

    @property
    def rows(self) -> int:
        return self.count  # without a pass

    @cached_property
    def hidden(self) -> Tensor:
        seen: list[Tensor] = []

        def look(hidden: Tensor) -> Tensor:
            seen.append(hidden)
            return hidden

        with torch.no_grad():
            self.run(look)
        return seen[0]

    def as_guided(self) -> "HookedFeatures":
        return HookedFeatures(self.tap, self.run, self.count, guided=True)


def _hooked(
    network: Network, name: str, at_tap: Callable[[Tensor], Tensor], call: Call, x_t: Tensor, t: Tensor, given: Given
) -> Tensor:
    """One pass, with what leaves the submodule replaced."""

    def change(_module: Any, _inputs: Any, output: Any) -> Any:
        return at_tap(output) if isinstance(output, Tensor) else (*output[:-1], at_tap(output[-1]))

    hook = network.get_submodule(name).register_forward_hook(change)
    try:
        return call(network, x_t, t, given)
    finally:
        hook.remove()


def _plainly(network: Network, x_t: Tensor, t: Tensor, given: Given) -> Tensor:
    """As diffusers' networks are called."""
    result = network(x_t, t, **given)
    output: Tensor = result if isinstance(result, Tensor) else result[0]
    return output
