"""Images as feature vectors, by the frozen denoiser's own encoder.

Nothing is downloaded, nothing is trained, and it serves every kind of image the model draws: a denoiser that can tell
structure from noise has to encode what distinguishes its images (diffusion features: Baranchuk et al.,
arXiv 2112.03126). What the model itself does not distinguish, these features cannot see either, so numbers compare
between sets of one model, never between models.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from core.denoiser import Denoiser

NOISE_FRACTION = 0.05  # the training timestep of the features: late enough that all detail is still there
GRID = 2  # features keep coarse position: a GRID x GRID mean per channel


@torch.no_grad()
def denoiser_features(denoiser: Denoiser, images: Tensor, batch: int = 64) -> Tensor:
    """Features of images [N, *sample_shape] in [-1, 1]: [N, F] float32, on the CPU.

    The images are scaled as at NOISE_FRACTION of the training steps, sqrt(a_t) x, without the noise, so that equal
    images have equal features. F counts h and the skips of h's resolution, each channel as a 2x2 grid of means.
    Source: ours.
    """
    _, alphas, _ = denoiser.noise_levels(1)
    t = min(round(NOISE_FRACTION * len(alphas)), len(alphas) - 1)
    parts = [
        _encode(denoiser, math.sqrt(alphas[t]) * part.to(denoiser.device), t) for part in torch.split(images, batch)
    ]
    return torch.cat(parts)


def _encode(denoiser: Denoiser, x: Tensor, t: int) -> Tensor:
    features = denoiser.encode(x, t)
    deepest = [skip for skip in features.skips if skip.shape[-2:] == features.skips[-1].shape[-2:]]
    means = [adaptive_avg_pool2d(layer, GRID).flatten(1) for layer in (features.h, *deepest)]
    return torch.cat(means, dim=1).float().cpu()


def standardise(features: Tensor, reference: Tensor) -> Tensor:
    """Features [..., F] in standard deviations of a reference [N, F], from its mean.

    A feature that hardly varies in the reference is divided by 1 % of the average deviation instead of its own, so
    that no single one drowns the others.
    """
    deviation = reference.std(dim=0)
    return (features - reference.mean(dim=0)) / deviation.clamp(min=max(0.01 * float(deviation.mean()), 1e-12))
