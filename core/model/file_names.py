"""The folders of a model in diffusers layout, and the names of the files with its weights."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

WEIGHTS = "diffusion_pytorch_model"
TRANSFORMERS_WEIGHTS = "model"
_INDEX = "model_index.json"  # in the folder of a whole model
NETWORKS = ("unet", "transformer")  # folders of the network that denoises
AVERAGED = "unet_ema"  # of a training checkpoint: the moving average of the weights, beside those in unet/
CODECS = ("vae", "vqvae")
_VARIANTS = ("fp32", "fp16", "bf16")  # the usual ones, best first
_PART = r"(?:-\d+-of-\d+)?"


def weight_names(stem: str = WEIGHTS) -> tuple[str, ...]:
    """Return the usual file names, in the order in which they are looked for: of no variant first, an index first."""
    return tuple(name for variant in ("", *_VARIANTS) for name in _names_of(stem, variant))


def weights_at(part: Path, stem: str = WEIGHTS) -> Path | None:
    """Return the file with a part's weights, or the index that names several; None where there is neither.

    Weights of a variant ("fp16", "bf16", or any other) are taken only where there are no others.
    """
    variant = best_variant([file.name for file in part.glob(f"{stem}.*")], stem)
    names = (*_names_of(stem, ""), *(_names_of(stem, variant) if variant else ()))
    return next((part / name for name in names if (part / name).is_file()), None)


def variant_of(name: str, stem: str = WEIGHTS) -> str | None:
    """Return the variant of a file of weights, of one of its parts, or of an index; None for any other file."""
    found = re.fullmatch(
        rf"{stem}(?:\.safetensors\.index\.(\w+)\.json|\.(\w+){_PART}\.safetensors|{_PART}\.(\w+)\.safetensors)", name
    )
    return found and next(filter(None, found.groups()))


def best_variant(names: Iterable[str], stem: str = WEIGHTS) -> str | None:
    """Return the variant to take among these files; None where there is none."""
    variants = {variant for name in names if (variant := variant_of(name, stem))}
    known = {variant: place for place, variant in enumerate(_VARIANTS)}
    return min(variants, key=lambda each: ("non_ema" in each, known.get(each, len(known)), each), default=None)


def _names_of(stem: str, variant: str) -> tuple[str, str]:
    """Return the names of the index and of the one file of a variant; "" is none."""
    dotted = f".{variant}" if variant else ""
    return f"{stem}.safetensors.index{dotted}.json", f"{stem}{dotted}.safetensors"


def weight_files(part: Path) -> list[Path]:
    """Return the files with a part's weights. Raises OSError, KeyError or ValueError where the index cannot be read."""
    stored = weights_at(part)
    if stored is None or stored.suffix != ".json":
        return [stored or part / f"{WEIGHTS}.safetensors"]
    return [part / Path(name).name for name in sorted(set(json.loads(stored.read_text())["weight_map"].values()))]


def misplaced(path: Path) -> str | None:
    """Return what is at `path` in place of a model's folder: a part of one, or the hub's cache; else None."""
    if (path / "snapshots").is_dir() and (path / "blobs").is_dir():
        hub_id = path.name.removeprefix("models--").replace("--", "/")
        return f"is the hub's cache of '{hub_id}': give that name, or one of the folders in {path / 'snapshots'}"
    part = path.parent if path.is_file() else path
    whole = part if path.name == _INDEX else part.parent
    own = any((part / name).exists() for name in (_INDEX, "scheduler_config.json"))
    if path.name != _INDEX and (own or not (part / "config.json").is_file()):
        return None
    return f"is a part of the model in {whole}: give that folder" if (whole / _INDEX).is_file() else None


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
