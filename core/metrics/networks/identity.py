"""Face recognition networks: embeddings whose cosine is the similarity of two faces.

Two published networks of 50 layers, both trained with ArcFace's loss (Deng et al., arXiv 1801.07698), are supported:
InsightFace's iresnet50 (its r50), and the IR-SE50 of InsightFace_Pytorch, the identity loss of most face editing.
Layers and weights have the names used there. The whole image is taken as the face: no detection, no cropping.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.files import PICKLES
from core.metrics.networks.pixels import rgb
from core.metrics.networks.weights import StateDict, read_weights
from core.predictors.vision import Extractor, open_vision

SIZE = 112  # pixels, height and width
FEATURES = 512
_STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))  # channels and units; the first unit of each halves the image
_ROLE = "identity network"


def load_identity(where: str, device: torch.device | str = "cpu") -> Extractor:
    """Load a face recognition network whose embeddings have unit length; those of the two networks above are [N, 512].

    where: a safetensors file with the state dict of either network, which resizes images to 112 x 112 pixels, or the
    folder or hub id of an image model of `transformers` trained on faces, with its own preprocessing. Raises ModelError
    for anything else.
    """
    path = Path(where).expanduser()
    if not (path.is_file() or path.suffix.lower() in (".safetensors", *PICKLES)):
        extractor = open_vision(where, _ROLE, device)
        return Extractor(extractor.name, lambda images: F.normalize(extractor.embed(images), dim=1))
    weights = read_weights(where, _ROLE)
    kind = "ir-se50" if any(name.startswith("body.") for name in weights.tensors) else "iresnet50"
    net = _net(weights, kind).to(device)

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        features: Tensor = net(_resized(rgb(images, device)))
        return F.normalize(features, dim=1).cpu()

    return Extractor(f"{kind} {weights.digest}", embed)


def _net(weights: StateDict, kind: str) -> nn.Module:
    with torch.device("meta"):
        empty = _IrSe50() if kind == "ir-se50" else _IResNet50()
    return weights.fill(empty, "an iresnet50 or IR-SE50" if kind == "iresnet50" else "an IR-SE50")


def _resized(x: Tensor) -> Tensor:
    """Resize [N, 3, H, W] to [N, 3, 112, 112], with averaging where the image becomes smaller."""
    return F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)


class _IResNet50(nn.Module):
    """InsightFace's iresnet50: [N, 3, 112, 112] in [-1, 1] -> [N, 512]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.prelu = _convolution(3, 64), nn.BatchNorm2d(64), nn.PReLU(64)
        inside = 64
        for number, (width, units) in enumerate(_STAGES, start=1):
            first = _ResidualUnit(inside, width, stride=2)
            self.add_module(
                f"layer{number}", nn.Sequential(first, *(_ResidualUnit(width, width) for _ in range(units - 1)))
            )
            inside = width
        self.bn2, self.fc, self.features = nn.BatchNorm2d(512), _last(), nn.BatchNorm1d(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for number in range(1, len(_STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        features: Tensor = self.features(self.fc(self.bn2(x).flatten(1)))
        return features


class _ResidualUnit(nn.Module):
    """Two convolutions and a shortcut; normalised before, between and after the convolutions, not after the sum."""

    def __init__(self, inside: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1, self.bn2 = nn.BatchNorm2d(inside), _convolution(inside, width), nn.BatchNorm2d(width)
        self.prelu, self.conv2, self.bn3 = nn.PReLU(width), _convolution(width, width, stride), nn.BatchNorm2d(width)
        self.downsample = nn.Identity() if stride == 1 else _shortcut(inside, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        total: Tensor = self.bn3(self.conv2(inner)) + self.downsample(x)
        return total


class _IrSe50(nn.Module):
    """InsightFace_Pytorch's IR-SE50: [N, 3, 112, 112] in [-1, 1] -> [N, 512]."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(_convolution(3, 64), nn.BatchNorm2d(64), nn.PReLU(64))
        units, inside = [], 64
        for width, count in _STAGES:
            units += [_SqueezeUnit(inside, width, stride=2), *(_SqueezeUnit(width, width) for _ in range(count - 1))]
            inside = width
        self.body = nn.Sequential(*units)
        # The identity replaces training's dropout, so that the layers keep their numbers.
        last = nn.BatchNorm2d(512), nn.Identity(), nn.Flatten(), _last(), nn.BatchNorm1d(FEATURES)
        self.output_layer = nn.Sequential(*last)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.output_layer(self.body(self.input_layer(x)))
        return features


class _SqueezeUnit(nn.Module):
    """Two convolutions, whose channels are weighted by the means of all channels over the image, and a shortcut."""

    def __init__(self, inside: int, width: int, stride: int = 1) -> None:
        super().__init__()
        # With equal widths the shortcut takes every `stride`-th pixel, without weights.
        same = inside == width
        self.shortcut_layer = nn.MaxPool2d(1, stride) if same else _shortcut(inside, width, stride)
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inside),
            _convolution(inside, width),
            nn.PReLU(width),
            _convolution(width, width, stride),
            nn.BatchNorm2d(width),
            _Excitation(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return total


class _Excitation(nn.Module):
    """A factor from 0 to 1 for each channel, computed from the means of all channels (Hu et al., arXiv 1709.01507)."""

    def __init__(self, width: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(width // reduction, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(mean))))


def _convolution(inside: int, width: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inside, width, 3, stride, 1, bias=False)


def _shortcut(inside: int, width: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inside, width, 1, stride, bias=False), nn.BatchNorm2d(width))


def _last() -> nn.Module:
    return nn.Linear(512 * 7 * 7, FEATURES)
