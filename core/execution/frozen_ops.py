"""Operations with frozen weights that keep less for the way back than torch's own.

Each is an autograd function of its input alone. torch keeps the input of a convolution for the gradient of its weight
even where the weight is frozen (pytorch issue 133566), and both the input and the output of a normalisation that
SiLU follows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class FrozenConv2d(torch.autograd.Function):
    """Convolution, or its transpose, that keeps nothing of its input [N, C, H, W] but the size.

    The one is the other's adjoint, so that the way back is a plain call of it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, transposed: bool
    ) -> Tensor:
        ctx.weight, ctx.geometry = weight, (stride, padding, not transposed, x.shape[2:])
        return convolution(x, weight, bias, stride, padding, transposed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        return convolution(grad, ctx.weight, None, *ctx.geometry), None, None, None, None, None


class NormSiLU(torch.autograd.Function):
    """silu(GroupNorm(x)), which keeps x [N, C, H, W] and the statistics of its groups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        x = _dense(x, x)
        normed, mean, deviation = _group_norm(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, mean, deviation)
        ctx.norm = weight, bias, groups, eps
        return F.silu(normed, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, mean, deviation = ctx.saved_tensors
        weight, bias, groups, eps = ctx.norm
        normed, _, _ = _group_norm(x, weight, bias, groups, eps)
        inner = torch.ops.aten.silu_backward(_dense(grad, x), normed)
        n, c = x.shape[:2]
        back, _, _ = torch.ops.aten.native_group_norm_backward(
            inner, x, mean, deviation, weight, n, c, x[0, 0].numel(), groups, (True, False, False)
        )
        return back, None, None, None, None


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
    size: torch.Size | None = None,
) -> Tensor:
    """torch's own; `size` is that of a transposed convolution's result, where strides leave it open."""
    if not transposed:
        return F.conv2d(x, weight, bias, stride, padding)
    least = [(length - 1) * stride - 2 * padding + weight.shape[2] for length in x.shape[2:]]
    missing = [wanted - length for wanted, length in zip(size or least, least, strict=True)]
    return F.conv_transpose2d(x, weight, bias, stride, padding, missing)


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    n, c = x.shape[:2]
    found: tuple[Tensor, Tensor, Tensor] = torch.native_group_norm(x, weight, bias, n, c, x[0, 0].numel(), groups, eps)
    return found


def _dense(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor without gaps, in the order of memory that torch's normalisation kernels take: a CPU's that of `like`,
    any other device's channels first.

    Of a single sample the stride between samples says nothing, and the kernels look at it all the same.
    """
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    last = last and like.stride(0) == like[0].numel() and like.device.type == "cpu"
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def upsampling_weight(weight: Tensor) -> Tensor:
    """The 4x4 transposed convolution [C_in, C_out, 4, 4] of stride 2, padding 1, that equals doubling an image by
    nearest neighbour and convolving it with `weight` [C_out, C_in, 3, 3], padding 1: 4 products an output, not 9.
    """
    spread = F.pad(weight.double(), (1, 1, 1, 1))  # each tap reaches the two rows and columns that are one pixel
    taps = spread[..., :-1, :-1] + spread[..., 1:, :-1] + spread[..., :-1, 1:] + spread[..., 1:, 1:]
    return taps.flip(2, 3).transpose(0, 1).contiguous().to(weight.dtype)
