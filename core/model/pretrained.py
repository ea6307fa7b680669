"""Find a model by its name, and load its network, scheduler and autoencoder.

A name is a built-in name, a diffusers folder, a single file or a hub id. Weights are read from safetensors only; every
model that the package cannot open is refused in one sentence.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file
from torch import Tensor

from core.errors import AbsentModelError, ModelError, UserError, first_line
from core.files import PICKLES, why_unreadable
from core.model.architecture import class_of, empty_network
from core.model.catalogue import ARCHITECTURES, MODELS, architecture_folder, at_path, missing_model, origin_of
from core.model.catalogue import model_folder as built_in_folder
from core.model.codec import Codec
from core.model.cuts import CUTS
from core.model.file_names import (
    AVERAGED,
    CODECS,
    NETWORKS,
    TRANSFORMERS_WEIGHTS,
    WEIGHTS,
    misplaced,
    only_pickles,
    variant_of,
    weight_files,
    weights_at,
)
from core.model.hub import download
from core.model.schedulers import PLAIN, as_run, refuse_kind
from core.model.single_file import configured_as, unpacked, unpacked_before
from core.model.stored_weights import check_names
from core.model.unsupported import refuse_unsupported
from core.quiet import quiet_diffusers

_SCHEDULER = "scheduler_config.json"


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder, and the name by which it was asked for."""

    name: str
    folder: Path

    @property
    def network(self) -> Path:
        """The folder of the network; the root for older models. Of a training checkpoint the averaged weights."""
        averaged = self.folder / AVERAGED
        if (averaged / "config.json").is_file() and weights_at(averaged):
            return averaged
        return next((self.folder / part for part in NETWORKS if (self.folder / part).is_dir()), self.folder)

    @property
    def scheduler(self) -> Path:
        """The folder of the scheduler; the root for older models. That of a training checkpoint lies above it."""
        own = self.folder / "scheduler"
        own = own if own.is_dir() else self.folder
        above = self._above
        return own if (own / _SCHEDULER).is_file() or above is None else above / "scheduler"

    @property
    def _above(self) -> Path | None:
        """The folder above that has the scheduler of a training: of RUN/checkpoint-500, or of its unet."""
        parents = self.folder.resolve().parents[: 2 if self.folder.name in (*NETWORKS, AVERAGED) else 1]
        return next((parent for parent in parents if (parent / "scheduler" / _SCHEDULER).is_file()), None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of what is taken: a sentence each, without a full stop."""
        notes = []
        if self.network.name == AVERAGED and self.network != self.folder:
            instead = self.folder / "unet"
            notes.append(
                f"model '{self.name}': the averaged weights (EMA) in {self.network} are taken; for those of the last "
                f"step give {instead} as the model"
            )
        if not self.scheduler.is_relative_to(self.folder):
            notes.append(f"model '{self.name}' has no scheduler of its own: that in {self.scheduler} is taken")
        return tuple(notes)

    @property
    def codec(self) -> Path | None:
        """The folder of the autoencoder; None for a pixel model."""
        return next((self.folder / part for part in CODECS if (self.folder / part).is_dir()), None)

    @property
    def variant(self) -> str | None:
        """diffusers' variant, such as "fp16", where weights of a text encoder exist in no other, else None."""
        stored = [weights_at(part, TRANSFORMERS_WEIGHTS) for part in sorted(self.folder.glob("text_encoder*"))]
        return next((found for file in stored if file and (found := variant_of(file.name, TRANSFORMERS_WEIGHTS))), None)


def find_model(model: str | Path, weights: bool = True) -> ModelFolder:
    """Return the folder of a built-in name, a local folder, a single file, or a hub id (downloaded once).

    "id@revision" is a hub id at a branch, tag or commit. With weights=False only configuration files are read or
    downloaded, and nothing is downloaded for models whose configuration this package has. A single file that is not
    unpacked yet then gets the configuration that unpacking would give it. Raises AbsentModelError for a name that is
    none of these.
    """
    name, there = str(model), at_path(str(model))
    if name in MODELS:
        return ModelFolder(name, built_in_folder(name))
    if there is not None and (what := misplaced(Path(name).expanduser())):
        raise ModelError(f"model '{name}' {what}")
    if there == "folder":
        found = ModelFolder(name, Path(name).expanduser())
        _refuse_part(found)
        return found
    if there == "file":
        path = Path(name).expanduser()
        return ModelFolder(
            name, unpacked(path) if weights else unpacked_before(path) or _of_hub(configured_as(path), False)
        )
    if origin_of(name) != "hub":
        raise AbsentModelError(missing_model(name))
    return ModelFolder(name, _of_hub(name, weights))


def _refuse_part(model_folder: ModelFolder) -> None:
    """Raise ModelError for one network of a model whose other networks lie in the folder above."""
    folder, above = model_folder.folder, model_folder.scheduler.parent
    if model_folder.scheduler.is_relative_to(folder):
        return
    parts = sorted(path.name for name in (*CODECS, "text_encoder*") for path in above.glob(name) if path.is_dir())
    if lacking := [f"{part}/" for part in parts if not (folder / part).is_dir()]:
        raise ModelError(
            f"model '{model_folder.name}' is a part of that in {above}, whose {', '.join(lacking)} it lacks: give that "
            "folder as the model, or a copy of it with these weights in the place of its own"
        )


def _of_hub(name: str, weights: bool) -> Path:
    hub_id, _, revision = name.partition("@")
    if not weights and hub_id in ARCHITECTURES:
        return architecture_folder(hub_id)
    return download(hub_id, revision or None, weights)


def weight_digest(network: torch.nn.Module, *others: torch.nn.Module) -> str:
    """Return the SHA-256 over the names, shapes and bytes of all weights, which identifies a model."""
    return combined_digest(tensors_digest(part.state_dict()) for part in (network, *others))


def combined_digest(digests: Iterable[str]) -> str:
    """Return the digest of a model of several parts; for one part, that part's own digest."""
    listed = list(digests)
    return listed[0] if len(listed) == 1 else hashlib.sha256("".join(listed).encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of one part. For stored weights it does not depend on the precision in which they are used.

    Raises ModelError for weights on torch's meta device, where accelerate's offloading leaves them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if tensor.is_meta:
            raise ModelError(
                f"the weight {name} is not in memory: take sequential offloading off the network before it is given"
            )
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_network(model_folder: ModelFolder, dtype: torch.dtype) -> tuple[Any, str]:
    """Load the network on the CPU, and return it with the digest of its weights.

    Weights that are stored in `dtype` are mapped from their file, so that the processes of a machine share one copy.
    """
    config = read_config(model_folder)
    return _loaded(model_folder, model_folder.network, config, dtype)


def empty_network_of(model_folder: ModelFolder, dtype: torch.dtype) -> Any:
    """Return the network's architecture, without its weights."""
    return _empty(model_folder, model_folder.network, read_config(model_folder, weights=False), dtype)


def load_codec(
    model_folder: ModelFolder, sample_shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Codec, str] | None:
    """Load the autoencoder of a latent model, and return it with its digest; None for a pixel model."""
    if model_folder.codec is None:
        return None
    config = _codec_config(model_folder, model_folder.codec, weights=True)
    network, digest = _loaded(model_folder, model_folder.codec, config, _codec_dtype(config, dtype))
    return _codec(model_folder, network, sample_shape), digest


def empty_codec(model_folder: ModelFolder, sample_shape: tuple[int, int, int], dtype: torch.dtype) -> Codec | None:
    """Return the autoencoder's architecture, without its weights; None for a pixel model."""
    if model_folder.codec is None:
        return None
    config = _codec_config(model_folder, model_folder.codec, weights=False)
    return _codec(
        model_folder, _empty(model_folder, model_folder.codec, config, _codec_dtype(config, dtype)), sample_shape
    )


def codec_factor(model_folder: ModelFolder) -> int:
    """Return the number of pixels across one place of a sample: 1 for a pixel model."""
    return (
        1
        if model_folder.codec is None
        else Codec.factor(_codec_config(model_folder, model_folder.codec, weights=False))
    )


def _codec_config(model_folder: ModelFolder, part: Path, weights: bool) -> dict[str, Any]:
    """Return an autoencoder's configuration.

    A VQModel saved without a scaling factor was trained without one, but diffusers would give it Stable Diffusion's.
    """
    config = _checked_config(model_folder, part, weights)
    _refuse_without_entry(model_folder, config, "block_out_channels")
    return {"scaling_factor": 1.0, **config} if config["_class_name"] == "VQModel" else config


def _codec(model_folder: ModelFolder, network: Any, sample_shape: tuple[int, int, int]) -> Codec:
    _refuse_without_entry(model_folder, {**network.config, "_class_name": type(network).__name__}, "out_channels")
    return Codec(network, sample_shape)


def _refuse_without_entry(model_folder: ModelFolder, config: Mapping[str, Any], needed: str) -> None:
    """Raise ModelError for an autoencoder whose configuration lacks an entry that gives the size of its images."""
    if not config.get(needed):
        raise ModelError(
            f"model '{model_folder.name}' has a {config['_class_name']} whose configuration names no {needed}: "
            "autoencoders are supported that do, such as AutoencoderKL and VQModel"
        )


def _codec_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """Return float32 in place of float16 for autoencoders that overflow in float16, as their configuration says."""
    return torch.float32 if dtype == torch.float16 and config.get("force_upcast", True) else dtype


def _loaded(model_folder: ModelFolder, folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> tuple[Any, str]:
    try:
        with init_empty_weights(include_buffers=False), quiet_diffusers():  # buffers may be computed, and in no file
            network = class_of(config).from_config(config)
        refuse_unsupported(network, model_folder.name)  # before weights are held against what it is not
        files = weight_files(folder)
        stored = {name: weight for file in files for name, weight in load_file(file).items()}
        network._fix_state_dict_keys_on_load(stored)  # published models have old names in attention
        check_names(stored, network, files)
        stored = {name: stored[name] for name in network.state_dict()}
        cast = {name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in stored.items()}
        network.load_state_dict(cast, assign=True)
        return network.eval(), tensors_digest(stored)
    except UserError:
        raise
    except Exception as error:
        raise ModelError(
            f"model '{model_folder.name}' cannot be read from {folder}: {why_unreadable(folder, error)}"
        ) from error


def _empty(model_folder: ModelFolder, folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    try:
        return empty_network(config, dtype)
    except Exception as error:
        raise ModelError(
            f"model '{model_folder.name}' cannot be built as {folder / 'config.json'} has it: {first_line(error)}"
        ) from error


def read_config(model_folder: ModelFolder, weights: bool = True) -> dict[str, Any]:
    """Return the network's configuration. Raises ModelError where its kind has no cut, or its weights are missing."""
    config = _checked_config(model_folder, model_folder.network, weights)
    kind = config["_class_name"]
    if kind not in CUTS:
        raise ModelError(
            f"model '{model_folder.name}' is a {kind}; its h-space cannot be opened: {', '.join(CUTS)} can be, and a "
            "network of your own (docs/models.md)"
        )
    return config


def _checked_config(model_folder: ModelFolder, part: Path, weights: bool) -> dict[str, Any]:
    """Return the configuration of a part. Raises ModelError where it is missing, or weights are needed and missing."""
    missing = [] if (part / "config.json").is_file() else ["config.json"]
    if weights and weights_at(part) is None:
        if (pickled := _pickled(part)) and not missing:
            raise ModelError(only_pickles(model_folder.name, pickled, f"in {part}", model_folder.folder))
        missing.append(f"{WEIGHTS}.safetensors")
    if missing:
        raise _incomplete(model_folder, part, missing)
    return _current(_read_json(part / "config.json", model_folder.name))


def _incomplete(model_folder: ModelFolder, where: Path, missing: Iterable[str]) -> ModelError:
    return ModelError(
        f"model '{model_folder.name}' is incomplete: {where} lacks {' and '.join(missing)} "
        "(diffusers layout, safetensors)"
    )


def refuse_incomplete(model_folder: ModelFolder) -> None:
    """Raise ModelError where tokenizers or text encoders that the model's index names are missing or only pickles."""
    try:
        index = json.loads((model_folder.folder / "model_index.json").read_text()).items()
    except (OSError, ValueError, AttributeError):  # the code that needs the index reports it
        return
    listed = [name for name, kind in index if isinstance(kind, list) and any(kind)]
    named = [name for name in listed if name.startswith(("tokenizer", "text_encoder"))]
    if missing := [f"{name}/" for name in named if not (model_folder.folder / name).is_dir()]:
        raise _incomplete(model_folder, model_folder.folder, missing)
    for part in (model_folder.folder / name for name in named if name.startswith("text_encoder")):
        if weights_at(part, TRANSFORMERS_WEIGHTS) is None and (pickled := _pickled(part)):
            raise ModelError(only_pickles(model_folder.name, pickled, f"in {part}", model_folder.folder))


def _pickled(part: Path) -> list[str]:
    return sorted(file.name for file in part.glob("*") if file.suffix in PICKLES)


def _current(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration under today's diffusers class: Transformer2DModel has been split into several."""
    if config["_class_name"] != "Transformer2DModel":
        return config
    kinds = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
    return {**config, "_class_name": kinds.get(config.get("norm_type", ""), "Transformer2DModel")}


def load_scheduler(model_folder: ModelFolder) -> Any:
    """Load the scheduler that this package runs for the model (core.model.schedulers)."""
    part = model_folder.scheduler
    if not (part / _SCHEDULER).is_file():
        raise ModelError(f"model '{model_folder.name}' is incomplete: {part} lacks {_SCHEDULER}")
    config = _read_json(part / _SCHEDULER, model_folder.name)
    refuse_kind(config["_class_name"], model_folder.name)
    try:
        with quiet_diffusers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from diffusers' own computation of tables
            scheduler = class_of(config).from_pretrained(part, **PLAIN)
    except Exception as error:
        raise ModelError(
            f"model '{model_folder.name}': the scheduler in {part} cannot be read: {first_line(error)}"
        ) from error
    return as_run(scheduler, model_folder.name)


def _read_json(config: Path, name: str) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(config.read_text())
        if not isinstance(read["_class_name"], str):
            raise TypeError
        return read
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model '{name}': {config} is not a diffusers configuration") from error
