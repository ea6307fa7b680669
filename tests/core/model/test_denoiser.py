"""The cut UNet is the UNet, and models that cannot be used are refused in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel

from core import Denoiser, Schedule, noise
from core.errors import ModelError
from core.model.cuts.unet import UNetCut, without_skips
from core.model.pretrained import find_model, weight_digest


def tiny_unet(**changes: object) -> UNet2DModel:
    settings = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
    }
    torch.manual_seed(0)
    return UNet2DModel(**{**settings, **changes})


@pytest.mark.parametrize(
    "changes", [{}, {"layers_per_block": 2}, {"center_input_sample": True}, {"add_attention": False}]
)
def test_decode_of_encode_is_the_unet_to_the_last_bit(changes: dict) -> None:
    denoiser = Denoiser(tiny_unet(**changes).double(), DDIMScheduler(), "tiny")
    x = noise(range(3), denoiser.sample_shape, torch.float64)
    with torch.no_grad():
        for t in (0, 17, 999):
            assert torch.equal(denoiser.decode(denoiser.encode(x, t)), denoiser.network(x, t).sample)
        each = torch.tensor([1, 500, 900])
        assert torch.equal(denoiser(x, each), denoiser.network(x, each).sample)


def test_delta_h_is_added_to_the_mid_blocks_output() -> None:
    denoiser = Denoiser(tiny_unet().double(), DDIMScheduler(), "tiny")
    x, delta = noise([0], denoiser.sample_shape, torch.float64), noise([1], denoiser.h_shape, torch.float64)
    hook = denoiser.network.mid_block.register_forward_hook(lambda module, inputs, h: h + delta)
    with torch.no_grad():
        expected = denoiser.network(x, 10).sample
        hook.remove()
        assert torch.equal(denoiser(x, 10, delta), expected)


def test_shapes_are_read_off_the_model() -> None:
    denoiser = Denoiser(tiny_unet(sample_size=16, in_channels=1, out_channels=1), DDIMScheduler(), "tiny")
    assert denoiser.sample_shape == (1, 16, 16) and denoiser.h_shape == (16, 8, 8)
    assert not any(p.requires_grad for p in denoiser.network.parameters()) and not denoiser.network.training


def test_dropping_skips_keeps_full_resolution_and_other_samples() -> None:
    denoiser = Denoiser(tiny_unet(), DDIMScheduler(), "tiny")
    features = denoiser.encode(noise(range(2), denoiser.sample_shape), 10)
    dropped = without_skips(features, torch.tensor([True, False]))
    for before, after in zip(features.skips, dropped.skips, strict=True):
        full = before.shape[-1] == 8
        assert torch.equal(after[1], before[1])
        assert torch.equal(after[0], before[0]) if full else not after[0].any()
    first, *rest = without_skips(features, torch.tensor([True, False]), input_only=True).skips
    assert torch.equal(first, features.skips[0])
    assert not any(skip[0].any() for skip in rest) and all(skip[1].any() for skip in rest)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    DDIMPipeline(tiny_unet(), DDIMScheduler()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_loading_a_pipeline_folder(saved: Path) -> None:
    denoiser = Denoiser.from_pretrained(saved, dtype=torch.float64)
    assert denoiser.dtype == torch.float64
    assert denoiser.digest == weight_digest(tiny_unet())
    assert not denoiser.scheduler.config["clip_sample"]


def test_loading_a_flat_folder_with_a_ddpm_scheduler(saved: Path, tmp_path: Path) -> None:
    """google/ddpm-* keep everything at the root."""
    flat = tmp_path / "flat"
    shutil.copytree(saved / "unet", flat)
    DDPMScheduler(beta_schedule="linear").save_config(flat)
    assert Schedule.ddim(Denoiser.from_pretrained(flat), 2).timesteps == (500, 0)


@pytest.mark.slow
def test_every_model_is_looked_at_once(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    look = UNetCut.read_tap

    def counted(cut: UNetCut, *told: Any) -> None:
        looks.append(told[-1])
        look(cut, *told)

    monkeypatch.setattr(UNetCut, "read_tap", counted)
    Denoiser.from_pretrained(saved).blueprint()
    Denoiser.without_weights(saved).blueprint(torch.bfloat16)
    assert looks == [str(saved)] * 2


@pytest.mark.parametrize("open_model", [Denoiser.from_pretrained, Denoiser.without_weights])
def test_a_model_of_a_size_that_it_cannot_draw_is_told_when_it_is_opened(
    tmp_path: Path, open_model: Callable[[Path], Denoiser]
) -> None:
    DDIMPipeline(tiny_unet(sample_size=9), DDIMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        open_model(tmp_path)
    assert str(caught.value).startswith(f"model '{tmp_path}' cannot be run on samples of [3, 9, 9]: ")
    assert "\n" not in str(caught.value)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def broken(saved: Path, how: str) -> Path:
    match how:
        case "no weights":
            (saved / "unet/diffusion_pytorch_model.safetensors").unlink()
        case "damaged weights":
            (saved / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"not safetensors")
        case "other class":
            edit(saved / "unet/config.json", _class_name="UNet3DConditionModel")
        case "no json":
            (saved / "unet/config.json").write_text("{")
        case "no scheduler":
            shutil.rmtree(saved / "scheduler")
        case "other prediction":
            edit(saved / "scheduler/scheduler_config.json", prediction_type="score")
    return saved


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "no weights",
            r"model '.*' is incomplete: .*unet lacks diffusion_pytorch_model.safetensors \(diffusers layout",
        ),
        ("damaged weights", "model '.*' cannot be read from .*unet: "),
        (
            "other class",
            "model '.*' is a UNet3DConditionModel; its h-space cannot be opened: UNet2DModel, UNet2DCondition",
        ),
        ("no json", "model '.*': .*config.json is not a diffusers configuration"),
        ("no scheduler", "model '.*' is incomplete: .* lacks scheduler_config.json"),
        ("other prediction", "model '.*' predicts 'score'; allowed: epsilon, v_prediction, sample, or a flow"),
    ],
)
def test_unusable_folders_get_one_sentence(saved: Path, how: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        Denoiser.from_pretrained(broken(saved, how))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"time_embedding_type": "fourier"}, "model 'tiny' is a score-SDE network"),
        ({"in_channels": 6}, "model 'tiny' takes 6 channels and gives 3: it needs an image to begin with"),
    ],
)
def test_unusable_networks_get_one_sentence(changes: dict, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        Denoiser(tiny_unet(**changes), DDIMScheduler(), "tiny")


def test_a_missing_folder_names_what_can_be_given() -> None:
    with pytest.raises(ModelError, match="model './nowhere' is not there: give a built-in name"):
        find_model("./nowhere")


def test_a_home_that_keeps_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", "/home/x/.cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError) as told:
        find_model("some/model")
    assert str(told.value) == (
        "model 'some/model' cannot be kept in /home/x/.cache (Permission denied): set HF_HOME to a folder to write to"
    )


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError, match="fetched from the hub: offline; check the spelling"):
        find_model("some/model")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_draws_on_a_cpu(dtype: torch.dtype) -> None:
    whole, half = (Denoiser(tiny_unet().to(kind), DDIMScheduler(), "tiny") for kind in (torch.float32, dtype))
    x = noise(range(2), whole.sample_shape)
    with torch.no_grad():
        assert torch.allclose(half(x.to(dtype), 10).float(), whole(x, 10), atol=0.1)


def test_weights_that_are_kept_elsewhere_or_in_eight_bits_are_told() -> None:
    """As accelerate's sequential offloading, quantisation and layerwise casting leave a pipeline's network."""
    offloaded = tiny_unet()
    offloaded.conv_in.to("meta")
    with pytest.raises(
        ModelError, match=r"^the weight conv_in\.bias is not in memory: take sequential offloading off "
    ):
        Denoiser(offloaded, DDIMScheduler(), "tiny")
    cast = tiny_unet()
    cast.conv_in.to(torch.float8_e4m3fn)
    with pytest.raises(ModelError, match=r"^model 'tiny' keeps conv_in\.weight as float8_e4m3fn \(quantised, or cast "):
        Denoiser(cast, DDIMScheduler(), "tiny")
