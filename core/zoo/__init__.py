"""Models that ship with the project: small, real, made by the scripts in this folder."""

from pathlib import Path

MODELS = ("toyfaces", "digits")


def model_folder(name: str) -> Path:
    """The diffusers pipeline folder of an embedded model."""
    return Path(__file__).parent / name
