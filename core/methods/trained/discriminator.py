"""The discriminator, a network that tells unshifted samples of the model from shifted ones, and the losses of both.

Its "real" images are unshifted samples of the same frozen model, so fidelity is relative to that model and no data set
is needed. It has two kinds of parts: a network of the image, and a small head on each of the frozen denoiser's maps of
the sample (after Sauer et al., arXiv 2111.01007, who put heads on a pretrained classifier's maps). Spectral
normalisation (Miyato et al., arXiv 1802.05957) bounds the slope of every layer but the last of a head. The adversary
is that of Zhang et al. (arXiv 2310.09912).
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import spectral_norm

from core.chain.sample_maps import sample_maps
from core.model.denoiser import Denoiser


def map_channels(denoiser: Denoiser) -> tuple[int, ...]:
    """Return the channels of each of the denoiser's maps of a sample, without running it."""
    blueprint = denoiser.blueprint()
    x_0 = torch.empty(1, *denoiser.sample_shape, dtype=denoiser.chain_dtype, device="meta")
    with torch.no_grad():
        return tuple(each.shape[1] for each in sample_maps(blueprint, x_0))


def fidelity_loss(logit_shifted: Tensor) -> Tensor:
    """Return the non-saturating logistic loss of the generator: shifted samples [N] should look unshifted."""
    return softplus(-logit_shifted).mean()


def discriminator_loss(logit_plain: Tensor, logit_shifted: Tensor) -> Tensor:
    """Return the logistic loss of the discriminator on the logits of unshifted [N] and shifted [N] samples."""
    return softplus(-logit_plain).mean() + softplus(logit_shifted).mean()


class Discriminator(nn.Module):
    """A network (image [N, C, H, W], maps [N, C', H', W'] each) -> logit [N], positive where it looks unshifted."""

    def __init__(
        self,
        sample_shape: tuple[int, int, int],
        channels_of_maps: Sequence[int] = (),
        width: int = 32,
        widest: int = 256,
    ) -> None:
        super().__init__()
        channels, height, _ = sample_shape
        stages = max(1, math.ceil(math.log2(max(height, 8) / 4)))
        layers: list[nn.Module] = []
        for _ in range(stages):
            layers += [spectral_norm(nn.Conv2d(channels, width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
            channels, width = width, min(2 * width, widest)
        self.body = nn.Sequential(*layers, spectral_norm(nn.Conv2d(channels, 1, 3, padding=1)))
        self.heads = nn.ModuleList(_Head(count) for count in channels_of_maps)
        self.eval()

    @torch.no_grad()
    def renormalise(self) -> None:
        """Run one power iteration of every spectral norm.

        In training mode torch runs one in every forward pass, so the result would depend on how a batch is cut into
        micro-batches. Here one is run per training iteration, and the network is in evaluation mode otherwise.
        """
        self.train()
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and hasattr(layer, "parametrizations"):
                norm = layer.get_submodule("parametrizations.weight.0")
                norm.to(layer.get_parameter("parametrizations.weight.original").dtype)  # engines cast no buffers
                _ = layer.weight  # reading the weight runs the parametrisation
        self.eval()

    @torch.no_grad()
    def set_units(self, maps: Sequence[Tensor]) -> None:
        """Set the mean and the deviation that each channel of the maps is given in, over these unshifted samples."""
        for head, each in zip(self._map_heads(), maps, strict=True):
            head.mean.copy_(each.float().mean(dim=(0, 2, 3)))
            head.deviation.copy_(each.float().std(dim=(0, 2, 3)))

    def units(self) -> dict[str, Tensor]:
        """Return what `set_units` sets, as a part of the state dict."""
        return {name: each for name, each in self.state_dict().items() if name.endswith((".mean", ".deviation"))}

    def forward(self, images: Tensor, maps: Sequence[Tensor] = ()) -> Tensor:
        """Return for each image the mean of its patches' logits plus the mean of each map's: [N]."""
        scores: Tensor = self.body(images.to(next(self.parameters()).dtype))
        logit = scores.float().mean(dim=(1, 2, 3))
        for head, each in zip(self._map_heads(), maps, strict=True):
            logit = logit + head(each)
        return logit

    def _map_heads(self) -> Iterator["_Head"]:
        for head in self.heads:
            assert isinstance(head, _Head)
            yield head


class _Head(nn.Module):
    """A network of one map [N, C, H, W] -> logit [N]; the last layer is free, so that the logit has no bound."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(channels, width, 3, padding=1)), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the mean of the positions' logits: [N]."""
        deviation = torch.maximum(self.deviation.float(), 0.01 * self.deviation.float().mean()).clamp(min=1e-12)
        unit = (features.float() - self.mean.float()[:, None, None]) / deviation[:, None, None]
        scores: Tensor = self.layers(unit.to(next(self.parameters()).dtype))
        return scores.float().mean(dim=(1, 2, 3))
