"""The base of all cut networks: `encode` runs up to the tap, `decode` from the tap on."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from core.errors import ModelError, UserError, first_line
from core.model.cuts.tap import Form, Tap

Network = Any  # diffusers' networks, whose parts are not typed
NetworkInputs = Mapping[str, Tensor]  # inputs beside x_t and t (core.model.condition), a row for each sample


@dataclass(frozen=True)
class Features:
    """The values that `encode` hands to `decode`."""

    hidden: Tensor  # the values at the tap, in the network's own layout
    tap: Tap
    guided: bool = field(default=False, kw_only=True)  # whether rows are [unconditional, conditional]

    @property
    def rows(self) -> int:
        """The number of rows: two for every sample under guidance."""
        return len(self.hidden)

    @property
    def output(self) -> int | None:
        """The number of the output that `hidden` is, where a hook chose one of several; else None."""
        return None

    @property
    def h(self) -> Tensor:
        """h [N, *h_shape]; under guidance that of the conditional half."""
        return self.tap.h(self.conditional(self.hidden))

    def as_guided(self) -> "Features":
        """Return the same features, marked as rows [unconditional, conditional]."""
        return replace(self, guided=True)

    def conditional(self, rows: Tensor) -> Tensor:
        """Return the conditional half of `rows` under guidance, else all of them."""
        return rows[len(rows) // 2 :] if self.guided else rows


class Cut(ABC):
    """A frozen network that is cut at its tap.

    splits_at_tap: whether the part before the tap runs once for several shifts. clock: (a, b) where the network gets
    a t + b in place of t, and only its cut knows that. `middle` names the tap that is used by default.
    """

    splits_at_tap: ClassVar[bool] = True
    clock: tuple[float, float] | None = None

    def __init__(self, network: Network, tap: str | None = None, form: Form | None = None) -> None:
        refuse_compiled(network)
        self.network = network
        self.name = self.middle() if tap is None else self.validated_tap(tap)
        self.tap = Tap(self.name, form or "spatial", 0, (0, 0))  # until `read_tap` has read its shape
        self.form = form
        # How a block of the network is called; `checkpointed` keeps only the block's inputs.
        self._run: Callable[..., Any] = _call

    @abstractmethod
    def encode(self, x_t: Tensor, t: Tensor, inputs: NetworkInputs) -> Features:
        """Run the network up to the tap. x_t: [N, *sample_shape]; t: [N] training timesteps."""

    @abstractmethod
    def decode(self, features: Features, delta_h: Tensor | None = None) -> Tensor:
        """Run the rest, with delta_h [N or 1, *h_shape] added, and return the network's output [N, *sample_shape]."""

    @abstractmethod
    def middle(self) -> str:
        """Return the name of the default tap."""

    @abstractmethod
    def validated_tap(self, tap: str) -> str:
        """Return the name of a tap that this network has. Raises UserError, with the taps it has, for any other."""

    def module(self) -> str:
        """Return the name of the submodule whose output the tap reads."""
        return self.name

    def grid(self, sample_shape: tuple[int, int, int]) -> tuple[int, int] | None:
        """Return the rows and columns of the tokens at the tap; None where they are on no grid."""
        return None

    def maps(self, features: Features) -> Sequence[Tensor]:
        """Return features of an image from before the tap, as maps [N, C, H, W]."""
        return [features.conditional(features.tap.maps(features.hidden))]

    def read_tap(self, blueprint: Self, sample_shape: tuple[int, int, int], inputs: NetworkInputs, model: str) -> None:
        """Read the tap's shape off the architecture, and check that the network's output has the shape of its input.

        blueprint: this cut on torch's meta device; inputs: the network's inputs for one sample. Raises ModelError where
        the network cannot be run on such samples or its output has another shape, UserError for a form that the tap
        cannot have.
        """
        self.tap = blueprint.probe_tap(sample_shape, {name: rows.to("meta") for name, rows in inputs.items()}, model)

    def probe_tap(self, sample_shape: tuple[int, int, int], inputs: NetworkInputs, model: str) -> Tap:
        """Return the tap, found by running one sample that is shifted there. Raises as `read_tap` does."""
        try:
            with torch.no_grad():
                shape = self._pass(sample_shape, inputs)
        except UserError:
            raise
        except Exception as error:
            raise ModelError(
                f"model '{model}' cannot be run on samples of {list(sample_shape)}: {first_line(error)}"
            ) from error
        if shape != (1, *sample_shape):
            raise ModelError(
                f"model '{model}' takes {list(sample_shape)} and gives {list(shape[1:])}; it has to give what it takes"
            )
        return self.tap

    def _pass(self, sample_shape: tuple[int, int, int], inputs: NetworkInputs) -> torch.Size:
        """Set the tap by running one sample, and return the shape of the shifted output."""
        x, t = torch.zeros(1, *sample_shape, dtype=self.dtype, device=self.device), torch.zeros(1, device=self.device)
        features = self.encode(x, t, inputs)
        hidden, grid = features.hidden, self.grid(sample_shape)
        form: Form = self.form or ("spatial" if hidden.ndim == 4 or grid else "tokens")
        self.tap = Tap.from_hidden(self.name, form, hidden, grid, features.output)
        return self.decode(features, torch.zeros(1, *self.tap.h_shape, device=self.device)).shape

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network's weights."""
        dtype: torch.dtype = next(self.network.parameters()).dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """The device of the network's weights."""
        device: torch.device = next(self.network.parameters()).device
        return device

    def tensors(self) -> list[Tensor]:
        """Return every weight and buffer of the network."""
        return [*self.network.parameters(), *self.network.buffers()]

    def with_runner(self, run: Callable[..., Any]) -> Self:
        """Return the same cut with its blocks called by `run(function, *arguments)`."""
        twin = copy.copy(self)
        twin._run = run
        return twin

    def by_blocks(self) -> Self:
        """Return the same cut, keeping only the inputs of each block when it is differentiated."""
        return self.with_runner(checkpointed)

    def with_network(self, network: Network) -> Self:
        """Return the same cut through another network of the same architecture."""
        twin = type(self)(network, self.name, self.form)
        twin.tap = self.tap
        return twin


def refuse_compiled(network: Network) -> None:
    """Raise ModelError for what torch.compile returns: a cut runs the parts of a network itself."""
    if hasattr(network, "_orig_mod"):
        raise ModelError(
            "the network is compiled by torch.compile, and a cut runs it as it was written: give network._orig_mod"
        )


def checkpointed(function: Callable[..., Any], *inputs: Any) -> Any:
    """Return function(*inputs), keeping only the inputs and running the function again on the way back."""
    # Tensors are passed one by one: a checkpoint would keep those in a mapping even where it is run again itself.
    leaves, packing = tree_flatten(inputs)
    # The network draws no random numbers, so there is no generator state to keep.
    return checkpoint(_unpacked, function, packing, *leaves, use_reentrant=False, preserve_rng_state=False)


def _unpacked(function: Callable[..., Any], packing: TreeSpec, *leaves: Any) -> Any:
    return function(*tree_unflatten(leaves, packing))


def _call(function: Callable[..., Any], *inputs: Any) -> Any:
    return function(*inputs)
