"""The discriminator: is this image one the model draws by itself, or one that a shift has damaged?

Its "real" images are unshifted samples of the same frozen model, so that fidelity is relative to that model and no
data set is needed. Spectral normalisation (Miyato et al., arXiv 1802.05957) keeps its slope bounded.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Discriminator(nn.Module):
    """Image [N, C, H, W] -> logit [N]: positive where it looks unshifted."""

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
        """One power iteration of every spectral norm.

        torch would do one in every forward pass in training mode, so that what is learned would depend on how a batch
        is cut into micro-batches. Here it is once an iteration, and the network stays in evaluation mode otherwise.
        """
        self.train()
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):
                norm = layer.get_submodule("parametrizations.weight.0")
                norm.to(layer.get_parameter("parametrizations.weight.original").dtype)  # engines cast no buffers
                _ = layer.weight  # the parametrisation works when it is read
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """The mean over the image of a logit per patch."""
        scores: Tensor = self.body(images.to(next(self.parameters()).dtype))
        return scores.float().mean(dim=(1, 2, 3))
