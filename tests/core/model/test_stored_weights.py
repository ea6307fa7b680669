"""What is stored as a model is the model that its configuration names, or it is told what it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

from core.errors import ModelError
from core.model.denoiser import Denoiser
from core.model.pretrained import find_model
from core.model.stored_weights import check_names
from tests import families
from tests.core.model.conftest import OPEN, PROMPTED, edit
from tests.core.model.test_denoiser import tiny_unet

NETWORK = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def pixel(tmp_path: Path) -> Path:
    return families.saved("pixel", tmp_path / "pixel")


def restored(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """The folder, with the network's weights changed."""
    save_file(change(load_file(folder / NETWORK)), folder / NETWORK, {"format": "pt"})
    return folder


@pytest.mark.parametrize("variant", ["fp16", "bf16", "mine"])
@pytest.mark.parametrize("several", [False, True])
def test_weights_of_any_variant_are_read_where_there_are_no_others(pixel: Path, variant: str, several: bool) -> None:
    whole = Denoiser.from_pretrained(pixel).digest
    part = (pixel / NETWORK).parent
    name = f"diffusion_pytorch_model.{variant}{'-00001-of-00001' * several}.safetensors"
    if several:
        index = json.dumps({"weight_map": dict.fromkeys(load_file(pixel / NETWORK), name)})
        (part / f"diffusion_pytorch_model.safetensors.index.{variant}.json").write_text(index)
    (pixel / NETWORK).rename(part / name)
    other = part / "diffusion_pytorch_model.non_ema.safetensors"  # which is taken last
    save_file({"nothing": torch.ones(1)}, other)
    assert Denoiser.from_pretrained(pixel).digest == whole


@pytest.fixture
def checkpoint(pixel: Path) -> Path:
    """A checkpoint as diffusers' training scripts write it, under the folder of the run."""
    folder = pixel / "checkpoint-500"
    shutil.copytree(pixel / "unet", folder / "unet")
    return folder


@pytest.mark.parametrize("part", ["", "unet"])
def test_a_training_checkpoint_has_the_scheduler_of_the_folder_above_it(
    checkpoint: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(checkpoint.parent / "scheduler/scheduler_config.json", num_train_timesteps=500)
    monkeypatch.chdir(checkpoint)
    for given in (checkpoint / part, Path(part)):
        for open_model in OPEN:
            assert open_model(given).scheduler.config["num_train_timesteps"] == 500
        place = checkpoint.parent / "scheduler"
        assert Denoiser.from_pretrained(given).notes == (
            f"model '{given}' has no scheduler of its own: that in {place} is taken",
        )


def test_averaged_weights_of_a_checkpoint_are_taken_and_the_others_can_be_chosen(checkpoint: Path) -> None:
    averaged = checkpoint / "unet_ema/diffusion_pytorch_model.safetensors"
    shutil.copytree(checkpoint / "unet", averaged.parent)
    save_file({name: weight / 2 for name, weight in load_file(averaged).items()}, averaged)
    edit(averaged.parent / "config.json", decay=0.99, optimization_step=500)  # as EMAModel saves it
    shutil.copytree(checkpoint.parent / "scheduler", checkpoint / "scheduler")
    last, taken = Denoiser.from_pretrained(checkpoint / "unet"), Denoiser.from_pretrained(checkpoint)
    assert torch.equal(taken.network.conv_in.weight, last.network.conv_in.weight / 2)
    assert taken.notes == (
        f"model '{checkpoint}': the averaged weights (EMA) in {averaged.parent} are taken; for those of the last step "
        f"give {checkpoint / 'unet'} as the model",
    )
    averaged.unlink()
    assert Denoiser.from_pretrained(checkpoint).digest == last.digest, "without averaged weights"


def test_a_checkpoint_of_a_latent_model_s_network_is_not_taken_for_a_whole_one(sd: Path) -> None:
    checkpoint = sd / "checkpoint-500"
    shutil.copytree(sd / "unet", checkpoint / "unet")
    with pytest.raises(ModelError) as caught:
        find_model(checkpoint)
    assert str(caught.value) == (
        f"model '{checkpoint}' is a part of that in {sd}, whose text_encoder/, vae/ it lacks: give that folder as the "
        "model, or a copy of it with these weights in the place of its own"
    )


ANOTHER = "the configuration is of another network: take the config.json that was saved with the weights"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            {"class_embedding.weight": (10, 32)},
            "it holds 1 weight (class_embedding.weight) that its configuration has no place for: the network is told a "
            "class, and its configuration has lost num_class_embeds: take the config.json that was saved with the "
            "weights",
        ),
        (
            {f"conv_in.lora_{part}.default.weight": (2, 3, 1, 1) for part in "AB"},
            "it holds 2 weights (conv_in.lora_A.default.weight, conv_in.lora_B.default.weight) that its configuration "
            "has no place for: they belong to an adapter (LoRA): merge it into the weights (fuse_lora, "
            "merge_and_unload) and save the model",
        ),
        (
            {"conv_in.weight.absmax": (3,)},
            "it holds 1 weight (conv_in.weight.absmax) that its configuration has no place for: they are quantised: "
            "give the weights of 32 or 16 bits",
        ),
        (
            {f"layer.{n}.bias": (1,) for n in range(5)},
            "it holds 5 weights (layer.0.bias, layer.1.bias, layer.2.bias, ...) that its configuration has no place "
            f"for: {ANOTHER}",
        ),
    ],
)
def test_weights_that_the_configuration_has_no_place_for_are_refused_with_the_likely_reason(
    pixel: Path, more: dict[str, tuple[int, ...]], sentence: str
) -> None:
    restored(pixel, lambda weights: weights | {name: torch.ones(shape) for name, shape in more.items()})
    with pytest.raises(ModelError) as caught:
        Denoiser.from_pretrained(pixel)
    assert str(caught.value) == f"model '{pixel}' cannot be read from {pixel / 'unet'}: {sentence}"


def test_weights_that_are_missing_are_named(pixel: Path) -> None:
    restored(pixel, lambda weights: {name: weight for name, weight in weights.items() if "conv_out" not in name})
    with pytest.raises(ModelError) as caught:
        Denoiser.from_pretrained(pixel)
    assert str(caught.value) == (
        f"model '{pixel}' cannot be read from {pixel / 'unet'}: it lacks 2 weights (conv_out.weight, conv_out.bias): "
        f"the files are not whole, or {ANOTHER}"
    )


def test_an_autoencoders_weights_are_held_against_its_configuration_too(sd: Path) -> None:
    file = sd / "vae/diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"loss.discriminator.weight": torch.ones(1)}, file)
    with pytest.raises(ModelError, match=r"^model '.*' cannot be read from .*/vae: it holds 1 weight \(loss.discrim"):
        Denoiser.from_pretrained(sd, **PROMPTED)


@pytest.mark.parametrize(
    ("renamed", "said"),
    [
        (lambda name: [f"module.{name}"], "begin with 'module.', which"),
        (lambda name: [f"_orig_mod.{name}"], "begin with '_orig_mod.', which"),
        (lambda name: [f"model.unet.{name}"], "begin with 'model.unet.', which"),
        (lambda name: [f"ema.{name}", f"model.{name}"], "begin with 'ema.', of 'ema.' and 'model.', which"),
        (lambda name: [name.replace("conv1.", "conv1._orig_mod.")], "hold '_orig_mod.', which"),
    ],
)
def test_names_that_a_wrapper_changed_are_told_with_the_command_that_restores_them(
    pixel: Path, renamed: Callable[[str], list[str]], said: str
) -> None:
    digest = Denoiser.from_pretrained(pixel).digest
    restored(pixel, lambda weights: {new: weight.clone() for name, weight in weights.items() for new in renamed(name)})
    with pytest.raises(ModelError) as caught:
        Denoiser.from_pretrained(pixel)
    sentence, command = str(caught.value).split(': python -c "')
    start = f"model '{pixel}' cannot be read from {pixel / 'unet'}: the names of its weights {said} a wrapper put there"
    assert sentence.startswith(start) and sentence.endswith("save them once without it")
    exec(command.rstrip('"'), {})  # the very command that is told
    assert Denoiser.from_pretrained(pixel).digest == digest


def test_a_buffer_that_is_computed_and_was_saved_by_an_older_version_is_no_weight_too_many(pixel: Path) -> None:
    network = Denoiser.from_pretrained(pixel).network
    network.register_buffer("places", torch.ones(2), persistent=False)
    check_names(network.state_dict() | {"places": torch.ones(2)}, network, [pixel / NETWORK])


@pytest.mark.parametrize("path", ["model_index.json", "unet", "unet/config.json", "unet/weights.safetensors"])
def test_a_part_of_a_model_is_told_which_folder_to_give(tmp_path: Path, path: str) -> None:
    (tmp_path / "unet").mkdir()
    for name in ("model_index.json", "unet/config.json", "unet/weights.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError) as caught:
        find_model(tmp_path / path)
    assert str(caught.value) == f"model '{tmp_path / path}' is a part of the model in {tmp_path}: give that folder"
    assert find_model(tmp_path).folder == tmp_path


def test_the_hubs_cache_is_told_its_name(tmp_path: Path) -> None:
    cache = tmp_path / "models--google--ddpm-cat-256"
    for name in ("blobs", "refs", "snapshots/abc/unet"):
        (cache / name).mkdir(parents=True)
    with pytest.raises(ModelError, match=r"is the hub's cache of 'google/ddpm-cat-256': give that name, or one of "):
        find_model(cache)
    assert find_model(cache / "snapshots/abc").folder == cache / "snapshots/abc"


STORED = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n": "is a Git LFS pointer, not the weights: ",
    b"<!DOCTYPE html><html>Sign in</html>": "is a web page, not the weights: download them again",
    b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl": "is what torch.save writes, under the name of a safetensors file",
}


@pytest.mark.parametrize("stored", STORED)
def test_what_is_stored_in_place_of_weights_is_told(tmp_path: Path, stored: bytes) -> None:
    tiny_unet().save_config(tmp_path / "unet")
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    (file := tmp_path / "unet/diffusion_pytorch_model.safetensors").write_bytes(stored)
    with pytest.raises(ModelError) as caught:
        Denoiser.from_pretrained(tmp_path)
    assert f"cannot be read from {tmp_path / 'unet'}: {file} {STORED[stored]}" in str(caught.value)
