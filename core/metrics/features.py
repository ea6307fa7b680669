"""Turn images into feature vectors with the frozen denoiser's own encoder.

This needs no download and no training, and works for every kind of image that the model draws (core.chain.sample_maps).
Differences that the model does not encode are invisible in these features. Compare numbers between sets of one model
only, never between models.
"""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from core.chain.sample_maps import sample_maps
from core.model.denoiser import Denoiser
from core.predictors.vision import Extractor

GRID = 2  # each channel becomes a GRID x GRID grid of means, which keeps coarse position


@torch.no_grad()
def features_of(denoiser: Denoiser, samples: Tensor, batch: int = 64, extractor: Extractor | None = None) -> Tensor:
    """Return features [N, F] of samples x_0 [N, *sample_shape]: by the denoiser, or by `extractor` on their images."""
    if extractor is None:
        return denoiser_features(denoiser, samples, batch)
    parts = (part.to(denoiser.device) for part in torch.split(samples, batch))
    return torch.cat([extractor.embed(denoiser.images(part)) for part in parts])


@torch.no_grad()
def denoiser_features(denoiser: Denoiser, samples: Tensor, batch: int = 64) -> Tensor:
    """Return features of samples x_0 [N, *sample_shape] by the denoiser: [N, F] float32, on the CPU.

    Equal samples have equal features, whatever their prompts. F covers the maps of `sample_maps`, each channel as a 2x2
    grid of means. Source: ours.
    """
    parts = (part.to(denoiser.device) for part in torch.split(samples, batch))
    if denoiser.codec is not None and denoiser.use.space == "pixels":  # drop what decoded images do not show
        parts = (denoiser.x_0(denoiser.images(part)) for part in parts)
    return torch.cat([_encode(denoiser, part) for part in parts])


def _encode(denoiser: Denoiser, x_0: Tensor) -> Tensor:
    means = [adaptive_avg_pool2d(layer, GRID).flatten(1) for layer in sample_maps(denoiser, x_0)]
    return torch.cat(means, dim=1).float().cpu()


def standardise(features: Tensor, reference: Tensor) -> Tensor:
    """Return features [..., F], minus the mean of a reference [N, F], in standard deviations of the reference."""
    return (features - reference.mean(dim=0)) / deviation_of(reference)


def deviation_of(reference: Tensor) -> Tensor:
    """Return the standard deviation of each feature [F] over a reference [N, F].

    It is taken as at least 1 % of the average deviation, so that a feature that hardly varies in the reference does not
    dominate the others.
    """
    deviation = reference.std(dim=0)
    return deviation.clamp(min=max(0.01 * float(deviation.mean()), 1e-12))
