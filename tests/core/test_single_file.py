"""A checkpoint of one file. diffusers' own conversion is trusted, and stands in for here; what is around it is ours."""

from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from core.denoiser import Denoiser
from core.errors import ModelError
from tests import families


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Keys by which diffusers knows Stable Diffusion 1, and nothing else of it."""
    save_file({"model.diffusion_model.out.2.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_single_file_is_unpacked_beside_itself_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_single_file(path: str) -> object:
        asked.append(path)
        return families.build("sd")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_single_file", from_single_file)
    for _ in range(2):
        denoiser = Denoiser.from_pretrained(file, prompts=["a face"])
    assert asked == [str(file)] and denoiser.h_shape == (16, 4, 4)
    assert [each.name for each in sorted(file.parent.iterdir())] == ["model.diffusers", "model.safetensors"]


def test_what_it_lacks_comes_from_the_hub(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(path: str) -> object:
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_single_file", offline)
    with pytest.raises(
        ModelError, match=r"cannot be unpacked into .*model.diffusers \(OSError: no network\): its conf"
    ):
        Denoiser.from_pretrained(file)
    assert [each.name for each in file.parent.iterdir()] == ["model.safetensors"]


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 9, 1, 1)}, file)
    with pytest.raises(ModelError, match="is a single file of kind 'inpainting'; allowed: xl_base, flux-dev"):
        Denoiser.from_pretrained(file)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    torch.save({"state_dict": {"a": torch.zeros(2)}}, file)
    with pytest.raises(ModelError, match="others are not read, for a pickle can run code; if you trust it") as caught:
        Denoiser.from_pretrained(file)
    command = str(caught.value).split('python -c "')[1].rstrip('"')
    exec(command)  # the very command that is told
    assert (tmp_path / "model.safetensors").is_file()
