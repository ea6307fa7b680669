"""Images as feature vectors, by the frozen denoiser's own encoder.

Nothing is downloaded, nothing is trained, and it serves every kind of image the model draws: a denoiser that can tell
structure from noise has to encode what distinguishes its images (diffusion features: Baranchuk et al.,
arXiv 2112.03126). What the model itself does not distinguish, these features cannot see either, so numbers compare
between sets of one model, never between models.
"""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from core.chain.schedule import late_level
from core.metrics.networks.extractor import Extractor
from core.model.denoiser import Denoiser

NOISE_FRACTION = 0.05  # the training timestep of the features: late enough that all detail is still there
GRID = 2  # features keep coarse position: a GRID x GRID mean per channel


@torch.no_grad()
def features_of(denoiser: Denoiser, samples: Tensor, batch: int = 64, extractor: Extractor | None = None) -> Tensor:
    """Features of samples x_0 [N, *sample_shape], by the denoiser or, of their images, by another network: [N, F]."""
    if extractor is None:
        return denoiser_features(denoiser, samples, batch)
    parts = (part.to(denoiser.device) for part in torch.split(samples, batch))
    return torch.cat([extractor.embed(denoiser.images(part)) for part in parts])


@torch.no_grad()
def denoiser_features(denoiser: Denoiser, samples: Tensor, batch: int = 64) -> Tensor:
    """Features of samples x_0 [N, *sample_shape]: [N, F] float32, on the CPU.

    The samples are scaled as at NOISE_FRACTION of the training steps, a x_0, without the noise, so that equal
    samples have equal features, whatever their prompts. F counts h and, of a UNet, the skips of h's resolution, each
    channel as a 2x2 grid of means.
    Source: ours.
    """
    t, signal = late_level(denoiser, NOISE_FRACTION)
    parts = (part.to(denoiser.device) for part in torch.split(samples, batch))
    if denoiser.codec is not None and denoiser.use.space == "pixels":  # what the images do not show, is not seen
        parts = (denoiser.x_0(denoiser.images(part)) for part in parts)
    return torch.cat([_encode(denoiser, signal * part, t) for part in parts])


def _encode(denoiser: Denoiser, x: Tensor, t: float) -> Tensor:
    means = [adaptive_avg_pool2d(layer, GRID).flatten(1) for layer in denoiser.maps(x, t)]
    return torch.cat(means, dim=1).float().cpu()


def standardise(features: Tensor, reference: Tensor) -> Tensor:
    """Features [..., F] in standard deviations of a reference [N, F], from its mean.

    A feature that hardly varies in the reference is divided by 1 % of the average deviation instead of its own, so
    that no single one drowns the others.
    """
    deviation = reference.std(dim=0)
    return (features - reference.mean(dim=0)) / deviation.clamp(min=max(0.01 * float(deviation.mean()), 1e-12))
