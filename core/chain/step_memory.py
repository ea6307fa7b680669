"""What one step of the chain takes in memory, counted by running it on tensors that have a shape but no data.

Nothing is estimated: the very code of the step runs, forward and back, on torch's meta device, and every storage is
followed from its creation to its end. Attention alone is told which kernel to be, a fused one. What is counted is what
the step's tensors hold; an allocator's rounding and a library's private workspace are not.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from core.chain.schedule import Schedule
from core.chain.step import Injection, one_step
from core.model.denoiser import Denoiser


@dataclass(frozen=True)
class StepCost:
    """Bytes of one step that is differentiated.

    graph: held from its forward pass until its backward pass has gone by; work: held beyond that, at most, at any time
    during the two; again: held at most, all in all, where it keeps x_t only and is run again on the way back.
    """

    graph: int
    work: int
    again: int


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own stub
    """Bytes of the storages that are created under it: `live` now, `peak` so far. Those in `known` do not count."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own stub
        self.live = self.peak = 0
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._done(func, args, kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _done(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.live -= size


class Remembering(Ledger):  # type: ignore[no-untyped-call]  # torch's own stub
    """A ledger that works out once what an operation gives on tensors of some shapes without data.

    torch takes most of a step's time for it, and a network is the same few operations many times over.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__(known)
        self._results: dict[Any, Any] = {}

    def _done(self, func: Any, args: Any, kwargs: Any) -> Any:
        asked = func, _asked(args), _asked(kwargs)
        if asked in self._results:
            return tree_map_only(_Shape, _Shape.empty, self._results[asked])
        result = super()._done(func, args, kwargs)
        tensors = [leaf for leaf in tree_leaves(result) if leaf is not None]
        if tensors and all(isinstance(leaf, Tensor) and self._is_new(leaf) for leaf in tensors):
            self._results[asked] = tree_map_only(Tensor, _Shape.of, result)
        return result

    def _is_new(self, tensor: Tensor) -> bool:
        """Whether it has no data, and a storage of its own, of just its size."""
        size = _Shape.of(tensor).empty().untyped_storage().nbytes() if tensor.is_meta else -1
        storage = tensor.untyped_storage()
        return storage.nbytes() == size and storage not in self._seen


@dataclass(frozen=True)
class _Shape:
    """All that there is to a tensor without data."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "_Shape":
        return cls(tensor.shape, tensor.stride(), tensor.dtype)

    def empty(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


def _asked(value: Any) -> Any:
    """The arguments of an operation as far as the shapes of what it gives depend on them; can be a key."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(map(_asked, value))
    if isinstance(value, dict):
        return tuple((name, _asked(each)) for name, each in value.items())
    return type(value), value


@contextmanager
def followed(known: Sequence[Tensor]) -> Iterator[Ledger]:
    """Count what is done on the meta device, attention as CPUs and GPUs run it.

    There torch takes the plain formula, whose matrix of all tokens by all no fused kernel keeps. A TorchFunctionMode
    would say it more politely, but is off in what runs again on the way back.
    """
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = partial(_attention, plain)
    try:
        with Remembering(known) as ledger:
            yield ledger
    finally:
        F.scaled_dot_product_attention = plain


def _attention(
    plain: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    if query.device.type != "meta":
        return plain(query, key, value, attn_mask, **options)
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    fused: Tensor = attend(query, key, value, attn_mask=attn_mask)[0]
    return fused


def costs(
    denoiser: Denoiser, schedule: Schedule, x: Tensor, injection: Injection, shifted: Sequence[bool], steps: range
) -> list[StepCost]:
    """The cost of each of `steps` for a chain that starts at x."""
    blueprint = denoiser.blueprint()
    return chain_costs(blueprint, schedule, len(x), injection, shifted, steps, x.requires_grad)


def chain_costs(
    blueprint: Denoiser,
    schedule: Schedule,
    batch: int,
    injection: Injection,
    shifted: Sequence[bool],
    steps: range,
    differentiable: bool = False,
) -> list[StepCost]:
    """The cost of each of `steps`, on a denoiser without weights. Before the first shift there is nothing to keep,
    unless x itself is `differentiable`.
    """
    found = []
    for i in steps:
        found.append(_cost(blueprint, schedule, batch, injection, shifted[i], differentiable))
        differentiable = differentiable or shifted[i]
    return found


@lru_cache(maxsize=256)
def _cost(
    denoiser: Denoiser, schedule: Schedule, batch: int, injection: Injection, shifted: bool, differentiable: bool
) -> StepCost:
    """The cost of a step of this kind; all steps of a kind cost the same."""
    if not (shifted or differentiable):
        return StepCost(0, 0, 0)
    dtype = torch.promote_types(denoiser.dtype, torch.float32)
    x = torch.empty(batch, *denoiser.sample_shape, dtype=dtype, device="meta", requires_grad=differentiable)
    delta_h = torch.empty(batch, *denoiser.h_shape, device="meta", requires_grad=True) if shifted else None
    step = partial(one_step, denoiser, schedule, len(schedule) - 1, delta_h=delta_h, injection=injection)
    known = [x, *denoiser.tensors(), *([] if delta_h is None else [delta_h])]
    graph, peak = _there_and_back(step, x, known)
    _, again = _there_and_back(partial(checkpoint, step, use_reentrant=False, preserve_rng_state=False), x, known)
    return StepCost(graph, peak - graph, again)


def _there_and_back(step: Callable[[Tensor], Tensor], x: Tensor, known: Sequence[Tensor]) -> tuple[int, int]:
    """Bytes held between a step's forward and backward pass, and at the most."""
    with torch.enable_grad(), followed(known) as ledger:
        x_prev = step(x)
        graph = ledger.live - x_prev.nbytes
        x_prev.backward(torch.empty_like(x_prev))  # type: ignore[no-untyped-call]  # torch's own stub
    return graph, ledger.peak
