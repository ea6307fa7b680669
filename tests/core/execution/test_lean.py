"""The lean denoiser is the plain one: outputs, gradients, every kind of block; and it costs what it says."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from core import Denoiser, Schedule, noise
from core.chain.step_memory import chain_costs
from core.execution.frozen_ops import FrozenConv2d, Geometry, NormSiLU, upsampling_weight
from core.execution.lean import LeanUNet, lean
from core.model.cuts.unet import without_skips

VARIANTS: dict[str, dict[str, Any]] = {
    "attention": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    "straddling groups": {"block_out_channels": (8, 12), "norm_num_groups": 4},
    "padding 0": {"downsample_padding": 0},
    "resampled by resnets": {"downsample_type": "resnet", "upsample_type": "resnet", "add_attention": False}
    | {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2},
    "resampling blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D"),
    },
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "another activation": {"act_fn": "gelu"},
    "scaled": {"mid_block_scale_factor": 1.4, "center_input_sample": True},
    "two layers, 3 levels": {
        "block_out_channels": (4, 8, 8),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D",) * 3,
        "up_block_types": ("UpBlock2D",) * 3,
    },
    "not square": {"sample_size": (8, 12)},
}


def build(**changes: Any) -> Denoiser:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (4, 8),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(**{**settings, **changes})
        for parameter in unet.parameters():  # norms start as the identity, which would hide what they do
            torch.nn.init.normal_(parameter, std=0.3)
    return Denoiser(unet.double(), DDIMScheduler(clip_sample=False), "built")


def two_passes(denoiser: Denoiser) -> tuple[Tensor, Tensor]:
    """What a shifted and an unshifted decoder pass give, and the gradients of both with respect to x and delta_h."""
    x = noise(range(2), denoiser.sample_shape, torch.float64).requires_grad_()
    delta_h = torch.randn(2, *denoiser.h_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    delta_h.requires_grad_()
    features = denoiser.encode(x, 300)
    out = torch.stack([denoiser.decode(features, delta_h), denoiser.decode(features)])
    (out * noise([3, 4], denoiser.sample_shape, torch.float64)).square().sum().backward()
    assert x.grad is not None and delta_h.grad is not None
    return out.detach(), torch.cat([x.grad.flatten(), delta_h.grad.flatten()])


def close(found: Tensor, wanted: Tensor) -> bool:
    return float((found - wanted).norm() / wanted.norm()) < 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "options",
    [{}, {"share_skips": False}],
    ids=["lean", "unshared"],
)
def test_it_is_the_plain_denoiser(variant: str, options: dict[str, bool]) -> None:
    plain = build(**VARIANTS[variant])
    leaner = plain.with_cut(LeanUNet.of(plain.cut, **options))
    out, gradients = two_passes(plain)
    for denoiser in (leaner, leaner.by_blocks(), plain.by_blocks()):
        found, its_gradients = two_passes(denoiser)
        assert close(found, out) and close(its_gradients, gradients)


@pytest.mark.slow
def test_it_is_the_embedded_models_in_single_precision() -> None:
    for name in ("toyfaces", "mnist"):
        plain = Denoiser.from_pretrained(name)
        x = noise(range(2), plain.sample_shape)
        with torch.no_grad():
            assert torch.allclose(lean(plain)(x, 500), plain(x, 500), atol=1e-5)


def test_it_is_made_once() -> None:
    denoiser = lean(build())
    assert lean(denoiser) is denoiser
    assert denoiser.digest == build().digest


def test_other_skips_are_shared_anew() -> None:
    plain = build()
    leaner = lean(plain)
    x, dropped = noise(range(2), plain.sample_shape, torch.float64), torch.tensor([True, False])
    wanted = plain.decode(without_skips(plain.encode(x, 300), dropped))
    assert close(leaner.decode(without_skips(leaner.encode(x, 300), dropped)), wanted)
    assert not close(plain(x, 300), wanted)


def flops(run: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())


@pytest.mark.slow
def test_what_it_saves_on_a_large_model() -> None:
    """Exact counts on google/ddpm-celebahq-256, without its weights: operations and bytes."""
    plain = Denoiser.without_weights("google/ddpm-celebahq-256")
    leaner, schedule = lean(plain), Schedule.ddim(plain, 40)
    x = torch.empty(1, *plain.sample_shape, device="meta")
    delta_h = torch.empty(1, *plain.h_shape, device="meta")
    features = leaner.encode(x, 5)
    once = flops(lambda: plain(x, 5))
    encoder, decoder = flops(lambda: leaner.encode(x, 5)), flops(lambda: leaner.decode(features, delta_h))
    assert once == pytest.approx(2 * 248.5e9, rel=1e-3)
    assert 2 * once / (encoder + 2 * decoder) > 1.41  # one asymmetric step, two UNets over ours
    graphs = [chain_costs(d, schedule, 1, "asymmetric", [True] * 2)[1].graph for d in (plain, leaner)]
    assert graphs[0] / graphs[1] > 3.8


def test_doubling_and_convolving_is_one_transposed_convolution() -> None:
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((2, 5, 6, 7), (4, 5, 3, 3)))
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, padding=1)
    assert torch.allclose(F.conv_transpose2d(x, upsampling_weight(weight), stride=2, padding=1), plain, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("size", [(6, 7), (5, 8)])
def test_a_frozen_convolution_against_finite_differences(stride: int, transposed: bool, size: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, 3, 3, generator=random, dtype=torch.float64)
    bias = torch.randn(3, generator=random, dtype=torch.float64)
    convolved = lambda x: FrozenConv2d.apply(x, weight, bias, Geometry(stride, 1, transposed))  # noqa: E731
    assert torch.autograd.gradcheck(convolved, x) and torch.autograd.gradgradcheck(convolved, x)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "a part", "one sample"])
def test_norm_and_silu_against_finite_differences(layout: str) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 3, 4, generator=random, dtype=torch.float64)
    if layout == "channels last":
        x = x.to(memory_format=torch.channels_last)
    x = x[:, 4:] if layout == "a part" else x
    if layout == "one sample":  # as a part of a batch in channels-last order
        x = x.to(memory_format=torch.channels_last)[:1].as_strided((1, 8, 3, 4), (8, 1, 32, 8))
    weight, bias = (torch.randn(x.shape[1], generator=random, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: NormSiLU.apply(x, weight, bias, 2, 1e-5), x.requires_grad_())
    assert torch.allclose(NormSiLU.apply(x, weight, bias, 2, 1e-5), F.silu(F.group_norm(x, 2, weight, bias, 1e-5)))
