"""diffusers' transformers, cut behind one of their blocks: DiT, PixArt, Stable Diffusion 3 and Flux.

All are a row of blocks over image tokens [N, L, D], with their own layers before and after. The tap "blocks.N" is the
image tokens behind block N (from 0); Flux's two kinds of blocks are numbered in one sequence. Every family runs its own
modules in its own order, so that encoding and decoding without a shift gives the network's output to the last bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import UserError
from core.model.cuts.base import Cut, Features, Network, NetworkInputs

Module = Any


class Embedded(NamedTuple):
    """The inputs of the first block, and the values that all blocks and the layers after them get."""

    hidden: Tensor  # [N, L, D] image tokens
    context: Tensor | None  # [N, M, D] text tokens
    always: Mapping[str, Any]  # arguments of every block
    exit: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class BlockStack:
    """How the layers before and after the blocks of a kind of transformer are run.

    leave(network, hidden, exit) returns output tokens [N, L, P]. patch: the side of the square of x_t that a token
    stands for. packed: whether x_t is packed into tokens before the network, and channels come first in an output
    token.
    """

    enter: Callable[[Network, Tensor, Tensor, NetworkInputs], Embedded]
    leave: Callable[[Network, Tensor, tuple[Tensor, ...]], Tensor]
    patch: Callable[[Network], int] = lambda network: int(network.config["patch_size"])
    packed: bool = False


@dataclass(frozen=True)
class TransformerFeatures(Features):
    """The image tokens at the tap, and the other values that the rest of the network needs."""

    entered: Embedded
    context: Tensor | None
    sample_shape: torch.Size


class TransformerCut(Cut):
    """A transformer that is cut behind one of its blocks."""

    @property
    def blocks(self) -> list[Module]:
        """All blocks of the network, in order."""
        return _blocks(self.network)

    @property
    def depth(self) -> int:
        """The number of blocks before the tap."""
        return int(self.name.removeprefix("blocks.")) + 1

    def encode(self, x_t: Tensor, t: Tensor, inputs: NetworkInputs) -> TransformerFeatures:
        """Run the transformer up to and including the block of the tap."""
        dtype = self.dtype
        cast = {name: rows.to(dtype) if rows.is_floating_point() else rows for name, rows in inputs.items()}
        entered = self._family.enter(self.network, x_t.to(dtype), t, cast)
        hidden, context = self._through(self.blocks[: self.depth], entered.hidden, entered.context, entered)
        return TransformerFeatures(hidden, self.tap, entered, context, x_t.shape[1:])

    def decode(self, features: Features, delta_h: Tensor | None = None) -> Tensor:
        """Run the remaining blocks and the output layers, with delta_h added at the tap."""
        assert isinstance(features, TransformerFeatures)
        hidden, entered = self.tap.shifted(features.hidden, delta_h), features.entered
        hidden, _ = self._through(self.blocks[self.depth :], hidden, features.context, entered)
        tokens = self._family.leave(self.network, hidden, entered.exit)
        return self._unpatched(tokens, features.sample_shape)

    def _through(
        self, blocks: list[Module], hidden: Tensor, context: Tensor | None, entered: Embedded
    ) -> tuple[Tensor, Tensor | None]:
        for block in blocks:
            hidden, context = self._run(_through_one, block, hidden, context, entered.always)
        return hidden, context

    def _unpatched(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        """Return tokens [N, L, P] as an image [N, *shape], without a predicted variance, which comes after it."""
        side, (rows, columns) = self._family.patch(self.network), self._grid(shape)
        if self._family.packed:
            parts = tokens.reshape(len(tokens), rows, columns, -1, side, side).permute(0, 3, 1, 4, 2, 5)
        else:
            parts = tokens.reshape(len(tokens), rows, columns, side, side, -1).permute(0, 5, 1, 3, 2, 4)
        return parts.reshape(len(tokens), -1, rows * side, columns * side)[:, : shape[0]]

    def grid(self, sample_shape: tuple[int, int, int]) -> tuple[int, int]:
        """Return the rows and columns of the image tokens."""
        return self._grid(torch.Size(sample_shape))

    def _grid(self, shape: torch.Size) -> tuple[int, int]:
        side = self._family.patch(self.network)
        return shape[1] // side, shape[2] // side

    @property
    def packed(self) -> bool:
        """Whether squares of latents are packed into tokens before the network, as in Flux."""
        return self._family.packed

    @property
    def _family(self) -> BlockStack:
        return BLOCK_STACKS[type(self.network).__name__]

    def middle(self) -> str:
        """Return the name of the block in the middle."""
        return f"blocks.{len(self.blocks) // 2}"

    def validated_tap(self, tap: str) -> str:
        """Return `tap` if the network has this block, else raise UserError."""
        names = [f"blocks.{n}" for n in range(len(self.blocks))]
        if tap not in names:
            raise UserError(
                f"tap: got '{tap}'; a {type(self.network).__name__} of this size has blocks.0 to {names[-1]}"
            )
        return tap

    def module(self) -> str:
        """Return the name of the submodule whose output the tap reads."""
        number, first = self.depth - 1, len(self.network.transformer_blocks)
        if number < first:
            return f"transformer_blocks.{number}"
        return f"single_transformer_blocks.{number - first}"


def _blocks(network: Network) -> list[Module]:
    return [*network.transformer_blocks, *getattr(network, "single_transformer_blocks", ())]


def _through_one(
    block: Module, hidden: Tensor, context: Tensor | None, always: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Run one block and return image and text tokens; blocks that do not change the text return it as it was."""
    result = block(hidden_states=hidden, encoder_hidden_states=context, **always)
    return (result, context) if isinstance(result, Tensor) else (result[1], result[0])


def _enter_dit(network: Network, x: Tensor, t: Tensor, inputs: NetworkInputs) -> Embedded:
    always = {"timestep": t, "class_labels": inputs["class_labels"]}
    embedded = network.transformer_blocks[0].norm1.emb(t, inputs["class_labels"], hidden_dtype=x.dtype)
    return Embedded(network.pos_embed(x), None, always, (embedded,))


def _leave_dit(network: Network, hidden: Tensor, exit: tuple[Tensor, ...]) -> Tensor:
    shift, scale = network.proj_out_1(F.silu(exit[0])).chunk(2, dim=1)
    tokens: Tensor = network.proj_out_2(network.norm_out(hidden) * (1 + scale[:, None]) + shift[:, None])
    return tokens


def _enter_pixart(network: Network, x: Tensor, t: Tensor, inputs: NetworkInputs) -> Embedded:
    sizes = {name: inputs.get(name) for name in ("resolution", "aspect_ratio")}
    time, embedded = network.adaln_single(t, sizes, batch_size=len(x), hidden_dtype=x.dtype)
    text = inputs["encoder_hidden_states"]
    if network.caption_projection is not None:
        text = network.caption_projection(text)
    always = {"timestep": time}
    if "encoder_attention_mask" in inputs:
        always["encoder_attention_mask"] = ((1 - inputs["encoder_attention_mask"].to(x.dtype)) * -10000.0).unsqueeze(1)
    return Embedded(network.pos_embed(x), text, always, (embedded,))


def _leave_pixart(network: Network, hidden: Tensor, exit: tuple[Tensor, ...]) -> Tensor:
    shift, scale = (network.scale_shift_table[None] + exit[0][:, None]).chunk(2, dim=1)
    tokens: Tensor = network.proj_out(network.norm_out(hidden) * (1 + scale) + shift)
    return tokens


def _enter_sd3(network: Network, x: Tensor, t: Tensor, inputs: NetworkInputs) -> Embedded:
    time = network.time_text_embed(t, inputs["pooled_projections"])
    text = network.context_embedder(inputs["encoder_hidden_states"])
    return Embedded(network.pos_embed(x).contiguous(), text, {"temb": time}, (time,))


def _leave_adaptive(network: Network, hidden: Tensor, exit: tuple[Tensor, ...]) -> Tensor:
    """Return the output tokens of Stable Diffusion 3 or Flux."""
    tokens: Tensor = network.proj_out(network.norm_out(hidden, exit[0]))
    return tokens


def _enter_flux(network: Network, x: Tensor, t: Tensor, inputs: NetworkInputs) -> Embedded:
    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    packed = x.reshape(len(x), x.shape[1], rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
    pooled = inputs["pooled_projections"]
    # The network gets t / 1000 and multiplies by 1000. Its pipeline divides in the network's precision too.
    now = t.to(x.dtype) / 1000 * 1000
    if network.config["guidance_embeds"]:
        time = network.time_text_embed(now, inputs["guidance"].to(x.dtype) * 1000, pooled)
    else:
        time = network.time_text_embed(now, pooled)
    text = network.context_embedder(inputs["encoder_hidden_states"])
    where = network.pos_embed(torch.cat([torch.zeros(text.shape[1], 3).to(x), _places(rows, columns).to(x)]))
    hidden = network.x_embedder(packed.reshape(len(x), rows * columns, -1))
    return Embedded(hidden, text, {"temb": time, "image_rotary_emb": where}, (time,))


def _places(rows: int, columns: int) -> Tensor:
    """Return (0, row, column) of every image token: [L, 3]."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=2).reshape(-1, 3)


BLOCK_STACKS = {
    "DiTTransformer2DModel": BlockStack(_enter_dit, _leave_dit),
    "PixArtTransformer2DModel": BlockStack(_enter_pixart, _leave_pixart),
    "SD3Transformer2DModel": BlockStack(_enter_sd3, _leave_adaptive),
    "FluxTransformer2DModel": BlockStack(_enter_flux, _leave_adaptive, lambda network: 2, packed=True),
}
