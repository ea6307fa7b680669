"""What a model's name refers to, without importing torch: for code that plans, launches or records sweeps.

Names are looked up in the same order as in core.model.denoiser and core.model.pretrained: models that a package
registers before built-in ones, and local ones before the hub.
"""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

MODELS = ("toyfaces", "mnist", "toyfaces-latent", "toyfaces-text")
_REPLACED = {"digits": "mnist"}  # built-in models of earlier versions

# Public models for which a sweep can be planned offline. Ho et al. (arXiv 2006.11239) give 114 million weights for
# their CelebA-HQ and LSUN models; this architecture has 113,673,219. A trial reads the model's own configuration.
ARCHITECTURES = {
    f"google/ddpm-{average}{images}-256": "ddpm-256"
    for images in ("celebahq", "church", "bedroom", "cat")
    for average in ("", "ema-")  # of weights
} | {
    "CompVis/ldm-celebahq-256": "ldm-celebahq-256",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd-1.5",
    "stabilityai/stable-diffusion-2-1": "sd-2.1",
    "stabilityai/sd-turbo": "sd-turbo",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/sdxl-turbo": "sdxl-turbo",
    "SimianLuo/LCM_Dreamshaper_v7": "lcm-dreamshaper",
    "facebook/DiT-XL-2-256": "dit-xl-2-256",
    "PixArt-alpha/PixArt-XL-2-512x512": "pixart-xl-2-512",
    "stabilityai/stable-diffusion-3-medium-diffusers": "sd3-medium",
    "black-forest-labs/FLUX.1-dev": "flux-dev",
    "black-forest-labs/FLUX.1-schnell": "flux-schnell",
}

_ZOO = Path(__file__).parents[1] / "zoo"

Origin = Literal["built-in", "registered", "folder", "file", "hub"]

GROUP = "h_space.models"  # of entry points: a model's name -> load(dtype, device, use) -> Denoiser
_LONGEST = 96  # characters of a hub id, at most
SINGLE_FILES = (".safetensors", ".ckpt")  # no hub id ends with one of these


def model_folder(name: str) -> Path:
    """Return the diffusers pipeline folder of an embedded model."""
    return _ZOO / name


def architecture_folder(model: str) -> Path:
    """Return the diffusers pipeline folder, without weights, of one of ARCHITECTURES."""
    return _ZOO / "architectures" / ARCHITECTURES[model]


def origin_of(name: str) -> Origin:
    """Return where a model of this name comes from, whether it exists or not.

    A name that can be nothing else counts as a folder, which is then missing.
    """
    if entry_points(group=GROUP, name=name):
        return "registered"
    if name in MODELS:
        return "built-in"
    if (there := at_path(name)) is not None:
        return there
    path = Path(name)
    if path.suffix in SINGLE_FILES:
        return "file"
    hub_id = name.partition("@")[0]
    elsewhere = path.is_absolute() or name.startswith((".", "~")) or name.endswith("@")
    elsewhere = elsewhere or hub_id.count("/") != 1 or len(hub_id) > _LONGEST
    return "folder" if elsewhere else "hub"


def missing_model(name: str) -> str:
    """Return the sentence for a name that is no model on this machine, and can be none of the hub."""
    if name in _REPLACED:
        return f"model '{name}' is not part of this version: '{_REPLACED[name]}' took its place"
    return (
        f"model '{name}' is not there: give a built-in name ({', '.join(MODELS)}), a folder in diffusers layout "
        "(unet/ or transformer/, scheduler/), a .safetensors file, or a hub id such as google/ddpm-celebahq-256, "
        "@REVISION pins it"
    )


def at_path(name: str) -> Literal["folder", "file"] | None:
    """Return whether a folder or a file lies at this path; None where there is neither."""
    try:
        path = Path(name).expanduser()
        return "folder" if path.is_dir() else "file" if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long for a path, an unknown user's home, a zero byte
        return None
