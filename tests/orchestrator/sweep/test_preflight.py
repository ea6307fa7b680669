"""What only the model can tell is told before a trial starts, a line for each mistake."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from PIL import Image

from core.errors import UserError
from core.predictors.attributes import Attributes
from core.predictors.vision import Extractor
from orchestrator.spec import Sweep, parse
from orchestrator.sweep import preflight
from orchestrator.sweep.preflight import check_model
from orchestrator.trial import model as trial_model
from tests.core.model.test_denoiser import tiny_unet

SEVERAL = {"choice": ["learned", "pca", "jacobian", "random"]}


def sweep_with(model: object, **sections: Any) -> Sweep:
    """A sweep of one trial, on a chain of two steps."""
    base = {"name": "a", "model": str(model), "sampler": {"steps": 2}, "search": {}, "budget": {"trials": 1}}
    return parse(base | sections)


def mistakes_of(sweep: Sweep) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_model(sweep)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("method", ["learned", "pca", "jacobian", "semantic", "sae", "random", SEVERAL])
def test_what_fits_passes(tiny_model: Path, method: object) -> None:
    check_model(sweep_with(tiny_model, method=method, search={"directions": 32}))


def test_a_window_is_measured_against_the_training_timesteps_of_its_model(tiny_model: Path, tmp_path: Path) -> None:
    long = shutil.copytree(tiny_model, tmp_path / "long")
    config = long / "scheduler" / "scheduler_config.json"
    steps = {"num_train_timesteps": 4000, "beta_start": 2.5e-5, "beta_end": 0.005}
    config.write_text(json.dumps(json.loads(config.read_text()) | steps))
    check_model(sweep_with(long, sampler={"steps": 2, "window": [4000, 2000]}))
    told = [
        mistakes_of(sweep_with(model, sampler={"steps": 2, "window": window}))
        for model, window in ((long, [5000, 0]), (tiny_model, [4000, 0]))
    ]
    assert [line.partition(", for model")[0] for [line] in told] == [
        "window: got [5000, 0]; allowed: [high, low] with 4000 >= high > low >= 0",
        "window: got [4000, 0]; allowed: [high, low] with 1000 >= high > low >= 0",
    ]


def test_what_a_user_should_know_of_the_model_is_told(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model / "unet", tmp_path / "checkpoint-5/unet")
    shutil.copytree(tiny_model / "scheduler", tmp_path / "scheduler")
    (note,) = check_model(sweep_with(tmp_path / "checkpoint-5", method="random")).notes
    assert note.endswith(f"has no scheduler of its own: that in {tmp_path / 'scheduler'} is taken")


def test_networks_that_look_at_pictures_are_refused_where_the_model_draws_none(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_unet(in_channels=2, out_channels=2).save_pretrained(tmp_path / "unet")
    shutil.copytree(tiny_model / "scheduler", tmp_path / "scheduler")
    monkeypatch.setattr(preflight, "judges_of", lambda sweep: None)
    asked = sweep_with(tmp_path, method="random", evaluate={"lpips": "lpips-alex.safetensors"})
    assert mistakes_of(asked) == [
        f"evaluate.lpips: it looks at pictures (1, 3 or 4 channels), and model '{tmp_path}' draws 2: leave it out"
    ]
    check_model(sweep_with(tmp_path, method="random"))
    monkeypatch.setattr("core.predictors.classifier.load_second", lambda *_: None)
    [line] = mistakes_of(sweep_with(tmp_path, method="random", evaluate={"second_predictor": "a/b"}))
    assert line.startswith("evaluate.second_predictor: it looks at pictures")


@pytest.mark.slow
def test_more_directions_than_dimensions(tiny_model: Path) -> None:
    for directions in (33, {"choice": [4, 33]}, {"int": [4, 33]}):
        sweep = sweep_with(tiny_model, method=SEVERAL, search={"directions": directions})
        assert mistakes_of(sweep) == [f"search.directions: got 33; h of '{tiny_model}' has 32 dimensions"]


@pytest.mark.slow
def test_a_mask_must_fit_the_images(tiny_model: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 9), 255).save(tmp_path / "wrong.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "right.png")
    wrong, right, missing = (str(tmp_path / f"{name}.png") for name in ("wrong", "right", "missing"))
    check_model(sweep_with(tiny_model, method="jacobian", search={"jacobian.mask": right, "directions": 4}))
    search = {"jacobian.mask": {"choice": [right, wrong, missing]}, "directions": 4}
    assert mistakes_of(sweep_with(tiny_model, method="jacobian", search=search)) == [
        f"method jacobian: mask: {wrong} is 9x9; model '{tiny_model}' draws 8x8",
        f"method jacobian: mask: {missing} is not there",
    ]
    [line] = mistakes_of(sweep_with(tiny_model, method="jacobian", search={"jacobian.box": "0,0,9,8"}))
    assert line.startswith("method jacobian: box: got [0, 0, 9, 8]; in the 8x8 images of model ")


def test_a_region_must_be_large_enough_for_the_directions(tiny_model: Path) -> None:
    search = {"jacobian.box": "0,0,1,1", "directions": 4}
    assert mistakes_of(sweep_with(tiny_model, method="jacobian", search=search)) == [
        "method jacobian: directions: got 4; only 3 values of eps are looked at, and each gives one at most"
    ]


def test_attributes_are_those_of_the_predictor() -> None:
    search = {"supervised.attribute": {"choice": ["smile", "smil"]}, "supervised.balance": "yawn"}
    told = mistakes_of(sweep_with("toyfaces", method="supervised", search=search))
    assert [line.partition(": ")[0] for line in told] == ["search.supervised.attribute", "search.supervised.balance"]
    assert told[0].endswith("; did you mean 'smile'?") and "attribute 'smil' is not one that the predictor" in told[0]


def test_a_vision_model_that_semantic_cannot_look_through(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    search = {"directions": 2, "semantic.look": {"choice": ["denoiser", str(tmp_path / "empty")]}}
    sweep = sweep_with(tiny_model, method="semantic", search=search, budget={"trials": 2})
    [told] = mistakes_of(sweep)
    needed = "config.json and preprocessor_config.json or processor_config.json"
    place = tmp_path / "empty"
    assert told == f"search.semantic.look: model '{place}' is incomplete: {place} lacks {needed}"
    check_model(sweep_with(tiny_model, method="semantic", search={"directions": 2}))


def test_a_vision_model_that_gives_too_few_numbers(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = Extractor("Five", lambda images: torch.zeros(len(images), 5))
    monkeypatch.setattr(trial_model, "open_vision", create_autospec(trial_model.open_vision, return_value=vision))
    search = {"directions": 6, "semantic.look": "a/five"}
    assert mistakes_of(sweep_with(tiny_model, method="semantic", search=search)) == [
        "search.directions: got 6; model 'a/five' of search.semantic.look gives 5 numbers an image"
    ]
    check_model(sweep_with(tiny_model, method="semantic", search={**search, "directions": 5}))
    of_pca = {"choice": [6, 12], "when": {"method": "pca"}}  # semantic has its default of 16
    both = {"method": {"choice": ["pca", "semantic"]}, "budget": {"trials": 2}}
    assert mistakes_of(sweep_with(tiny_model, **both, search={**search, "directions": of_pca})) == [
        "search.directions: got 16; model 'a/five' of search.semantic.look gives 5 numbers an image"
    ]
    check_model(sweep_with(tiny_model, method="random", search={"directions": 6}))


def test_a_vision_model_that_learned_cannot_train_through(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = Extractor("Blind", lambda images: torch.zeros(len(images), 5))
    opened = create_autospec(trial_model.open_vision, return_value=blind)
    monkeypatch.setattr(trial_model, "open_vision", opened)
    search = {"directions": 6, "learned.look": {"choice": ["pixels", "denoiser", "a/blind"]}}
    sweep = sweep_with(tiny_model, method="learned", search=search, budget={"trials": 3})
    assert mistakes_of(sweep) == [
        "search.learned.look: no gradient comes back from what 'a/blind' sees; give a vision model whose processor "
        "does nothing but resize, crop, rescale and normalise, or denoiser (method semantic takes any)"
    ]
    opened.assert_called_once_with("a/blind", "search.learned.look: model")
    opened.return_value = replace(blind, embed_through=torch.Tensor.double)
    check_model(sweep)


@pytest.mark.slow
def test_supervised_needs_a_predictor_or_pairs(tiny_model: Path, tmp_path: Path) -> None:
    sweep = sweep_with(tiny_model, method={"choice": ["random", "supervised"]})
    assert mistakes_of(sweep) == [
        f"method: supervised needs an attribute predictor, and model '{tiny_model}' has none: "
        "give one as predictor, or labelled images as search.supervised.pairs"
    ]
    search = {"supervised.pairs": str(tmp_path / "pairs"), "supervised.attribute": "smile"}
    assert mistakes_of(sweep_with(tiny_model, method="supervised", search=search)) == [
        f"search.supervised.pairs: pairs: {tmp_path / 'pairs'} is not a folder"
    ]
    for side in ("negative", "positive"):
        (tmp_path / "pairs" / "smile" / side).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pairs" / "smile" / side / "1.png")
    check_model(sweep_with(tiny_model, method="supervised", search=search))


def test_a_predictor_may_know_more_than_h_can_tell_apart(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knows = Attributes(tuple(f"label_{n}" for n in range(33)), lambda images: images)
    monkeypatch.setattr("core.predictors.classifier.load", lambda *_: knows)
    sweep = sweep_with(tiny_model, method="supervised", search={"supervised.attribute": {"choice": ["all", "label_1"]}})
    assert mistakes_of(sweep) == [
        f"search.supervised.attribute: got all 33 of the predictor; h of '{tiny_model}' has 32 dimensions: name one"
    ]


def test_attributes_that_are_pursued_are_those_of_the_predictor() -> None:
    for search in ({}, {"guided.attributes": "smile; skin"}, {"guided.attributes": {"choice": ["all", "smile"]}}):
        check_model(sweep_with("toyfaces", method="guided", search=search))
    search = {"guided.attributes": {"choice": ["skin;smil", "smil; yawn", "all"]}}
    told = mistakes_of(sweep_with("toyfaces", method="guided", search=search, budget={"trials": 3}))
    assert [line.partition(" is not one")[0] for line in told] == [
        "search.guided.attributes: attribute 'smil'",
        "search.guided.attributes: attribute 'yawn'",
    ]
    assert told[0].endswith("; did you mean 'smile'?")
    [line] = mistakes_of(sweep_with("toyfaces", method="guided", search={"guided.attributes": "smile; smile"}))
    assert line == "method guided: attributes: got smile, smile; each may be given once"


def test_guided_needs_a_predictor_through_which_a_gradient_comes(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mistakes_of(sweep_with(tiny_model, method={"choice": ["random", "guided"]})) == [
        f"method: guided needs an attribute predictor, and model '{tiny_model}' has none: give one as predictor"
    ]
    knows = Attributes(tuple(f"label_{n}" for n in range(33)), lambda images: images)
    monkeypatch.setattr("core.predictors.classifier.load", lambda *_: knows)
    assert mistakes_of(sweep_with(tiny_model, method="guided")) == [
        f"search.guided.attributes: got all 33 of the predictor; h of '{tiny_model}' has 32 dimensions: name some",
        "method guided: predictor: no gradient comes back from its scores; give one with score_through, or an image "
        "classifier whose processor does nothing but resize, crop, rescale and normalise (method supervised takes any)",
    ]
    check_model(sweep_with(tiny_model, method="supervised", search={"supervised.attribute": "label_1"}))


def test_metrics_that_need_a_predictor(tiny_model: Path) -> None:
    assert mistakes_of(sweep_with(tiny_model, objectives=[{"coverage": "max"}])) == [
        f"objectives: 'coverage' needs an attribute predictor, and model '{tiny_model}' has none"
    ]


def test_metrics_that_need_a_second_predictor(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one does not stand in for it."""
    metric = [{"second_coverage": "max"}]
    knows = Attributes(("bright",), lambda images: images.mean(dim=(1, 2, 3))[:, None])
    monkeypatch.setattr("core.predictors.classifier.load", lambda *_: knows)
    assert mistakes_of(sweep_with(tiny_model, method="random", objectives=metric)) == [
        f"objectives: 'second_coverage' needs a second attribute predictor, and model '{tiny_model}' has none: "
        "name one as evaluate.second_predictor"
    ]
    check_model(sweep_with("toyfaces", method="random", objectives=metric))


def test_a_second_predictor_that_is_not_there(tiny_model: Path) -> None:
    [line] = mistakes_of(sweep_with(tiny_model, evaluate={"second_predictor": "./nowhere"}))
    assert "predictor './nowhere'" in line


def test_a_predictor_that_is_not_there(tiny_model: Path) -> None:
    [line] = mistakes_of(sweep_with(tiny_model, predictor="./nowhere"))
    assert "predictor './nowhere'" in line


def test_what_methods_refuse_is_told_once_for_each(tiny_model: Path) -> None:
    search = {
        "pca.samples": 64,
        "jacobian.image": {"choice": [0, 256, 300]},
        "shift_scale": {"float": [1, 2]},  # continuous: configurations are drawn, and few values are all met
    }
    told = mistakes_of(sweep_with(tiny_model, method={"choice": ["pca", "jacobian"]}, search=search))
    assert sorted(line.partition(";")[0] for line in told) == [
        "method jacobian: image: got 256",
        "method jacobian: image: got 300",
    ]
