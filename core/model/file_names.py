"""The parts of a model in diffusers layout: the folders they are in, and the files of their weights."""

import json
from pathlib import Path

WEIGHTS = "diffusion_pytorch_model"
TRANSFORMERS_WEIGHTS = "model"
NETWORKS = ("unet", "transformer")  # where a pipeline keeps what denoises
CODECS = ("vae", "vqvae")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def weight_names(stem: str = WEIGHTS) -> tuple[str, ...]:
    """What is looked for, first to last: an index of several files or one file, those in half precision at last."""
    return tuple(
        name for half in ("", ".fp16") for name in (f"{stem}.safetensors.index{half}.json", f"{stem}{half}.safetensors")
    )


def weights_at(part: Path, stem: str = WEIGHTS) -> Path | None:
    """The file with a part's weights, or the index that names several."""
    return next((part / name for name in weight_names(stem) if (part / name).is_file()), None)


def weight_files(part: Path) -> list[Path]:
    """The files with a part's weights. Raises OSError, KeyError or ValueError where its index cannot be read."""
    found = weights_at(part)
    if found is None or found.suffix != ".json":
        return [found or part / f"{WEIGHTS}.safetensors"]
    return [part / Path(name).name for name in sorted(set(json.loads(found.read_text())["weight_map"].values()))]


def only_pickles(name: str, files: list[str], where: str, source: Path | str, revision: str | None = None) -> str:
    """The sentence of a model whose weights are pickles alone, with the command that converts it.

    source: its folder, or its hub id. Of a model of the hub all parts are fetched first: diffusers by itself would not
    fetch those that are safetensors alone.
    """
    load, given = "", f"'{source}'"
    if isinstance(source, str):
        pinned = f"revision='{revision}', " if revision else ""
        load = "from huggingface_hub import snapshot_download as D; "
        given = (
            f"D('{source}', {pinned}allow_patterns=['*/*', '*.json', '*.bin'], "
            "ignore_patterns=['*fp16*', '*non_ema*', '*.onnx*', '*.msgpack'])"
        )
    return (
        f"model '{name}' has only {', '.join(files)} {where}, and pickles are not read: they can run code; if you "
        f'trust it, convert it once: python -c "from diffusers import DiffusionPipeline as P; {load}'
        f"P.from_pretrained({given}).save_pretrained('{source}-safetensors')\""
    )
