"""Split the first half of a resnet by input channels, so that the parts are computed separately and added.

GroupNorm treats its groups separately and a convolution is linear in its input channels, so a split between two groups
is exact.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from core.model.alterations import plain_convolution, plain_norm, unaltered

Module = Any  # diffusers' modules, whose parts are not typed


@dataclass(frozen=True)
class ResnetPart:
    """The weights of a resnet up to its first convolution, and of its shortcut, for a range of its input channels.

    The results of all parts of a resnet are added. `time` and the biases are in the last one only. Where
    `shortcut` is None, the input itself takes the place of the shortcut.
    """

    groups: int
    eps: float
    norm: tuple[Tensor, Tensor]
    weight: Tensor
    bias: Tensor | None
    shortcut: Tensor | None
    shortcut_bias: Tensor | None
    time: nn.Linear | None


def resnet_parts(unet: Module, sharing: Collection[Module] = ()) -> dict[Module, tuple[ResnetPart, ...]]:
    """Return the parts of every unaltered resnet of a known kind: one, or two in the up blocks `sharing`.

    The second one takes the channels of the skip that are not normalised together with h.
    """
    parts: dict[Module, tuple[ResnetPart, ...]] = {
        resnet: (_resnet_part(resnet, 0, resnet.in_channels),) for resnet in unet.modules() if _is_plain(resnet)
    }
    ups = [(resnet, block in sharing) for block in unet.up_blocks for resnet in block.resnets]
    for (resnet, known), skip in zip(reversed(ups), _skip_channels(unet), strict=True):
        if known and resnet in parts and resnet.conv_shortcut is not None:
            border = _border(resnet.norm1, resnet.in_channels - skip)
            if border < resnet.in_channels:
                first = _resnet_part(resnet, 0, border)
                parts[resnet] = (first, _resnet_part(resnet, border, resnet.in_channels))
    return parts


def _border(norm: Module, channels: int) -> int:
    """Return the first channel of the first group that holds none of the first `channels` channels."""
    size: int = norm.num_channels // norm.num_groups
    return -(-channels // size) * size


def _skip_channels(unet: Module) -> list[int]:
    """Return the number of channels of every skip, in the order in which the encoder makes them."""
    widths = unet.config["block_out_channels"]
    channels = [widths[0]]
    for block, width in zip(unet.down_blocks, widths, strict=True):
        channels += [width] * (len(block.resnets) + len(block.downsamplers or ()))
    return channels


def _resnet_part(resnet: Module, start: int, stop: int) -> ResnetPart:
    """Return the part for input channels `start` to `stop`; the last one has the biases and the time layer."""
    norm, shortcut, last = resnet.norm1, resnet.conv_shortcut, stop == resnet.in_channels

    def part(weight: Tensor) -> Tensor:
        # A whole weight is not copied. A part of one is: convolutions need contiguous weights.
        return weight if (start, stop) == (0, weight.shape[1]) else weight[:, start:stop].contiguous()

    return ResnetPart(
        (stop - start) * norm.num_groups // norm.num_channels,
        norm.eps,
        (norm.weight[start:stop], norm.bias[start:stop]),
        part(resnet.conv1.weight),
        resnet.conv1.bias if last else None,
        None if shortcut is None else part(shortcut.weight),
        shortcut.bias if shortcut is not None and last else None,
        resnet.time_emb_proj if last else None,
    )


def weights_of(parts: Sequence[ResnetPart]) -> list[Tensor]:
    """Return the weights of the convolutions and shortcuts of some parts."""
    return [weight for part in parts for weight in (part.weight, part.shortcut) if weight is not None]


def _is_plain(module: Module) -> bool:
    """Return whether a module is a resnet without resampling, with an added time embedding and SiLU, and unaltered.

    Its time layer is called in any case, so that one may be altered.
    """
    return bool(
        unaltered(module, ResnetBlock2D)
        and module.upsample is None
        and module.downsample is None
        and module.time_embedding_norm == "default"
        and not module.skip_time_act
        and unaltered(module.nonlinearity, nn.SiLU)
        and unaltered(module.dropout, nn.Dropout)
        and all(plain_norm(norm) for norm in (module.norm1, module.norm2))
        and all(plain_convolution(conv, 3) for conv in (module.conv1, module.conv2))
        and (module.conv_shortcut is None or plain_convolution(module.conv_shortcut, 1))
    )
