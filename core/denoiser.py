"""A pretrained diffusers UNet, cut at its bottleneck: `encode` up to h, `decode` from h on.

h-space is the output of the UNet's mid block (Kwon et al., arXiv 2210.10960; Haas et al., arXiv 2303.11073,
call this tap "after"). Both halves run the UNet's own modules in its own order, so that
`decode(encode(x, t))` is the UNet's output to the last bit.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from core.pretrained import (
    empty_unet,
    find_folder,
    load_scheduler,
    load_unet,
    read_config,
    refuse_unsupported,
    weight_digest,
)


@dataclass(frozen=True)
class Features:
    """What the encoder half hands to the decoder half."""

    h: Tensor  # [N, C, H, W]
    skips: tuple[Tensor, ...]  # outputs of the down blocks, first to last
    time: Tensor  # [N, D] or [1, D] time embedding


class Denoiser:
    """epsilon_theta(x_t, t) of a frozen UNet2DModel, with its bottleneck open.

    `sample_shape` is (C, H, W) of an image, `h_shape` that of the bottleneck; both are read off the model.
    """

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler, name: str, digest: str | None = None) -> None:
        refuse_unsupported(unet, scheduler, name)
        self.unet = unet.eval().requires_grad_(False)
        self.scheduler = scheduler
        self.name = name
        self.digest = digest or weight_digest(unet)
        size = unet.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        self.sample_shape: tuple[int, int, int] = (int(unet.config["in_channels"]), int(height), int(width))
        self.h_shape = _bottleneck_shape(unet, self.sample_shape)
        # How a block of the network is called: checkpointed, it keeps its inputs only.
        self._run: Callable[..., Any] = _call
        self._blueprints: dict[torch.dtype, Denoiser] = {}

    @classmethod
    def from_pretrained(
        cls, model: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "Denoiser":
        """Load a built-in name, a diffusers folder, or a hub id; safetensors only.

        Raises ModelError, in one sentence, where the model is missing, incomplete, or not a pixel-space UNet.
        """
        folder = find_folder(model)
        unet = load_unet(folder, str(model))
        scheduler = load_scheduler(folder, str(model))
        digest = weight_digest(unet)
        torch.nn.Module.to(unet, device=device, dtype=dtype)  # diffusers' own override only adds a warning
        return cls(unet, scheduler, str(model), digest)

    @classmethod
    def without_weights(cls, model: str | Path, dtype: torch.dtype = torch.float32) -> "Denoiser":
        """The architecture of a model alone, on torch's meta device: shapes and sizes, and no images.

        Reads, or downloads, nothing but configuration files. Raises ModelError as `from_pretrained` does.
        """
        folder = find_folder(model, weights=False)
        scheduler = load_scheduler(folder, str(model))
        return cls(
            empty_unet(read_config(folder, str(model), weights=False), dtype), scheduler, str(model), "no weights"
        )

    def blueprint(self, dtype: torch.dtype | None = None) -> "Denoiser":
        """This denoiser without its weights, on torch's meta device, in its own precision or another."""
        dtype = dtype or self.dtype
        if dtype == self.dtype and self.device.type == "meta":
            return self
        if dtype not in self._blueprints:
            self._blueprints[dtype] = self._without_weights(dtype)
        return self._blueprints[dtype]

    def _without_weights(self, dtype: torch.dtype) -> "Denoiser":
        return Denoiser(empty_unet(self.unet.config, dtype), self.scheduler, self.name, self.digest)

    def by_blocks(self) -> Self:
        """This denoiser, the same weights, keeping only what enters each of its blocks when it is differentiated."""
        twin = copy.copy(self)
        # The network draws no random numbers, so there is no generator state to keep.
        twin._run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        return twin

    def tensors(self) -> list[Tensor]:
        """Every weight and buffer that it holds."""
        return [*self.unet.parameters(), *self.unet.buffers()]

    def weight_bytes(self) -> int:
        """What they take in memory."""
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.unet.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.unet.parameters()).dtype
        return dtype

    def noise_levels(self, steps: int) -> tuple[list[int], list[float], float]:
        """(timesteps of a chain of `steps` steps, cumulative alpha of every training timestep, final alpha)."""
        self.scheduler.set_timesteps(steps)
        alphas = self.scheduler.alphas_cumprod.double().tolist()
        return self.scheduler.timesteps.tolist(), alphas, float(self.scheduler.final_alpha_cumprod)

    def encode(self, x_t: Tensor, t: int | Tensor) -> Features:
        """Down blocks and mid block. x_t: [N, *sample_shape], t: a training timestep, or one per sample [N]."""
        unet = self.unet
        sample, time = self.embed(x_t, t)
        sample = unet.conv_in(sample)
        skips = [sample]
        for block in unet.down_blocks:
            sample, outputs = self._run(block, sample, time)
            skips.extend(outputs)
        return Features(self._run(unet.mid_block, sample, time), tuple(skips), time)

    def embed(self, x_t: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """What enters the network, in its precision: the image and the time embedding [N, D]."""
        unet = self.unet
        timesteps = torch.as_tensor(t, device=x_t.device).reshape(-1).expand(x_t.shape[0])
        time = unet.time_embedding(unet.time_proj(timesteps).to(self.dtype))
        sample = x_t.to(self.dtype)
        return 2 * sample - 1 if unet.config["center_input_sample"] else sample, time

    def decode(self, features: Features, delta_h: Tensor | None = None) -> Tensor:
        """Up blocks and output convolution: eps [N, *sample_shape], with delta_h [N, *h_shape] added to h."""
        unet = self.unet
        sample = features.h if delta_h is None else features.h + delta_h.to(features.h.dtype)
        skips = features.skips
        for block in unet.up_blocks:
            count = len(block.resnets)
            sample = self._run(up_block, block, sample, features.time, *skips[-count:])
            skips = skips[:-count]
        eps: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(sample)))
        return eps

    def __call__(self, x_t: Tensor, t: int | Tensor, delta_h: Tensor | None = None) -> Tensor:
        """eps_theta(x_t, t | h + delta_h): [N, *sample_shape]."""
        return self.decode(self.encode(x_t, t), delta_h)


def without_skips(features: Features, dropped: Tensor, input_only: bool = False) -> Features:
    """Zero the skips for the samples where `dropped` [N] is True: those below full resolution, or, with `input_only`,
    all but the output of the first convolution.

    Trained with this on a random half of each batch, a small UNet carries what it draws through h instead of
    around it, and h steers it. Inference is the unmodified UNet.
    """
    full = features.skips[0].shape[-1]
    keep = (~dropped)[:, None, None, None]
    kept = (i == 0 if input_only else skip.shape[-1] == full for i, skip in enumerate(features.skips))
    skips = tuple(skip if whole else skip * keep for skip, whole in zip(features.skips, kept, strict=True))
    return Features(features.h, skips, features.time)  # what a denoiser made of the old ones is dropped


def _bottleneck_shape(unet: UNet2DModel, sample_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Run the architecture without weights or memory (meta tensors) up to its mid block."""
    empty: Any = empty_unet(unet.config)
    seen: list[torch.Size] = []
    empty.mid_block.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    with torch.device("meta"), torch.no_grad():
        empty(torch.empty(1, *sample_shape), 0)
    _, channels, height, width = seen[0]
    return channels, height, width


def up_block(block: Callable[..., Tensor], sample: Tensor, time: Tensor, *skips: Tensor) -> Tensor:
    """An up block with its skips one by one: of what is packed into a tuple, a checkpoint keeps hold."""
    return block(sample, skips, time)


def _call(block: Callable[..., Any], *inputs: Any) -> Any:
    return block(*inputs)
