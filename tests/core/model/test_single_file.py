"""A checkpoint of one file. diffusers' own conversion is trusted, and stands in for here; what is around it is ours."""

import os
from pathlib import Path

import diffusers
import pytest
import safetensors
import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors.torch import save_file

from core.errors import ModelError
from core.model.catalogue import architecture_folder
from core.model.denoiser import Denoiser
from core.model.pretrained import find_model
from tests import families

PROMPTED = {"prompts": ["a face"]}
# Names by which diffusers knows Stable Diffusion 1 and its parts, and nothing else of it.
UNET = "model.diffusion_model.output_blocks.11.0.skip_connection.weight"
BESIDE = ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "first_stage_model.quant_conv.weight")


def write(file: Path, *names: str, **shapes: tuple[int, ...]) -> Path:
    save_file({name: torch.zeros(shapes.get(name, (1,))) for name in (*names, *shapes)}, file)
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "model.safetensors", UNET, *BESIDE)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that diffusers was asked to convert."""
    found = []

    def from_single_file(path: str) -> object:
        found.append(path)
        return families.build("sd")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_single_file", from_single_file)
    return found


def beside(file: Path) -> list[str]:
    return sorted(each.name for each in file.parent.iterdir())


@pytest.mark.slow
def test_a_single_file_is_unpacked_beside_itself_once(file: Path, asked: list[str]) -> None:
    for _ in range(2):
        denoiser = Denoiser.from_pretrained(file, **PROMPTED)
    assert asked == [str(file)] and denoiser.h_shape == (16, 4, 4)
    assert beside(file) == ["model.diffusers", "model.safetensors"]


@pytest.mark.parametrize("how", ["larger", "later"])
def test_a_file_that_has_changed_is_unpacked_again(file: Path, asked: list[str], how: str) -> None:
    folder = find_model(file).folder
    (folder / "old").touch()
    before = file.stat()
    if how == "larger":
        write(file, UNET, *BESIDE, "model.diffusion_model.more")
    os.utime(file, ns=(0, before.st_mtime_ns + (how == "later")))
    for _ in range(2):
        assert find_model(file).folder == folder
    assert len(asked) == 2 and not (folder / "old").exists()
    assert beside(file) == ["model.diffusers", "model.safetensors"]


def test_a_folder_of_that_name_that_was_not_made_here_is_left_alone(file: Path, asked: list[str]) -> None:
    folder = families.saved("sd", file.with_suffix(".diffusers"))
    with pytest.raises(ModelError) as caught:
        find_model(file)
    assert str(caught.value) == (
        f"model '{file}': {folder} does not say which file it was unpacked from: remove it, or give it as the model"
    )
    assert asked == [] and find_model(folder).codec is not None


def test_of_two_processes_that_unpack_at_once_the_slower_takes_the_other_s(
    file: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = diffusers.StableDiffusionPipeline.from_single_file

    def slow(path: str) -> object:
        monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_single_file", quick)
        (find_model(path).folder / "of the other").touch()
        return families.build("sd")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_single_file", slow)
    assert (find_model(file).folder / "of the other").exists()
    assert beside(file) == ["model.diffusers", "model.safetensors"]


@pytest.mark.slow
def test_without_weights_nothing_is_unpacked_nor_read(
    file: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as unread:
        for reader in ("load_file", "load"):
            unread.setattr(safetensors.torch, reader, None)
        found = find_model(file, weights=False)
    assert found.folder == architecture_folder("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert (asked, found.name, beside(file)) == ([], str(file), ["model.safetensors"])
    assert Denoiser.without_weights(file).h_shape == (1280, 8, 8)
    find_model(file)
    assert Denoiser.without_weights(file).h_shape == (16, 4, 4), "of what it was unpacked into"


def test_what_it_lacks_comes_from_the_hub(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(path: str) -> object:
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_single_file", offline)
    with pytest.raises(ModelError, match=r"cannot be unpacked into .*model.diffusers \(no network\): its conf"):
        Denoiser.from_pretrained(file)
    assert [each.name for each in file.parent.iterdir()] == ["model.safetensors"]


INPUT = "model.diffusion_model.input_blocks.0.0.weight"
SD3 = "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias"
SD3_PLACES = "model.diffusion_model.pos_embed"
FLUX = "double_blocks.0.img_attn.norm.key_norm.scale"


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({INPUT: (4, 9, 1, 1)}, "inpainting"),
        ({"of.a.network.of.ones.own": (1,)}, "unknown"),
        ({"model.diffusion_model.out.2.weight": (1,)}, "unknown"),
        ({"head.modulation": (1,)}, "unknown"),  # by which diffusers knows Wan, whose other names it then asks for
    ],
)
@pytest.mark.parametrize("weights", [True, False])
def test_a_file_of_another_kind_is_told(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], kind: str, weights: bool
) -> None:
    file = write(tmp_path / "x.safetensors", *BESIDE, **shapes)
    with pytest.raises(ModelError) as caught:
        find_model(file, weights)
    assert str(caught.value) == (
        f"model '{file}' is a single file of kind '{kind}'; allowed: xl_base, flux-dev, flux-schnell, sd3, v1, v2"
    )


@pytest.mark.parametrize("weights", [True, False])
def test_a_file_whose_names_a_wrapper_changed_is_told_with_the_command_that_restores_them(
    tmp_path: Path, weights: bool, asked: list[str]
) -> None:
    file = write(tmp_path / "x.safetensors", *(f"module.{name}" for name in (UNET, *BESIDE)))
    with pytest.raises(ModelError) as caught:
        find_model(file, weights)
    sentence, command = str(caught.value).split(': python -c "')
    assert sentence == (
        f"model '{file}' cannot be read: the names of its weights begin with 'module.', which a wrapper put there "
        "(DistributedDataParallel, torch.compile, a trainer, an EMA): save them once without it"
    )
    exec(command.rstrip('"'), {})  # the very command that is told
    assert find_model(file).folder.is_dir() and asked == [str(file)]


def test_a_file_with_an_adapter_beside_the_model_is_refused(file: Path, asked: list[str]) -> None:
    write(file, UNET, *BESIDE, "lora_unet_mid_block.lora_down.weight")
    with pytest.raises(ModelError) as caught:
        find_model(file)
    assert asked == [] and str(caught.value) == (
        f"model '{file}' cannot be read: some of its weights are not those of a model: they belong to an adapter "
        "(LoRA): merge it into the weights (fuse_lora, merge_and_unload) and save the model"
    )


@pytest.mark.parametrize(
    ("shapes", "lacking", "whole"),
    [
        ({FLUX: (1,)}, "text encoders and no autoencoder", "black-forest-labs/FLUX.1-schnell"),
        ({FLUX: (1,), "vae.encoder.conv_in.bias": (1,)}, "text encoders", "black-forest-labs/FLUX.1-schnell"),
        (
            {SD3: (9216,), SD3_PLACES: (1, 36864, 1), BESIDE[1]: (1,)},
            "text encoders",
            "stabilityai/stable-diffusion-3-medium-diffusers",
        ),
        ({UNET: (1,), BESIDE[0]: (1,)}, "autoencoder", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    ],
)
@pytest.mark.parametrize("weights", [True, False])
def test_a_file_that_holds_the_network_alone_is_told(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], lacking: str, whole: str, weights: bool
) -> None:
    file = write(tmp_path / "x.safetensors", **shapes)
    with pytest.raises(ModelError) as caught:
        find_model(file, weights)
    assert str(caught.value) == (
        f"model '{file}' holds no {lacking}: give a file that holds all parts of the model, or a hub id such as {whole}"
    )


def test_a_part_of_which_diffusers_finds_no_weights_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(path: str) -> object:
        raise SingleFileComponentError("Failed to load T5EncoderModel. Weights are missing.\nPlease load it")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_single_file", lacking)
    with pytest.raises(ModelError) as caught:
        find_model(file)
    assert str(caught.value) == (
        f"model '{file}' lacks weights (Failed to load T5EncoderModel. Weights are missing.): give a file that holds "
        "all parts of the model, or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5"
    )


def test_a_file_that_is_damaged_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"model '.*x.safetensors' cannot be read: "):
        find_model(tmp_path / "x.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    torch.save({"state_dict": {"a": torch.zeros(2)}}, file)
    with pytest.raises(ModelError, match="others are not read, for a pickle can run code; if you trust it") as caught:
        Denoiser.from_pretrained(file)
    command = str(caught.value).split('python -c "')[1].rstrip('"')
    exec(command)  # the very command that is told
    assert (tmp_path / "model.safetensors").is_file()
