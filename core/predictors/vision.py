"""Open image models of `transformers` (core.predictors.image_model) for what they see: CLIP, DINO, DINOv2, others."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.errors import ModelError, first_line
from core.files import digest_of_files, in_python, why_unreadable
from core.predictors.image_model import REQUIRED, configuration, find_folder, read_model, refuse_lacking, refuse_pickles
from core.predictors.preprocessing import behind_processor

_EXAMPLE = "image model such as facebook/dinov2-base"


@dataclass(frozen=True)
class Extractor:
    """A feature network: `embed(images [N, 1, 3 or 4, H, W] in [-1, 1]) -> [N, F]`, float32 on the CPU.

    Row i of the features depends on image i alone. embed_through: features that are differentiable in the images, on
    the network's device, equal to those of `embed` but for rounding; None where there are none.
    """

    name: str  # for reports: the kind of network, and the first digits of the SHA-256 of its weights
    embed: Callable[[Tensor], Tensor]
    embed_through: Callable[[Tensor], Tensor] | None = None


def open_vision(where: str, role: str, device: torch.device | str = "cpu") -> Extractor:
    """Open the model of a folder or hub id; images go through its own preprocessing as 8-bit RGB.

    CLIP gives its projected embedding, not of unit length, DINOv2 its class token, any other model its pooled output.
    role: how messages call it. Raises ModelError, in one sentence, where it is missing, incomplete, kept as pickles or
    not a model of images.
    """
    label = f"{role} '{where}'"
    folder = find_folder(where, label, _EXAMPLE)
    _refuse_incomplete(folder, label)
    try:
        net, processor, missing = read_model(folder, "AutoModel", device)
    except Exception as error:  # transformers has a dozen exception types; the user has one problem
        raise ModelError(f"{label} cannot be read from {folder}: {why_unreadable(folder, error)}") from error
    # A vision transformer is often published without the layer behind its class token; what is random is no feature.
    bare = bool(missing) and all(name.startswith("pooler.") for name in missing)
    if missing and not bare:
        raise ModelError(f"{label} is not a trained model: its weights lack {missing[0]}")

    def features_of(**pixels: Tensor) -> Tensor:
        output = net.get_image_features(**pixels) if hasattr(net, "get_image_features") else net(**pixels)
        features: Tensor = output.last_hidden_state[:, 0] if bare else output.pooler_output
        return features.flatten(1).float()

    embed, embed_through = behind_processor(processor, features_of, device)
    _try_out(embed, label)
    files = [folder / file for files in REQUIRED for file in files] + sorted(folder.glob("*.safetensors"))
    name = f"{type(net).__name__} {digest_of_files(file for file in files if file.is_file())}"
    return Extractor(name, lambda images: embed(images).cpu(), embed_through)


def _try_out(embed: Callable[[Tensor], Tensor], label: str) -> None:
    """Embed one grey picture: what does not fit together shows here and not after an hour of sampling."""
    try:
        embed(torch.zeros(1, 3, 32, 32))
    except Exception as error:
        raise ModelError(f"{label} has no features of an RGB picture: {first_line(error)}") from error


def _refuse_incomplete(folder: Path, label: str) -> None:
    """Raise ModelError for what the files alone show, before anything is loaded."""
    refuse_lacking(folder, label)
    if "model_type" not in configuration(folder, label):
        raise ModelError(f"{label}: {folder / 'config.json'} is not a model configuration")
    refuse_pickles(folder, label, _cure(folder))


def _cure(folder: Path) -> str:
    where = repr(str(folder))
    return "; convert them with: " + in_python(
        f"from transformers import AutoModel; AutoModel.from_pretrained({where}).save_pretrained({where})"
    )
