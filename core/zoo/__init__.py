"""The models that ship with the project: small trained ones, made by the scripts in this folder, and architectures."""

from core.model.catalogue import MODELS, architecture_folder, model_folder

__all__ = ["MODELS", "architecture_folder", "model_folder"]
