"""Models that ship with the project: small, real, made by the scripts in this folder; and what large ones look like."""

from core.model.catalogue import MODELS, architecture_folder, model_folder

__all__ = ["MODELS", "architecture_folder", "model_folder"]
