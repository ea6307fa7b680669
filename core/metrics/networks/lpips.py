"""LPIPS, a perceptual distance of two images (Zhang et al., arXiv 1801.03924), version 0.1.

The backbone is the convolutions of AlexNet or VGG-16. Layers and weights have the names of the package lpips, whose
state dict has both the backbone and the linear layers. Checked against lpips 0.1.4.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.errors import ModelError, UserError
from core.files import in_python
from core.metrics.networks.pixels import rgb
from core.metrics.networks.weights import StateDict, read_weights

_MEAN, _DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet's pixels, scaled to [-1, 1]
_TINY = 1e-10
_POOL = 0  # marks a pooling, where a convolution has its number of channels


@dataclass(frozen=True)
class _Backbone:
    """Convolutions with ReLUs, and poolings, numbered as in torchvision; each of `slices` ends at a compared layer.

    sizes: kernel, stride and padding of each convolution; smallest: the side in pixels of the smallest image that
    leaves one pixel at the end.
    """

    slices: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, int, int], ...]
    pool: int
    smallest: int


_BACKBONES = {
    "alex": _Backbone(
        slices=((64,), (_POOL, 192), (_POOL, 384), (256,), (256,)),
        sizes=((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)),
        pool=3,
        smallest=31,
    ),
    "vgg": _Backbone(
        slices=((64, 64), (_POOL, 128, 128), *((_POOL, width, width, width) for width in (256, 512, 512))),
        sizes=((3, 1, 1),) * 13,
        pool=2,
        smallest=16,
    ),
}


@dataclass(frozen=True)
class Lpips:
    """The LPIPS distance: called with two batches of images [N, 1 or 3, H, W] in [-1, 1], it returns [N] on the CPU."""

    name: str  # for reports: the backbone, and the first digits of the SHA-256 of the weights
    smallest: int  # side of the smallest image, in pixels
    net: nn.Module
    device: torch.device | str

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances [N]; 0 for equal images. Raises UserError for images of two shapes, or too small."""
        if a.shape != b.shape:
            raise UserError(f"LPIPS compares images of one shape; got {list(a.shape)} and {list(b.shape)}")
        if min(a.shape[-2:]) < self.smallest:
            height, width = a.shape[-2:]
            raise UserError(f"{self.name} needs images of {self.smallest} pixels or more; got {height} x {width}")
        distance: Tensor = self.net(rgb(a, self.device), rgb(b, self.device))
        return distance.cpu()


def load_lpips(where: str, device: torch.device | str = "cpu") -> Lpips:
    """Load LPIPS 0.1 with the backbone that is in the file, AlexNet's or VGG-16's.

    where: a safetensors file with the state dict of `lpips.LPIPS`. Raises ModelError for anything else.
    """
    weights = read_weights(where, "LPIPS network")
    tensors = {re.sub(r"^lins\.(\d)\.", r"lin\1.", name): tensor for name, tensor in weights.tensors.items()}
    kind = _kind(tensors, weights.label)
    with torch.device("meta"):
        empty = _Lpips(_BACKBONES[kind])
    net = StateDict(weights.label, weights.digest, tensors).fill(empty, f"LPIPS ({kind})", _cure(kind))
    return Lpips(f"lpips-{kind} {weights.digest}", _BACKBONES[kind].smallest, net.to(device), device)


def _kind(tensors: dict[str, Tensor], label: str) -> str:
    """Return the backbone of a state dict, by the number of the second convolution: 3 in AlexNet, 2 in VGG-16."""
    for kind, name in (("alex", "net.slice2.3.weight"), ("vgg", "net.slice1.2.weight")):
        if name in tensors:
            return kind
    raise ModelError(f"{label} has neither AlexNet's nor VGG-16's convolutions beside its linear layers{_cure('alex')}")


def _cure(kind: str) -> str:
    return "; make it with: " + in_python(
        "import lpips; from safetensors.torch import save_model; "
        f"save_model(lpips.LPIPS(net='{kind}'), 'lpips-{kind}.safetensors')"
    )


class _Lpips(nn.Module):
    """The sum over layers of the weighted squared difference of unit features, mean over places (equation 1)."""

    def __init__(self, backbone: _Backbone) -> None:
        super().__init__()
        self.net = _slices(backbone)
        for number, widths in enumerate(backbone.slices):
            self.add_module(f"lin{number}", _linear(widths[-1]))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = _standardised(a), _standardised(b)
        total = a.new_zeros(len(a))
        for number, part in enumerate(self.net.children()):
            a, b = part(a), part(b)
            weighted = self.get_submodule(f"lin{number}")((_unit(a) - _unit(b)).square())  # [N, 1, h, w]
            total = total + weighted.mean(dim=(1, 2, 3))
        return total


def _slices(backbone: _Backbone) -> nn.Module:
    """Return slice1 to slice5, whose layers keep their numbers in the whole backbone."""
    parts, sizes, inside, number = nn.Module(), iter(backbone.sizes), 3, 0
    for position, widths in enumerate(backbone.slices, start=1):
        part = nn.Sequential()
        for width in widths:
            layers = [nn.MaxPool2d(backbone.pool, 2)] if width == _POOL else _convolution(inside, width, next(sizes))
            for layer in layers:
                part.add_module(str(number), layer)
                number += 1
            inside = width or inside
        parts.add_module(f"slice{position}", part)
    return parts


def _convolution(inside: int, width: int, size: tuple[int, int, int]) -> list[nn.Module]:
    return [nn.Conv2d(inside, width, *size), nn.ReLU()]


def _linear(width: int) -> nn.Module:
    """Return one weight for each channel, named `model.1.weight`: the identity replaces training's dropout."""
    layers = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))
    return nn.Sequential(OrderedDict(model=layers))


def _standardised(x: Tensor) -> Tensor:
    mean, deviation = (x.new_tensor(values)[:, None, None] for values in (_MEAN, _DEVIATION))
    return (x - mean) / deviation


def _unit(x: Tensor) -> Tensor:
    """Each place's features [N, C, h, w] as a vector of unit length."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + _TINY)
