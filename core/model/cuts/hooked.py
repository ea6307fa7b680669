"""Shift any network through a hook: for families without a cut of their own.

The whole network runs in every pass, because a hook cannot separate the part before the tap from the part after it. An
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
from core.model.cuts.base import Cut, Features, Network, NetworkInputs
from core.model.cuts.tap import Form, Tap

# (network, x_t [N, *sample_shape], t [N], its other inputs) -> its output [N, *sample_shape]
Call = Callable[[Network, Tensor, Tensor, NetworkInputs], Tensor]
Grid = Callable[[tuple[int, int, int]], tuple[int, int]]  # sample_shape -> rows and columns of the tokens
AtTap = Callable[[Tensor, int | None], Tensor]  # (values at the tap, number of the output) -> values to go on with


class HookedCut(Cut):
    """A network that is called by `call`. tap: the name of a submodule whose output is maps or tokens.

    grid: rows and columns of the tokens, if they lie on a grid. output: the number of the tap's tensor among several
    outputs of the submodule, from 0; by default the one that has as many places as the grid, or without a grid the
    last. clock: (a, b) where the network gets a t + b in place of t, such as (0.001, 0) for thousandths; a set found
    with this cut records it for use in a pipeline.
    """

    splits_at_tap = False

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

    def encode(self, x_t: Tensor, t: Tensor, inputs: NetworkInputs) -> Features:
        """Prepare a pass up to the tap; the network runs when it is decoded, or when h is read."""
        cast = {name: rows.to(self.dtype) if rows.is_floating_point() else rows for name, rows in inputs.items()}

        def run(at_tap: AtTap) -> Tensor:
            def change(_module: Any, _inputs: Any, output: Any) -> Any:
                parts = _parts(output)
                n = self._which(parts, x_t.shape[1:])
                if isinstance(output, Tensor):
                    return at_tap(output, None)
                return (*parts[:n], at_tap(parts[n], n), *parts[n + 1 :])

            output: Tensor = self._run(
                _hooked,
                self.network.get_submodule(self.name),
                change,
                self._call,
                self.network,
                x_t.to(self.dtype),
                t,
                cast,
            )
            return output

        return HookedFeatures(self.tap, run, len(x_t))

    def decode(self, features: Features, delta_h: Tensor | None = None) -> Tensor:
        """Run the whole network, with delta_h [N or 1, *h_shape] added at the tap."""
        assert isinstance(features, HookedFeatures)
        return features.run(lambda hidden, _: self.tap.shifted(hidden, delta_h))

    def read_tap(self, blueprint: Self, sample_shape: tuple[int, int, int], inputs: NetworkInputs, model: str) -> None:
        """Read the tap's shape as `Cut.read_tap` does; with weights where the meta device cannot run the network."""
        try:
            super().read_tap(blueprint, sample_shape, inputs, model)
        except ModelError:
            # A network may read values, of a mask for instance, which do not exist on the meta device.
            if self.device.type == "meta":
                raise
            self.probe_tap(sample_shape, inputs, model)

    def _which(self, parts: Sequence[Any], sample_shape: Sequence[int]) -> int:
        """Return the number of the tensor at the tap. Raises UserError where it is not clear."""
        wanted, numbers = self.tap.output, range(len(parts))
        if wanted is not None:
            candidates = [numbers[wanted]] if wanted in range(-len(parts), len(parts)) else []
        elif self._grid and len(parts) > 1 and not self.tap.channels:  # `read_tap` sets tap.output
            channels, height, width = sample_shape
            tokens = prod(self._grid((channels, height, width)))
            candidates = [n for n in numbers if _places(parts[n]) == tokens]
        else:
            candidates = [*numbers[-1:]]
        if len(candidates) == 1 and isinstance(parts[candidates[0]], Tensor):
            return candidates[0]
        shapes = ", ".join(str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in parts)
        what = "tap:" if wanted is None else f"output: got {wanted};"
        raise UserError(
            f"{what} '{self.name}' gives {shapes}; HookedCut's output has to say, from 0, which tensor is h"
        )

    def with_network(self, network: Network) -> Self:
        """Return the same cut through another network of the same architecture."""
        twin = type(self)(network, self.name, self.form, self._call, self._grid, clock=self.clock)
        twin.tap = self.tap
        return twin

    def grid(self, sample_shape: tuple[int, int, int]) -> tuple[int, int] | None:
        """Return the rows and columns of the tokens at the tap; None where no grid was given."""
        return self._grid(sample_shape) if self._grid else None

    def middle(self) -> str:
        """Raise UserError: such a network has no default tap."""
        raise UserError(f"tap: a {type(self.network).__name__} has none by itself; name one of its submodules")

    def validated_tap(self, tap: str) -> str:
        """Return `tap` if it is a submodule of the network, else raise UserError."""
        if tap not in [name for name, _ in self.network.named_modules() if name]:
            raise UserError(f"tap: got '{tap}'; a {type(self.network).__name__} has no submodule of that name")
        return tap


class HookedFeatures(Features):
    """A pass that runs once its shift is known. Reading the unshifted values at the tap takes a pass of its own."""

    run: Callable[[AtTap], Tensor]
    count: int

    def __init__(self, tap: Tap, run: Callable[[AtTap], Tensor], count: int, guided: bool = False) -> None:
        self.__dict__.update(tap=tap, run=run, count=count, guided=guided)

    @property
    def rows(self) -> int:
        """The number of rows, known without a pass."""
        return self.count

    @property
    def hidden(self) -> Tensor:
        """The unshifted values at the tap; the first read runs the network."""
        return self._seen[0]

    @property
    def output(self) -> int | None:
        """The number of the output at the tap; the first read runs the network."""
        return self._seen[1]

    @cached_property
    def _seen(self) -> tuple[Tensor, int | None]:
        seen: list[tuple[Tensor, int | None]] = []

        def record(hidden: Tensor, number: int | None) -> Tensor:
            seen.append((hidden, number))
            return hidden

        with torch.no_grad():
            self.run(record)
        if not seen:
            raise UserError(f"tap: '{self.tap.name}' is a submodule that the network does not run when it is called")
        return seen[0]

    def as_guided(self) -> "HookedFeatures":
        """Return the same pass, marked as rows [unconditional, conditional]."""
        return HookedFeatures(self.tap, self.run, self.count, guided=True)


def _hooked(module: Any, change: Callable[..., Any], call: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Return call(*inputs) while `change` replaces the output of the submodule.

    A network that torch.compile has compiled runs uncompiled, because compiled code leaves out new hooks.
    """
    hook = module.register_forward_hook(change)
    try:
        with torch.compiler.set_stance("force_eager"):
            return call(*inputs)
    finally:
        hook.remove()


def _parts(output: Any) -> tuple[Any, ...]:
    """Return the outputs of a submodule as a tuple."""
    if isinstance(output, Mapping):
        return tuple(output.values())
    return tuple(output) if isinstance(output, tuple | list) else (output,)


def _places(part: Any) -> int:
    """Return the number of places of maps [N, C, H, W] or tokens [N, L, C]; 0 for anything else."""
    if not isinstance(part, Tensor) or part.ndim not in (3, 4):
        return 0
    return prod(part.shape[2:]) if part.ndim == 4 else part.shape[1]


def _plainly(network: Network, x_t: Tensor, t: Tensor, inputs: NetworkInputs) -> Tensor:
    """Call a network as diffusers' networks are called."""
    result = network(x_t, t, **inputs)
    output: Tensor = result if isinstance(result, Tensor) else result[0]
    return output
