"""The folders of a model in diffusers layout, and the names of the files with its weights."""

import json
from pathlib import Path

WEIGHTS = "diffusion_pytorch_model"
TRANSFORMERS_WEIGHTS = "model"
NETWORKS = ("unet", "transformer")  # folders of the network that denoises
CODECS = ("vae", "vqvae")


def weight_names(stem: str = WEIGHTS) -> tuple[str, ...]:
    """Return the file names to look for, in order: an index of several files, one file, then both in half precision."""
    return tuple(
        name for half in ("", ".fp16") for name in (f"{stem}.safetensors.index{half}.json", f"{stem}{half}.safetensors")
    )


def weights_at(part: Path, stem: str = WEIGHTS) -> Path | None:
    """Return the file with a part's weights, or the index that names several; None where there is neither."""
    return next((part / name for name in weight_names(stem) if (part / name).is_file()), None)


def weight_files(part: Path) -> list[Path]:
    """Return the files with a part's weights. Raises OSError, KeyError or ValueError where the index cannot be read."""
    stored = weights_at(part)
    if stored is None or stored.suffix != ".json":
        return [stored or part / f"{WEIGHTS}.safetensors"]
    return [part / Path(name).name for name in sorted(set(json.loads(stored.read_text())["weight_map"].values()))]


def only_pickles(name: str, files: list[str], where: str, source: Path | str, revision: str | None = None) -> str:
    """Return the error message for a model that has its weights only as pickles, with the command that converts it.

    source: the model's folder, or its hub id. For a hub id the command first downloads all parts, because diffusers by
    itself would skip those that are stored only as safetensors.
    """
    load, load_from = "", f"'{source}'"
    if isinstance(source, str):
        pinned = f"revision='{revision}', " if revision else ""
        load = "from huggingface_hub import snapshot_download as D; "
        load_from = (
            f"D('{source}', {pinned}allow_patterns=['*/*', '*.json', '*.bin'], "
            "ignore_patterns=['*fp16*', '*non_ema*', '*.onnx*', '*.msgpack'])"
        )
    return (
        f"model '{name}' has only {', '.join(files)} {where}, and pickles are not read: they can run code; if you "
        f'trust it, convert it once: python -c "from diffusers import DiffusionPipeline as P; {load}'
        f"P.from_pretrained({load_from}).save_pretrained('{source}-safetensors')\""
    )
