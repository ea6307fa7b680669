"""The autoencoder of a latent model: it turns latents into images and back, a few samples at a time.

    images = decoder(x_0 / scaling_factor + shift_factor)        x_0 = (encoder(images) - shift_factor) * scaling_factor

Works with AutoencoderKL (whose mean is taken) and with VQModel (which quantises when it decodes). Where the
configuration has latents_mean and latents_std, for each channel, the shift is latents_mean and
latents_std / scaling_factor is the unit of x_0. The autoencoder is frozen. It is differentiable: each part is run again
on the way back, so that only one part's graph is held at a time.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from core.model.architecture import empty_network

_PIXELS = 1 << 18  # decoded or encoded at a time: one image of 512 x 512


class Codec:
    """A frozen autoencoder. sample_shape: (C, H, W) of the latents; image_shape: that of their images."""

    def __init__(self, network: Any, sample_shape: tuple[int, int, int]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.sample_shape = sample_shape
        _, height, width = sample_shape
        factor = self.factor(network.config)
        self.image_shape: tuple[int, int, int] = (
            int(network.config["out_channels"]), factor * height, factor * width
        )  # fmt: skip

    @staticmethod
    def factor(config: Mapping[str, Any]) -> int:
        """Return the number of pixels across one place of the latents."""
        return int(2 ** (len(config["block_out_channels"]) - 1))

    @property
    def kind(self) -> str:
        """The name of the autoencoder's class."""
        return type(self.network).__name__

    @property
    def scaling(self) -> float:
        """The factor by which latents are multiplied for the denoiser."""
        return float(self.network.config.get("scaling_factor") or 1)

    def tensors(self) -> list[Tensor]:
        """Return every weight and buffer."""
        return [*self.network.parameters(), *self.network.buffers()]

    def on_meta(self, dtype: torch.dtype) -> "Codec":
        """Return the same autoencoder without its weights, on torch's meta device."""
        return Codec(empty_network(self.network, dtype), self.sample_shape)

    def images(self, x_0: Tensor) -> Tensor:
        """Return latents [N, *sample_shape] as images [N, *image_shape] in about [-1, 1]."""
        return self._in_parts(self._decode, x_0)

    def x_0(self, images: Tensor) -> Tensor:
        """Return images [N, *image_shape] in [-1, 1] as latents [N, *sample_shape]."""
        return self._in_parts(self._encode, images)

    def _in_parts(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply `function` to a few samples at a time; where a gradient is needed, keep only the inputs."""
        size = max(1, _PIXELS // prod(self.image_shape[1:]))
        parts = torch.split(x, size)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return torch.cat([function(part) for part in parts])
        again = [checkpoint(function, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.cat(again)

    def _decode(self, x_0: Tensor) -> Tensor:
        scaling, shift = self._units(x_0)
        images: Tensor = self.network.decode((x_0 / scaling + shift).to(self.network.dtype), return_dict=False)[0]
        return images.to(x_0.dtype)

    def _encode(self, images: Tensor) -> Tensor:
        encoded = self.network.encode(images.to(self.network.dtype), return_dict=False)[0]
        latents: Tensor = (encoded if isinstance(encoded, Tensor) else encoded.mode()).to(images.dtype)
        scaling, shift = self._units(latents)
        return (latents - shift) * scaling

    def _units(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return (scaling, shift) between x_0 and the decoder's latents."""
        config = self.network.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean is None or deviation is None:
            return self.scaling, float(config.get("shift_factor") or 0)
        mean, deviation = (torch.tensor(each, device=like.device, dtype=like.dtype) for each in (mean, deviation))
        return (self.scaling / deviation)[:, None, None], mean[:, None, None]
