"""What a network is told: the rows of a batch, guidance, the digest; and what a model cannot be told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, UNet2DConditionModel, UNet2DModel

from core import Denoiser
from core.errors import ModelError, UserError
from core.model.architecture import empty_network
from core.model.condition import Condition
from core.model.prompts import check_use, unknown_condition
from core.model.use import Use
from tests.families import saved

TEXT = torch.arange(6.0).reshape(3, 2)  # three prompts
OTHER = torch.tensor([[9.0, 9.0]])
PLAIN = Condition({"text": TEXT})
GUIDED = Condition({"text": TEXT}, {"text": OTHER}, 3.0)


def test_a_condition_that_says_nothing_has_no_rows() -> None:
    assert Condition().rows(4) == {} and Condition().count == 1 and not Condition().guided
    assert Condition().for_samples([1, 2]) == Condition()


def test_samples_take_prompts_by_their_seed() -> None:
    assert PLAIN.count == 3
    chosen = PLAIN.for_samples([4, 0, 2, 3])
    assert torch.equal(chosen.rows(4)["text"], TEXT[[1, 0, 2, 0]])
    assert torch.equal(chosen.for_samples([5]).rows(1)["text"], TEXT[[2]])
    assert torch.equal(PLAIN.rows(2)["text"], TEXT[[0, 0]])  # where nobody says which
    assert torch.equal(chosen.without_choice().rows(3)["text"], TEXT[[0, 0, 0]])


def test_of_one_prompt_there_is_nothing_to_choose() -> None:
    one = Condition({"text": TEXT[:1]})
    assert one.for_samples([4, 5]) is one and one.rows(3)["text"].shape == (3, 2)


def test_a_batch_of_another_length_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        PLAIN.for_samples([1, 2, 3]).rows(2)
    assert str(caught.value) == "a batch of 2 samples; their prompts were chosen for 3"


def test_guidance_has_the_unconditional_rows_first() -> None:
    rows = GUIDED.for_samples([1, 2]).rows(2)["text"]
    assert torch.equal(rows, torch.cat([OTHER, OTHER, TEXT[1:]]))
    assert torch.equal(GUIDED.plain().for_samples([1, 2]).rows(2)["text"], TEXT[1:])


def test_guidance_leads_away_from_the_unconditional_output() -> None:
    output = torch.tensor([[1.0], [2.0], [5.0], [7.0]])
    assert GUIDED.guided_output(output).tolist() == [[1 + 3 * 4.0], [2 + 3 * 5.0]]
    assert torch.equal(replace(GUIDED, guidance=1.0).guided_output(output), output[2:])


@pytest.mark.parametrize(("guidance", "guided"), [(3.0, True), (0.0, True), (1.0, False)])
def test_a_weight_of_one_is_no_guidance(guidance: float, guided: bool) -> None:
    assert replace(GUIDED, guidance=guidance).guided is guided
    assert not replace(PLAIN, guidance=guidance).guided  # nothing to be led away from


def test_the_digest_is_of_what_the_network_is_told() -> None:
    others = [
        PLAIN,
        Condition({"text": TEXT + 1}),
        Condition({"words": TEXT}),
        Condition({"text": TEXT.double()}),
        Condition({"text": TEXT.reshape(2, 3)}),
        GUIDED,
        replace(GUIDED, guidance=4.0),
        replace(GUIDED, unconditional={"text": OTHER + 1}),
    ]
    digests = [condition.digest() for condition in others]
    assert len(set(digests)) == len(digests)
    assert GUIDED.digest() == GUIDED.for_samples([1, 2]).digest()  # all of it, whatever a batch has
    assert GUIDED.plain().digest() == PLAIN.digest() == replace(PLAIN, guidance=3.0).digest()


def test_it_goes_to_a_device_whole() -> None:
    moved = GUIDED.for_samples([1]).to("meta")
    assert {tensor.device.type for tensor in moved.tensors()} == {"meta"} and len(moved.tensors()) == 2
    assert moved.rows(1)["text"].shape == (2, 2) and moved.guidance == 3.0


def unet(**more: Any) -> UNet2DModel:
    sizes = {"block_out_channels": (4,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=2, add_attention=False, **sizes, **more)


def conditional(**more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type="UNetMidBlock2DCrossAttn",
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
        **{"cross_attention_dim": 4, **more},
    )


def transformer() -> DiTTransformer2DModel:
    sizes = {"num_attention_heads": 1, "attention_head_dim": 4, "num_layers": 1, "sample_size": 4}
    return DiTTransformer2DModel(in_channels=1, num_embeds_ada_norm=3, norm_num_groups=1, **sizes)


def flux(**more: Any) -> FluxTransformer2DModel:
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 1}
    rest = {"in_channels": 4, "joint_attention_dim": 4, "pooled_projection_dim": 4, "axes_dims_rope": (2, 2, 4)}
    return FluxTransformer2DModel(**sizes, **rest, **more)


NETWORKS = {
    "UNet": unet,
    "UNet of classes": lambda: unet(num_class_embeds=5),
    "text": conditional,
    "LCM": lambda: conditional(time_cond_proj_dim=4),
    "DiT": transformer,
    "Flux dev": lambda: flux(guidance_embeds=True),
    "Flux schnell": flux,
}


@pytest.mark.parametrize(
    ("kind", "use", "sentence"),
    [
        ("UNet", {"prompts": ["a"]}, "prompts: model 'tiny' reads no text"),
        ("DiT", {"prompts": ["a"]}, "prompts: model 'tiny' reads no text"),
        ("UNet", {"classes": [0]}, "classes: model 'tiny' has no classes"),
        ("Flux schnell", {"guidance": 2}, "guidance: got 2; model 'tiny' was distilled to draw without: 1"),
        ("text", {"classes": [0]}, "classes: model 'tiny' has no classes"),
        ("DiT", {"classes": [1, 3]}, "classes: got 3; model 'tiny' has 0 to 2"),
        ("UNet of classes", {"classes": [-1]}, "classes: got -1; model 'tiny' has 0 to 4"),
        ("UNet of classes", {}, "classes: model 'tiny' draws one of 5 classes: name some, from 0"),
        (
            "text",
            {"negative_prompt": "b"},
            "negative_prompt: it needs a model that reads text, and a guidance other than 1 ('tiny')",
        ),
        (
            "LCM",
            {"negative_prompt": "b", "guidance": 8.0},
            "negative_prompt: it needs a model that reads text, and a guidance other than 1 ('tiny')",
        ),
        (
            "DiT",
            {"negative_prompt": "b", "guidance": 4.0},
            "negative_prompt: it needs a model that reads text, and a guidance other than 1 ('tiny')",
        ),
        (
            "UNet",
            {"guidance": 3.0},
            "guidance: got 3.0; model 'tiny' is told nothing that could be led away from: 1",
        ),
        (
            "UNet of classes",
            {"guidance": 3.0, "classes": [0]},
            "guidance: got 3.0; model 'tiny' is told nothing that could be led away from: 1",
        ),
        *(
            (kind, use, "shifted: got 'conditional'; without guidance a sample has one half: both")
            for kind, use in (
                ("UNet", {"shifted": "conditional"}),
                ("text", {"shifted": "conditional"}),
                ("LCM", {"shifted": "conditional", "guidance": 8.0}),
                ("Flux dev", {"shifted": "conditional", "guidance": 3.5}),
                ("Flux schnell", {"shifted": "conditional"}),
            )
        ),
    ],
)
def test_what_a_model_cannot_be_told_is_refused_in_one_sentence(kind: str, use: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check_use(NETWORKS[kind](), Use(**use), "tiny")
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("kind", "use"),
    [
        ("UNet", {}),
        ("UNet", {"guidance": 1.0}),
        ("UNet of classes", {"classes": [0, 4]}),
        ("text", {}),
        ("text", {"prompts": ["a"], "guidance": 3.0, "negative_prompt": "b", "shifted": "conditional"}),
        ("LCM", {"prompts": ["a"], "guidance": 8.0}),
        ("DiT", {"classes": [2], "guidance": 4.0, "shifted": "conditional"}),
        ("Flux dev", {"prompts": ["a"], "guidance": 3.5}),
        ("Flux schnell", {"prompts": ["a"]}),
    ],
)
def test_what_a_model_can_be_told(kind: str, use: dict[str, Any]) -> None:
    check_use(NETWORKS[kind](), Use(**use), "tiny")


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        ({"shifted": "left"}, "shifted: got 'left'; allowed: both, conditional"),
        ({"space": "here"}, "space: got 'here'; allowed: latents, pixels"),
        ({"guidance": 0.5}, "guidance: got 0.5; allowed: 1, which is none, to 100"),
        ({"guidance": 100.0}, "guidance: got 100.0; allowed: 1, which is none, to 100"),
        ({"prompts": ["a"], "classes": [1]}, "prompts and classes are both given; a model has one or the other"),
    ],
)
def test_what_no_model_can_be_told(use: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Use(**use)
    assert str(caught.value) == sentence


def test_a_use_is_read_back_from_json() -> None:
    use = Use(tap="blocks.1", form="pooled", prompts=("a", "b"), guidance=3.0, shifted="conditional", size=64)
    assert Use.of(use.to_json()) == use and Use().to_json() == {}


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ([], "a model's use: got []; allowed: names and values"),
        (
            {"promts": "a"},
            "promts: not what a model can be told; allowed: tap, form, prompts, negative_prompt, classes, guidance, "
            "shifted, size, space; did you mean 'prompts'?",
        ),
        ({"prompts": 3}, "prompts: got 3; allowed: a text, or a list of them"),
        ({"prompts": ["a", 1]}, "prompts: got ['a', 1]; allowed: a text, or a list of them"),
        ({"classes": [1.0]}, "classes: got [1.0]; allowed: the number of a class, or a list of them"),
        ({"classes": "3"}, "classes: got '3'; allowed: the number of a class, or a list of them"),
        ({"guidance": "3"}, "guidance: got '3'; allowed: a number from 1, which is none, to 100"),
        ({"size": True}, "size: got True; allowed: a whole number of pixels"),
        ({"tap": 3}, "tap: got 3; allowed: the name of a block"),
    ],
)
def test_a_use_of_the_wrong_kind(told: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Use.of(told)
    assert str(caught.value) == sentence


def test_one_prompt_or_class_needs_no_list() -> None:
    assert Use.of({"prompts": "a face"}).prompts == ("a face",) and Use.of({"classes": 3}).classes == (3,)
    assert Use.of({"prompts": None}).prompts == ()


def test_classes_are_told_with_the_class_of_no_class_beside() -> None:
    found = unknown_condition(transformer(), Use(classes=(0, 2), guidance=4.0))
    assert found.given["class_labels"].tolist() == [0, 2] and found.unconditional["class_labels"].tolist() == [3]
    assert found.guided and found.guidance == 4.0
    plain = unknown_condition(transformer(), Use())
    assert plain.given["class_labels"].tolist() == [3] and not plain.guided


@pytest.mark.parametrize(
    ("options", "width"),
    [({}, 4), ({"encoder_hid_dim": 6, "encoder_hid_dim_type": "text_proj"}, 6), ({"cross_attention_dim": (8,)}, 8)],
)
def test_the_width_of_what_is_read_is_that_of_the_encoder(options: dict[str, Any], width: int) -> None:
    network = empty_network(conditional(**options))
    assert unknown_condition(network, Use()).given["encoder_hidden_states"].shape == (1, 77, width)


def test_a_prompt_that_would_be_cut_is_refused(tmp_path: Path) -> None:
    folder = saved("sd", tmp_path)
    with pytest.raises(UserError) as caught:
        Denoiser.from_pretrained(folder, prompts=["a", 30 * "a face "])
    told = str(caught.value)
    assert told.startswith(f"prompts: '{(30 * 'a face ')[:40]}...' has ") and told.endswith(": shorten it")


def test_a_refiner_is_told_apart(tmp_path: Path) -> None:
    index = saved("sdxl", tmp_path) / "model_index.json"
    refiner = {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
    index.write_text(json.dumps(json.loads(index.read_text()) | refiner | {"text_encoder": [None, None]}))
    with pytest.raises(ModelError) as caught:
        Denoiser.from_pretrained(tmp_path)
    assert str(caught.value) == (
        f"model '{tmp_path}' is a refiner, which needs an image to begin with: take the base model"
    )


def test_a_network_that_has_to_be_told_something_is_not_left_alone() -> None:
    with pytest.raises(ModelError) as caught:
        unknown_condition(conditional(), Use())
    assert str(caught.value) == "a UNet2DConditionModel is told what to draw: give a condition (core.model.condition)"
