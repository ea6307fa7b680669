"""Attribute predictors of the embedded models: images in, named scores out.

Networks score the attributes of faces. Those of digits are measured in the image, and a network reads the digit.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from core.model.catalogue import MODELS, model_folder
from core.predictors import digit_measures
from core.predictors.attribute_net import AttributeNet
from core.predictors.attributes import Attributes


def predictor_folder(second: bool = False) -> Path:
    """Return the folder of the network that scores faces, which all models of faces share.

    second: of the predictor that only measures.
    """
    return model_folder("toyfaces") / ("second_attributes" if second else "attributes")


def digit_classifier(device: torch.device | str = "cpu") -> Attributes:
    """Return the network that reads the digit in images [N, 1, 32, 32]: a logit for each of ten classes."""
    net = AttributeNet.load(model_folder("mnist") / "classifier")
    return Attributes.of(net.names, _scores_of(net, device))


def embedded_predictor(model: str, device: torch.device | str = "cpu") -> Attributes | None:
    """Return the predictor of an embedded model, or None for any other model. It takes images, never latents."""
    if model not in MODELS:
        return None
    if model == "mnist":
        return Attributes.of(digit_measures.MEASURES, lambda images: digit_measures.measure(images.float()))
    net = AttributeNet.load(predictor_folder())
    return Attributes.of(net.names, _scores_of(net, device))


def second_embedded_predictor(model: str, device: torch.device | str = "cpu") -> Attributes | None:
    """Return the second predictor of an embedded model, which only measures; None for any other model."""
    if model not in MODELS:
        return None
    if model == "mnist":
        return Attributes(digit_measures.MEASURES, lambda images: digit_measures.measure_otherwise(images.float()))
    net = AttributeNet.load(predictor_folder(second=True))
    return Attributes.of(net.names, _scores_of(net, device))


def _scores_of(net: AttributeNet, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """Return the differentiable function images [N, C, H, W] -> scores [N, A] of a network, which moves to `device`."""
    net = net.to(device)

    def score(images: Tensor) -> Tensor:
        scores: Tensor = net(images.float())
        return scores

    return score
