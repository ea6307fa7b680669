"""One list of what a sweep reads, and whether it is on this machine."""

from pathlib import Path

import pytest

from orchestrator.spec.sources import Source, absent, sources
from tests.orchestrator.spec.test_sweep import sweep_of

ALL = """
model: some/model
predictor: ./mine
method: {choice: [learned, jacobian, semantic, supervised]}
search: {jacobian.mask: {choice: [none, a.png, b.png]}, supervised.pairs: pairs,
         semantic.look: {choice: [denoiser, a/dino]}, learned.look: {choice: [pixels, denoiser, ./clip]}}
evaluate: {features: a/b, inception: i.safetensors, lpips: l.pth, identity: weights/id.safetensors,
           second_predictor: ./other}
"""


def test_everything_that_a_sweep_reads_is_listed() -> None:
    assert [(source.key, source.name) for source in sources(sweep_of(ALL))] == [
        ("model", "some/model"),
        ("predictor", "./mine"),
        ("evaluate.second_predictor", "./other"),
        ("evaluate.features", "a/b"),
        ("evaluate.identity", "weights/id.safetensors"),
        ("search.semantic.look", "a/dino"),
        ("search.learned.look", "./clip"),
        ("evaluate.inception", "i.safetensors"),
        ("evaluate.lpips", "l.pth"),
        ("search.jacobian.mask", "a.png"),
        ("search.jacobian.mask", "b.png"),
        ("search.supervised.pairs", "pairs"),
    ]
    assert [source.key for source in sources(sweep_of("{}"))] == ["model"]


@pytest.mark.parametrize(
    ("key", "name", "on_disk"),
    [
        ("model", "toyfaces", False),
        ("model", "some/model", False),
        ("model", "./model", True),
        ("predictor", "some/model", False),
        ("predictor", "mine", True),
        ("evaluate.lpips", "some/model", True),  # never of the hub
        ("evaluate.identity", "some/model", False),
        ("evaluate.identity", "some/model.pth", True),
        ("evaluate.features", "~/clip", True),
        ("evaluate.second_predictor", "some/model", False),
        ("search.semantic.look", "some/model", False),
        ("search.semantic.look", "./dino", True),
        ("search.semantic.look", "pixels", True),  # a look of learned alone, so here the name of a folder
        ("search.supervised.pairs", "some/pairs", True),
    ],
)
def test_what_is_a_path_and_what_is_of_the_hub(key: str, name: str, on_disk: bool) -> None:
    assert Source(key, name).on_disk is on_disk


def test_what_is_not_there_is_told_by_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs").mkdir()
    for name in ("a.png", "i.safetensors"):
        (tmp_path / name).touch()
    assert [source.absent for source in absent(sweep_of(ALL))] == [
        "predictor: './mine' is not there; allowed: a folder here, or a hub id, of an image classifier or a CLIP model",
        "evaluate.second_predictor: './other' is not there; allowed: a folder here, or a hub id, of an image "
        "classifier or a CLIP model",
        "evaluate.identity: 'weights/id.safetensors' is not there; allowed: a safetensors file, or a folder here or a "
        "hub id of an image model",
        "search.learned.look: './clip' is not there; allowed: pixels, denoiser, or a folder here, or a hub id, of an "
        "image model",
        "evaluate.lpips: 'l.pth' is not there; allowed: a safetensors file",
        "search.jacobian.mask: 'b.png' is not there; allowed: an image",
    ]
    [look] = absent(sweep_of("{method: semantic, search: {semantic.look: pixels}}"))
    assert str(look.absent).startswith("search.semantic.look: 'pixels' is not there; allowed: denoiser, or a folder")
    [model] = absent(sweep_of("model: ./nowhere"))
    assert str(model.absent).startswith("model './nowhere' is not there: give a built-in name (toyfaces, ")
