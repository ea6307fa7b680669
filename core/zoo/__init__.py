"""Models that ship with the project: small, real, made by the scripts in this folder; and what large ones look like."""

from pathlib import Path

MODELS = ("toyfaces", "digits")

# Public models whose configuration is known here, so that a sweep on them is planned without a network. All have the
# architecture of Ho et al. (arXiv 2006.11239) for 256x256 images: 113,673,219 weights.
ARCHITECTURES = {
    f"google/ddpm-{average}{images}-256": "ddpm-256"
    for images in ("celebahq", "church", "bedroom", "cat")
    for average in ("", "ema-")  # of weights
}


def model_folder(name: str) -> Path:
    """The diffusers pipeline folder of an embedded model."""
    return Path(__file__).parent / name


def architecture_folder(model: str) -> Path:
    """A diffusers pipeline folder of one of ARCHITECTURES that holds no weights."""
    return Path(__file__).parent / "architectures" / ARCHITECTURES[model]
