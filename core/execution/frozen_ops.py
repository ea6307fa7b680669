"""Operations with frozen weights that keep less for the backward pass than torch's own.

Each is an autograd function that differentiates only its input. torch keeps the input of a convolution for the gradient
of its weight even where the weight is frozen (pytorch issue 133566). It also keeps both the input and the output of a
normalisation that SiLU follows.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Geometry(NamedTuple):
    """How a convolution moves over the image. size: (H, W) of the result of a transposed one, where a stride above 1
    allows several sizes.
    """

    stride: int = 1
    padding: int = 0
    transposed: bool = False
    size: torch.Size | None = None


class FrozenConv2d(torch.autograd.Function):
    """A convolution, or a transposed one, that keeps only the size of its input [N, C, H, W].

    Each of the two is the adjoint of the other, so the backward pass is one call of the other, and can be
    differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Return the convolution of `x`, transposed or not."""
        ctx.weight = weight
        ctx.adjoint = geometry._replace(transposed=not geometry.transposed, size=x.shape[2:])
        return convolution(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient with respect to `x`."""
        back: Tensor = FrozenConv2d.apply(  # type: ignore[no-untyped-call]  # torch's own stub
            grad, ctx.weight, None, ctx.adjoint
        )
        return back, None, None, None


class NormSiLU(torch.autograd.Function):
    """The operation silu(GroupNorm(x)), which keeps only x [N, C, H, W] and the statistics of its groups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """Return silu(GroupNorm(x))."""
        x = _dense(x, x)
        normed, mean, deviation = _group_norm(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, mean, deviation)
        ctx.norm = weight, bias, groups, eps
        return F.silu(normed, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient with respect to `x`; the normalisation is computed again."""
        x, mean, deviation = ctx.saved_tensors
        weight, bias, groups, eps = ctx.norm
        normed, _, _ = _group_norm(x, weight, bias, groups, eps)
        inner = torch.ops.aten.silu_backward(_dense(grad, x), normed)
        n, c = x.shape[:2]
        back, _, _ = torch.ops.aten.native_group_norm_backward(
            inner, x, mean, deviation, weight, n, c, x[0, 0].numel(), groups, (True, False, False)
        )
        return back, None, None, None, None


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return torch's own convolution of `x`, or its transposed convolution."""
    stride, padding, transposed, size = geometry
    if not transposed:
        return F.conv2d(x, weight, bias, stride, padding)
    least = [(length - 1) * stride - 2 * padding + weight.shape[2] for length in x.shape[2:]]
    missing = [wanted - length for wanted, length in zip(size or least, least, strict=True)]
    return F.conv_transpose2d(x, weight, bias, stride, padding, missing)


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    n, c = x.shape[:2]
    result: tuple[Tensor, Tensor, Tensor] = torch.native_group_norm(x, weight, bias, n, c, x[0, 0].numel(), groups, eps)
    return result


def _dense(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the tensor contiguous in the memory format that torch's normalisation kernels take.

    On a CPU this is the format of `like`, on any other device channels first. The stride between samples has to be
    regular even where there is one sample, because the kernels read it all the same.
    """
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    last = last and like.stride(0) == like[0].numel() and like.device.type == "cpu"
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def upsampling_weight(weight: Tensor) -> Tensor:
    """Return the weight [C_in, C_out, 4, 4] of a transposed convolution that doubles an image and convolves it at once.

    With stride 2 and padding 1 it equals doubling the image by nearest neighbour and then convolving it with `weight`
    [C_out, C_in, 3, 3], padding 1. It takes 4 products per output in place of 9.
    """
    spread = F.pad(weight.double(), (1, 1, 1, 1))  # each tap covers the two rows and columns of a doubled pixel
    taps = spread[..., :-1, :-1] + spread[..., 1:, :-1] + spread[..., :-1, 1:] + spread[..., 1:, 1:]
    return taps.flip(2, 3).transpose(0, 1).contiguous().to(weight.dtype)
