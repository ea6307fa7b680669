"""Published networks: the numbers are those of the packages they come from, and what is not one gets one sentence.

The golden numbers were made by torch-fidelity 0.4.0, lpips 0.1.4, and the definitions in insightface (iresnet) and
pixel2style2pixel (IR-SE50), from the weights and images of this file.
"""

import json
import math
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.errors import ModelError, UserError
from core.metrics.networks import Extractor, load_identity, load_inception, load_lpips
from core.metrics.networks.identity import _IResNet50, _IrSe50
from core.metrics.networks.inception import Inception, resize_as_tensorflow1
from core.metrics.networks.lpips import _BACKBONES, _Lpips
from core.metrics.networks.pixels import rgb
from core.pictures.traversal_grid import to_picture
from core.predictors.vision import open_vision
from core.randomness import generator

load_features = partial(open_vision, role="feature network")

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "inception": Inception,
    "alex": lambda: _Lpips(_BACKBONES["alex"]),
    "vgg": lambda: _Lpips(_BACKBONES["vgg"]),
    "iresnet50": _IResNet50,
    "ir-se50": _IrSe50,
}
# The first features of the first image; how far they are spread over both.
EXTRACTED = {
    "inception": ([0.0, 0.44980007, 0.54758447, 0.032901399, 0.0013878976, 0.0], 0.04953751),
    "iresnet50": ([-0.0020409718, 0.082899518, -0.048753645, -0.015555487, -0.015790194, 0.065801933], 0.029090842),
    "ir-se50": ([0.0053114654, 0.021192189, 0.032082479, -0.052242812, 0.045758747, 0.085646801], 0.027491421),
}
DISTANCES = {"alex": [0.26468924, 0.24984904], "vgg": [0.21937731, 0.21746957]}
SIZES = {"inception": 64, "iresnet50": 112, "ir-se50": 112}


def random_weights(name: str) -> dict[str, Tensor]:
    """Every tensor by its own seed, of a size that lets a signal through."""
    with torch.device("meta"):
        shapes = NETWORKS[name]().state_dict()
    gain = 1 if name.startswith("ir") else 2  # what ReLU takes away, and a unit with a way around it does not
    return {name: random_tensor(name, tensor.shape, gain) for name, tensor in shapes.items() if tensor.dim()}


def random_tensor(name: str, shape: torch.Size, gain: float) -> Tensor:
    drawing = generator("weights", name)
    if len(shape) > 1:
        drawn = torch.randn(shape, generator=drawing) * math.sqrt(gain / shape[1:].numel())
        return drawn.abs() if name.startswith("lin") else drawn
    if name.endswith(("weight", "running_var")):
        return 0.75 + 0.5 * torch.rand(shape, generator=drawing)
    return 0.1 * torch.randn(shape, generator=drawing)


def images(size: int = 64, count: int = 2, channels: int = 3, name: str = "a") -> Tensor:
    """Of 8-bit levels, smooth enough to survive a resizing."""
    coarse = torch.rand(count, channels, 8, 8, generator=generator("images", name))
    fine = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (fine * 255).round() / 127.5 - 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The file of each network's weights. Half a gigabyte, which is not left behind."""
    folder = tmp_path_factory.mktemp("networks")
    for name in NETWORKS:
        save_file(random_weights(name), folder / f"{name}.safetensors")
    yield {name: str(folder / f"{name}.safetensors") for name in NETWORKS}
    for name in NETWORKS:
        (folder / f"{name}.safetensors").unlink()


@pytest.fixture(scope="module")
def extractors(files: dict[str, str]) -> dict[str, Extractor]:
    return {
        "inception": load_inception(files["inception"]),
        "iresnet50": load_identity(files["iresnet50"]),
        "ir-se50": load_identity(files["ir-se50"]),
    }


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTRACTED)
def test_features_are_those_of_the_package_they_come_from(extractors: dict[str, Extractor], name: str) -> None:
    features = extractors[name].embed(images(SIZES[name]))
    first, spread = EXTRACTED[name]
    assert features.dtype == torch.float32 and features.shape == (2, 2048 if name == "inception" else 512)
    assert features[0, :6].tolist() == pytest.approx(first, rel=1e-3, abs=1e-5)
    assert float(features.std(dim=0).mean()) == pytest.approx(spread, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTANCES)
def test_lpips_is_that_of_its_package(files: dict[str, str], name: str) -> None:
    distance = load_lpips(files[name])
    a, b = images(), images(name="b")
    assert distance(a, b).tolist() == pytest.approx(DISTANCES[name], rel=1e-4)
    assert torch.equal(distance(a, b), distance(b, a))
    assert distance(a, a).tolist() == [0.0, 0.0]
    alone = torch.cat([distance(a[:1], b[:1]), distance(a[1:], b[1:])])
    assert torch.allclose(alone, distance(a, b), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTRACTED)
def test_a_row_depends_on_its_image_alone(extractors: dict[str, Extractor], name: str) -> None:
    embed = extractors[name].embed
    together = embed(images(32, count=3))
    alone = torch.cat([embed(image[None]) for image in images(32, count=3)])
    assert torch.allclose(alone, together, rtol=1e-4, atol=1e-5)


def test_what_a_network_is_given_of_other_images_than_rgb() -> None:
    grey, clear = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0.5, -1.0, 1.0, -1.0]).reshape(1, 4, 1, 1)
    assert torch.equal(rgb(grey, "cpu"), grey.expand(-1, 3, -1, -1))
    assert torch.equal(rgb(clear, "cpu"), torch.ones(1, 3, 1, 1))
    with pytest.raises(UserError, match="^images of 2 channels are no pictures to a network that judges: 1, 3 or 4"):
        rgb(torch.zeros(1, 2, 4, 4), "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTRACTED)
def test_grey_is_repeated_and_no_gradient_comes_back(extractors: dict[str, Extractor], name: str) -> None:
    embed, grey = extractors[name].embed, images(32, channels=1).requires_grad_()
    features = embed(grey.double())
    assert not features.requires_grad
    assert torch.equal(features, embed(grey.expand(-1, 3, -1, -1)))


@pytest.mark.slow
def test_inception_sees_the_picture_that_would_be_saved(extractors: dict[str, Extractor]) -> None:
    embed, saved = extractors["inception"].embed, images(32)
    assert torch.equal(embed(saved + 0.49 / 127.5), embed(saved))
    assert torch.equal(embed(saved * 3), embed((saved * 3).clamp(-1, 1)))


@pytest.mark.parametrize(("height", "width"), [(5, 7), (9, 4), (6, 6)])
def test_tensorflows_resizing_starts_at_the_corner_and_stays_at_the_last_pixel(height: int, width: int) -> None:
    image = torch.rand(height, width, generator=generator("resize"), dtype=torch.float64)
    found = resize_as_tensorflow1(image[None, None], 6)
    for row in range(6):
        for column in range(6):
            y, x = row * height / 6, column * width / 6
            (top, down), (left, right) = divmod(y, 1), divmod(x, 1)
            rows = [int(top), min(int(top) + 1, height - 1)]
            columns = [int(left), min(int(left) + 1, width - 1)]
            corner = image[rows][:, columns]
            by_hand = torch.tensor([1 - down, down]).double() @ corner @ torch.tensor([1 - right, right]).double()
            assert float(found[0, 0, row, column]) == pytest.approx(float(by_hand), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iresnet50", "ir-se50"])
@pytest.mark.parametrize("size", [32, 224])
def test_an_identity_is_of_unit_length_and_of_the_image_as_pillow_resizes_it(
    extractors: dict[str, Extractor], name: str, size: int
) -> None:
    embed, large = extractors[name].embed, images(size, count=1)
    resized = [
        torch.from_numpy(np.array(Image.fromarray(channel.numpy()).resize((112, 112), Image.Resampling.BILINEAR)))
        for channel in large[0]
    ]
    found = embed(large)
    assert float(found.norm()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(found, embed(torch.stack(resized)[None]), atol=1e-4)


@pytest.mark.slow
def test_a_name_tells_the_weights_apart(
    extractors: dict[str, Extractor], files: dict[str, str], tmp_path: Path
) -> None:
    assert [extractor.name.split()[0] for extractor in extractors.values()] == [
        "inception-2015-12-05",
        "iresnet50",
        "ir-se50",
    ]
    weights = load_file(files["alex"])
    weights["lin0.model.1.weight"] += 1
    save_file(weights, tmp_path / "other.safetensors")
    names = [load_lpips(where).name for where in (files["alex"], str(tmp_path / "other.safetensors"))]
    assert all(len(name) == len("lpips-alex ") + 8 for name in names) and names[0] != names[1]


@pytest.mark.slow
def test_lpips_has_its_linear_layers_by_either_name(files: dict[str, str], tmp_path: Path) -> None:
    weights = {
        name.replace("lin", "lins.") if name.startswith("lin") else name: t
        for name, t in load_file(files["alex"]).items()
    }
    save_file(weights, tmp_path / "saved.safetensors")
    assert load_lpips(str(tmp_path / "saved.safetensors"))(images(), images(name="b")).tolist() == pytest.approx(
        DISTANCES["alex"], rel=1e-4
    )


@pytest.mark.slow
def test_half_precision_weights_are_read_as_float32(files: dict[str, str], tmp_path: Path) -> None:
    save_file({name: tensor.half() for name, tensor in load_file(files["alex"]).items()}, tmp_path / "half.safetensors")
    found = load_lpips(str(tmp_path / "half.safetensors"))(images(), images(name="b"))
    assert found.dtype == torch.float32 and found.tolist() == pytest.approx(DISTANCES["alex"], rel=1e-2)


# --- models of transformers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models as they are published: `clip`, `dinov2`, `vit` with and `bare` without its pooler, `resnet`."""
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    folder: Path = tmp_path_factory.mktemp("models")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    seen = {"image_size": 16, "patch_size": 8, **small}
    text = {"vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **small}
    size = {"height": 16, "width": 16}
    centre = {"size": {"shortest_edge": 16}, "crop_size": size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = transformers.CLIPConfig(text_config=text, vision_config=seen, projection_dim=8)
        resnet = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        made = {
            "clip": (transformers.CLIPModel(clip), transformers.CLIPImageProcessorPil(**centre)),
            "dinov2": (
                transformers.Dinov2Model(transformers.Dinov2Config(**seen, initializer_range=0.5)),
                transformers.BitImageProcessorPil(**centre),
            ),
            "vit": (
                transformers.ViTModel(transformers.ViTConfig(**seen)),
                transformers.ViTImageProcessorPil(size=size),
            ),
            "bare": (
                transformers.ViTModel(transformers.ViTConfig(**seen), add_pooling_layer=False),
                transformers.ViTImageProcessorPil(size=size),
            ),
            "resnet": (
                transformers.ResNetModel(resnet),
                transformers.ConvNextImageProcessorPil(size={"shortest_edge": 32}),
            ),
        }
    for name, parts in made.items():
        for part in parts:
            part.save_pretrained(folder / name)
    return folder


@pytest.fixture
def vit(models: Path, tmp_path: Path) -> Path:
    """A copy of `vit` to break."""
    (tmp_path / "vit").mkdir()
    for file in (models / "vit").iterdir():
        (tmp_path / "vit" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "vit"


def by_hand(folder: Path) -> Tensor:
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor([to_picture(image) for image in images(20)], return_tensors="pt")
    net = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if folder.name == "clip":
            return torch.as_tensor(net.visual_projection(net.vision_model(**pixels).pooler_output))
        found = net(**pixels)
    if folder.name == "resnet":
        return torch.as_tensor(found.last_hidden_state.mean(dim=(2, 3)))
    return torch.as_tensor(found.pooler_output if folder.name == "vit" else found.last_hidden_state[:, 0])


@pytest.mark.parametrize("name", ["clip", "dinov2", "vit", "bare", "resnet"])
def test_features_are_the_models_own_embeddings(models: Path, name: str) -> None:
    extractor = load_features(str(models / name))
    features = extractor.embed(images(20))
    assert features.dtype == torch.float32 and features.ndim == 2
    assert torch.allclose(features, by_hand(models / name), rtol=1e-4, atol=1e-6)
    assert features.std(dim=0).max() > 1e-4, "the pictures do not matter"
    alone = torch.cat([extractor.embed(image[None]) for image in images(20)])
    assert torch.allclose(alone, features, rtol=1e-4, atol=1e-5)
    assert torch.equal(
        extractor.embed(images(20, channels=1)), extractor.embed(images(20, channels=1).expand(-1, 3, -1, -1))
    )


def test_a_models_name_is_its_class_and_its_files(models: Path, vit: Path) -> None:
    first = load_features(str(models / "vit")).name
    assert first.split()[0] == "ViTModel" and len(first.split()[1]) == 8
    assert load_features(str(vit)).name == first
    settings = json.loads((vit / "preprocessor_config.json").read_text())
    (vit / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.4, 0.4, 0.4]}))
    assert load_features(str(vit)).name != first


def test_an_image_model_that_knows_faces_is_an_identity(models: Path) -> None:
    embedded = load_identity(str(models / "dinov2")).embed(images(20))
    assert torch.allclose(embedded, nn.functional.normalize(by_hand(models / "dinov2"), dim=1), atol=1e-5)


# --- what is refused --------------------------------------------------------------------------------------------------

READERS = {"Inception": load_inception, "LPIPS": load_lpips, "identity": load_identity}


def refusal(load: Callable[[str], object], where: Path | str) -> str:
    with pytest.raises(ModelError) as told:
        load(str(where))
    return str(told.value)


@pytest.mark.parametrize("role", READERS)
def test_a_file_that_is_none_is_told(tmp_path: Path, role: str) -> None:
    load, file = READERS[role], tmp_path / "x.safetensors"
    assert refusal(load, file) == f"{role} network '{file}' is not there: give a safetensors file of its weights"
    file.mkdir()
    if role != "identity":
        assert refusal(load, file) == f"{role} network '{file}' is a folder: give a safetensors file of its weights"
    file.rmdir()
    file.write_bytes(b"\x00" * 100)
    assert refusal(load, file).startswith(f"{role} network '{file}' cannot be read as safetensors: ")
    assert "\n" not in refusal(load, file)


@pytest.mark.parametrize("role", READERS)
def test_a_file_of_another_network_is_told(tmp_path: Path, role: str) -> None:
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    content = {
        "Inception": "is not the FID's Inception of 2015-12-05: it lacks Conv2d_1a_3x3.conv.weight",
        "LPIPS": "has neither AlexNet's nor VGG-16's convolutions beside its linear layers; make it with: python -c "
        '"import lpips; from safetensors.torch import save_model; '
        "save_model(lpips.LPIPS(net='alex'), 'lpips-alex.safetensors')\"",
        "identity": "is not an iresnet50 or IR-SE50: it lacks conv1.weight",
    }[role]
    assert refusal(READERS[role], tmp_path / "x.safetensors") == f"{role} network '{tmp_path}/x.safetensors' {content}"


def test_the_first_tensor_that_is_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    weights, file = random_weights("alex"), tmp_path / "x.safetensors"
    cure = (
        '; make it with: python -c "import lpips; from safetensors.torch import save_model; '
        "save_model(lpips.LPIPS(net='alex'), 'lpips-alex.safetensors')\""
    )
    save_file(weights | {"lin1.model.1.weight": torch.zeros(1, 64, 1, 1)}, file)
    shapes = "lin1.model.1.weight has shape [1, 64, 1, 1], not [1, 192, 1, 1]"
    assert refusal(load_lpips, file) == f"LPIPS network '{file}' is not LPIPS (alex): {shapes}{cure}"
    del weights["net.slice3.6.bias"], weights["lin1.model.1.weight"]
    save_file(weights, file)
    assert refusal(load_lpips, file) == f"LPIPS network '{file}' is not LPIPS (alex): it lacks net.slice3.6.bias{cure}"
    save_file({"body.0.res_layer.0.weight": torch.zeros(64)}, file)
    message = f"identity network '{file}' is not an IR-SE50: it lacks input_layer.0.weight"
    assert refusal(load_identity, file) == message


@pytest.mark.parametrize("role", READERS)
@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.safetensors"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path: Path, role: str, name: str) -> None:
    file = tmp_path / name
    torch.save({"a": torch.zeros(2)}, file)
    assert refusal(READERS[role], file) == (
        f"{role} network '{file}' is a pickle, and pickles are not read: they can run code; convert it with: python -c "
        '"import torch; from safetensors.torch import save_file; '
        f"weights = torch.load('{file}', map_location='cpu', weights_only=True); "
        f"save_file({{k: v.contiguous().clone() for k, v in weights.items()}}, '{tmp_path}/x.safetensors')\""
    )


def run_command(message: str) -> None:
    """What the message says to type, as a shell would read it."""
    program, option, code = shlex.split(message.partition(" with: ")[2])
    assert (program, option) == ("python", "-c")
    exec(code, {})


@pytest.mark.parametrize("name", ["x.pth", 'the "$HOME" of it\'s.pth'])
def test_the_command_makes_a_file_that_is_read(tmp_path: Path, name: str) -> None:
    """Of a state dict as lpips has it: the linear layers twice, in the same memory; and of a name that shells read."""
    weights = random_weights("alex")
    twice = {f"lins.{k}.model.1.weight": weights[f"lin{k}.model.1.weight"] for k in range(5)}
    torch.save(weights | twice | {"transposed": torch.zeros(2, 3).T}, tmp_path / name)
    run_command(refusal(load_lpips, tmp_path / name))
    distance = load_lpips(str((tmp_path / name).with_suffix(".safetensors")))
    assert distance(images(), images(name="b")).tolist() == pytest.approx(DISTANCES["alex"], rel=1e-4)


def test_lpips_of_images_that_do_not_fit_is_told(files: dict[str, str]) -> None:
    for name, smallest in (("alex", 31), ("vgg", 16)):
        distance = load_lpips(files[name])
        assert torch.isfinite(distance(images(smallest), images(smallest, name="b"))).all()
        with pytest.raises(UserError) as told:
            distance(images(smallest - 1), images(smallest - 1))
        size = f"{smallest - 1} x {smallest - 1}"
        assert str(told.value) == f"{distance.name} needs images of {smallest} pixels or more; got {size}"
        with pytest.raises(UserError) as told:
            distance(images(32), images(32, count=1))
        assert str(told.value) == "LPIPS compares images of one shape; got [2, 3, 32, 32] and [1, 3, 32, 32]"


def test_a_folder_that_is_incomplete_is_told(vit: Path) -> None:
    label = f"feature network '{vit}'"
    torch.save(load_file(vit / "model.safetensors"), vit / "pytorch_model.bin")
    (vit / "model.safetensors").unlink()
    message = refusal(load_features, vit)
    assert message == (
        f"{label} has no safetensors weights in {vit}, only pytorch_model.bin, and pickles are not read: they can run "
        'code; convert them with: python -c "from transformers import AutoModel; '
        f"AutoModel.from_pretrained('{vit}').save_pretrained('{vit}')\""
    )
    run_command(message)
    assert torch.equal(load_features(str(vit)).embed(images(20)), load_features(str(vit)).embed(images(20)))
    (vit / "preprocessor_config.json").unlink()
    needed = "preprocessor_config.json or processor_config.json"
    assert refusal(load_features, vit) == f"{label} is incomplete: {vit} lacks {needed}"
    (vit / "config.json").unlink()
    assert refusal(load_features, vit) == f"{label} is incomplete: {vit} lacks config.json and {needed}"


def test_a_folder_of_something_else_is_told(vit: Path) -> None:
    label = f"identity network '{vit}'"
    weights, config = load_file(vit / "model.safetensors"), json.loads((vit / "config.json").read_text())
    partial = {name: tensor for name, tensor in weights.items() if not name.startswith(("pooler.", "layernorm."))}
    save_file(partial, vit / "model.safetensors", {"format": "pt"})
    message = f"{label} is not a trained model: its weights lack layernorm.bias"
    assert refusal(load_identity, vit) == message
    save_file(weights, vit / "model.safetensors", {"format": "pt"})
    (vit / "config.json").write_text(json.dumps(config | {"model_type": "bert", "architectures": ["BertModel"]}))
    assert refusal(load_identity, vit).startswith(label)
    (vit / "config.json").write_text("[]")
    assert refusal(load_identity, vit) == f"{label}: {vit}/config.json is not a model configuration"
    (vit / "config.json").write_text(json.dumps(config))
    (vit / "model.safetensors").write_bytes(b"\x00" * 100)
    assert refusal(load_identity, vit).startswith(f"{label} cannot be read from {vit}: ")


def test_names_that_lead_nowhere_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    hint = "give a folder or a hub id of an image model such as facebook/dinov2-base"
    for name in ("/nowhere/vit", "vit", "./a/b"):
        assert refusal(load_features, name) == f"feature network '{name}' is not there: {hint}"

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("a long story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    assert refusal(load_identity, "a/b") == (
        "identity network 'a/b' is neither a folder here nor could it be fetched from the hub: "
        "it is not in this machine's cache, and the hub is out of reach: fetch it where there is a network"
    )


def test_nothing_is_said_while_loading(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    try:
        load_features(str(models / "bare"))
        assert capfd.readouterr() == ("", "") and logging.is_progress_bar_enabled()
    finally:
        logging.disable_progress_bar()
