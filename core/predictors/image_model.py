"""Open an image model of `transformers` from a folder or the hub: safetensors only, and no code that comes with it
runs.

The classifiers that predict attributes and the networks that judge images are opened here. `label` is how messages call
a model, such as "predictor 'a/b'".
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from core.errors import ModelError
from core.files import PICKLES
from core.model.hub import unreachable
from core.quiet import quiet_transformers

REQUIRED = (("config.json",), ("preprocessor_config.json", "processor_config.json"))  # one of each
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")


def find_folder(where: str, label: str, example: str, more: Sequence[str] = ()) -> Path:
    """Return the folder of a model; one of the hub is downloaded once.

    example: the model that the message names, with its kind; more: files to download beside the usual ones. Raises
    ModelError where the model is not there or cannot be fetched.
    """
    folder = Path(where).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or where.count("/") != 1 or where.startswith("."):
        raise ModelError(f"{label} is not there: give a folder or a hub id of an {example}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(where, allow_patterns=[*sum(REQUIRED, ()), *more, *_WEIGHTS]))
    except Exception as error:  # the hub client has a dozen exception types; the user has one problem
        raise ModelError(unreachable(label, error)) from error


def refuse_lacking(folder: Path, label: str, required: Sequence[Sequence[str]] = REQUIRED) -> None:
    """Raise ModelError where none of the files of a group is in the folder."""
    missing = [" or ".join(files) for files in required if not any((folder / file).is_file() for file in files)]
    if missing:
        raise ModelError(f"{label} is incomplete: {folder} lacks {' and '.join(missing)}")


def refuse_pickles(folder: Path, label: str, cure: str = "") -> None:
    """Raise ModelError where the folder has no safetensors. cure: ends the sentence where there are pickles instead."""
    if list(folder.glob("*.safetensors")):
        return
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    only = f", only {', '.join(pickled)}, and pickles are not read: they can run code" if pickled else ""
    raise ModelError(f"{label} has no safetensors weights in {folder}{only}{cure if pickled else ''}")


def configuration(folder: Path, label: str) -> dict[str, Any]:
    """Return what config.json says. Raises ModelError where that is not a model's configuration."""
    try:
        config = json.loads((folder / "config.json").read_text())
        if isinstance(config, dict):
            return config
    except ValueError:
        pass
    raise ModelError(f"{label}: {folder / 'config.json'} is not a model configuration")


def read_model(folder: Path, kind: str, device: torch.device | str) -> tuple[Any, Callable[..., Any], list[str]]:
    """Return (network, its preprocessing, names of weights that were not in the file); frozen, float32.

    kind: the class of `transformers` that opens the network, such as "AutoModel".
    """
    import transformers

    offline: Any = {"trust_remote_code": False, "local_files_only": True}
    with quiet_transformers():
        # Without the choice of a backend, results would depend on whether torchvision happens to be installed.
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **offline)
        net, report = getattr(transformers, kind).from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **offline
        )
    return net.to(device).eval().requires_grad_(False), processor, sorted(report["missing_keys"])
