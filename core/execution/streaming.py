"""Stream weights: each block of a denoiser has its weights on the device only while it runs, forward or backward.

This is for networks that do not fit on a device together with the memory of a gradient. The weights are kept in one of
two ways:

    offloaded     in the CPU's memory; the weights of a block are copied to the device when it runs
    partitioned   1/W of the weights of each block in each of W processes, which gather them when the block runs; all W
                  have to run the same blocks in the same order, or they wait for each other for ever

A block runs inside torch's checkpoint, which also fetches its weights. Until the backward pass only the inputs of the
block are kept. Then the block is fetched and run again, and its weights are freed after its own backward pass. So every
gradient policy (core.chain.gradient) keeps steps block by block, and decides only how often they run again. Results
equal those of the resident network bit by bit: the same operations on the same numbers.

Weights outside of blocks stay on the device. On torch's meta device weights are fetched too, as storages without data,
so that core.chain.step_memory counts them.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from core.errors import UserError
from core.model.alterations import has_own_forward
from core.model.architecture import rebuilt
from core.model.codec import Codec
from core.model.cuts import Cut
from core.model.cuts.base import Network, checkpointed
from core.model.cuts.transformer import TransformerCut
from core.model.cuts.unet import UNetCut
from core.model.denoiser import Denoiser
from core.model.families import family_of

Bytes = Callable[[], Tensor]
# A function that returns this process's part [n] of a block -> one that returns all W processes' parts, in order [W n].
Gather = Callable[[Bytes], Bytes]

_ALIGNED = 256  # bytes: tensors in a buffer begin at multiples of it, for kernels that load many numbers at once
_PIECE = 1 << 26  # bytes pinned at a time; torch rounds each request up to a power of two
_BLOCKS = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks")


@dataclass(frozen=True)
class Storage:
    """How the weights of blocks are kept: on the CPU or the device; whole, or part `rank` of `world`."""

    cpu: bool
    rank: int = 0
    world: int = 1
    gather: Gather | None = None

    def on_meta(self) -> "Storage":
        """Return the same storage for the meta device, where gathering needs no other process."""
        return replace(self, gather=partial(_without_data, self.world) if self.world > 1 else None)


def offloaded(denoiser: Denoiser, device: torch.device | str) -> Denoiser:
    """Return the denoiser on `device`, with the weights of its blocks in the CPU's memory.

    Raises UserError for a network that is not run block by block, or has modules with a `forward` of their own.
    """
    return _streamed(denoiser, torch.device(device), Storage(cpu=True))


def partitioned(
    denoiser: Denoiser,
    device: torch.device | str,
    rank: int,
    world: int,
    gather: Gather | None = None,
    cpu: bool = False,
) -> Denoiser:
    """Return the denoiser on `device`, with part `rank` of `world` of the weights of each of its blocks.

    gather: an all-gather of equal parts, called once for each block when it is set up; the meta device needs none.
    cpu: keep the part in the CPU's memory, so that the processes of a machine hold one copy there together.
    Raises UserError for a network that is not run block by block, or has modules with a `forward` of their own.
    """
    return _streamed(denoiser, torch.device(device), Storage(cpu, rank, world, gather))


def _streamed(denoiser: Denoiser, device: torch.device, storage: Storage) -> Denoiser:
    """Return a new denoiser with streamed weights; the given one is unchanged. The meta device never holds data."""
    _refuse_own_forward(denoiser)
    device = torch.empty(0, device=device).device  # with its index
    cut = _kind(denoiser.cut)(denoiser.cut, device, storage.on_meta() if device.type == "meta" else storage)
    twin = denoiser.with_cut(cut)
    twin.network, twin.listeners = cut.network, []
    twin.condition = denoiser.condition.to(device)
    twin.codec = denoiser.codec and _moved(denoiser.codec, device)
    return twin


def _kind(cut: Cut) -> "type[StreamedUNet | StreamedTransformer]":
    """Return the streamed form of a cut. A lean cut becomes plain, since it reads weights of blocks before they run.

    Raises UserError for a network that is not run block by block.
    """
    if isinstance(cut, UNetCut):
        return StreamedUNet
    if isinstance(cut, TransformerCut):
        return StreamedTransformer
    raise UserError(f"a {type(cut.network).__name__} without a cut of its own is not run block by block")


def _refuse_own_forward(denoiser: Denoiser) -> None:
    """Raise UserError where a module has a `forward` of its own, which may hold on to weights that are not fetched."""
    for name, module in denoiser.network.named_modules():
        if has_own_forward(module):
            raise UserError(
                f"weights: {name} of model '{denoiser.name}' has a forward of its own, which may hold other weights "
                "than those that are fetched: such a network is not streamed"
            )


def _moved(codec: Codec, device: torch.device) -> Codec:
    if all(tensor.device == device for tensor in codec.tensors()):
        return codec
    return Codec(nn.Module.to(copy.deepcopy(codec.network), device=device), codec.sample_shape)


class Streamed(Cut):
    """The common part of streamed cuts: a network without the weights of its blocks, and a way to fetch them."""

    def __init__(self, cut: Cut, device: torch.device, storage: Storage) -> None:
        streamed = _streamed_tensors(cut.network)
        gone = {id(tensor) for part in streamed.values() for tensor in part.values()}
        network = rebuilt(cut.network, lambda tensor: tensor.to("meta" if id(tensor) in gone else device))
        super().__init__(network, cut.name, cut.form)
        self.tap, self._device, self._storage = cut.tap, device, storage
        blocks = {network.get_submodule(name): part for name, part in streamed.items()}
        lacking = {id(own[name]) for block, part in blocks.items() for own in [_tensors(block)] for name in part}
        self._resident = [tensor for tensor in _tensors(network).values() if id(tensor) not in lacking]
        self._run = self._fetched = _Fetched(blocks, device, storage)

    @property
    def device(self) -> torch.device:
        """Return the device on which the network runs."""
        return self._device

    def tensors(self) -> list[Tensor]:
        """Return every weight and buffer that stays on the device all the time."""
        return [*self._resident, *self._fetched.resident()]

    def by_blocks(self) -> Self:
        """Return this cut, which keeps only the inputs of its blocks in any case."""
        return self

    def with_network(self, network: Network) -> Self:
        """Return the same cut on the meta device, through another network of the same architecture."""
        whole = copy.copy(self)
        whole.network = network
        return type(self)(whole, torch.device("meta"), self._storage.on_meta())


class StreamedUNet(Streamed, UNetCut):
    """A UNet whose down, mid and up blocks are fetched."""


class StreamedTransformer(Streamed, TransformerCut):
    """A transformer whose blocks are fetched one by one."""


class _Fetched:
    """A callable that runs a block with its weights, fetched for the call, and holds the weights of all blocks."""

    def __init__(
        self, blocks: Mapping[nn.Module, Mapping[str, Tensor]], device: torch.device, storage: Storage
    ) -> None:
        self._blocks = {block: _Block(block, _Weights(part, device, storage)) for block, part in blocks.items()}

    def __call__(self, function: Callable[..., Any], block: nn.Module, *inputs: Any) -> Any:
        return checkpointed(self._once, function, block, *inputs)

    def _once(self, function: Callable[..., Any], block: nn.Module, *inputs: Any) -> Any:
        called = self._blocks[block]
        weights = {f"block.{name}": tensor for name, tensor in called.weights.fetch().items()}
        return functional_call(called, weights, (function, *inputs))

    def resident(self) -> list[Tensor]:
        """Return the tensors of the blocks that stay on the device."""
        return [tensor for block in self._blocks.values() for tensor in block.weights.resident()]


class _Block(nn.Module):
    """A module that calls a function with a block; `functional_call` replaces the weights of the block meanwhile."""

    def __init__(self, block: nn.Module, weights: "_Weights") -> None:
        super().__init__()
        self.block, self.weights = block, weights

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Return what the function makes of the block and the inputs."""
        return function(self.block, *inputs)


class BufferSlice(NamedTuple):
    """The place of a tensor in a buffer of bytes."""

    start: int
    end: int
    dtype: torch.dtype
    shape: torch.Size

    def read(self, buffer: Tensor) -> Tensor:
        """Return the tensor as a view of the buffer."""
        return buffer[self.start : self.end].view(self.dtype).view(self.shape)


class _Weights:
    """The weights of one block as bytes in one buffer, or this process's part of that buffer."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device, storage: Storage) -> None:
        self._places = dict(_places(tensors))
        self._device, self._storage = device, storage
        part = _part(self._packed(tensors), storage.rank, storage.world)
        self._size = len(part)
        self._pieces = list(_kept(part, device, storage.cpu))
        own = self._copied if storage.cpu else partial(self._pieces.__getitem__, 0)
        self._whole: Bytes = own if storage.gather is None else storage.gather(own)

    def _packed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the bytes of all tensors in one buffer, on the device of the tensors."""
        where = next((tensor.device for tensor in tensors.values()), self._device)
        buffer = torch.zeros(_end(self._places), dtype=torch.uint8, device=where)
        for name, tensor in tensors.items():
            self._places[name].read(buffer).copy_(tensor)
        return buffer

    def fetch(self) -> dict[str, Tensor]:
        """Return every tensor by its name, on the device; all are views of one buffer."""
        whole = self._whole()
        return {name: place.read(whole) for name, place in self._places.items()}

    def _copied(self) -> Tensor:
        buffer = torch.empty(self._size, dtype=torch.uint8, device=self._device)
        for there, piece in zip(torch.split(buffer, _PIECE), self._pieces, strict=True):
            there.copy_(piece, non_blocking=True)
        return buffer

    def resident(self) -> list[Tensor]:
        """Return the bytes that are on the device all the time."""
        return [] if self._storage.cpu else self._pieces


def _places(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, BufferSlice]]:
    start = 0
    for name, tensor in tensors.items():
        yield name, BufferSlice(start, start + tensor.nbytes, tensor.dtype, tensor.shape)
        start = _aligned(start + tensor.nbytes)


def _end(places: Mapping[str, BufferSlice]) -> int:
    return max((place.end for place in places.values()), default=0)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _part(buffer: Tensor, rank: int, world: int) -> Tensor:
    """Return part `rank` of `world` equal parts of `buffer`; the last is filled up with zeros."""
    size = _aligned(-(-len(buffer) // world)) if world > 1 else len(buffer)
    part = buffer[rank * size : (rank + 1) * size]
    return torch.cat([part, part.new_zeros(size - len(part))])


def _kept(part: Tensor, device: torch.device, cpu: bool) -> Iterator[Tensor]:
    """Yield the part where it is kept: one piece on the device, or pieces on the CPU, pinned for copies to a GPU."""
    if not cpu:
        yield part.to(device)
        return
    for piece in torch.split(part.to("meta" if device.type == "meta" else "cpu"), _PIECE):
        yield piece.pin_memory() if device.type == "cuda" else piece


def _without_data(world: int, part: Bytes) -> Bytes:
    """Return the gather of `world` parts on the meta device."""

    def whole() -> Tensor:
        own = part()
        return own.new_empty(world * len(own))

    return whole


def _streamed_tensors(network: Network) -> dict[str, dict[str, Tensor]]:
    """Return for each block, by name, the tensors that are fetched, by their names in the block."""
    kept = family_of(type(network).__name__).read_early
    streamed = {}
    for name in _block_names(network):
        tensors = _tensors(network.get_submodule(name))
        streamed[name] = {own: t for own, t in tensors.items() if not (kept and f"{name}.{own}".startswith(kept))}
    return streamed


def _block_names(network: Network) -> Iterator[str]:
    for name, module in network.named_children():
        if name in _BLOCKS:
            yield from [f"{name}.{n}" for n in range(len(module))] if isinstance(module, nn.ModuleList) else [name]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, including buffers that are not saved with the module."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
