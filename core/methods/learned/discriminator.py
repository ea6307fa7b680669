"""The discriminator: a network that tells unshifted samples of the model from shifted ones.

Its "real" images are unshifted samples of the same frozen model, so fidelity is relative to that model and no data set
is needed. Spectral normalisation (Miyato et al., arXiv 1802.05957) keeps its slope bounded.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Discriminator(nn.Module):
    """A network image [N, C, H, W] -> logit [N], positive where the image looks unshifted."""

    def __init__(self, sample_shape: tuple[int, int, int], width: int = 32, widest: int = 256) -> None:
        super().__init__()
        channels, height, _ = sample_shape
        stages = max(1, math.ceil(math.log2(max(height, 8) / 4)))
        layers: list[nn.Module] = []
        for _ in range(stages):
            layers += [spectral_norm(nn.Conv2d(channels, width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
            channels, width = width, min(2 * width, widest)
        self.body = nn.Sequential(*layers, spectral_norm(nn.Conv2d(channels, 1, 3, padding=1)))
        self.eval()

    @torch.no_grad()
    def renormalise(self) -> None:
        """Run one power iteration of every spectral norm.

        In training mode torch runs one in every forward pass, so the result would depend on how a batch is cut into
        micro-batches. Here one is run per training iteration, and the network is in evaluation mode otherwise.
        """
        self.train()
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):
                norm = layer.get_submodule("parametrizations.weight.0")
                norm.to(layer.get_parameter("parametrizations.weight.original").dtype)  # engines cast no buffers
                _ = layer.weight  # reading the weight runs the parametrisation
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return for each image the mean of the logits of its patches: [N]."""
        scores: Tensor = self.body(images.to(next(self.parameters()).dtype))
        return scores.float().mean(dim=(1, 2, 3))
