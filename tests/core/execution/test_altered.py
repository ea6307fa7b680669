"""A network that somebody altered is run as it is: every way to run it equals diffusers' own forward."""

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from core import Denoiser, noise
from core.errors import ModelError, UserError
from core.execution.lean import LeanUNet, lean
from core.execution.linearised import LinearisedUNet, linearised
from core.execution.streaming import offloaded
from core.model.condition import Condition
from core.model.cuts.hooked import HookedCut


def network(**changes: Any) -> UNet2DConditionModel:
    """A UNet with every part that can be altered: shortcuts, both resamplers, and up blocks that know FreeU."""
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (4, 8),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**settings | changes)
        for parameter in unet.parameters():  # norms start as the identity, which would hide what they do
            nn.init.normal_(parameter, std=0.3)
    return unet.double().eval().requires_grad_(False)


class Adapter(nn.Module):
    """As peft's layers: another module in the place of a layer, which shows that layer's own weights."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.weight, self.bias = base_layer.weight, base_layer.bias

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *more)
        return result + 0.5 * result.sin()


def adapted(unet: nn.Module, name: str) -> None:
    unet.set_submodule(name, Adapter(unet.get_submodule(name)))


def hooked(unet: nn.Module, name: str) -> None:
    def scaled(_module: Any, _inputs: Any, output: Any) -> Any:
        return 1.5 * output if isinstance(output, Tensor) else (1.5 * output[0], tuple(1.5 * o for o in output[1]))

    unet.get_submodule(name).register_forward_hook(scaled)


def hooked_before(unet: nn.Module, name: str) -> None:
    unet.get_submodule(name).register_forward_pre_hook(lambda _, inputs: (1.5 * inputs[0], *inputs[1:]))


def hooked_backward(unet: nn.Module, name: str) -> None:
    unet.get_submodule(name).register_full_backward_hook(lambda _, inputs, __: (1.5 * inputs[0], *inputs[1:]))


def with_own_forward(unet: nn.Module, name: str) -> None:
    module = unet.get_submodule(name)
    forward = module.forward
    module.forward = lambda *inputs, **named: 1.5 * forward(*inputs, **named)  # type: ignore[method-assign]  # as users do


def parametrized(unet: nn.Module, name: str) -> None:
    class Halved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    nn.utils.parametrize.register_parametrization(unet.get_submodule(name), "weight", Halved())


def endless(unet: nn.Module) -> None:
    """Convolutions that pad with the other side of the image, for textures without a seam."""
    for module in unet.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
            module._reversed_padding_repeated_twice = [n for n in reversed(module.padding) for _ in range(2)]


def of_another_activation(unet: nn.Module) -> None:
    unet.up_blocks[1].resnets[0].nonlinearity = nn.GELU()


ALTERATIONS: dict[str, Callable[[Any], object]] = {
    "FreeU": lambda unet: unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    "circular padding": endless,
    "another activation": of_another_activation,
} | {
    f"{alter.__name__} {name}": partial(alter, name=name)
    for alter, names in {
        adapted: (
            "conv_in",
            "conv_norm_out",
            "conv_out",
            "down_blocks.0.resnets.0.conv1",
            "down_blocks.0.downsamplers.0.conv",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
            "mid_block.resnets.0.conv2",
            "mid_block.resnets.1.norm2",
            "up_blocks.0.resnets.0.conv_shortcut",
            "up_blocks.0.resnets.1.time_emb_proj",
            "up_blocks.0.upsamplers.0.conv",
            "up_blocks.1.resnets.1.norm1",
        ),
        hooked: (
            "down_blocks.0",
            "down_blocks.1.resnets.0.conv2",
            "mid_block",
            "up_blocks.0",
            "up_blocks.0.resnets.0",
            "up_blocks.0.upsamplers.0",
            "up_blocks.1.resnets.0.nonlinearity",
            "conv_act",
        ),
        hooked_before: ("down_blocks.0.downsamplers.0", "up_blocks.1.resnets.1"),
        hooked_backward: ("up_blocks.0.resnets.0", "up_blocks.1.resnets.1.conv1"),
        with_own_forward: ("up_blocks.0.upsamplers.0", "up_blocks.1", "up_blocks.1.resnets.0", "conv_out"),
        parametrized: ("up_blocks.0.resnets.0.conv_shortcut", "up_blocks.1.resnets.1.conv2"),
    }.items()
    for name in names
}


def denoiser_of(unet: UNet2DConditionModel) -> Denoiser:
    text = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Denoiser(
        unet, DDIMScheduler(clip_sample=False), "tiny", condition=Condition({"encoder_hidden_states": text})
    )


def own(denoiser: Denoiser, x: Tensor, delta_h: Tensor) -> Tensor:
    """What diffusers' own forward gives, with delta_h added by a hook after any other."""
    hook = denoiser.network.mid_block.register_forward_hook(lambda _, __, h: h + delta_h)
    try:
        out: Tensor = denoiser.network(x, 300, **denoiser.condition.rows(len(x))).sample
    finally:
        hook.remove()
    return out


def ours(denoiser: Denoiser, x: Tensor, delta_h: Tensor) -> Tensor:
    return denoiser(x, 300, delta_h)


def passed(denoiser: Denoiser, run: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """What a shifted pass gives, and the gradient of something of it with respect to x and delta_h."""
    x = noise(range(2), denoiser.sample_shape, torch.float64).requires_grad_()
    delta_h = noise([5, 6], denoiser.h_shape, torch.float64).requires_grad_()
    out = run(denoiser, x, delta_h)
    loss = (out * noise([3, 4], denoiser.sample_shape, torch.float64)).sum()
    return out.detach(), torch.cat([each.flatten() for each in torch.autograd.grad(loss, [x, delta_h])])


def close(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], tolerance: float = 1e-12) -> bool:
    return all(float((a - b).norm() / b.norm()) < tolerance for a, b in zip(found, wanted, strict=True))


@cache
def unaltered() -> tuple[Tensor, Tensor]:
    return passed(denoiser_of(network()), own)


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_an_altered_network_is_run_as_it_is(alteration: str) -> None:
    altered = network()
    ALTERATIONS[alteration](altered)
    denoiser = denoiser_of(altered)
    wanted = passed(denoiser, own)
    assert not close(wanted, unaltered()), "the alteration does nothing"
    ways = [denoiser, lean(denoiser), lean(denoiser).by_blocks(), linearised(denoiser)]
    ways += [] if alteration.startswith("with_own_forward") else [offloaded(denoiser, "cpu")]
    tolerance = 1e-6 if alteration == "FreeU" else 1e-12  # diffusers' FreeU rounds to single precision
    assert [n for n, way in enumerate(ways) if not close(passed(way, ours), wanted, tolerance)] == []


def test_what_freeu_does_to_h_is_not_seen_by_another_decode_of_it() -> None:
    unet = network()
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    for denoiser in (denoiser_of(unet), lean(denoiser_of(unet))):
        features = denoiser.encode(noise(range(2), denoiser.sample_shape, torch.float64), 300)
        first, h = denoiser.decode(features), features.h.clone()
        assert torch.equal(denoiser.decode(features), first) and torch.equal(features.h, h)


def test_what_is_not_altered_stays_lean() -> None:
    """An adapter on attention, the usual one, costs no saving; one on a convolution costs that of its resnet."""
    unet = network()
    resnets = resnets_taken_apart(unet)
    adapted(unet, "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k")
    assert resnets_taken_apart(unet) == resnets
    adapted(unet, "up_blocks.0.resnets.0.conv1")
    assert resnets_taken_apart(unet) == resnets - 1


def resnets_taken_apart(unet: nn.Module) -> int:
    cut: Any = lean(denoiser_of(unet)).cut
    return len(cut._resnet_parts)


@pytest.mark.parametrize("size", [(7, 7), (6, 7), (5, 8)])
def test_maps_that_do_not_halve_evenly_are_sized_as_diffusers_sizes_them(size: tuple[int, int]) -> None:
    denoiser = denoiser_of(network(sample_size=size))
    wanted = passed(denoiser, own)
    ways = [denoiser, lean(denoiser), linearised(denoiser), offloaded(denoiser, "cpu")]
    assert isinstance(ways[1].cut, LeanUNet) and isinstance(ways[2].cut, LinearisedUNet)
    assert [n for n, way in enumerate(ways) if not close(passed(way, ours), wanted)] == []


@pytest.mark.parametrize(
    ("alter", "word"),
    [
        (lambda unet: unet.register_forward_hook(lambda *_: None), "hooks"),
        (lambda unet: unet.register_forward_pre_hook(lambda *_: None), "hooks"),
        (lambda unet: setattr(unet, "forward", unet.forward), "a forward of its own"),
    ],
)
def test_an_alteration_of_the_whole_network_which_no_cut_runs_is_refused(
    alter: Callable[[nn.Module], object], word: str
) -> None:
    unet = network()
    alter(unet)
    with pytest.raises(ModelError) as caught:
        denoiser_of(unet)
    assert str(caught.value) == (
        f"model 'tiny' is a UNet2DConditionModel with {word}, which a cut does not run: remove it, put it on one of "
        "the network's blocks, or give a core.model.cuts.hooked.HookedCut as cut"
    )
    given = Condition({"encoder_hidden_states": torch.zeros(1, 3, 4, dtype=torch.float64)})
    cut = HookedCut(unet, "mid_block")
    assert Denoiser(unet, DDIMScheduler(), "tiny", cut=cut, condition=given).h_shape == (8, 4, 4)


def test_a_forward_that_may_hold_other_weights_is_not_streamed() -> None:
    unet = network()
    with_own_forward(unet, "up_blocks.1")
    sentence = (
        "weights: up_blocks.1 of model 'tiny' has a forward of its own, which may hold other weights than those that "
        "are fetched: such a network is not streamed"
    )
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        offloaded(denoiser_of(unet), "cpu")
