"""Attribute predictors of the embedded models: images in, named scores out."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from core.model.catalogue import MODELS, model_folder
from core.predictors import digit_measures
from core.predictors.attribute_net import AttributeNet
from core.predictors.attributes import Attributes


def predictor_folder(model: str, second: bool = False) -> Path:
    """Return the folder of an embedded model's predictor; models that draw the same kind of images share one.

    second: of the predictor that only measures; the models that draw faces have one.
    """
    owner = "toyfaces" if model.startswith("toyfaces") else model
    return model_folder(owner) / ("second_attributes" if second else "attributes")


def embedded_predictor(model: str, device: torch.device | str = "cpu") -> Attributes | None:
    """Return the predictor of an embedded model, or None for any other model. It takes images, never latents."""
    if model not in MODELS:
        return None
    net = AttributeNet.load(predictor_folder(model))
    score = _scores_of(net, device)
    if model != "digits":
        return Attributes.of(net.names, score)

    def score_and_measure(images: Tensor) -> Tensor:
        return torch.cat([score(images), digit_measures.measure(images.float())], dim=1)

    return Attributes.of(net.names + digit_measures.MEASURES, score_and_measure)


def second_embedded_predictor(model: str, device: torch.device | str = "cpu") -> Attributes | None:
    """Return the second predictor of a model that draws faces, which only measures; None for any other model."""
    if model not in MODELS or not model.startswith("toyfaces"):
        return None
    net = AttributeNet.load(predictor_folder(model, second=True))
    return Attributes.of(net.names, _scores_of(net, device))


def _scores_of(net: AttributeNet, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """Return the differentiable function images [N, C, H, W] -> scores [N, A] of a network, which moves to `device`."""
    net = net.to(device)

    def score(images: Tensor) -> Tensor:
        scores: Tensor = net(images.float())
        return scores

    return score
