"""Run a frozen UNet in fewer operations and with fewer saved bytes than diffusers' own modules.

The weights and the function are the same. The savings are exact:

    skips shared     An up block's first convolution is linear in the concatenation [h, skip], and GroupNorm's groups
                     rarely cross the border between the two. The contribution of the skip is computed once, with the
                     encoder, and not in every pass through the decoder.
    doubling merged  Doubling by nearest neighbour and then convolving is one transposed convolution, with 4 products
                     per output instead of 9.
    less saved       Convolutions keep no input, GroupNorm and SiLU one tensor together (core.execution.frozen_ops).

Results differ from the plain denoiser's by rounding, because sums are taken in another order. Modules of unknown kinds,
and those that somebody altered (core.model.alterations), are called as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from diffusers.models.resnet import Downsample2D, Upsample2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import (
    AttnDownBlock2D,
    AttnUpBlock2D,
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    UNetMidBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)
from torch import Tensor, nn

from core.execution import frozen_ops
from core.execution.frozen_ops import Geometry
from core.execution.split_resnet import Module, ResnetPart, resnet_parts, weights_of
from core.execution.streaming import Streamed
from core.model.alterations import plain_convolution, plain_norm, unaltered
from core.model.cuts import Features, Form, NetworkInputs
from core.model.cuts.unet import Context, UNetCut, UNetFeatures, down_block, middle_block, up_block
from core.model.denoiser import Denoiser

_DOWN = (DownBlock2D, AttnDownBlock2D, CrossAttnDownBlock2D)
_UP = (UpBlock2D, AttnUpBlock2D, CrossAttnUpBlock2D)
_MIDDLE = (UNetMidBlock2D, UNetMidBlock2DCrossAttn)


class SkipContribution(NamedTuple):
    """The contribution of one skip to its up-resnet, as far as it is independent of h."""

    head: Tensor | None  # the skip's channels that are normalised together with h; all where nothing is shared
    inner: Tensor | None = None  # added to the first convolution
    outer: Tensor | None = None  # added to the shortcut


@dataclass(frozen=True)
class SkipContributionFeatures(UNetFeatures):
    """The features of a UNet with the contribution of each skip to its up-resnet."""

    shared: tuple[SkipContribution, ...]  # one for each skip


def lean(denoiser: Denoiser) -> Denoiser:
    """Return the denoiser with the savings above, or unchanged where they do not apply.

    They apply to a UNet that is not lean yet and whose weights are not streamed. The network is read once, here: hooks,
    adapters or weights that are changed later need a lean denoiser made anew.
    """
    if isinstance(denoiser.cut, LeanUNet | Streamed) or not isinstance(denoiser.cut, UNetCut):
        return denoiser
    return denoiser.with_cut(LeanUNet.of(denoiser.cut))


class LeanUNet(UNetCut):
    """A `UNetCut` with the savings above: the same interface, the same weights, the same function.

    share_skips: False runs every up block in full in every pass.
    """

    _convolve: Callable[..., Tensor] = staticmethod(frozen_ops.FrozenConv2d.apply)
    _norm_silu: Callable[..., Tensor] = staticmethod(frozen_ops.NormSiLU.apply)

    def __init__(
        self, network: Module, tap: str | None = None, form: Form | None = None, share_skips: bool = True
    ) -> None:
        super().__init__(network, tap, form)
        self.share_skips = share_skips
        # The modules that are run part by part; all others are called.
        self._apart = {module for module in network.modules() if _run_in_parts(module)}
        self._resnet_parts = resnet_parts(network, self._apart if share_skips else ())
        self._doubling = {
            module: frozen_ops.upsampling_weight(module.conv.weight) for module in network.modules() if _doubles(module)
        }

    @classmethod
    def of(cls, plain: UNetCut, share_skips: bool = True) -> Self:
        """Return the lean form of a plain cut, through the same network."""
        twin = cls(plain.network, plain.name, plain.form, share_skips)
        twin.tap, twin._run = plain.tap, plain._run
        return twin

    def with_network(self, network: Module) -> Self:
        """Return the same cut through another network of the same architecture."""
        twin = type(self)(network, self.name, self.form, self.share_skips)
        twin.tap = self.tap
        return twin

    def by_blocks(self) -> Self:
        """Return the same cut, keeping only the inputs of each block when it is differentiated."""
        # Shared contributions would be kept for every block. This mode is for scarce memory, so nothing is shared.
        twin = super().by_blocks()
        twin.share_skips, twin._resnet_parts = False, resnet_parts(self.network)
        return twin

    def tensors(self) -> list[Tensor]:
        """Return every weight and buffer that the cut holds, its rearranged copies included."""
        copies = [weight for parts in self._resnet_parts.values() if len(parts) > 1 for weight in weights_of(parts)]
        return [*super().tensors(), *copies, *self._doubling.values()]

    def encode(self, x_t: Tensor, t: Tensor, inputs: NetworkInputs) -> SkipContributionFeatures:
        """Run everything up to the tap, and the contributions of the skips. x_t: [N, *sample_shape], t: [N]."""
        unet = self.network
        sample, time, context = self.embed(x_t, t, inputs)
        sample = self._conv(unet.conv_in, sample) if plain_convolution(unet.conv_in) else unet.conv_in(sample)
        skips = [sample]
        for block in unet.down_blocks:
            if block not in self._apart:
                sample, outputs = self._run(down_block, block, sample, time, context)
                skips.extend(outputs)
                continue
            for resnet, attention in _layers(block):
                sample = self._run(self._resnet, resnet, attention, sample, time, context)
                skips.append(sample)
            timed = getattr(block, "downsample_type", None) == "resnet"
            for downsampler in block.downsamplers or ():
                sample = self._run(self._downsample, downsampler, sample, time if timed else None)
                skips.append(sample)
        hidden = self._run(self._middle, sample, time, context)
        return SkipContributionFeatures(
            hidden, self.tap, tuple(skips), time, context, tuple(self._skip_contributions(skips, time))
        )

    def decode(self, features: Features, delta_h: Tensor | None = None) -> Tensor:
        """Run everything after the tap, with delta_h [N or 1, *h_shape] added: the output [N, *sample_shape]."""
        assert isinstance(features, UNetFeatures)
        time, context = features.time, features.context
        shared = (
            features.shared
            if isinstance(features, SkipContributionFeatures)
            else self._skip_contributions(features.skips, time)
        )
        sample = self.tap.shifted(features.hidden, delta_h)
        remaining = list(zip(features.skips, shared, strict=True))
        uneven = self.uneven(features.skips[0].shape)
        for block in self.network.up_blocks:
            own, remaining = remaining[-len(block.resnets) :], remaining[: -len(block.resnets)]
            size = remaining[-1][0].shape[2:] if uneven and remaining else None
            if block not in self._apart:
                run = partial(up_block, size=size)
                sample = self._run(run, block, sample, time, context, *(skip for skip, _ in own))
                continue
            for (resnet, attention), (_, contribution) in zip(_layers(block), reversed(own), strict=True):
                sample = self._run(self._resnet, resnet, attention, sample, time, context, *contribution)
            timed = getattr(block, "upsample_type", None) == "resnet"
            for upsampler in block.upsamplers or ():
                sample = self._run(partial(self._upsample, size=size), upsampler, sample, time if timed else None)
        return self.finish(sample)

    def finish(self, sample: Tensor) -> Tensor:
        """Return the network's output from the result of the last up block."""
        unet = self.network
        plain = (
            plain_norm(unet.conv_norm_out) and unaltered(unet.conv_act, nn.SiLU) and plain_convolution(unet.conv_out)
        )
        if not plain:
            return super().finish(sample)
        return self._conv(unet.conv_out, self._norm(unet.conv_norm_out, sample))

    def _middle(self, sample: Tensor, time: Tensor, context: Context) -> Tensor:
        block = self.network.mid_block
        if block not in self._apart:
            return middle_block(block, sample, time, context)
        sample = self._resnet(block.resnets[0], None, sample, time, context)
        for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
            if attention is not None:
                sample = _attend(attention, sample, time, context)
            sample = self._resnet(resnet, None, sample, time, context)
        return sample

    def _skip_contributions(self, skips: Sequence[Tensor], time: Tensor) -> list[SkipContribution]:
        """Return the contribution of each skip to its up-resnet, in the order of the skips."""
        resnets = [resnet for block in self.network.up_blocks for resnet in block.resnets]
        return [
            self._run(self._skip_contribution, resnet, skip, time)
            for resnet, skip in zip(reversed(resnets), skips, strict=True)
        ]

    def _skip_contribution(self, resnet: Module, skip: Tensor, time: Tensor) -> SkipContribution:
        parts = self._resnet_parts.get(resnet, ())
        if len(parts) < 2:
            return SkipContribution(skip)
        border = skip.shape[1] - parts[1].weight.shape[1]
        inner, outer = self._enter(parts[1], skip[:, border:], time)
        return SkipContribution(skip[:, :border] if border else None, inner, outer)

    def _resnet(
        self,
        resnet: Module,
        attention: Module | None,
        sample: Tensor,
        time: Tensor,
        context: Context,
        *contribution: Tensor | None,
    ) -> Tensor:
        """Return `sample` after a resnet and the attention behind it. contribution: of a skip, as SkipContribution."""
        head, shared_inner, shared_outer = contribution or SkipContribution(None)
        if head is not None:
            sample = torch.cat([sample, head], dim=1)
        parts = self._resnet_parts.get(resnet)
        if parts is None:
            sample = resnet(sample, time)
        else:
            inner, outer = self._enter(parts[0], sample, time)
            # In place is safe: no operation keeps the result of a convolution.
            if shared_inner is not None and shared_outer is not None:
                inner, outer = inner.add_(shared_inner), outer.add_(shared_outer)
            sample = self._conv(resnet.conv2, self._norm(resnet.norm2, inner)).add_(outer)
            if resnet.output_scale_factor != 1:
                sample = sample / resnet.output_scale_factor
        return sample if attention is None else _attend(attention, sample, None, context)

    def _enter(self, part: ResnetPart, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the channels of `x` add to (a resnet's first convolution, its output)."""
        inner = self._norm_silu(x, *part.norm, part.groups, part.eps)
        inner = self._convolve(inner, part.weight, part.bias, Geometry(padding=1))
        if part.time is not None:
            inner = inner.add_(part.time(F.silu(time))[:, :, None, None])
        if part.shortcut is None:
            return inner, x
        return inner, self._convolve(x, part.shortcut, part.shortcut_bias, Geometry())

    def _downsample(self, module: Module, sample: Tensor, time: Tensor | None) -> Tensor:
        if module not in self._apart:
            return _tensor(module(sample) if time is None else module(sample, temb=time))
        if module.padding == 0:
            sample = F.pad(sample, (0, 1, 0, 1))
        return self._conv(module.conv, sample)

    def _upsample(self, module: Module, sample: Tensor, time: Tensor | None, size: torch.Size | None) -> Tensor:
        if module in self._doubling and size in (None, torch.Size(2 * side for side in sample.shape[2:])):
            return self._convolve(sample, self._doubling[module], module.conv.bias, Geometry(2, 1, transposed=True))
        if time is not None:
            return _tensor(module(sample, temb=time))
        return _tensor(module(sample) if size is None else module(sample, size))

    def _conv(self, module: Module, x: Tensor) -> Tensor:
        return self._convolve(x, module.weight, module.bias, Geometry(module.stride[0], module.padding[0]))

    def _norm(self, module: Module, x: Tensor) -> Tensor:
        return self._norm_silu(x, module.weight, module.bias, module.num_groups, module.eps)


def _layers(block: Module) -> list[tuple[Module, Module | None]]:
    """Return the resnets of a block, each with the attention after it or None."""
    return list(zip_longest(block.resnets, getattr(block, "attentions", ())))


def _attend(attention: Module, sample: Tensor, time: Tensor | None, context: Context) -> Tensor:
    """Return `sample` after one attention over the places of a map; that of text models reads `context` too."""
    if type(attention) is Transformer2DModel or hasattr(attention, "transformer_blocks"):
        return _tensor(attention(sample, **context, return_dict=False)[0])
    return _tensor(attention(sample) if time is None else attention(sample, temb=time))


def _run_in_parts(module: Module) -> bool:
    """Return whether a module is a block, or a downsampling convolution, that is run by its parts and not called."""
    if type(module) is Downsample2D:
        return unaltered(module, Downsample2D) and module.norm is None and plain_convolution(module.conv)
    return unaltered(module, *_DOWN, *_UP, *_MIDDLE)


def _doubles(module: Module) -> bool:
    """Return whether a module doubles the image by nearest neighbour and convolves it with 3x3 weights."""
    return bool(
        unaltered(module, Upsample2D)
        and module.interpolate
        and module.norm is None
        and module.name == "conv"
        and plain_convolution(module.conv, 3)
    )


def _tensor(value: Any) -> Tensor:
    tensor: Tensor = value
    return tensor
