"""The networks that score attributes of the embedded models' images: two bodies, strided and residual."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class AttributeNet(nn.Module):
    """A small convolutional network with one output for each attribute (a regression, or a class logit)."""

    def __init__(self, channels: int, names: tuple[str, ...], width: int = 24, body: str = "strided") -> None:
        super().__init__()
        self.settings = {"channels": channels, "names": list(names), "width": width, "body": body}
        self.names = names
        layers = BODIES[body](channels, width)
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(64 * width, 128), nn.SiLU(), nn.Linear(128, len(names)))

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores [N, A] of images [N, channels, H, W] in [-1, 1]."""
        scores: Tensor = self.head(self.body(images))
        return scores

    def save(self, folder: Path) -> None:
        """Write the weights and the settings into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "attributes.safetensors")
        (folder / "config.json").write_text(json.dumps(self.settings, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "AttributeNet":
        """Read a network that `save` wrote, frozen and in evaluation mode."""
        settings = json.loads((folder / "config.json").read_text())
        net = cls(**settings | {"names": tuple(settings["names"])})
        net.load_state_dict(load_file(folder / "attributes.safetensors"))
        return net.eval().requires_grad_(False)


class Residual(nn.Module):
    """Two convolutions whose output is added to their input (He et al., arXiv 1603.05027)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1)]
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus what the convolutions make of it: [N, width, H, W] -> the same shape."""
        change: Tensor = self.branch(x)
        return x + change


def strided(channels: int, width: int) -> list[nn.Module]:
    """Return the layers of a body that halves its resolution by strides: `channels` -> 4 `width` channels."""
    layers: list[nn.Module] = []
    for inside, outside, stride in (
        (channels, width, 1),
        (width, 2 * width, 2),
        (2 * width, 2 * width, 1),
        (2 * width, 4 * width, 2),
        (4 * width, 4 * width, 2),
    ):
        layers += [nn.Conv2d(inside, outside, 3, stride, 1), nn.GroupNorm(8, outside), nn.SiLU()]
    return layers


def residual(channels: int, width: int) -> list[nn.Module]:
    """Return the layers of a body of residual blocks that halves its resolution by pooling: -> 4 `width` channels."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 5, 1, 2)]
    for inside, outside in ((width, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.AvgPool2d(2), nn.Conv2d(inside, outside, 1), Residual(outside)]
    return [*layers, nn.ReLU()]


BODIES = {"strided": strided, "residual": residual}
