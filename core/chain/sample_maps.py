"""The frozen denoiser's feature maps of finished samples, at a low noise level.

To tell structure from noise, a denoiser has to encode what distinguishes its images (diffusion features: Baranchuk et
al., arXiv 2112.03126). The metrics read their features here, and trained methods what they ask of a shifted sample.
"""

from torch import Tensor

from core.chain.schedule import level_at
from core.model.denoiser import Denoiser

NOISE_FRACTION = 0.05  # the maps' timestep, as a share of the training steps: low noise, so that all detail remains


def sample_maps(denoiser: Denoiser, x_0: Tensor) -> list[Tensor]:
    """Return the maps [N, C, H, W] of samples x_0 [N, *sample_shape]: h and, for a UNet, the skips of its resolution.

    The samples are scaled as at NOISE_FRACTION of the training steps, a x_0, but without noise, so that equal samples
    have equal maps. Differentiable.
    """
    t, signal = level_at(denoiser, NOISE_FRACTION)
    return denoiser.maps(signal * x_0, t)
