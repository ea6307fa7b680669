"""Where models of every family come from, and what is refused on the way."""

import json
import shutil
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file

from core import denoiser as denoiser_module
from core.denoiser import Denoiser
from core.errors import ModelError, UserError
from core.pretrained import find_model
from core.use import Use
from tests import families

PROMPTED = {"prompts": ["a face"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("latent", "sd", "dit"):
        families.saved(name, folder / name)
    return folder


@pytest.fixture
def sd(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "sd", tmp_path / "sd"))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_weights_in_several_files_are_those_of_one(models: Path, sd: Path) -> None:
    whole = load_file(sd / "unet/diffusion_pytorch_model.safetensors")
    (sd / "unet/diffusion_pytorch_model.safetensors").unlink()
    half = len(whole) // 2
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name, part in zip(names, (list(whole)[:half], list(whole)[half:]), strict=True):
        save_file({key: whole[key] for key in part}, sd / "unet" / name)
    weight_map = {key: names[i >= half] for i, key in enumerate(whole)}
    index = sd / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert Denoiser.from_pretrained(sd, **PROMPTED).digest == Denoiser.from_pretrained(models / "sd", **PROMPTED).digest


def test_the_digest_is_of_the_weights_and_the_autoencoders_whatever_they_are_used_in(models: Path, sd: Path) -> None:
    digests = [
        Denoiser.from_pretrained(models / "sd", dtype, **PROMPTED).digest for dtype in (torch.float32, torch.bfloat16)
    ]
    assert digests[0] == digests[1]
    file = sd / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, file)
    assert Denoiser.from_pretrained(sd, **PROMPTED).digest not in digests


def test_an_autoencoder_that_overflows_in_half_precision_stays_in_float32(sd: Path) -> None:
    assert Denoiser.from_pretrained(sd, torch.float16, **PROMPTED).codec.network.dtype == torch.float32  # type: ignore[union-attr]
    edit(sd / "vae/config.json", force_upcast=False)
    assert Denoiser.from_pretrained(sd, torch.float16, **PROMPTED).codec.network.dtype == torch.float16  # type: ignore[union-attr]


def test_the_class_that_published_transformers_have_in_their_configuration(models: Path, tmp_path: Path) -> None:
    dit = Path(shutil.copytree(models / "dit", tmp_path / "dit"))
    edit(dit / "transformer/config.json", _class_name="Transformer2DModel", norm_type="ada_norm_zero")
    assert Denoiser.from_pretrained(dit).h_shape == Denoiser.from_pretrained(models / "dit").h_shape


def test_pickled_weights_are_refused_with_the_command_that_converts_them(sd: Path) -> None:
    (sd / "unet/diffusion_pytorch_model.safetensors").rename(sd / "unet/diffusion_pytorch_model.bin")
    sentence = (
        r"has only diffusion_pytorch_model.bin in .*unet, and pickles are not read: .* convert it once: python -c"
    )
    with pytest.raises(ModelError, match=sentence):
        Denoiser.from_pretrained(sd)


def test_a_model_that_reads_text_without_its_encoder_is_told(sd: Path) -> None:
    shutil.rmtree(sd / "text_encoder")
    with pytest.raises(ModelError, match="model '.*': its text encoders cannot be read: "):
        Denoiser.from_pretrained(sd, **PROMPTED)


def test_another_kind_of_noise_is_told(sd: Path) -> None:
    edit(sd / "scheduler/scheduler_config.json", _class_name="EDMEulerScheduler")
    with pytest.raises(ModelError, match="model '.*' has a EDMEulerScheduler; only diffusion with a cumulative alpha"):
        Denoiser.from_pretrained(sd, **PROMPTED)


def error_of(kind: type[Exception]) -> Exception:
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            GatedRepoError,
            "model 'some/model' is gated: ask for access on its page of the hub, then `hf auth login` here",
        ),
        (
            RepositoryNotFoundError,
            "could it be fetched from the hub .*: no such model, or a private one: check the spelling",
        ),
        (
            LocalEntryNotFoundError,
            "it is not in this machine's cache, and the hub is out of reach: fetch it where there",
        ),
    ],
)
def test_a_hub_that_does_not_give_the_model(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], sentence: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error_of(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=sentence) as caught:
        find_model("some/model")
    assert "\n" not in str(caught.value)


def test_a_revision_is_asked_for_and_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def download(hub_id: str, revision: str | None, **_: object) -> str:
        asked.update(hub_id=hub_id, revision=revision)
        if revision == "gone":
            raise error_of(RevisionNotFoundError)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("some/model@1a2b3c").folder == tmp_path
    assert asked == {"hub_id": "some/model", "revision": "1a2b3c"}
    with pytest.raises(ModelError, match="model 'some/model at revision gone': the hub has no such revision"):
        find_model("some/model@gone")
    with pytest.raises(ModelError, match="model 'some/model@' is not there: give a built-in name"):
        find_model("some/model@")


def test_a_package_registers_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def register(value: str) -> None:
        point = EntryPoint("colours", value, denoiser_module.GROUP)
        monkeypatch.setattr(denoiser_module, "entry_points", lambda **asked: EntryPoints([point]).select(**asked))

    register("examples.own_family:load")
    found = Denoiser.from_pretrained("colours", torch.float64, form="pooled")
    assert (found.name, found.dtype, found.h_shape, found.cut.shares) == ("colours", torch.float64, (48, 1, 1), False)
    assert Denoiser.without_weights("colours").device.type == "meta"
    with pytest.raises(UserError, match="tap: got 'x'; a Sequential has no submodule of that name"):
        Denoiser.from_pretrained("colours", tap="x")
    register("examples.own_family:missing")
    with pytest.raises(ModelError, match="model 'colours' of an installed package cannot be loaded: "):
        Denoiser.from_pretrained("colours")


def test_how_a_model_is_used_survives_json_and_strangers() -> None:
    use = Use(prompts=["a", "b"], guidance=2, form="pooled", size=64, space="pixels", shifted="conditional")
    assert Use.from_json(json.loads(json.dumps(use.to_json()))) == use
    assert Use().to_json() == {}
    for told in ({"prompts": [1]}, {"size": "9"}, {"guidance": True}, {"evil": 1}, ["tap"], {"classes": ["a"]}):
        with pytest.raises(UserError, match="use: "):
            Use.from_json(told)
    with pytest.raises(UserError, match="prompts and classes are both given"):
        Use(prompts=("a",), classes=(1,))
