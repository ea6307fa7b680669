"""Unpack a checkpoint in a single file, as original trainers write it, once into a diffusers folder beside it.

diffusers knows the layouts and converts them. Parts that the file does not hold (configurations, tokenizers) come from
the hub. Pickles (.ckpt, .pt) are not read, because they can run code.
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
from core.files import atomic_folder, in_python, why_unreadable
from core.model.stored_weights import prefixed, reason
from core.quiet import quiet_diffusers, quiet_transformers

SUFFIX = ".safetensors"
# Beginning of diffusers' name for a file's model type -> the pipeline that draws with it.
_PIPELINES = {
    "xl_base": "StableDiffusionXLPipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
}
# Part that a file may lack -> how the names of its weights begin.
_BESIDE = {
    "text encoders": ("cond_stage_model.", "conditioner.", "text_encoders."),
    "autoencoder": ("first_stage_model.", "vae."),
}
_STAMP = "unpacked_from.json"  # in the folder: the size and time of the file it was unpacked from

Shapes = dict[str, torch.Tensor]  # weights by name, on torch's meta device


def unpacked(file: Path) -> Path:
    """Return the diffusers folder of a single file: NAME.diffusers beside NAME.safetensors.

    The folder is made where it is missing, and again where the file has changed. Raises ModelError, in one sentence,
    for a pickle, a layout that diffusers does not know, a file that does not hold the whole model, or where missing
    parts cannot be fetched.
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
    except Exception as error:  # diffusers, the hub and the disk raise dozens of types
        if (there := unpacked_before(file)) is not None:  # another process unpacked it meanwhile
            return there
        raise ModelError(
            f"model '{file}' cannot be unpacked into {folder} ({first_line(error)}): its "
            "configuration comes from the hub, and the folder of the file must take the result"
        ) from error
    return folder


def unpacked_before(file: Path) -> Path | None:
    """Return the diffusers folder of a single file, or None where it is missing or of an older version of the file.

    Raises ModelError for a pickle, and for a folder of that name that this module did not make and must not replace.
    """
    if file.suffix != SUFFIX:
        raise ModelError(
            f"model '{file}' is not a safetensors file, and others are not read, for a pickle can run code; if you "
            "trust it, convert it once: "
            + in_python(
                "import torch; from safetensors.torch import save_file; "
                f"w = torch.load({str(file)!r}, map_location='cpu', weights_only=True); "
                "save_file({k: v.clone() for k, v in w.get('state_dict', w).items() if hasattr(v, 'clone')}, "
                f"{str(file.with_suffix(SUFFIX))!r})"
            )
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
    """Return the hub id of the model whose configuration diffusers takes for a single file. Reads no weights.

    Raises ModelError for a layout that diffusers does not know, and for a file that does not hold the whole model.
    """
    return _whole(_kind(file))


def _folder(file: Path) -> Path:
    return file.with_suffix(".diffusers")


def _stamp(file: Path) -> dict[str, int]:
    """Return the size and time of a file, which tell it from an earlier one without reading it."""
    status = file.stat()
    return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns}


def _read_stamp(folder: Path) -> dict[str, int] | None:
    try:
        stamp: dict[str, int] = json.loads((folder / _STAMP).read_text())
        return stamp
    except (OSError, ValueError):
        return None


def _remove(folder: Path) -> None:
    """Remove a folder; it is renamed first, so that it never exists in part."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as away:
        folder.rename(Path(away) / folder.name)


def _kind(file: Path) -> str:
    """Return diffusers' name for the file's model type. Raises ModelError for an unsupported type or a missing part."""
    shapes = _shapes(file)
    kind = _inferred(shapes)
    if why := reason(shapes):
        raise ModelError(f"model '{file}' cannot be read: some of its weights are not those of a model: {why}")
    if _pipeline_of(kind) is None:
        prefix = f"{next(iter(shapes), '').partition('.')[0]}."
        unwrapped = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
        if all(name.startswith(prefix) for name in shapes) and _pipeline_of(_inferred(unwrapped)):
            raise ModelError(f"model '{file}' cannot be read: {prefixed([prefix], [file])}")
        raise ModelError(f"model '{file}' is a single file of kind '{kind}'; allowed: {', '.join(_PIPELINES)}")
    if lacking := [part for part, begins in _BESIDE.items() if not _any_begins(shapes, begins)]:
        raise ModelError(f"model '{file}' holds no {' and no '.join(lacking)}: {_instead(kind)}")
    return kind


def _pipeline_of(kind: str) -> str | None:
    return next((pipeline for known, pipeline in _PIPELINES.items() if kind.startswith(known)), None)


def _any_begins(names: Iterable[str], begins: tuple[str, ...]) -> bool:
    return any(name.startswith(begins) for name in names)


def _whole(kind: str) -> str:
    """Return the hub id of the model from which diffusers takes the parts that a file of this kind does not hold."""
    return str(_layouts().DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])


def _instead(kind: str) -> str:
    return f"give a file that holds all parts of the model, or a hub id such as {_whole(kind)}"


def _inferred(shapes: Shapes) -> str:
    """Return diffusers' name for the model type, or "unknown"; diffusers itself answers "v1" for unknown layouts."""
    try:
        kind = str(_layouts().infer_diffusers_model_type(shapes))
    except Exception:  # diffusers assumes that some weight names come with others
        return "unknown"
    return "unknown" if kind == "v1" and _layouts().CHECKPOINT_KEY_NAMES["v1"] not in shapes else kind


def _shapes(file: Path) -> Shapes:
    """Return the file's weights without their data."""
    try:
        with safe_open(file, "pt") as stored:
            return {name: torch.empty(stored.get_slice(name).get_shape(), device="meta") for name in stored.keys()}
    except Exception as error:
        raise ModelError(f"model '{file}' cannot be read: {why_unreadable(file, error)}") from error


def _layouts() -> Any:
    """Return diffusers' module on single files, which takes seconds to import."""
    from diffusers.loaders import single_file_utils

    return single_file_utils
