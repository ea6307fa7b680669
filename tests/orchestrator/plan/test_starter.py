"""The sweep file that `orchestrate new` writes and `orchestrate find` runs."""

import re
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch

from core.errors import ModelError, UserError
from core.model.denoiser import Denoiser
from orchestrator.plan import starter as module
from orchestrator.plan.starter import SweepFile, starter
from orchestrator.plan.wanted import Wanted
from orchestrator.spec import METHODS, TRAINED, Choice, Fixed, load
from orchestrator.sweep.preflight import check_model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("trials", [None, 5])
def test_the_text_is_read_as_the_sweep_that_it_describes(method: str, trials: int | None, tmp_path: Path) -> None:
    written = starter(Wanted("toyfaces", method, trials=trials))
    (tmp_path / "a.yaml").write_text(written.text)
    read = load(tmp_path / "a.yaml")
    assert read.resolved() == written.sweep.resolved()
    assert (read.methods, read.budget.trials, read.model) == ((method,), trials or 1, "toyfaces")
    assert (read.scheduler is not None) == (method in TRAINED and trials == 5)
    assert all(isinstance(each, Fixed) for each in read.search.values()) == (trials is None)
    assert len(read.objectives) == (1 if trials is None else 2)
    assert read.evaluate.seeds == (12 if trials is None else 24)


def test_without_a_method_it_is_one_that_does_not_train_and_guided_for_attributes() -> None:
    assert starter(Wanted("mnist")).sweep.methods == ("semantic",)
    written = starter(Wanted("mnist", attributes=("slant", "width"))).sweep
    assert written.methods == ("guided",) and written.search["guided.attributes"] == Fixed("slant; width")
    alone = starter(Wanted("mnist", "supervised", attributes=("slant",))).sweep
    assert alone.search["supervised.attribute"] == Fixed("slant")


def test_directions_are_searched_below_the_usual_number_unless_they_are_given() -> None:
    assert starter(Wanted("toyfaces", "pca")).sweep.search["directions"] == Fixed(16)
    assert starter(Wanted("toyfaces", "pca", trials=4)).sweep.search["directions"] == Choice((8, 16))
    assert starter(Wanted("toyfaces", "pca", directions=5, trials=4)).sweep.search["directions"] == Fixed(5)


def test_minutes_are_the_budget() -> None:
    budget = starter(Wanted("toyfaces", "learned", minutes=90)).sweep.budget
    assert budget.hours == 1.5 and budget.trials > 6
    assert starter(Wanted("toyfaces", "learned", minutes=90, trials=3)).sweep.budget.trials == 3


def test_its_name_tells_model_method_and_settings_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    named = [
        starter(wanted).sweep.name
        for wanted in (Wanted("toyfaces"), Wanted("toyfaces"), Wanted("toyfaces", "pca"), Wanted("toyfaces", trials=2))
    ]
    assert named[0] == named[1] and len(set(named)) == 3
    assert re.fullmatch("toyfaces-semantic-[0-9a-f]{4}", named[0])
    written = Wanted("toyfaces", "learned")
    here = starter(written).sweep.name
    monkeypatch.setattr(module, "_found", create_autospec(module._found, return_value="another machine"))
    monkeypatch.setattr(module, "_resources", create_autospec(module._resources, return_value={"cpus_per_worker": 2}))
    assert starter(written).sweep.name == here, "it goes on where another machine began"
    models = ("a/b-c@main", "./my model/", "/x/Ünï.safetensors", "...")
    assert [module._slug(model) for model in models] == ["b-c", "my-model", "n", "model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "use", "sampler"),
    [
        (Wanted("stable-diffusion-v1-5/stable-diffusion-v1-5", prompts=("a: b # c",)), {"guidance": 5}, (20, 8)),
        (Wanted("SimianLuo/LCM_Dreamshaper_v7", prompts=("x",)), {"guidance": None}, (4, 64)),
        (Wanted("facebook/DiT-XL-2-256", classes=(207,)), {"guidance": 4, "form": None}, (20, 8)),
        (Wanted("PixArt-alpha/PixArt-XL-2-512x512", prompts=("x",)), {"guidance": 5, "form": "pooled"}, (20, 8)),
        (Wanted("toyfaces-text", prompts=("x", "y"), guidance=3), {"guidance": 3}, (8, 64)),
        (Wanted("CompVis/ldm-celebahq-256"), {"guidance": None}, (20, 8)),
    ],
)
def test_models_are_used_as_their_kind_is(
    wanted: Wanted, use: dict[str, object], sampler: tuple[int, int], tmp_path: Path
) -> None:
    written = starter(wanted)
    assert written.sweep.denoiser.prompts == wanted.prompts and written.sweep.denoiser.classes == wanted.classes
    assert use.items() <= {"form": None, **dict.fromkeys(("guidance",)), **written.sweep.denoiser.use}.items()
    assert (written.sweep.sampler.steps, written.sweep.sampler.batch) == sampler
    (tmp_path / "a.yaml").write_text(written.text)
    assert load(tmp_path / "a.yaml").resolved() == written.sweep.resolved()


@pytest.mark.parametrize(
    ("model", "few"),
    [
        ("stabilityai/sd-turbo", True),
        ("latent-consistency/lcm-lora", True),
        ("x/SDXL_Lightning_4step", True),
        ("ByteDance/Hyper-SD", True),
        ("a/hyperrealism", False),
        ("/home/turbo/faces", False),
        ("b/calcmap", False),
    ],
)
def test_models_of_few_steps_are_known_by_their_own_name(tiny_denoiser: Denoiser, model: str, few: bool) -> None:
    assert module._few_steps(model, tiny_denoiser) is few


def test_what_it_asks_of_a_machine_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(model: str) -> SweepFile:
        return starter(Wanted(model, "learned"))

    assert of("toyfaces").sweep.resources.gpus_per_trial == 0
    assert "no GPU, where a model of this size takes hours" in of("google/ddpm-celebahq-256").text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", create_autospec(torch.cuda.get_device_name, return_value="H"))
    large, small = of("google/ddpm-celebahq-256"), of("toyfaces")
    assert large.sweep.resources.gpus_per_trial == small.sweep.resources.gpus_per_trial == 1
    assert (large.sweep.train.precision, large.sweep.deepspeed.precision) == ("bf16", "bf16")
    assert (small.sweep.train.precision, small.sweep.deepspeed.precision) == ("fp32", "fp32")
    assert "# written on a machine with 2 x H\n" in small.text


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_sweep_of_every_method_passes_the_checks_before_its_first_trial(method: str) -> None:
    check_model(starter(Wanted("toyfaces", method, trials=5)).sweep)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (Wanted("toyfaces", "sematic"), r"--method: got 'sematic'; allowed: learned, .*; did you mean 'semantic'\?$"),
        (Wanted("toyfaces", "zzz"), r"--method: got 'zzz'; allowed: learned, guided, .*, random$"),
        (Wanted("toyfaces", "pca", attributes=("smile",)), "--attributes: method pca finds directions without names;"),
        (Wanted("toyfaces", "supervised", attributes=("a", "b")), "--attributes: method supervised finds one, or all"),
        (Wanted("toyfaces", "guided", directions=3), "--directions: method guided finds one for each attribute;"),
        (Wanted("toyfaces-text"), "--prompt: model 'toyfaces-text' reads text; say what its samples show"),
        (Wanted("toyfaces", prompts=("x",)), "prompts: model 'toyfaces' reads no text"),
        (Wanted("google/ddpm-celebahq-256", attributes=("smile",)), "--predictor: method guided needs a network"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(wanted: Wanted, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}") as told:
        starter(wanted)
    assert "\n" not in str(told.value)


def test_a_model_that_is_not_there_is_told() -> None:
    with pytest.raises(ModelError, match=r"^model '\./nothing' is not there: give a built-in name"):
        starter(Wanted("./nothing"))
