"""The Inception network of the FID. It must reproduce the original network exactly, or values cannot be compared.

The original is the TensorFlow graph of 2015-12-05 (Szegedy et al., arXiv 1512.00567). It differs from the paper and
from torchvision's network: averages leave the padding out, the last block has a maximum where the others average,
images are resized as in TensorFlow 1, and 8-bit levels are read as (level - 128) / 128. Layers and weights have the
names of pytorch-fid, `pt_inception-2015-12-05-6726825d.pth`. Checked against torch-fidelity 0.4.0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.metrics.networks.pixels import levels, rgb
from core.metrics.networks.weights import read_weights
from core.predictors.vision import Extractor

SIZE = 299  # pixels, height and width
FEATURES = 2048

_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "average": partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False),
    "maximum": partial(F.max_pool2d, kernel_size=3, stride=1, padding=1),
    "halve": partial(F.max_pool2d, kernel_size=3, stride=2),
}


def load_inception(where: str, device: torch.device | str = "cpu") -> Extractor:
    """Load the FID's Inception network: 2048 features of the 8-bit levels of an image of any size.

    where: a safetensors file with pytorch-fid's or torch-fidelity's state dict. Raises ModelError for anything else.
    """
    weights = read_weights(where, "Inception network")
    with torch.device("meta"):
        empty = Inception()
    net = weights.fill(empty, "the FID's Inception of 2015-12-05").to(device)

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        features: Tensor = net(levels(rgb(images, device)))
        return features.cpu()

    return Extractor(f"inception-2015-12-05 {weights.digest}", embed)


def resize_as_tensorflow1(x: Tensor, size: int) -> Tensor:
    """Resize bilinearly as TensorFlow 1 does: [..., H, W] -> [..., size, size].

    Pixel i of the result is read at position i * H / size of the image, without the offset of half a pixel for pixel
    centres; positions beyond the last pixel take its value.
    Source: TensorFlow 1, resize_bilinear with align_corners=False.
    """
    return _resize_rows(_resize_rows(x.mT, size).mT, size)


def _resize_rows(x: Tensor, size: int) -> Tensor:
    """Resize the rows: [..., H, W] -> [..., size, W]."""
    height = x.shape[-2]
    place = torch.arange(size, dtype=x.dtype, device=x.device) * torch.tensor(height / size, dtype=torch.float32)
    low = place.long()
    upper, lower = x[..., low, :], x[..., (low + 1).clamp(max=height - 1), :]
    return upper + (lower - upper) * (place - low)[:, None]


class _Layer(NamedTuple):
    name: str
    channels: int
    height: int = 1
    width: int = 1


@dataclass(frozen=True)
class _Branch:
    """A pooling, then `layers` in sequence, then `ends` in parallel; each part may be absent."""

    layers: tuple[_Layer, ...] = ()
    ends: tuple[_Layer, ...] = ()
    pool: str = ""


def _block_a(pooled: int) -> tuple[_Branch, ...]:
    return (
        _Branch((_Layer("branch1x1", 64),)),
        _Branch((_Layer("branch5x5_1", 48), _Layer("branch5x5_2", 64, 5, 5))),
        _Branch(
            (_Layer("branch3x3dbl_1", 64), _Layer("branch3x3dbl_2", 96, 3, 3), _Layer("branch3x3dbl_3", 96, 3, 3)),
        ),
        _Branch((_Layer("branch_pool", pooled),), pool="average"),
    )


def _block_c(inner: int) -> tuple[_Branch, ...]:
    return (
        _Branch((_Layer("branch1x1", 192),)),
        _Branch(
            (_Layer("branch7x7_1", inner), _Layer("branch7x7_2", inner, 1, 7), _Layer("branch7x7_3", 192, 7, 1)),
        ),
        _Branch(
            (
                _Layer("branch7x7dbl_1", inner),
                _Layer("branch7x7dbl_2", inner, 7, 1),
                _Layer("branch7x7dbl_3", inner, 1, 7),
                _Layer("branch7x7dbl_4", inner, 7, 1),
                _Layer("branch7x7dbl_5", 192, 1, 7),
            ),
        ),
        _Branch((_Layer("branch_pool", 192),), pool="average"),
    )


def _block_e(pool: str) -> tuple[_Branch, ...]:
    return (
        _Branch((_Layer("branch1x1", 320),)),
        _Branch(
            (_Layer("branch3x3_1", 384),),
            ends=(_Layer("branch3x3_2a", 384, 1, 3), _Layer("branch3x3_2b", 384, 3, 1)),
        ),
        _Branch(
            (_Layer("branch3x3dbl_1", 448), _Layer("branch3x3dbl_2", 384, 3, 3)),
            ends=(_Layer("branch3x3dbl_3a", 384, 1, 3), _Layer("branch3x3dbl_3b", 384, 3, 1)),
        ),
        _Branch((_Layer("branch_pool", 192),), pool=pool),
    )


_BLOCK_B = (
    _Branch((_Layer("branch3x3", 384, 3, 3),)),
    _Branch((_Layer("branch3x3dbl_1", 64), _Layer("branch3x3dbl_2", 96, 3, 3), _Layer("branch3x3dbl_3", 96, 3, 3))),
    _Branch(pool="halve"),
)
_BLOCK_D = (
    _Branch((_Layer("branch3x3_1", 192), _Layer("branch3x3_2", 320, 3, 3))),
    _Branch(
        (
            _Layer("branch7x7x3_1", 192),
            _Layer("branch7x7x3_2", 192, 1, 7),
            _Layer("branch7x7x3_3", 192, 7, 1),
            _Layer("branch7x7x3_4", 192, 3, 3),
        ),
    ),
    _Branch(pool="halve"),
)
_BLOCKS = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _BLOCK_B,
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _BLOCK_D,
    "Mixed_7b": _block_e("average"),
    "Mixed_7c": _block_e("maximum"),
}


class Inception(nn.Module):
    """The Inception network on levels 0 to 255: [N, 3, H, W] -> [N, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, _Layer("", 32, 3, 3), stride=2, padded=False)
        self.Conv2d_2a_3x3 = _Convolution(32, _Layer("", 32, 3, 3), padded=False)
        self.Conv2d_2b_3x3 = _Convolution(32, _Layer("", 64, 3, 3))
        self.Conv2d_3b_1x1 = _Convolution(64, _Layer("", 80))
        self.Conv2d_4a_3x3 = _Convolution(80, _Layer("", 192, 3, 3), padded=False)
        channels = 192
        for name, branches in _BLOCKS.items():
            block = _Mixed(channels, branches)
            self.add_module(name, block)
            channels = block.channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [N, 2048] of levels 0 to 255, [N, 3, H, W]."""
        x = (resize_as_tensorflow1(x, SIZE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_POOLS["halve"](x)))
        x = _POOLS["halve"](x)
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


class _Convolution(nn.Module):
    """Convolution, normalisation, ReLU; padded so that stride 1 keeps the size, unless `padded` is False."""

    def __init__(self, inside: int, layer: _Layer, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        kernel = layer.height, layer.width
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(inside, layer.channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(layer.channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Parallel branches; where one pools by halves, the last layers of the others have stride 2 and no padding."""

    def __init__(self, inside: int, branches: tuple[_Branch, ...]) -> None:
        super().__init__()
        self.branches, self.channels = branches, 0
        halves = any(branch.pool == "halve" for branch in branches)
        for branch in branches:
            channels = inside
            for number, layer in enumerate(branch.layers, start=1):
                last = halves and number == len(branch.layers)
                self.add_module(layer.name, _Convolution(channels, layer, stride=1 + last, padded=not last))
                channels = layer.channels
            for layer in branch.ends:
                self.add_module(layer.name, _Convolution(channels, layer))
            self.channels += sum(layer.channels for layer in branch.ends) or channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(x, branch) for branch in self.branches], dim=1)

    def _branch(self, x: Tensor, branch: _Branch) -> Tensor:
        if branch.pool:
            x = _POOLS[branch.pool](x)
        for layer in branch.layers:
            x = self.get_submodule(layer.name)(x)
        ends = [self.get_submodule(layer.name)(x) for layer in branch.ends]
        return torch.cat(ends, dim=1) if ends else x
