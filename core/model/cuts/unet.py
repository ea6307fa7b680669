"""diffusers' UNets, cut behind their mid block: UNet2DModel, and UNet2DConditionModel with text or classes.

h-space is the output of the mid block (Kwon et al., arXiv 2210.10960; Haas et al., arXiv 2303.11073, call this tap
"after"). Both halves run the UNet's own modules in the UNet's own order, so that encoding and decoding without a shift
gives the UNet's output to the last bit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import UserError
from core.model.alterations import has_freeu
from core.model.cuts.base import Cut, Features, NetworkInputs

Context = Mapping[str, Tensor]  # the inputs of cross attention

MID_BLOCK = "mid_block"


@dataclass(frozen=True)
class UNetFeatures(Features):
    """h, the outputs of the down blocks, first to last, the time embedding [N, D], and cross attention's inputs."""

    skips: tuple[Tensor, ...]
    time: Tensor
    context: Context


class UNetCut(Cut):
    """A UNet that is cut behind its mid block."""

    def encode(self, x_t: Tensor, t: Tensor, inputs: NetworkInputs) -> UNetFeatures:
        """Run the UNet up to and including its mid block."""
        unet = self.network
        sample, time, context = self.embed(x_t, t, inputs)
        sample = unet.conv_in(sample)
        skips = [sample]
        for block in unet.down_blocks:
            sample, outputs = self._run(down_block, block, sample, time, context)
            skips.extend(outputs)
        hidden = self._run(middle_block, unet.mid_block, sample, time, context)
        return UNetFeatures(hidden, self.tap, tuple(skips), time, context)

    def decode(self, features: Features, delta_h: Tensor | None = None) -> Tensor:
        """Run the up blocks and the output layers, with delta_h added to h."""
        assert isinstance(features, UNetFeatures)
        sample, skips = self.tap.shifted(features.hidden, delta_h), features.skips
        uneven = self.uneven(skips[0].shape)
        for block in self.network.up_blocks:
            own, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            run = partial(up_block, size=skips[-1].shape[2:]) if uneven and skips else up_block
            sample = self._run(run, block, sample, features.time, features.context, *own)
        return self.finish(sample)

    def uneven(self, shape: Sequence[int]) -> bool:
        """Return whether maps [..., H, W] cannot be halved as often as the network halves them.

        The up blocks then need the size of their output, as diffusers passes it in a UNet2DConditionModel.
        """
        doublings = getattr(self.network, "num_upsamplers", 0)
        return any(side % 2**doublings for side in shape[-2:])

    def embed(self, x_t: Tensor, t: Tensor, inputs: NetworkInputs) -> tuple[Tensor, Tensor, Context]:
        """Return the network's inputs in its precision: the image, the time embedding, and cross attention's inputs."""
        unet, sample = self.network, x_t.to(self.dtype)
        if hasattr(unet, "process_encoder_hidden_states"):
            time, context = _conditioned(unet, sample, t, inputs)
        else:
            # A table of learned timesteps needs whole numbers as its index.
            t = t.round().long() if isinstance(unet.time_proj, nn.Embedding) else t
            time, context = unet.time_embedding(unet.time_proj(t).to(self.dtype)), {}
            if unet.class_embedding is not None:
                time = time + unet.class_embedding(inputs["class_labels"]).to(self.dtype)
        return 2 * sample - 1 if unet.config["center_input_sample"] else sample, time, context

    def finish(self, sample: Tensor) -> Tensor:
        """Run the layers after the last up block, and return the output."""
        unet = self.network
        if unet.conv_norm_out is not None:
            sample = unet.conv_act(unet.conv_norm_out(sample))
        output: Tensor = unet.conv_out(sample)
        return output

    def maps(self, features: Features) -> Sequence[Tensor]:
        """Return h, and the skips of its resolution."""
        assert isinstance(features, UNetFeatures)
        deepest = [skip for skip in features.skips if skip.shape[-2:] == features.skips[-1].shape[-2:]]
        return [*super().maps(features), *(features.conditional(skip) for skip in deepest)]

    def middle(self) -> str:
        """Return "mid_block", the only tap of a UNet."""
        return MID_BLOCK

    def validated_tap(self, tap: str) -> str:
        """Return `tap` if it is "mid_block", else raise UserError."""
        if tap != MID_BLOCK:
            raise UserError(f"tap: got '{tap}'; a UNet has {MID_BLOCK}")
        return tap


def _conditioned(unet: Any, sample: Tensor, t: Tensor, inputs: NetworkInputs) -> tuple[Tensor, Context]:
    """Return a UNet2DConditionModel's time embedding with all additions, and the inputs of cross attention."""
    text, added = (
        inputs.get("encoder_hidden_states"),
        {k: inputs[k] for k in ("text_embeds", "time_ids") if k in inputs},
    )
    text = None if text is None else text.to(sample.dtype)
    guidance = inputs.get("timestep_cond")
    time = unet.time_embedding(
        unet.get_time_embed(sample=sample, timestep=t), None if guidance is None else guidance.to(sample.dtype)
    )
    labels = unet.get_class_embed(sample=sample, class_labels=inputs.get("class_labels"))
    if labels is not None:
        time = torch.cat([time, labels], dim=-1) if unet.config["class_embeddings_concat"] else time + labels
    more = unet.get_aug_embed(emb=time, encoder_hidden_states=text, added_cond_kwargs=added)
    time = time if more is None else time + more
    if unet.time_embed_act is not None:
        time = unet.time_embed_act(time)
    text = unet.process_encoder_hidden_states(encoder_hidden_states=text, added_cond_kwargs=added)
    return time, {} if text is None else {"encoder_hidden_states": text}


def reads_context(block: Any) -> bool:
    """Return whether a block has cross attention."""
    return bool(getattr(block, "has_cross_attention", False))


def down_block(block: Callable[..., Any], sample: Tensor, time: Tensor, context: Context) -> Any:
    """Run a down block, and return its output and its skips; a mid block returns its output alone."""
    return block(sample, time, **context) if reads_context(block) else block(sample, time)


middle_block: Callable[..., Tensor] = down_block  # called alike, but without skips


def up_block(
    block: Callable[..., Tensor],
    sample: Tensor,
    time: Tensor,
    context: Context,
    *skips: Tensor,
    size: torch.Size | None = None,
) -> Tensor:
    """Run an up block with its skips. size: (H, W) of its output, where that is not twice the input's.

    The skips are passed one by one, because a checkpoint would keep those packed into a tuple.
    """
    arguments: dict[str, Any] = dict(context) if reads_context(block) else {}
    if has_freeu(block):
        sample = sample.clone()  # diffusers' FreeU scales its input in place; here h is read again by the next decode
    return block(sample, skips, time, **arguments | ({} if size is None else {"upsample_size": size}))


def without_skips(features: UNetFeatures, dropped: Tensor, input_only: bool = False) -> UNetFeatures:
    """Zero the skips of the samples where `dropped` [N] is True, except those at full resolution.

    With `input_only`, all skips but the output of the first convolution are zeroed. Trained with this on a random half
    of each batch, a small UNet draws through h instead of around it, so that h steers it. Inference is the unmodified
    UNet.
    """
    full = features.skips[0].shape[-1]
    keep = (~dropped)[:, None, None, None]
    kept = (i == 0 if input_only else skip.shape[-1] == full for i, skip in enumerate(features.skips))
    skips = tuple(skip if whole else skip * keep for skip, whole in zip(features.skips, kept, strict=True))
    # A plain UNetFeatures drops what a lean cut computed from the old skips.
    return UNetFeatures(features.hidden, features.tap, skips, features.time, features.context)
