"""Use image models of `transformers` (core.predictors.vision) as feature networks: CLIP, DINO, DINOv2, others."""

import torch

from core.metrics.networks.extractor import Extractor
from core.predictors.vision import open_vision


def load_features(where: str, device: torch.device | str = "cpu") -> Extractor:
    """Open a vision model as an extractor of its image embeddings. Raises what `open_vision` raises."""
    return load_vision(where, "feature network", device)


def load_vision(where: str, role: str, device: torch.device | str = "cpu") -> Extractor:
    """Open the model of a folder or hub id; role: how messages call it. Raises what `open_vision` raises."""
    vision = open_vision(where, role, device)
    return Extractor(vision.name, vision.embed)
