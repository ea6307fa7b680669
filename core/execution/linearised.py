"""The decoder's Jacobian J at one point, as a linear map with cheap products J v and J^T u.

J^T u is one reverse pass. It is linear in u, and the transpose of this map is J v. So J v is reverse mode applied to
the first reverse pass, not to the network. The network runs once, whatever the number of products, and each product
with J or J^T costs the convolutions of one pass. Forward mode is not used: torch's runs the network again for every
block of vectors, also convolves with the zero tangents of the weights, and refuses memory layouts that GroupNorm meets
in real networks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.execution.lean import LeanUNet
from core.execution.streaming import Streamed
from core.model.cuts.unet import UNetCut
from core.model.denoiser import Denoiser


class DecoderJacobian:
    """The Jacobian J = d (mask * eps) / d delta_h at one x_t [1, *sample_shape], given by its products with vectors.

    Memory: what the decoder keeps to be differentiated twice, for one sample. Vectors are multiplied one at a time.
    """

    def __init__(self, denoiser: Denoiser, x_t: Tensor, t: float, mask: Tensor | None = None) -> None:
        network = linearised(denoiser)
        with torch.no_grad():
            features = network.encode(x_t, t)
        with torch.enable_grad(), _differentiable_twice():
            self._origin = torch.zeros(1, *network.h_shape, dtype=network.dtype, device=x_t.device).requires_grad_()
            eps = network.decode(features, self._origin)
            self._eps = eps if mask is None else eps * mask.to(eps)
            # The value of the cotangent does not matter: J^T u is linear in u, and only its graph is used.
            self._cotangent = torch.zeros_like(eps).requires_grad_()
            (self._back,) = torch.autograd.grad(self._eps, self._origin, self._cotangent, create_graph=True)

    def jvp(self, v: Tensor) -> Tensor:
        """Return J v in the denoiser's precision. v: [B, *h_shape] -> [B, *sample_shape]."""
        return _one_by_one(self._back, self._cotangent, v)

    def vjp(self, u: Tensor) -> Tensor:
        """Return J^T u in the denoiser's precision. u: [B, *sample_shape] -> [B, *h_shape]."""
        return _one_by_one(self._eps, self._origin, u)


def _one_by_one(output: Tensor, at: Tensor, vectors: Tensor) -> Tensor:
    """Return the product of each vector with d output / d at, from the left: [B, ...] -> [B, ...]."""
    rows = torch.split(vectors.to(output), 1)
    with _differentiable_twice():  # blocks that run again (core.execution.streaming) must run as they did before
        return torch.cat([torch.autograd.grad(output, at, row, retain_graph=True)[0] for row in rows])


class _NormSiLU(torch.autograd.Function):
    """The operation silu(w n + b), with n = (x - m) r the normalised groups of x [N, C, H, W].

    m: the means of the groups; r: 1 / their standard deviations. The derivative is S P in each group, with
    S = diag(silu'(w n + b) w r) and P v = v - mean(v) - n mean(n v). Both are symmetric, so the transpose is P S.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """Return silu(w n + b), and keep the slope of silu times w r, and n."""
        x = x.contiguous()
        n, c = x.shape[:2]
        inner, mean, scale = torch.native_group_norm(x, weight, bias, n, c, x[0, 0].numel(), groups, eps)
        scale = scale.to(x)[:, :, None]
        normed = (x.view(n, groups, -1) - mean.to(x)[:, :, None]) * scale
        gate = inner.sigmoid()
        slope = gate * (1 + inner * (1 - gate)) * weight[:, None, None]
        ctx.save_for_backward((slope.view_as(normed) * scale).view_as(x), normed)
        return inner.mul_(gate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient with respect to x."""
        back: Tensor = _Pull.apply(grad, *ctx.saved_tensors)  # type: ignore[no-untyped-call]  # torch's own stub
        return back, None, None, None, None


class _Pull(torch.autograd.Function):
    """The product P S g: the transposed derivative of `_NormSiLU`."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, slope: Tensor, normed: Tensor) -> Tensor:
        """Return P S grad."""
        ctx.save_for_backward(slope, normed)
        return _projected(grad * slope, normed)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient with respect to grad, which is S P v."""
        pushed: Tensor = _Push.apply(v, *ctx.saved_tensors)  # type: ignore[no-untyped-call]  # torch's own stub
        return pushed, None, None


class _Push(torch.autograd.Function):
    """The product S P v: the derivative of `_NormSiLU`."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, slope: Tensor, normed: Tensor) -> Tensor:
        """Return S P v."""
        ctx.save_for_backward(slope, normed)
        return _projected(v, normed) * slope

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient with respect to v, which is P S grad."""
        back: Tensor = _Pull.apply(grad, *ctx.saved_tensors)  # type: ignore[no-untyped-call]  # torch's own stub
        return back, None, None


def _projected(v: Tensor, normed: Tensor) -> Tensor:
    """Return P v = v - mean(v) - n mean(n v) in each group. v: [N, C, H, W], normed (n): [N, groups, group size]."""
    grouped = v.reshape(normed.shape)
    along = (grouped * normed).mean(dim=2, keepdim=True)
    return torch.addcmul(grouped - grouped.mean(dim=2, keepdim=True), normed, along, value=-1).view(v.shape)


def linearised(denoiser: Denoiser) -> Denoiser:
    """Return the denoiser with a UNet in operations that are cheap to differentiate twice.

    Returns other networks, and a UNet whose weights are streamed, unchanged.
    """
    if isinstance(denoiser.cut, LinearisedUNet | Streamed) or not isinstance(denoiser.cut, UNetCut):
        return denoiser
    return denoiser.with_cut(LinearisedUNet.of(denoiser.cut))


class LinearisedUNet(LeanUNet):
    """A `LeanUNet` of operations whose second reverse pass costs no more than the first.

    In the second pass torch's own convolution also computes its weight's gradient (twice the products), and its
    GroupNorm everything that second derivatives need. Only the part that is linear in the cotangent is needed here.
    """

    _norm_silu = staticmethod(_NormSiLU.apply)


@contextmanager
def _differentiable_twice() -> Iterator[None]:
    """Compute attention by its plain formula in the `with` block: the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
