"""Image models of `transformers` (the extra `predictors`) as feature networks: CLIP, DINO, DINOv2 and their like.

From a folder or the hub; safetensors only, and no code that came with them is run.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import ModelError, first_line
from core.metrics.networks.extractor import Extractor
from core.metrics.networks.weights import PICKLES, digest, in_python
from core.pictures.traversal_grid import to_picture
from core.quiet import quiet_transformers

_EXAMPLE = "facebook/dinov2-base"
_REQUIRED = (("config.json",), ("preprocessor_config.json", "processor_config.json"))  # one of each
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")


def load_features(where: str, device: torch.device | str = "cpu") -> Extractor:
    """The embeddings of a vision model: CLIP's of an image, projected but not of unit length; DINOv2's class token.

    Of any other model, its pooled output. Raises ModelError where there is none, and as `load_vision` does.
    """
    return load_vision(where, "feature network", device)


def load_vision(where: str, role: str, device: torch.device | str = "cpu") -> Extractor:
    """The model of a folder or hub id, whose pictures go through its own preprocessing as 8-bit RGB.

    role: how messages call it. Raises ModelError, in one sentence, where it is missing, incomplete, kept as pickles or
    not a model of images.
    """
    label = f"{role} '{where}'"
    folder = _find_folder(where, label)
    _refuse_incomplete(folder, label)
    try:
        net, processor, missing = _read(folder, device)
    except Exception as error:  # transformers has a dozen exception types; the user has one problem
        raise ModelError(f"{label} cannot be read from {folder}: {first_line(error)}") from error
    # A vision transformer is often published without the layer behind its class token; what is random is no feature.
    bare = bool(missing) and all(name.startswith("pooler.") for name in missing)
    if missing and not bare:
        raise ModelError(f"{label} is not a trained model: its weights lack {missing[0]}")
    embed = _embedding(net, processor, bare, device)
    _try_out(embed, label)
    files = [folder / file for files in _REQUIRED for file in files] + sorted(folder.glob("*.safetensors"))
    return Extractor(f"{type(net).__name__} {digest(file for file in files if file.is_file())}", embed)


def _embedding(
    net: Any, processor: Callable[..., Any], bare: bool, device: torch.device | str
) -> Callable[[Tensor], Tensor]:
    """bare: whether the class token itself stands for the pooled output."""

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        pixels = processor(images=[to_picture(image) for image in images], return_tensors="pt").to(device)
        output = net.get_image_features(**pixels) if hasattr(net, "get_image_features") else net(**pixels)
        features: Tensor = output.last_hidden_state[:, 0] if bare else output.pooler_output
        return features.flatten(1).float().cpu()

    return embed


def _try_out(embed: Callable[[Tensor], Tensor], label: str) -> None:
    """Embed one grey picture: what does not fit together shows here and not after an hour of sampling."""
    try:
        embed(torch.zeros(1, 3, 32, 32))
    except Exception as error:
        raise ModelError(f"{label} has no features of an RGB picture: {first_line(error)}") from error


def _find_folder(where: str, label: str) -> Path:
    folder = Path(where).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or where.count("/") != 1 or where.startswith("."):
        raise ModelError(f"{label} is not there: give a folder or a hub id of an image model such as {_EXAMPLE}")
    return _download(where, label)


def _download(hub_id: str, label: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[*sum(_REQUIRED, ()), *_WEIGHTS]))
    except Exception as error:  # the hub client has a dozen exception types; the user has one problem
        raise ModelError(
            f"{label} is neither a folder here nor could it be fetched from the hub ({type(error).__name__}): "
            "check the spelling, your access and the network, or give a local folder"
        ) from error


def _refuse_incomplete(folder: Path, label: str) -> None:
    """What can be told from the files alone, before anything is loaded."""
    missing = [" or ".join(files) for files in _REQUIRED if not any((folder / file).is_file() for file in files)]
    if missing:
        raise ModelError(f"{label} is incomplete: {folder} lacks {' and '.join(missing)}")
    try:
        json.loads((folder / "config.json").read_text())["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{label}: {folder / 'config.json'} is not a model configuration") from error
    if not list(folder.glob("*.safetensors")):
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        only = f", only {', '.join(pickled)}, and pickles are not read: they can run code" if pickled else ""
        raise ModelError(f"{label} has no safetensors weights in {folder}{only}{_cure(folder) if pickled else ''}")


def _cure(folder: Path) -> str:
    where = repr(str(folder))
    return "; convert them with: " + in_python(
        f"from transformers import AutoModel; AutoModel.from_pretrained({where}).save_pretrained({where})"
    )


def _read(folder: Path, device: torch.device | str) -> tuple[Any, Callable[..., Any], list[str]]:
    """(network, its preprocessing, names of weights that were not in the file)."""
    from transformers import AutoImageProcessor, AutoModel

    options: Any = {"trust_remote_code": False, "local_files_only": True}
    with quiet_transformers():
        # Without the choice of a backend, features would depend on whether torchvision happens to be installed.
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
        net, report = AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
        )
    return net.to(device).eval().requires_grad_(False), processor, sorted(report["missing_keys"])
