"""A denoiser whose weights are on the device for as long as they are used: block by block, there and on the way back.

For networks that a device does not hold beside what a gradient takes. Two ways to keep the weights of the blocks:

    offloaded     in the CPU's memory; a block's are copied to the device when it runs
    partitioned   1/W of every block's in each of W processes, which put them together when it runs; all W have to run
                  the same blocks in the same order, or they wait for each other for ever

A block runs inside torch's checkpoint, and its weights are fetched in there. Until the way back nothing is kept but
what enters the block; then it is fetched and run again, and what was fetched goes with the block's own backward pass.
So every policy keeps steps block by block (core.chain.gradient), and says how often they run again. Results are those
of the resident network to the last bit: the same operations on the same numbers.

What belongs to no block stays on the device. On torch's meta device weights are fetched too, as storages without data,
so that core.chain.step_memory counts them where they are.
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
from core.model.architecture import rebuilt
from core.model.codec import Codec
from core.model.cuts import Cut
from core.model.cuts.base import Network, checkpointed
from core.model.cuts.transformer import TransformerCut
from core.model.cuts.unet import UNetCut
from core.model.denoiser import Denoiser

Bytes = Callable[[], Tensor]
# How this process comes by its part [n] of a block -> how it comes by those of all W processes, in order [W n].
Gather = Callable[[Bytes], Bytes]

_ALIGNED = 256  # bytes: where tensors in a buffer begin, for kernels that load many numbers at once
_PIECE = 1 << 26  # bytes pinned at a time; torch rounds each request up to a power of two
_BLOCKS = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks")
_READ_EARLY = {"DiTTransformer2DModel": "transformer_blocks.0.norm1.emb."}  # weights in a block, read before it runs


@dataclass(frozen=True)
class Way:
    """How the weights of blocks are kept: on the CPU or the device; whole, or the part number `rank` of `world`."""

    cpu: bool
    rank: int = 0
    world: int = 1
    gather: Gather | None = None

    def on_meta(self) -> "Way":
        """The same where there is no data, and nobody to ask for it."""
        return replace(self, gather=partial(_without_data, self.world) if self.world > 1 else None)


def offloaded(denoiser: Denoiser, device: torch.device | str) -> Denoiser:
    """The denoiser at work on `device`, the weights of its blocks in the CPU's memory.

    Raises UserError for a network that is not run block by block.
    """
    return _streamed(denoiser, torch.device(device), Way(cpu=True))


def partitioned(
    denoiser: Denoiser,
    device: torch.device | str,
    rank: int,
    world: int,
    gather: Gather | None = None,
    cpu: bool = False,
) -> Denoiser:
    """The denoiser at work on `device`, with the part number `rank` of `world` of the weights of each of its blocks.

    gather: an all-gather of equal parts, told once of each block; the meta device needs none. cpu: the part is in the
    CPU's memory, so that the processes of a machine hold one copy there between them. Raises UserError for a network
    that is not run block by block.
    """
    return _streamed(denoiser, torch.device(device), Way(cpu, rank, world, gather))


def _streamed(denoiser: Denoiser, device: torch.device, way: Way) -> Denoiser:
    """A denoiser of its own; the one that is given is left as it is. A meta device holds no data, whatever the way."""
    device = torch.empty(0, device=device).device  # with its number
    cut = _kind(denoiser.cut)(denoiser.cut, device, way.on_meta() if device.type == "meta" else way)
    twin = denoiser.with_cut(cut)
    twin.network, twin.listeners = cut.network, []
    twin.condition = denoiser.condition.to(device)
    twin.codec = denoiser.codec and _moved(denoiser.codec, device)
    return twin


def _kind(cut: Cut) -> "type[StreamedUNet | StreamedTransformer]":
    """The streamed form of a cut. A lean one becomes plain again: it reads weights of blocks before they run."""
    if isinstance(cut, UNetCut):
        return StreamedUNet
    if isinstance(cut, TransformerCut):
        return StreamedTransformer
    raise UserError(f"a {type(cut.network).__name__} without a cut of its own is not run block by block")


def _moved(codec: Codec, device: torch.device) -> Codec:
    if all(tensor.device == device for tensor in codec.tensors()):
        return codec
    return Codec(nn.Module.to(copy.deepcopy(codec.network), device=device), codec.sample_shape)


class Streamed(Cut):
    """What streamed cuts have in common: a network that lacks its blocks' weights, and a way to fetch them."""

    def __init__(self, cut: Cut, device: torch.device, way: Way) -> None:
        away = _away(cut.network)
        gone = {id(tensor) for part in away.values() for tensor in part.values()}
        network = rebuilt(cut.network, lambda tensor: tensor.to("meta" if id(tensor) in gone else device))
        super().__init__(network, cut.name, cut.form)
        self.tap, self._device, self._way = cut.tap, device, way
        blocks = {network.get_submodule(name): part for name, part in away.items()}
        lacking = {id(own[name]) for block, part in blocks.items() for own in [_tensors(block)] for name in part}
        self._resident = [tensor for tensor in _tensors(network).values() if id(tensor) not in lacking]
        self._run = self._fetched = _Fetched(blocks, device, way)

    @property
    def device(self) -> torch.device:
        return self._device

    def tensors(self) -> list[Tensor]:
        """Every weight and buffer that is on the device all the time."""
        return [*self._resident, *self._fetched.resident()]

    def by_blocks(self) -> Self:
        return self

    def on(self, network: Network) -> Self:
        whole = copy.copy(self)
        whole.network = network
        return type(self)(whole, torch.device("meta"), self._way.on_meta())


class StreamedUNet(Streamed, UNetCut):
    """A UNet whose down, mid and up blocks are fetched."""


class StreamedTransformer(Streamed, TransformerCut):
    """A transformer whose blocks are fetched one by one."""


class _Fetched:
    """Calls a block with its weights, which it keeps meanwhile."""

    def __init__(self, blocks: Mapping[nn.Module, Mapping[str, Tensor]], device: torch.device, way: Way) -> None:
        self._blocks = {block: _Block(block, _Weights(part, device, way)) for block, part in blocks.items()}

    def __call__(self, function: Callable[..., Any], block: nn.Module, *inputs: Any) -> Any:
        return checkpointed(self._once, function, block, *inputs)

    def _once(self, function: Callable[..., Any], block: nn.Module, *inputs: Any) -> Any:
        called = self._blocks[block]
        weights = {f"block.{name}": tensor for name, tensor in called.weights.fetch().items()}
        return functional_call(called, weights, (function, *inputs))

    def resident(self) -> list[Tensor]:
        return [tensor for block in self._blocks.values() for tensor in block.weights.resident()]


class _Block(nn.Module):
    """A block as the function calls it that is called with it, under other weights."""

    def __init__(self, block: nn.Module, weights: "_Weights") -> None:
        super().__init__()
        self.block, self.weights = block, weights

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(self.block, *inputs)


class _Place(NamedTuple):
    """Where a tensor is in a buffer of bytes."""

    start: int
    end: int
    dtype: torch.dtype
    shape: torch.Size

    def read(self, buffer: Tensor) -> Tensor:
        return buffer[self.start : self.end].view(self.dtype).view(self.shape)


class _Weights:
    """The weights of a block as bytes in one buffer, or this process's part of it."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device, way: Way) -> None:
        self._places = dict(_places(tensors))
        self._device, self._way = device, way
        part = _part(self._packed(tensors), way.rank, way.world)
        self._size = len(part)
        self._pieces = list(_kept(part, device, way.cpu))
        own = self._copied if way.cpu else partial(self._pieces.__getitem__, 0)
        self._whole: Bytes = own if way.gather is None else way.gather(own)

    def _packed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """All bytes, on the device that they are on."""
        where = next((tensor.device for tensor in tensors.values()), self._device)
        buffer = torch.zeros(_end(self._places), dtype=torch.uint8, device=where)
        for name, tensor in tensors.items():
            self._places[name].read(buffer).copy_(tensor)
        return buffer

    def fetch(self) -> dict[str, Tensor]:
        """Every tensor by its name, on the device, all of them views of one buffer."""
        whole = self._whole()
        return {name: place.read(whole) for name, place in self._places.items()}

    def _copied(self) -> Tensor:
        buffer = torch.empty(self._size, dtype=torch.uint8, device=self._device)
        for there, piece in zip(torch.split(buffer, _PIECE), self._pieces, strict=True):
            there.copy_(piece, non_blocking=True)
        return buffer

    def resident(self) -> list[Tensor]:
        """What of it is on the device all the time."""
        return [] if self._way.cpu else self._pieces


def _places(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, _Place]]:
    start = 0
    for name, tensor in tensors.items():
        yield name, _Place(start, start + tensor.nbytes, tensor.dtype, tensor.shape)
        start = _aligned(start + tensor.nbytes)


def _end(places: Mapping[str, _Place]) -> int:
    return max((place.end for place in places.values()), default=0)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _part(buffer: Tensor, rank: int, world: int) -> Tensor:
    """The part number `rank` of `world` equal ones, the last filled up with zeros."""
    size = _aligned(-(-len(buffer) // world)) if world > 1 else len(buffer)
    found = buffer[rank * size : (rank + 1) * size]
    return torch.cat([found, found.new_zeros(size - len(found))])


def _kept(part: Tensor, device: torch.device, cpu: bool) -> Iterator[Tensor]:
    """The part where it stays: in one piece on the device, or in pieces on the CPU, pinned for copies to a GPU."""
    if not cpu:
        yield part.to(device)
        return
    for piece in torch.split(part.to("meta" if device.type == "meta" else "cpu"), _PIECE):
        yield piece.pin_memory() if device.type == "cuda" else piece


def _without_data(world: int, part: Bytes) -> Bytes:
    """A gather for the meta device."""

    def whole() -> Tensor:
        own = part()
        return own.new_empty(world * len(own))

    return whole


def _away(network: Network) -> dict[str, dict[str, Tensor]]:
    """The name of each block -> what of it is fetched, by its name in the block."""
    kept = _READ_EARLY.get(type(network).__name__)
    found = {}
    for name in _block_names(network):
        tensors = _tensors(network.get_submodule(name))
        found[name] = {own: t for own, t in tensors.items() if not (kept and f"{name}.{own}".startswith(kept))}
    return found


def _block_names(network: Network) -> Iterator[str]:
    for name, module in network.named_children():
        if name in _BLOCKS:
            yield from [f"{name}.{n}" for n in range(len(module))] if isinstance(module, nn.ModuleList) else [name]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, whether they are saved with it or not."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
