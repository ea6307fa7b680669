"""Where models come from: a built-in name, a diffusers folder or a hub id, to a network, scheduler and autoencoder.

safetensors only, and only what the package can open; everything else is refused in one sentence.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file
from torch import Tensor

from core.architecture import class_of, empty_network
from core.cuts import CUTS
from core.errors import ModelError, first_line
from core.latents import Codec
from core.quiet import quiet_diffusers
from core.single_file import unpacked
from core.zoo import ARCHITECTURES, MODELS, architecture_folder, model_folder

_WEIGHTS = "diffusion_pytorch_model"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_NETWORKS = ("unet", "transformer")  # where a pipeline keeps what denoises
_CODECS = ("vae", "vqvae")
# Their noise is not that of diffusion with a cumulative alpha, nor of a flow in one straight piece.
_OTHER_NOISE = ("ScoreSde", "KarrasVe", "EDM", "CMStochastic", "VQDiffusion", "UnCLIP", "FlowMatchHeun", "FlowMatchLCM")
_CONVERT = (
    'python -c "from diffusers import DiffusionPipeline as P; '
    "P.from_pretrained('{0}', use_safetensors=False).save_pretrained('{0}-safetensors')\""
)


@dataclass(frozen=True)
class Found:
    """A model's folder, by the name it was asked for."""

    name: str
    folder: Path

    @property
    def network(self) -> Path:
        """The folder of the network; older models keep it at the root."""
        return next((self.folder / part for part in _NETWORKS if (self.folder / part).is_dir()), self.folder)

    @property
    def codec(self) -> Path | None:
        """The folder of the autoencoder, of a latent model."""
        return next((self.folder / part for part in _CODECS if (self.folder / part).is_dir()), None)


def find_model(model: str | Path, weights: bool = True) -> Found:
    """The folder that holds a built-in name, a local folder, a single file, or a hub id (downloaded once).

    "id@revision" is a hub id at a branch, tag or commit. Without `weights` nothing but configuration files is
    downloaded, and of the models whose configuration this package has, nothing at all.
    """
    name = str(model)
    if name in MODELS:
        return Found(name, model_folder(name))
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Found(name, folder)
    if folder.is_file():
        return Found(name, unpacked(folder))
    hub_id, _, revision = name.partition("@")
    if folder.is_absolute() or hub_id.count("/") != 1 or name.startswith(".") or (revision == "" and "@" in name):
        raise ModelError(
            f"model '{model}' is not there: give a built-in name ({', '.join(MODELS)}), a folder in diffusers layout "
            "(unet/ or transformer/, scheduler/), a .safetensors file, or a hub id such as google/ddpm-celebahq-256, "
            "@REVISION pins it"
        )
    if not weights and hub_id in ARCHITECTURES:
        return Found(name, architecture_folder(hub_id))
    return Found(name, _download(hub_id, revision or None, weights))


def _download(hub_id: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    # google/ddpm-* keep the UNet at the repository's root, later models in folders.
    patterns = ["*.json", "*/*.json", "tokenizer*/*"]
    if weights:
        patterns += [f"{_WEIGHTS}.safetensors", f"*/{_WEIGHTS}*.safetensors", "text_encoder*/*.safetensors"]
    try:
        ignored = ["*.fp16.*", "*non_ema*"]
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=ignored))
    except Exception as error:  # the hub client has a dozen exception types; the user has one problem
        what = f"{hub_id} at revision {revision}" if revision else hub_id
        raise ModelError(_unreachable(what, error)) from error


def _unreachable(what: str, error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    told = f"model '{what}' is neither a folder here nor could it be fetched from the hub ({type(error).__name__}): "
    if isinstance(error, GatedRepoError):
        return f"model '{what}' is gated: ask for access on its page of the hub, then `hf auth login` here"
    if isinstance(error, RevisionNotFoundError):
        return f"model '{what}': the hub has no such revision; give a branch, a tag or a commit after @"
    if isinstance(error, RepositoryNotFoundError):
        return f"{told}no such model, or a private one: check the spelling and your access"
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return (
            f"{told}it is not in this machine's cache, and the hub is out of reach: fetch it where there is a network"
        )
    return f"{told}check the spelling, your access and the network, or give a local folder"


def weight_digest(network: torch.nn.Module, *others: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of all weights: two models are the same when this is."""
    return combined_digest(tensors_digest(part.state_dict()) for part in (network, *others))


def combined_digest(digests: Iterable[str]) -> str:
    """That of a model of several parts; of one part its own."""
    found = list(digests)
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """The digest of one part, as it is stored: whatever precision it is then used in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_network(found: Found, dtype: torch.dtype) -> tuple[Any, str]:
    """The network on the CPU, and its weights' digest. Weights that are stored in `dtype` are mapped from their file:
    the processes of a machine share one copy.
    """
    config = read_config(found)
    return _loaded(found, found.network, config, dtype)


def load_codec(found: Found, sample_shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Codec, str] | None:
    """The autoencoder of a latent model and its digest; None for a pixel model."""
    if found.codec is None:
        return None
    config = _checked_config(found, found.codec, weights=True)
    network, digest = _loaded(found, found.codec, config, _codec_dtype(config, dtype))
    return Codec(network, sample_shape), digest


def empty_codec(found: Found, sample_shape: tuple[int, int, int], dtype: torch.dtype) -> Codec | None:
    """The autoencoder's architecture alone."""
    if found.codec is None:
        return None
    config = _checked_config(found, found.codec, weights=False)
    return Codec(empty_network(config, _codec_dtype(config, dtype)), sample_shape)


def codec_factor(found: Found) -> int:
    """How many pixels across a sample's place stands for: 1 for a pixel model."""
    return 1 if found.codec is None else Codec.factor(_checked_config(found, found.codec, weights=False))


def _codec_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """Some autoencoders overflow in float16, and say so."""
    return torch.float32 if dtype == torch.float16 and config.get("force_upcast", True) else dtype


def _loaded(found: Found, folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> tuple[Any, str]:
    try:
        with init_empty_weights(include_buffers=False), quiet_diffusers():  # a buffer may be computed, and in no file
            network = class_of(config).from_config(config)
        stored = {name: weight for file in _weight_files(folder) for name, weight in load_file(file).items()}
        network._fix_state_dict_keys_on_load(stored)  # published models have the old names of attention's parts
        stored = {name: stored[name] for name in network.state_dict() if name in stored}
        cast = {name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in stored.items()}
        missing = network.load_state_dict(cast, strict=False, assign=True).missing_keys
        if missing:
            raise ValueError(f"it lacks {missing[0]}")
        return network.eval(), tensors_digest(stored)
    except Exception as error:
        raise ModelError(f"model '{found.name}' cannot be read from {folder}: {first_line(error)}") from error


def _weight_files(folder: Path) -> list[Path]:
    """One file, or all that an index names."""
    index = folder / f"{_WEIGHTS}.safetensors.index.json"
    if not index.is_file():
        return [folder / f"{_WEIGHTS}.safetensors"]
    return [folder / Path(name).name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def read_config(found: Found, weights: bool = True) -> dict[str, Any]:
    """The network's configuration, checked to be of a kind that has a cut, beside its weights."""
    config = _checked_config(found, found.network, weights)
    kind = config["_class_name"]
    if kind not in CUTS:
        raise ModelError(
            f"model '{found.name}' is a {kind}; its h-space cannot be opened: {', '.join(CUTS)} can be, and a network "
            "of your own (docs/models.md)"
        )
    return config


def _checked_config(found: Found, part: Path, weights: bool) -> dict[str, Any]:
    """The configuration of a part, beside which its weights have to be."""
    names = [f"{_WEIGHTS}.safetensors"]
    there = [part / names[0], part / f"{names[0]}.index.json"]
    missing = [] if (part / "config.json").is_file() else ["config.json"]
    if weights and not any(file.is_file() for file in there):
        pickled = sorted(file.name for file in part.glob("*") if file.suffix in _PICKLES)
        if pickled and not missing:
            raise ModelError(
                f"model '{found.name}' has only {', '.join(pickled)} in {part}, and pickles are not read: they can run "
                f"code; if you trust it, convert it once: {_CONVERT.format(found.folder)}"
            )
        missing += names
    if missing:
        raise ModelError(
            f"model '{found.name}' is incomplete: {part} lacks {' and '.join(missing)} (diffusers layout, safetensors)"
        )
    return _current(_read_json(part / "config.json", found.name))


def _current(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration under the class that diffusers has for it today."""
    if config["_class_name"] != "Transformer2DModel":
        return config
    kinds = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
    return {**config, "_class_name": kinds.get(config.get("norm_type", ""), "Transformer2DModel")}


def load_scheduler(found: Found) -> Any:
    """The scheduler as this package runs it: DDIM for diffusion, and consistency models and flows as themselves."""
    part = found.folder / "scheduler" if (found.folder / "scheduler").is_dir() else found.folder
    if not (part / "scheduler_config.json").is_file():
        raise ModelError(f"model '{found.name}' is incomplete: {part} lacks scheduler_config.json")
    told = _read_json(part / "scheduler_config.json", found.name)
    kind = told["_class_name"]
    if kind.startswith(_OTHER_NOISE):
        raise ModelError(
            f"model '{found.name}' has a {kind}; only diffusion with a cumulative alpha (DDPM and its samplers), "
            "consistency models (LCM) and flow matching (Euler) are supported"
        )
    if odd := next((name for name in ("stochastic_sampling", "invert_sigmas") if told.get(name)), None):
        raise ModelError(f"model '{found.name}' has a flow with {odd}, which is not supported")
    own = kind if kind in ("FlowMatchEulerDiscreteScheduler", "LCMScheduler") else "DDIMScheduler"
    # A clipped x_0 is not differentiable where it matters, and both papers' code turns clipping off.
    plain = {} if own.startswith("Flow") else {"clip_sample": False, "thresholding": False}
    try:
        with quiet_diffusers():
            return getattr(diffusers, own).from_pretrained(part, **plain)
    except Exception as error:
        raise ModelError(
            f"model '{found.name}': the scheduler in {part} cannot be read: {first_line(error)}"
        ) from error


def _read_json(config: Path, name: str) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(config.read_text())
        read["_class_name"]
        return read
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model '{name}': {config} is not a diffusers configuration") from error


def refuse_unsupported(network: Any, scheduler: Any, name: str) -> None:
    """What a configuration alone does not show to be a network that denoises."""
    prediction = scheduler.config.get("prediction_type", "flow")
    if prediction not in ("epsilon", "v_prediction", "sample", "flow"):
        raise ModelError(f"model '{name}' predicts '{prediction}'; allowed: epsilon, v_prediction, sample, or a flow")
    if not type(network).__name__.startswith("UNet2D"):
        return
    if network.mid_block is None:
        raise ModelError(f"model '{name}' has no mid block, hence no h")
    if network.config["in_channels"] != network.config["out_channels"]:
        raise ModelError(
            f"model '{name}' takes {network.config['in_channels']} channels and gives "
            f"{network.config['out_channels']}: it needs an image to begin with (inpainting, upscaling), and only "
            "models that draw by themselves are supported"
        )
    blocks = [*network.down_blocks, *network.up_blocks]
    if network.config["time_embedding_type"] == "fourier" or any(hasattr(block, "skip_conv") for block in blocks):
        raise ModelError(f"model '{name}' is a score-SDE network (NCSN++): only DDPM-type UNets are supported")
