"""Attribute predictors of the embedded models: images in, named scores out."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.model.catalogue import MODELS, model_folder
from core.predictors import digit_measures
from core.predictors.attributes import Attributes


class AttributeNet(nn.Module):
    """A small convolutional network with one output for each attribute (a regression, or a class logit)."""

    def __init__(self, channels: int, names: tuple[str, ...], width: int = 24) -> None:
        super().__init__()
        self.channels, self.names, self.width = channels, names, width
        layers: list[nn.Module] = []
        for inside, outside, stride in (
            (channels, width, 1),
            (width, 2 * width, 2),
            (2 * width, 2 * width, 1),
            (2 * width, 4 * width, 2),
            (4 * width, 4 * width, 2),
        ):
            layers += [nn.Conv2d(inside, outside, 3, stride, 1), nn.GroupNorm(8, outside), nn.SiLU()]
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
        settings = {"channels": self.channels, "names": list(self.names), "width": self.width}
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "AttributeNet":
        """Read a network that `save` wrote, frozen and in evaluation mode."""
        settings = json.loads((folder / "config.json").read_text())
        net = cls(settings["channels"], tuple(settings["names"]), settings["width"])
        net.load_state_dict(load_file(folder / "attributes.safetensors"))
        return net.eval().requires_grad_(False)


def predictor_folder(model: str) -> Path:
    """Return the folder of an embedded model's predictor; models that draw the same kind of images share one."""
    return model_folder("toyfaces" if model.startswith("toyfaces") else model) / "attributes"


def embedded_predictor(model: str, device: torch.device | str = "cpu") -> Attributes | None:
    """Return the predictor of an embedded model, or None for any other model. It takes images, never latents."""
    if model not in MODELS:
        return None
    net = AttributeNet.load(predictor_folder(model)).to(device)

    @torch.no_grad()
    def score(images: Tensor) -> Tensor:
        scores = net(images.float())
        return torch.cat([scores, digit_measures.measure(images.float())], dim=1) if model == "digits" else scores

    return Attributes(net.names + (digit_measures.MEASURES if model == "digits" else ()), score)
