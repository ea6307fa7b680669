"""A checkpoint of one file, as the original trainers write them: unpacked once into a diffusers folder beside it.

diffusers knows the layouts and turns them into its own; what the file does not hold (configurations, tokenizers) it
fetches from the hub. Pickles (.ckpt, .pt) are not read: they can run code.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import safe_open

from core.errors import ModelError, first_line
from core.files import atomic_folder
from core.quiet import quiet_diffusers, quiet_transformers

SUFFIX = ".safetensors"
# diffusers' word for what a file holds begins with -> the pipeline that draws with it
_PIPELINES = {
    "xl_base": "StableDiffusionXLPipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
}
# what a file may lack -> how the names of its weights begin
_BESIDE = {
    "text encoders": ("cond_stage_model.", "conditioner.", "text_encoders."),
    "autoencoder": ("first_stage_model.", "vae."),
}
_STAMP = "unpacked_from.json"  # in the folder: which file it is of

Shapes = dict[str, torch.Tensor]  # weights by name, on torch's meta device


def unpacked(file: Path) -> Path:
    """The diffusers folder of a single file: NAME.diffusers beside NAME.safetensors, made where it is not there, and
    again where the file is another one by now.

    Raises ModelError, in one sentence, for a pickle, a layout that diffusers does not know, a file that does not hold
    the whole model, or where what the file lacks cannot be fetched.
    """
    if (there := unpacked_before(file)) is not None:
        return there
    stamp, kind, folder = _stamp(file), _kind(file), _folder(file)
    try:
        with quiet_diffusers(), quiet_transformers():
            pipeline = getattr(diffusers, str(_pipeline_of(kind))).from_single_file(str(file))
            if folder.is_dir() and _read_stamp(folder) not in (None, stamp):
                _remove(folder)
            with atomic_folder(folder) as temporary:
                pipeline.save_pretrained(temporary, safe_serialization=True)
                (temporary / _STAMP).write_text(json.dumps(stamp))
    except _layouts().SingleFileComponentError as error:
        raise ModelError(f"model '{file}' lacks weights ({first_line(error)}): {_instead(kind)}") from error
    except Exception as error:  # diffusers, the hub and the disk have dozens; the user has one problem
        if (there := unpacked_before(file)) is not None:  # by a process that was faster
            return there
        raise ModelError(
            f"model '{file}' cannot be unpacked into {folder} ({type(error).__name__}: {first_line(error)}): its "
            "configuration comes from the hub, and the folder of the file must take the result"
        ) from error
    return folder


def unpacked_before(file: Path) -> Path | None:
    """The diffusers folder of a single file, if it is there and of the file as it is now.

    Raises ModelError for a pickle, and for a folder of that name that was not made here, which is not ours to replace.
    """
    if file.suffix != SUFFIX:
        raise ModelError(
            f"model '{file}' is not a safetensors file, and others are not read, for a pickle can run code; if you "
            f'trust it, convert it once: python -c "import torch; from safetensors.torch import save_file; '
            f"w = torch.load('{file}', map_location='cpu', weights_only=True); "
            f"save_file({{k: v.clone() for k, v in w.get('state_dict', w).items() if hasattr(v, 'clone')}}, "
            f"'{file.with_suffix(SUFFIX)}')\""
        )
    folder = _folder(file)
    if not folder.is_dir():
        return None
    stamp = _read_stamp(folder)
    if stamp is None:
        raise ModelError(
            f"model '{file}': {folder} does not say which file it was unpacked from: remove it, or give it as the model"
        )
    return folder if stamp == _stamp(file) else None


def configured_as(file: Path) -> str:
    """The hub id of the model whose configuration diffusers takes for a single file. No weights are read.

    Raises ModelError for a layout that diffusers does not know, and for a file that does not hold the whole model.
    """
    return _whole(_kind(file))


def _folder(file: Path) -> Path:
    return file.with_suffix(".diffusers")


def _stamp(file: Path) -> dict[str, int]:
    """What tells a file from the one that was there before, without reading it."""
    found = file.stat()
    return {"bytes": found.st_size, "changed_ns": found.st_mtime_ns}


def _read_stamp(folder: Path) -> dict[str, int] | None:
    try:
        found: dict[str, int] = json.loads((folder / _STAMP).read_text())
        return found
    except (OSError, ValueError):
        return None


def _remove(folder: Path) -> None:
    """All of a folder at once, so that none is ever there in part."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as away:
        folder.rename(Path(away) / folder.name)


def _kind(file: Path) -> str:
    """diffusers' word for what a file holds, which is the whole of a model of a kind that can be opened."""
    shapes = _shapes(file)
    kind = _inferred(shapes)
    if _pipeline_of(kind) is None:
        raise ModelError(f"model '{file}' is a single file of kind '{kind}'; allowed: {', '.join(_PIPELINES)}")
    if lacking := [part for part, begins in _BESIDE.items() if not _any_begins(shapes, begins)]:
        raise ModelError(f"model '{file}' holds no {' and no '.join(lacking)}: {_instead(kind)}")
    return kind


def _pipeline_of(kind: str) -> str | None:
    return next((pipeline for known, pipeline in _PIPELINES.items() if kind.startswith(known)), None)


def _any_begins(names: Iterable[str], begins: tuple[str, ...]) -> bool:
    return any(name.startswith(begins) for name in names)


def _whole(kind: str) -> str:
    """The hub id of the model of a kind from which diffusers takes what a file does not hold."""
    return str(_layouts().DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])


def _instead(kind: str) -> str:
    return f"give a file that holds all parts of the model, or a hub id such as {_whole(kind)}"


def _inferred(shapes: Shapes) -> str:
    """diffusers' word; 'v1' is its word for what it does not know, too."""
    try:
        kind = str(_layouts().infer_diffusers_model_type(shapes))
    except Exception:  # it trusts the names of some layouts to come with others
        return "unknown"
    return "unknown" if kind == "v1" and _layouts().CHECKPOINT_KEY_NAMES["v1"] not in shapes else kind


def _shapes(file: Path) -> Shapes:
    """The file's weights without their data."""
    try:
        with safe_open(file, "pt") as stored:
            return {name: torch.empty(stored.get_slice(name).get_shape(), device="meta") for name in stored.keys()}
    except Exception as error:
        raise ModelError(f"model '{file}' cannot be read: {first_line(error)}") from error


def _layouts() -> Any:
    """What diffusers knows of single files, which takes seconds to import."""
    from diffusers.loaders import single_file_utils

    return single_file_utils
