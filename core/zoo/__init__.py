"""Models that ship with the project: small, real, made by the scripts in this folder; and what large ones look like."""

from pathlib import Path

MODELS = ("toyfaces", "digits")

# Public models that a sweep is planned on without a network. Ho et al. (arXiv 2006.11239) give 114 million weights for
# their CelebA-HQ and LSUN models; this architecture has 113,673,219. A trial reads the model's own configuration.
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
