"""What is fetched of a repository of the hub, which stands in a folder here, and what is said of what is not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file

from core.errors import AbsentModelError, ModelError
from core.model.denoiser import Denoiser
from core.model.pretrained import find_model
from core.predictors.image_model import find_folder
from tests import families

UNET, VAE = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"


class Hub:
    """One repository, and what was fetched of it."""

    def __init__(self, folder: Path) -> None:
        self.repository, self.fetched, self.answers = folder / "repository", folder / "fetched", True

    def files(self, folder: Path | None = None) -> list[str]:
        folder = folder or self.repository
        return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())

    def put(self, *names: str) -> None:
        for name in names:
            (self.repository / name).parent.mkdir(parents=True, exist_ok=True)
            (self.repository / name).touch()

    def rename(self, change: Callable[[str], str]) -> None:
        for name in self.files():
            if name.endswith(".safetensors"):
                (self.repository / name).rename(self.repository / change(name))

    def snapshot_download(self, _: str, *, allow_patterns: list[str], ignore_patterns: list[str], **__: object) -> str:
        found = filter_repo_objects(self.files(), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for name in found:
            (self.fetched / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / name, self.fetched / name)
        return str(self.fetched)

    def list_repo_files(self, _: str, **__: object) -> list[str]:
        if not self.answers:
            raise OSError("offline")
        return self.files()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.saved("sd", tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture
def sd(hub: Hub, saved: Path) -> Hub:
    shutil.copytree(saved, hub.repository)
    return hub


def half(name: str) -> str:
    return name.replace(".safetensors", ".fp16.safetensors")


@pytest.mark.slow
def test_only_the_parts_that_are_used_are_fetched_and_once(sd: Hub) -> None:
    used = sd.files()
    sd.put("vae_1_0/config.json", "vae_1_0/diffusion_pytorch_model.safetensors", "safety_checker/config.json")
    sd.put("safety_checker/model.safetensors", "unet_onnx/model.onnx", "v1.safetensors", "v1.ckpt", "README.md")
    sd.put(f"{UNET}.bin", f"{UNET}.fp16.safetensors", f"{UNET}.non_ema.safetensors", "unet/old/config.yaml")
    sd.put(f"{UNET}.fp16-00001-of-00002.safetensors", "text_encoder/model.fp16-00001-of-00002.safetensors")
    sd.put(f"{UNET}-00001-of-00002.fp16.safetensors", f"{UNET}.safetensors.index.fp16.json")
    assert Denoiser.from_pretrained("some/model", prompts=["a face"]).h_shape == (16, 4, 4)
    assert sd.files(sd.fetched) == used


def test_a_network_at_the_root_and_weights_in_several_files_are_fetched(hub: Hub) -> None:
    names = ["config.json", "model_index.json", "scheduler_config.json"]
    names += [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    names += ["diffusion_pytorch_model.safetensors.index.json", "vqvae/config.json"]
    names += ["vqvae/diffusion_pytorch_model.safetensors"]
    hub.put(*names)
    find_model("some/model")
    assert hub.files(hub.fetched) == sorted(names)


def test_without_weights_none_are_fetched_nor_missed(sd: Hub) -> None:
    sd.rename(half)
    find_model("some/model", weights=False)
    assert not [name for name in sd.files(sd.fetched) if name.endswith((".safetensors", ".bin"))]


@pytest.mark.slow
def test_weights_that_are_there_in_half_precision_alone_are_fetched(hub: Hub, tmp_path: Path) -> None:
    whole = families.saved("latent", tmp_path / "whole")
    shutil.copytree(whole, hub.repository)
    hub.rename(lambda name: half(name) if name.startswith("unet/") else name)
    hub.put("vqvae/diffusion_pytorch_model.fp16.safetensors")
    assert Denoiser.from_pretrained("some/model").digest == Denoiser.from_pretrained(whole).digest
    assert [name for name in hub.files(hub.fetched) if ".fp16" in name] == [f"{UNET}.fp16.safetensors"]


@pytest.mark.parametrize("variant", ["bf16", "other"])
def test_weights_that_are_there_as_any_variant_alone_are_fetched(hub: Hub, variant: str) -> None:
    hub.put("model_index.json", "unet/config.json", "scheduler/scheduler_config.json", f"{UNET}.non_ema.safetensors")
    hub.put(f"{UNET}.{variant}-00001-of-00001.safetensors", f"{UNET}.safetensors.index.{variant}.json")
    find_model("some/model")
    found = [name for name in hub.files(hub.fetched) if name.startswith(UNET)]
    assert found == [f"{UNET}.{variant}-00001-of-00001.safetensors", f"{UNET}.safetensors.index.{variant}.json"]


@pytest.mark.slow
def test_pickles_are_refused_with_the_command_that_converts_them(
    sd: Hub, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in (UNET, VAE):
        torch.save(load_file(sd.repository / f"{part}.safetensors"), sd.repository / f"{part}.bin")
        (sd.repository / f"{part}.safetensors").unlink()
    sd.put("model.ckpt", f"{UNET}.non_ema.bin", f"{UNET}.fp16.bin")
    with pytest.raises(ModelError) as caught:
        find_model("some/model@v2")
    assert str(caught.value) == (
        f"model 'some/model@v2' has only {UNET}.bin, {UNET}.fp16.bin, {UNET}.non_ema.bin, {VAE}.bin on the hub, and "
        'pickles are not read: they can run code; if you trust it, convert it once: python -c "from diffusers import '
        "DiffusionPipeline as P; from huggingface_hub import snapshot_download as D; "
        "P.from_pretrained(D('some/model', revision='v2', allow_patterns=['*/*', '*.json', '*.bin'], "
        "ignore_patterns=['*fp16*', '*non_ema*', '*.onnx*', '*.msgpack'])).save_pretrained('some/model-safetensors')\""
    )
    with pytest.raises(ModelError, match=r"P.from_pretrained\(D\('some/model', allow_patterns="):
        find_model("some/model")
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).split('python -c "')[1].rstrip('"'))  # the very command that is told
    converted, whole = (
        Denoiser.from_pretrained(each, prompts=["a face"]) for each in ("some/model-safetensors", saved)
    )
    assert converted.digest == whole.digest
    assert not (sd.fetched / "model.ckpt").exists()


def test_single_files_of_a_repository_are_told(hub: Hub) -> None:
    hub.put("README.md", "sd.ckpt", "sd.safetensors", "vae/other.safetensors")
    with pytest.raises(ModelError) as caught:
        find_model("some/model")
    assert str(caught.value) == (
        "model 'some/model' is not in diffusers layout on the hub: download one of its files (sd.ckpt, "
        "sd.safetensors), and give that as the model"
    )


def test_a_hub_out_of_reach_is_told_where_the_cache_has_a_part_of_the_model(hub: Hub) -> None:
    """The hub's client answers from its cache then, and what that lacks would look like a broken model."""
    hub.put("model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    hub.put("vae/diffusion_pytorch_model.safetensors")
    hub.answers = False
    with pytest.raises(AbsentModelError) as caught:
        find_model("some/model@v2")
    assert str(caught.value) == (
        "model 'some/model at revision v2': this machine's cache has no weights of unet, and the hub is out of reach: "
        "fetch it where there is a network"
    )


class TransportError(Exception):
    """The class of that name in the HTTP library of the hub's client."""


class ConnectError(TransportError):
    """One of its kinds."""


@pytest.mark.parametrize("error", [ConnectionError("refused"), ConnectError("refused"), OfflineModeIsEnabled("x")])
def test_a_network_that_is_away_is_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(AbsentModelError) as caught:
        find_model("some/model")
    with pytest.raises(ModelError) as of_predictor:
        find_folder("some/model", "predictor 'some/model'", "image classifier")
    sentence = (
        "is neither a folder here nor could it be fetched from the hub: it is not in this machine's cache, and the hub "
        "is out of reach: fetch it where there is a network"
    )
    assert str(caught.value) == f"model 'some/model' {sentence}"
    assert str(of_predictor.value) == f"predictor 'some/model' {sentence}"
