"""The reconstructor: a network that predicts the direction and the magnitude from an image and its shifted version.

It has two heads on one convolutional body (Voynov & Babenko, arXiv 2002.03754, for GANs; Zhang et al., arXiv
2310.09912, for diffusion models). Its inputs are the image and the *difference*, each scaled to unit size: a small
shift changes an image by a few grey levels, which would be lost in the image without amplification. In place of images
it can be given features of them, as maps (core.methods.learned.looks).
"""

import math

import torch
from torch import Tensor, nn


def convolutional_body(channels: int, size: int, width: int, widest: int = 256) -> tuple[nn.Sequential, int]:
    """Return (a body of stride-2 stages from size x size down to 4x4 or less, the length of its flat output)."""
    stages = max(1, math.ceil(math.log2(max(size, 8) / 4)))
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
    for _ in range(stages):
        wider = min(2 * width, widest)
        layers += [nn.Conv2d(width, wider, 4, stride=2, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]
        width = wider
    # The heads get few features: with thousands, one step of Adam moves a head's output further than its range.
    layers += [nn.AdaptiveAvgPool2d(4), nn.Conv2d(width, 32, 1), nn.GroupNorm(8, 32), nn.SiLU(), nn.Flatten()]
    return nn.Sequential(*layers), 16 * 32


def dense_body(features: int, width: int = 256) -> tuple[nn.Sequential, int]:
    """Return (a body for features without places [N, F, 1, 1], the length of its flat output)."""
    layers = nn.Flatten(), nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
    return nn.Sequential(*layers), width


class Reconstructor(nn.Module):
    """A network (x_0, shifted x_0), both [N, C, H, W] -> (logits [N, K], magnitude [N] in units of the largest one)."""

    image_rms: Tensor
    difference_rms: Tensor

    def __init__(self, shape: tuple[int, int, int], directions: int, width: int = 32) -> None:
        super().__init__()
        channels, height, _ = shape
        places = height > 1
        self.body, features = convolutional_body(2 * channels, height, width) if places else dense_body(2 * channels)
        self.which = nn.Sequential(nn.Linear(features, 128), nn.SiLU(), nn.Linear(128, directions))
        self.strength = nn.Sequential(nn.Linear(features, 128), nn.SiLU(), nn.Linear(128, 1))
        self.register_buffer("image_rms", torch.ones(()))
        self.register_buffer("difference_rms", torch.zeros(()))  # 0: not calibrated yet

    def forward(self, x_0: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits [N, K], magnitude [N]), both float32."""
        dtype = next(self.parameters()).dtype
        difference = shifted.float() - x_0.float()
        if self.training and self.difference_rms == 0:
            self.calibrate(x_0, shifted)
        amplified = difference / self.difference_rms.float().clamp(min=1e-6)
        image = x_0.float() / self.image_rms.float().clamp(min=1e-6)
        features = self.body(torch.cat([image, amplified], dim=1).to(dtype))
        return self.which(features).float(), self.strength(features)[:, 0].float()

    @torch.no_grad()
    def calibrate(self, x_0: Tensor, shifted: Tensor) -> None:
        """Set the units of image and difference to their root mean squares over these pairs.

        Without a call, `forward` does this with the first training batch.
        """
        self.image_rms.copy_(x_0.float().square().mean().sqrt())
        self.difference_rms.copy_((shifted.float() - x_0.float()).square().mean().sqrt())
