"""The models that ship with the project: small trained ones made by these scripts, and architectures of large ones."""

from core.model.catalogue import MODELS, architecture_folder, model_folder

__all__ = ["MODELS", "architecture_folder", "model_folder"]
