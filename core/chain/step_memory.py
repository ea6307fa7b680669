"""Count the memory of one step of the chain by running it on tensors that have a shape but no data.

Nothing is estimated: the code of the step itself runs, forward and backward, on torch's meta device, and every storage
is followed from its creation to its end. The one exception is attention, which is replaced by a fused kernel. The
count covers what the step's tensors hold. It leaves out an allocator's rounding and a library's private workspace.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

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
    """The bytes that one differentiated step takes.

    graph: bytes held from the end of the forward pass until the backward pass.
    extra_peak: the most that is held beyond `graph` at any time during the two passes.
    rerun_peak: the most that is held in all where the step keeps x_t only and is run again in the backward pass.
    """

    graph: int
    extra_peak: int
    rerun_peak: int


class MemoryCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own stub
    """A dispatch mode that counts the bytes of the storages created while it is active.

    live: bytes now; peak: most bytes so far. The storages of the tensors in `known` do not count.
    """

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


class CachingMemoryCounter(MemoryCounter):  # type: ignore[no-untyped-call]  # torch's own stub
    """A memory counter that infers the shape of each operation's result on the meta device once and remembers it.

    torch spends most of a step's time on this inference, and a network repeats the same few operations many times. All
    counters of a process share what they remember, at most MOST_REMEMBERED results.
    """

    MOST_REMEMBERED = 50_000
    _results: ClassVar[dict[Any, Any]] = {}

    def _done(self, func: Any, args: Any, kwargs: Any) -> Any:
        key = func, _key_of(args), _key_of(kwargs)
        if key in self._results:
            return tree_map_only(_Shape, _Shape.empty, self._results[key])
        given = [leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = super()._done(func, args, kwargs)
        tensors = [leaf for leaf in tree_leaves(result) if leaf is not None]
        if tensors and all(isinstance(leaf, Tensor) and _is_new(leaf, given) for leaf in tensors):
            if len(self._results) >= self.MOST_REMEMBERED:
                self._results.clear()
            self._results[key] = tree_map_only(Tensor, _Shape.of, result)
        return result


def _is_new(tensor: Tensor, given: Sequence[torch.UntypedStorage]) -> bool:
    """Return whether `tensor` has no data and a storage of exactly its size, which is none of those given."""
    size = _Shape.of(tensor).empty().untyped_storage().nbytes() if tensor.is_meta else -1
    storage = tensor.untyped_storage()
    return storage.nbytes() == size and all(storage is not each for each in given)


@dataclass(frozen=True)
class _Shape:
    """The properties from which a tensor without data can be made again."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "_Shape":
        """Return the shape of a tensor."""
        return cls(tensor.shape, tensor.stride(), tensor.dtype)

    def empty(self) -> Tensor:
        """Return a tensor of this shape without data."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


def _key_of(value: Any) -> Any:
    """Return a hashable key of an operation's arguments, with all that the shapes of its results depend on."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(map(_key_of, value))
    if isinstance(value, dict):
        return tuple((name, _key_of(each)) for name, each in value.items())
    return type(value), value


@contextmanager
def counting_memory(known: Sequence[Tensor]) -> Iterator[MemoryCounter]:
    """Count the storages created on the meta device, with attention replaced by a fused kernel as CPUs and GPUs run it.

    On the meta device torch uses the plain formula of attention. It keeps a matrix of all tokens by all tokens, which
    no fused kernel keeps. The function is patched because a TorchFunctionMode would be off in what checkpoints rerun.
    """
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = partial(_attention, plain)
    try:
        with CachingMemoryCounter(known) as counter:
            yield counter
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
    """Return the cost of each of `steps` for a chain that starts at `x`."""
    blueprint = denoiser.blueprint()
    return chain_costs(blueprint, schedule, len(x), injection, [shifted[i] for i in steps], x.requires_grad)


def chain_costs(
    blueprint: Denoiser,
    schedule: Schedule,
    batch: int,
    injection: Injection,
    shifted: Sequence[bool],
    differentiable: bool = False,
) -> list[StepCost]:
    """Return the cost of each of successive steps, counted on a denoiser without weights.

    shifted: whether each step is; steps before the first shift keep nothing, unless x itself is `differentiable`.
    """
    step_costs = []
    for is_shifted in shifted:
        step_costs.append(_cost(blueprint, schedule, batch, injection, is_shifted, differentiable))
        differentiable = differentiable or is_shifted
    return step_costs


@lru_cache(maxsize=256)
def _cost(
    denoiser: Denoiser, schedule: Schedule, batch: int, injection: Injection, shifted: bool, differentiable: bool
) -> StepCost:
    """Return the cost of a step with these properties; all such steps of the chain cost the same."""
    if not (shifted or differentiable):
        return StepCost(0, 0, 0)
    dtype = denoiser.chain_dtype
    x = torch.empty(batch, *denoiser.sample_shape, dtype=dtype, device="meta", requires_grad=differentiable)
    delta_h = torch.empty(batch, *denoiser.h_shape, device="meta", requires_grad=True) if shifted else None
    step = partial(one_step, denoiser, schedule, len(schedule) - 1, delta_h=delta_h, injection=injection)
    known = [x, *denoiser.tensors(), *([] if delta_h is None else [delta_h])]
    graph, peak = _there_and_back(step, x, known)
    _, rerun_peak = _there_and_back(partial(checkpoint, step, use_reentrant=False, preserve_rng_state=False), x, known)
    return StepCost(graph, peak - graph, rerun_peak)


def _there_and_back(step: Callable[[Tensor], Tensor], x: Tensor, known: Sequence[Tensor]) -> tuple[int, int]:
    """Return (bytes held between a step's forward and backward pass, the most bytes held at any time)."""
    with torch.enable_grad(), counting_memory(known) as counter:
        x_prev = step(x)
        graph = counter.live - x_prev.nbytes
        x_prev.backward(torch.empty_like(x_prev))  # type: ignore[no-untyped-call]  # torch's own stub
    return graph, counter.peak
