"""Models that ship with the project: small, real, made by the scripts in this folder; and what large ones look like."""

from pathlib import Path

MODELS = ("toyfaces", "digits", "toyfaces-latent", "toyfaces-text")

# Public models that a sweep is planned on without a network. Ho et al. (arXiv 2006.11239) give 114 million weights for
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


def model_folder(name: str) -> Path:
    """The diffusers pipeline folder of an embedded model."""
    return Path(__file__).parent / name


def architecture_folder(model: str) -> Path:
    """A diffusers pipeline folder of one of ARCHITECTURES that holds no weights."""
    return Path(__file__).parent / "architectures" / ARCHITECTURES[model]
