"""Where models come from: a built-in name, a diffusers folder or a hub id, to a network and its scheduler.

safetensors only, and only what the package can open; everything else is refused in one sentence.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file

from core.errors import ModelError, first_line
from core.zoo import ARCHITECTURES, MODELS, architecture_folder, model_folder

_REQUIRED = ("config.json", "diffusion_pytorch_model.safetensors")


def find_folder(model: str | Path, weights: bool = True) -> Path:
    """The folder that holds a built-in name, a local folder, or a hub id (downloaded once, safetensors only).

    Without `weights` nothing but configuration files is downloaded, and of the models whose configuration this package
    has, nothing at all.
    """
    if str(model) in MODELS:
        return model_folder(str(model))
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(model).count("/") != 1 or str(model).startswith("."):
        raise ModelError(
            f"model '{model}' is not there: give a built-in name ({', '.join(MODELS)}), "
            "a folder in diffusers layout (unet/, scheduler/), or a hub id such as google/ddpm-celebahq-256"
        )
    if not weights and str(model) in ARCHITECTURES:
        return architecture_folder(str(model))
    return _download(str(model), weights)


def weight_digest(unet: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of all weights: two models are the same when this is."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _download(hub_id: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    # google/ddpm-* keep the UNet at the repository's root, later models in unet/.
    patterns = ["*.json", "unet/*.json", "scheduler/*"]
    if weights:
        patterns += ["diffusion_pytorch_model.safetensors", "unet/*.safetensors"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # the hub client has a dozen exception types; the user has one problem
        raise ModelError(
            f"model '{hub_id}' is neither a folder here nor could it be fetched from the hub "
            f"({type(error).__name__}): check the spelling, your access and the network, or give a local folder"
        ) from error


def load_unet(folder: Path, name: str) -> UNet2DModel:
    """The network on the CPU, its weights mapped from their file: the processes of a machine share one copy."""
    read_config(folder, name)
    try:
        return _mapped(_unet_folder(folder))
    except Exception as error:
        raise ModelError(f"model '{name}' cannot be read from {_unet_folder(folder)}: {first_line(error)}") from error


def _mapped(folder: Path) -> UNet2DModel:
    unet = empty_unet(UNet2DModel.load_config(folder))
    weights = load_file(folder / _REQUIRED[1])
    unet._fix_state_dict_keys_on_load(weights)  # the published models have the old names of attention's parts
    # What is float32 already stays mapped.
    found = unet.load_state_dict({name: weight.float() for name, weight in weights.items()}, strict=False, assign=True)
    if found.missing_keys:
        raise ValueError(f"it lacks {found.missing_keys[0]}")
    return unet.eval()


def _unet_folder(folder: Path) -> Path:
    return folder / "unet" if (folder / "unet").is_dir() else folder


def read_config(folder: Path, name: str, weights: bool = True) -> dict[str, Any]:
    """The UNet's configuration, checked to be of the kind whose h-space is open here, beside its weights."""
    part = _unet_folder(folder)
    missing = [file for file in _REQUIRED[: 2 if weights else 1] if not (part / file).is_file()]
    if missing:
        raise ModelError(
            f"model '{name}' is incomplete: {part} lacks {' and '.join(missing)} (diffusers layout, safetensors)"
        )
    config = _read_json(part / "config.json", name)
    kind = config["_class_name"]
    if kind != "UNet2DModel":
        raise ModelError(
            f"model '{name}' is a {kind}; its h-space cannot be opened: a pixel-space UNet2DModel is needed"
        )
    return config


def load_scheduler(folder: Path, name: str) -> DDIMScheduler:
    part = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    if not (part / "scheduler_config.json").is_file():
        raise ModelError(f"model '{name}' is incomplete: {part} lacks scheduler_config.json")
    try:
        with _quiet():
            # A clipped x_0 is not differentiable where it matters, and both papers' code turns clipping off.
            return DDIMScheduler.from_pretrained(part, clip_sample=False, thresholding=False)
    except Exception as error:
        raise ModelError(f"model '{name}': the scheduler in {part} cannot be read: {first_line(error)}") from error


def _read_json(config: Path, name: str) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(config.read_text())
        read["_class_name"]
        return read
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model '{name}': {config} is not a diffusers configuration") from error


def refuse_unsupported(unet: UNet2DModel, scheduler: DDIMScheduler, name: str) -> None:
    prediction = scheduler.config["prediction_type"]
    if prediction != "epsilon":
        raise ModelError(f"model '{name}' predicts '{prediction}': only epsilon prediction is supported")
    if unet.class_embedding is not None:
        raise ModelError(f"model '{name}' is class-conditional: only unconditional models are supported")
    blocks = [*unet.down_blocks, *unet.up_blocks]
    if unet.config["time_embedding_type"] == "fourier" or any(hasattr(block, "skip_conv") for block in blocks):
        raise ModelError(f"model '{name}' is a score-SDE network (NCSN++): only DDPM-type UNets are supported")


def empty_unet(config: Any, dtype: torch.dtype = torch.float32) -> UNet2DModel:
    """The network of a configuration on the meta device: every shape, and no data."""
    with torch.device("meta"), _quiet():
        unet = UNet2DModel.from_config(config)
    torch.nn.Module.to(unet, dtype=dtype)
    return unet


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers' remarks about optional packages off the user's screen."""
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)
