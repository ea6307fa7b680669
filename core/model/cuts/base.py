"""What every family of networks has in common once it is cut at its tap: `encode` up to it, `decode` from it on."""

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
Given = Mapping[str, Tensor]  # what a network is told beside x_t and t (core.model.condition), a row for each sample


@dataclass(frozen=True)
class Features:
    """What the first half hands to the second."""

    hidden: Tensor  # what is at the tap, as the network lays it out
    tap: Tap
    guided: bool = field(default=False, kw_only=True)  # whether rows are [unconditional, conditional]

    @property
    def rows(self) -> int:
        """How many rows there are: two for every sample under guidance."""
        return len(self.hidden)

    @property
    def output(self) -> int | None:
        """Which of several outputs of the tap's submodule `hidden` is, where a hook chose."""
        return None

    @property
    def h(self) -> Tensor:
        """h [N, *h_shape]; under guidance that of the conditional half."""
        return self.tap.h(self.conditional(self.hidden))

    def as_guided(self) -> "Features":
        """The same, of rows that are [unconditional, conditional]."""
        return replace(self, guided=True)

    def conditional(self, rows: Tensor) -> Tensor:
        """The rows of the samples as they are asked for: all but those that guidance leads away from."""
        return rows[len(rows) // 2 :] if self.guided else rows


class Cut(ABC):
    """A frozen network, cut.

    shares: whether what comes before the tap runs once, however often it is shifted. clock: (a, b) where the network is
    told a t + b and nothing but its cut says so. middle: the network's own tap.
    """

    shares: ClassVar[bool] = True
    clock: tuple[float, float] | None = None

    def __init__(self, network: Network, tap: str | None = None, form: Form | None = None) -> None:
        self.network = network
        self.name = self.middle() if tap is None else self.checked(tap)
        self.tap = Tap(self.name, form or "spatial", 0, (0, 0))  # until `look` has seen it
        self.form = form
        # How a block of the network is called: checkpointed, it keeps its inputs only.
        self._run: Callable[..., Any] = _call

    @abstractmethod
    def encode(self, x_t: Tensor, t: Tensor, given: Given) -> Features:
        """Everything up to the tap. x_t: [N, *sample_shape], t: [N] training timesteps."""

    @abstractmethod
    def decode(self, features: Features, delta_h: Tensor | None = None) -> Tensor:
        """Everything after it, with delta_h [N or 1, *h_shape] added: the network's output [N, *sample_shape]."""

    @abstractmethod
    def middle(self) -> str:
        """The name of the tap where none is asked for."""

    @abstractmethod
    def checked(self, tap: str) -> str:
        """The name of a tap that this network has. Raises UserError, with those it has."""

    def module(self) -> str:
        """The submodule of the network whose output is what the tap reads."""
        return self.name

    def grid(self, sample_shape: tuple[int, int, int]) -> tuple[int, int] | None:
        """Rows and columns of the tokens at the tap, where they are on a grid."""
        return None

    def maps(self, features: Features) -> Sequence[Tensor]:
        """What the first half knows of an image, as maps [N, C, H, W]."""
        return [features.conditional(features.tap.maps(features.hidden))]

    def look(self, blueprint: Self, sample_shape: tuple[int, int, int], given: Given, model: str) -> None:
        """Read the tap's shape off the architecture, and see that the network gives what it takes.

        blueprint: this cut on torch's meta device; given: what the network is told of one sample. Raises ModelError
        where it cannot be run on such samples or gives others, UserError for a form that the tap cannot have.
        """
        self.tap = blueprint.tried(sample_shape, {name: rows.to("meta") for name, rows in given.items()}, model)

    def tried(self, sample_shape: tuple[int, int, int], given: Given, model: str) -> Tap:
        """The tap, seen by running one sample that is shifted there. Raises as `look` does."""
        try:
            with torch.no_grad():
                shape = self._pass(sample_shape, given)
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

    def _pass(self, sample_shape: tuple[int, int, int], given: Given) -> torch.Size:
        """Find the tap; the shape of the output that is shifted there."""
        x, t = torch.zeros(1, *sample_shape, dtype=self.dtype, device=self.device), torch.zeros(1, device=self.device)
        features = self.encode(x, t, given)
        hidden, grid = features.hidden, self.grid(sample_shape)
        form: Form = self.form or ("spatial" if hidden.ndim == 4 or grid else "tokens")
        self.tap = Tap.seen(self.name, form, hidden, grid, features.output)
        return self.decode(features, torch.zeros(1, *self.tap.h_shape, device=self.device)).shape

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.network.parameters()).dtype
        return dtype

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.network.parameters()).device
        return device

    def tensors(self) -> list[Tensor]:
        """Every weight and buffer that it holds."""
        return [*self.network.parameters(), *self.network.buffers()]

    def running(self, run: Callable[..., Any]) -> Self:
        """The same cut, whose blocks are called by `run(function, *arguments)`."""
        twin = copy.copy(self)
        twin._run = run
        return twin

    def by_blocks(self) -> Self:
        """The same cut, keeping only what enters each of its blocks when it is differentiated."""
        return self.running(checkpointed)

    def on(self, network: Network) -> Self:
        """The same cut through another network of the same architecture."""
        twin = type(self)(network, self.name, self.form)
        twin.tap = self.tap
        return twin


def checkpointed(function: Callable[..., Any], *inputs: Any) -> Any:
    """function(*inputs), of which nothing but the inputs is kept, and which runs again on the way back."""
    # Tensors one by one: of those in a mapping a checkpoint keeps hold even where it is run again itself.
    leaves, packing = tree_flatten(inputs)
    # The network draws no random numbers, so there is no generator state to keep.
    return checkpoint(_unpacked, function, packing, *leaves, use_reentrant=False, preserve_rng_state=False)


def _unpacked(function: Callable[..., Any], packing: TreeSpec, *leaves: Any) -> Any:
    return function(*tree_unflatten(leaves, packing))


def _call(function: Callable[..., Any], *inputs: Any) -> Any:
    return function(*inputs)
