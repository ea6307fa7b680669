"""Where models of every family come from, and what is refused on the way."""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file

from core.errors import ModelError, UserError
from core.model import denoiser as denoiser_module
from core.model.catalogue import GROUP
from core.model.cuts.hooked import HookedCut
from core.model.denoiser import Denoiser
from core.model.pretrained import find_model, refuse_incomplete
from core.model.use import Use
from core.randomness import noise
from tests import families
from tests.core.model.conftest import OPEN, PROMPTED, edit
from tests.core.model.test_denoiser import tiny_unet


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True])
def test_weights_in_half_precision_are_read_where_there_are_no_others(models: Path, sd: Path, several: bool) -> None:
    for part in ("unet", "vae"):
        whole = sd / part / "diffusion_pytorch_model.safetensors"
        half = load_file(whole)
        half = {name: weight.half() for name, weight in half.items()}
        whole.unlink()
        name = "diffusion_pytorch_model.fp16.safetensors"
        if several:
            name = "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"
            index = json.dumps({"weight_map": dict.fromkeys(half, name)})
            (sd / part / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(index)
        save_file(half, sd / part / name)
    first, second = (Denoiser.from_pretrained(each, **PROMPTED).network.conv_in.weight for each in (sd, models / "sd"))
    assert first.dtype == torch.float32 and torch.equal(first, second.half().float())


def test_the_text_encoders_variant_is_that_in_which_they_are_there(sd: Path) -> None:
    assert find_model(sd).variant is None
    (sd / "text_encoder/model.safetensors").rename(sd / "text_encoder/model.fp16.safetensors")
    assert find_model(sd).variant == "fp16"


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_autoencoder_that_overflows_in_half_precision_stays_in_float32(sd: Path) -> None:
    assert Denoiser.from_pretrained(sd, torch.float16, **PROMPTED).codec.network.dtype == torch.float32  # type: ignore[union-attr]
    edit(sd / "vae/config.json", force_upcast=False)
    assert Denoiser.from_pretrained(sd, torch.float16, **PROMPTED).codec.network.dtype == torch.float16  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_class_that_published_transformers_have_in_their_configuration(models: Path, tmp_path: Path) -> None:
    dit = Path(shutil.copytree(models / "dit", tmp_path / "dit"))
    edit(dit / "transformer/config.json", _class_name="Transformer2DModel", norm_type="ada_norm_zero")
    assert Denoiser.from_pretrained(dit).h_shape == Denoiser.from_pretrained(models / "dit").h_shape


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "pickled"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("text_encoder/model.safetensors", "pytorch_model.bin"),
    ],
)
def test_pickled_weights_are_refused_with_the_command_that_converts_them(
    models: Path, sd: Path, stored: str, pickled: str
) -> None:
    part = (sd / stored).parent
    torch.save(load_file(sd / stored), part / pickled)
    (sd / stored).unlink()
    with pytest.raises(ModelError) as caught:
        Denoiser.from_pretrained(sd, **PROMPTED)
    assert str(caught.value) == (
        f"model '{sd}' has only {pickled} in {part}, and pickles are not read: they can run code; if you trust it, "
        'convert it once: python -c "from diffusers import DiffusionPipeline as P; '
        f"P.from_pretrained('{sd}').save_pretrained('{sd}-safetensors')\""
    )
    exec(str(caught.value).split('python -c "')[1].rstrip('"'))  # the very command that is told
    converted, whole = (Denoiser.from_pretrained(each, **PROMPTED) for each in (f"{sd}-safetensors", models / "sd"))
    assert (converted.digest, converted.condition.digest()) == (whole.digest, whole.condition.digest())


@pytest.mark.slow
@pytest.mark.parametrize("part", ["tokenizer", "text_encoder"])
def test_a_model_that_reads_text_without_a_part_for_it_is_told(sd: Path, part: str) -> None:
    shutil.rmtree(sd / part)
    with pytest.raises(ModelError) as caught:
        Denoiser.from_pretrained(sd, **PROMPTED)
    assert str(caught.value) == f"model '{sd}' is incomplete: {sd} lacks {part}/ (diffusers layout, safetensors)"
    assert Denoiser.without_weights(sd, **PROMPTED).h_shape == (16, 4, 4)


def test_a_part_for_text_that_the_index_leaves_out_is_not_missed(sd: Path) -> None:
    edit(sd / "model_index.json", text_encoder_2=[None, None], tokenizer_2=None)
    refuse_incomplete(find_model(sd))


def test_an_unsupported_network_is_refused_before_its_text_encoders_are_read(sd: Path) -> None:
    edit(sd / "unet/config.json", mid_block_type=None)
    shutil.rmtree(sd / "tokenizer")
    with pytest.raises(ModelError) as caught:
        Denoiser.from_pretrained(sd, **PROMPTED)
    assert str(caught.value) == f"model '{sd}' has no mid block, hence no h"


def test_what_a_family_s_cut_needs_is_not_asked_of_a_cut_of_ones_own() -> None:
    network = tiny_unet(mid_block_type=None, time_embedding_type="fourier", out_channels=6)
    cut = HookedCut(network, "down_blocks.1", call=lambda unet, x, t, _: unet(x, t).sample.chunk(2, 1)[0], output=0)
    assert Denoiser(network, DDIMScheduler(), "tiny", cut=cut).h_shape == (16, 4, 4)
    with pytest.raises(ModelError, match="^model 'tiny' takes 3 channels and gives 6: it predicts a variance"):
        Denoiser(network, DDIMScheduler(), "tiny")


def test_weights_of_another_shape_are_told_by_the_first(sd: Path) -> None:
    edit(sd / "unet/config.json", block_out_channels=[8, 24])
    with pytest.raises(ModelError) as caught:
        Denoiser.from_pretrained(sd, **PROMPTED)
    assert str(caught.value) == (
        f"model '{sd}' cannot be read from {sd / 'unet'}: down_blocks.1.resnets.0.conv1.weight is of shape "
        "[16, 8, 3, 3], and by its configuration [24, 8, 3, 3]"
    )


@pytest.mark.slow
@pytest.mark.parametrize("open_model", OPEN)
def test_a_network_that_names_no_size_is_given_one(sd: Path, open_model: Callable[..., Denoiser]) -> None:
    edit(sd / "unet/config.json", sample_size=None)
    assert open_model(sd, size=48, **PROMPTED).sample_shape == (4, 12, 12)
    with pytest.raises(UserError) as caught:
        open_model(sd, **PROMPTED)
    assert str(caught.value) == ("size: the model's configuration names none: give the side of its images in pixels")


@pytest.mark.parametrize("open_model", OPEN)
@pytest.mark.parametrize("told", [None, []])
def test_an_autoencoder_that_does_not_say_its_factor_is_told(
    sd: Path, told: object, open_model: Callable[..., Denoiser]
) -> None:
    edit(sd / "vae/config.json", block_out_channels=told)
    with pytest.raises(ModelError) as caught:
        open_model(sd, **PROMPTED)
    assert str(caught.value) == (
        f"model '{sd}' has a AutoencoderKL whose configuration names no block_out_channels: autoencoders are supported "
        "that do, such as AutoencoderKL and VQModel"
    )


@pytest.mark.parametrize("open_model", OPEN)
def test_an_autoencoder_that_does_not_say_what_it_gives_is_told(sd: Path, open_model: Callable[..., Denoiser]) -> None:
    shutil.rmtree(sd / "vae")
    diffusers.ConsistencyDecoderVAE(
        encoder_block_out_channels=(4, 8, 8),
        encoder_down_block_types=("DownEncoderBlock2D",) * 3,
        encoder_layers_per_block=1,
        encoder_norm_num_groups=2,
        decoder_block_out_channels=(32, 32),
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
        decoder_layers_per_block=1,
        decoder_norm_num_groups=8,
    ).save_pretrained(sd / "vae")
    with pytest.raises(ModelError) as caught:
        open_model(sd, **PROMPTED)
    assert str(caught.value) == (
        f"model '{sd}' has a ConsistencyDecoderVAE whose configuration names no out_channels: autoencoders are "
        "supported that do, such as AutoencoderKL and VQModel"
    )


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("vae", {"_class_name": "MyVAE"}, "module diffusers has no attribute MyVAE"),
        ("vae", {"down_block_types": ["Mine"] * 3}, "Mine does not exist."),
        ("unet", {"down_block_types": ["Mine"] * 2}, "Mine does not exist."),
    ],
)
def test_an_architecture_that_cannot_be_built_is_told(sd: Path, part: str, changes: dict[str, Any], said: str) -> None:
    edit(sd / part / "config.json", **changes)
    with pytest.raises(ModelError) as caught:
        Denoiser.without_weights(sd, **PROMPTED)
    assert str(caught.value) == f"model '{sd}' cannot be built as {sd / part}/config.json has it: {said}"
    with pytest.raises(ModelError) as caught:
        Denoiser.from_pretrained(sd, **PROMPTED)
    assert str(caught.value) == f"model '{sd}' cannot be read from {sd / part}: {said}"


@pytest.mark.parametrize("open_model", OPEN)
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_class_that_is_no_word_is_told(sd: Path, part: str, open_model: Callable[..., Denoiser]) -> None:
    edit(sd / part / "config.json", _class_name=["AutoencoderKL"])
    with pytest.raises(ModelError) as caught:
        open_model(sd, **PROMPTED)
    assert str(caught.value) == f"model '{sd}': {sd / part}/config.json is not a diffusers configuration"


@pytest.mark.slow
def test_a_vqmodel_of_before_there_was_a_scale_has_none(models: Path, tmp_path: Path) -> None:
    """As CompVis/ldm-celebahq-256. diffusers' own pipeline divides by Stable Diffusion's scale, unless it is told."""
    folder = Path(shutil.copytree(models / "latent", tmp_path / "latent"))
    config = json.loads((folder / "vqvae/config.json").read_text())
    assert config.pop("scaling_factor") == 0.18215
    (folder / "vqvae/config.json").write_text(json.dumps(config))
    denoiser, pipeline = Denoiser.from_pretrained(folder), families.loads(folder)
    planned = Denoiser.without_weights(folder).codec
    assert planned is not None and planned.scaling == 1.0
    assert pipeline.vqvae.config["scaling_factor"] == 0.18215
    pipeline.vqvae.register_to_config(scaling_factor=1.0)
    x = noise([0, 1], denoiser.sample_shape)
    with torch.no_grad():
        drawn = pipeline.vqvae.decode(x / pipeline.vqvae.config["scaling_factor"]).sample
    assert torch.allclose(denoiser.images(x), drawn, atol=1e-5)
    told = Denoiser.from_pretrained(models / "latent").images(x * 0.18215)
    assert torch.allclose(told, drawn, atol=1e-5), "one that names a scale has it"


def test_another_kind_of_noise_is_told(sd: Path) -> None:
    edit(sd / "scheduler/scheduler_config.json", _class_name="EDMEulerScheduler")
    with pytest.raises(ModelError, match="model '.*' has a EDMEulerScheduler; only diffusion with a cumulative alpha"):
        Denoiser.from_pretrained(sd, **PROMPTED)


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        (
            "flux",
            {"in_channels": 96, "out_channels": 16},
            "takes 96 channels and gives 16: it needs an image to begin with (inpainting, upscaling), and only models "
            "that draw by themselves are supported",
        ),
        (
            "pixel",
            {"out_channels": 6},
            "takes 3 channels and gives 6: it predicts a variance beside the noise (learned variance), and only UNets "
            "that predict the noise alone are supported",
        ),
        (
            "pixel",
            {"class_embed_type": "timestep"},
            "is told its class by timestep; of UNets only a UNet2DModel is supported that is told it by number",
        ),
        (
            "sd",
            {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 8},
            "is told its class by projection; of UNets only a UNet2DModel is supported that is told it by number",
        ),
        (
            "sd",
            {"num_class_embeds": 4},
            "is told its class by number; of UNets only a UNet2DModel is supported that is told it by number",
        ),
    ],
)
def test_a_network_that_is_told_more_or_gives_more_is_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], sentence: str
) -> None:
    folder = families.saved(family, tmp_path / family)
    part = "transformer" if family == "flux" else "unet"
    edit(folder / part / "config.json", **changes)
    with pytest.raises(ModelError) as caught:
        Denoiser.without_weights(folder)
    assert str(caught.value) == f"model '{folder}' {sentence}"


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
            "could it be fetched from the hub: no such model, or a private one: check the spelling",
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
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: [])
    assert find_model("some/model@1a2b3c").folder == tmp_path
    assert asked == {"hub_id": "some/model", "revision": "1a2b3c"}
    with pytest.raises(ModelError, match="model 'some/model at revision gone': the hub has no such revision"):
        find_model("some/model@gone")
    with pytest.raises(ModelError, match="model 'some/model@' is not there: give a built-in name"):
        find_model("some/model@")


@pytest.mark.slow
def test_a_package_registers_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def register(value: str) -> None:
        point = EntryPoint("colours", value, GROUP)
        monkeypatch.setattr(denoiser_module, "entry_points", lambda **asked: EntryPoints([point]).select(**asked))

    register("examples.own_family:load")
    found = Denoiser.from_pretrained("colours", torch.float64, form="pooled")
    assert (found.name, found.dtype, found.h_shape, found.cut.splits_at_tap) == (
        "colours",
        torch.float64,
        (48, 1, 1),
        False,
    )
    assert Denoiser.without_weights("colours").device.type == "meta"
    with pytest.raises(UserError, match="tap: got 'x'; a Sequential has no submodule of that name"):
        Denoiser.from_pretrained("colours", tap="x")
    register("examples.own_family:missing")
    with pytest.raises(ModelError, match="model 'colours' of an installed package cannot be loaded: "):
        Denoiser.from_pretrained("colours")


def heedless(dtype: torch.dtype, device: str, use: Use) -> Denoiser:
    """A package's model, which is used one way only."""
    own = Use(form="pooled")
    return Denoiser(tiny_unet().to(device, dtype), DDIMScheduler(), "tiny", use=own)


@pytest.mark.slow
def test_a_package_s_model_says_how_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("mine", f"{__name__}:heedless", GROUP)])
    monkeypatch.setattr(denoiser_module, "entry_points", lambda **asked: points.select(**asked))
    for open_model in OPEN:
        assert open_model("mine").use == open_model("mine", form="pooled").use == Use(form="pooled")
        with pytest.raises(UserError) as caught:
            open_model("mine", form="tokens", size=64, prompts=["a face"])
        assert str(caught.value) == (
            "form, prompts, size: model 'mine' of an installed package does not say that it is used so: its load has "
            "to heed the use that it is told, and give it to its Denoiser"
        )


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/model"])
def test_a_name_that_no_path_can_have_is_told(name: str) -> None:
    with pytest.raises(ModelError, match=f"^model '{name}' is not there: give a built-in name"):
        find_model(name)


def test_how_a_model_is_used_survives_json_and_strangers() -> None:
    use = Use(prompts=["a", "b"], guidance=2, form="pooled", size=64, space="pixels", shifted="conditional")
    assert Use.of(json.loads(json.dumps(use.to_json()))) == use
    assert Use().to_json() == {}
    for told in ({"prompts": [1]}, {"size": "9"}, {"guidance": True}, {"evil": 1}, ["tap"], {"classes": ["a"]}):
        with pytest.raises(UserError, match="; allowed: "):
            Use.of(told)
    with pytest.raises(UserError, match="prompts and classes are both given"):
        Use(prompts=("a",), classes=(1,))
