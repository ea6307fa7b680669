"""Any network at all, shifted through a hook: for families without a cut of their own.

The network runs whole in every pass, for what comes before the tap cannot be kept apart from what comes after it: an
asymmetric step takes two passes, where a network with a cut takes one and a part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Any, Self

import torch
from torch import Tensor

from core.errors import ModelError, UserError
from core.model.cuts.base import Cut, Features, Given, Network
from core.model.cuts.tap import Form, Tap

# (network, x_t [N, *sample_shape], t [N], what else it is told) -> its output [N, *sample_shape]
Call = Callable[[Network, Tensor, Tensor, Given], Tensor]
Grid = Callable[[tuple[int, int, int]], tuple[int, int]]  # sample_shape -> rows and columns of the tokens
AtTap = Callable[[Tensor, int | None], Tensor]  # (what is at the tap, its number among several) -> what goes on


class HookedCut(Cut):
    """A network that is called by `call`. tap: the name of a submodule that gives maps or tokens; grid: where its
    tokens lie, if they do.

    output: which it is of several that the submodule gives, from 0; where nothing is said, the one whose places are as
    many as the grid's, or without a grid the last. clock: (a, b) where the network is told a t + b in place of t, as
    (0.001, 0) for thousandths: a set that is found here says so to those who use it in a pipeline.
    """

    shares = False

    def __init__(
        self,
        network: Network,
        tap: str | None = None,
        form: Form | None = None,
        call: Call | None = None,
        grid: Grid | None = None,
        output: int | None = None,
        clock: tuple[float, float] | None = None,
    ) -> None:
        if clock is not None and not clock[0]:
            raise UserError(f"clock: got {clock}; allowed: (a, b) of a t + b, with an a other than 0")
        self._call, self._grid, self.clock = call or _plainly, grid, clock
        super().__init__(network, tap, form)
        self.tap = replace(self.tap, output=output)

    def encode(self, x_t: Tensor, t: Tensor, given: Given) -> Features:
        told = {name: rows.to(self.dtype) if rows.is_floating_point() else rows for name, rows in given.items()}

        def run(at_tap: AtTap) -> Tensor:
            def change(_module: Any, _inputs: Any, output: Any) -> Any:
                parts = _parts(output)
                n = self._which(parts, x_t.shape[1:])
                if isinstance(output, Tensor):
                    return at_tap(output, None)
                return (*parts[:n], at_tap(parts[n], n), *parts[n + 1 :])

            output: Tensor = self._run(
                _hooked, self.network, self.name, change, self._call, x_t.to(self.dtype), t, told
            )
            return output

        return HookedFeatures(self.tap, run, len(x_t))

    def decode(self, features: Features, delta_h: Tensor | None = None) -> Tensor:
        assert isinstance(features, HookedFeatures)
        return features.run(lambda hidden, _: self.tap.shifted(hidden, delta_h))

    def look(self, blueprint: Self, sample_shape: tuple[int, int, int], given: Given, model: str) -> None:
        try:
            super().look(blueprint, sample_shape, given, model)
        except ModelError:
            # A network may read numbers on its way, of a mask for instance, which the meta device does not have.
            if self.device.type == "meta":
                raise
            self.tried(sample_shape, given, model)

    def _which(self, parts: Sequence[Any], sample_shape: Sequence[int]) -> int:
        """The number of the tensor that is at the tap. Raises UserError where it is not clear."""
        asked, numbers = self.tap.output, range(len(parts))
        if asked is not None:
            found = [numbers[asked]] if asked in range(-len(parts), len(parts)) else []
        elif self._grid and len(parts) > 1 and not self.tap.channels:  # from `look` on the tap knows
            channels, height, width = sample_shape
            tokens = prod(self._grid((channels, height, width)))
            found = [n for n in numbers if _places(parts[n]) == tokens]
        else:
            found = [*numbers[-1:]]
        if len(found) == 1 and isinstance(parts[found[0]], Tensor):
            return found[0]
        told = ", ".join(str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in parts)
        what = "tap:" if asked is None else f"output: got {asked};"
        raise UserError(f"{what} '{self.name}' gives {told}; HookedCut's output has to say, from 0, which tensor is h")

    def on(self, network: Network) -> Self:
        twin = type(self)(network, self.name, self.form, self._call, self._grid, clock=self.clock)
        twin.tap = self.tap
        return twin

    def grid(self, sample_shape: tuple[int, int, int]) -> tuple[int, int] | None:
        return self._grid(sample_shape) if self._grid else None

    def middle(self) -> str:
        raise UserError(f"tap: a {type(self.network).__name__} has none by itself; name one of its submodules")

    def checked(self, tap: str) -> str:
        if tap not in [name for name, _ in self.network.named_modules() if name]:
            raise UserError(f"tap: got '{tap}'; a {type(self.network).__name__} has no submodule of that name")
        return tap


class HookedFeatures(Features):
    """A pass that waits for its shift; what is at the tap without one is looked up when it is asked for."""

    run: Callable[[AtTap], Tensor]
    count: int

    def __init__(self, tap: Tap, run: Callable[[AtTap], Tensor], count: int, guided: bool = False) -> None:
        self.__dict__.update(tap=tap, run=run, count=count, guided=guided)

    @property
    def rows(self) -> int:
        return self.count  # without a pass

    @property
    def hidden(self) -> Tensor:
        return self._seen[0]

    @property
    def output(self) -> int | None:
        return self._seen[1]

    @cached_property
    def _seen(self) -> tuple[Tensor, int | None]:
        seen: list[tuple[Tensor, int | None]] = []

        def look(hidden: Tensor, number: int | None) -> Tensor:
            seen.append((hidden, number))
            return hidden

        with torch.no_grad():
            self.run(look)
        if not seen:
            raise UserError(f"tap: '{self.tap.name}' is a submodule that the network does not run when it is called")
        return seen[0]

    def as_guided(self) -> "HookedFeatures":
        return HookedFeatures(self.tap, self.run, self.count, guided=True)


def _hooked(
    network: Network, name: str, change: Callable[..., Any], call: Call, x_t: Tensor, t: Tensor, given: Given
) -> Tensor:
    """One pass, with what leaves the submodule replaced."""
    hook = network.get_submodule(name).register_forward_hook(change)
    try:
        return call(network, x_t, t, given)
    finally:
        hook.remove()


def _parts(output: Any) -> tuple[Any, ...]:
    """What a submodule gives, one by one."""
    if isinstance(output, Mapping):
        return tuple(output.values())
    return tuple(output) if isinstance(output, tuple | list) else (output,)


def _places(part: Any) -> int:
    """How many places maps [N, C, H, W] or tokens [N, L, C] have; 0 of what is neither."""
    if not isinstance(part, Tensor) or part.ndim not in (3, 4):
        return 0
    return prod(part.shape[2:]) if part.ndim == 4 else part.shape[1]


def _plainly(network: Network, x_t: Tensor, t: Tensor, given: Given) -> Tensor:
    """As diffusers' networks are called."""
    result = network(x_t, t, **given)
    output: Tensor = result if isinstance(result, Tensor) else result[0]
    return output
