"""What a sweep will take of the disk, against what one really wrote, and what it will fetch."""

import os
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch

from core.chain.schedule import Schedule
from core.methods import learned
from core.metrics.factors import SEEDS as FACTOR_SEEDS
from core.model import catalogue
from core.randomness import CALIBRATION_SEEDS
from core.samples.cache import SampleCache
from core.samples.draw import draw_h, draw_images
from core.samples.training import SPREAD_SAMPLES, draw_pool, training_seeds
from orchestrator.plan import disk_use as upkeep
from orchestrator.spec import Sweep, parse
from orchestrator.trial.memory import heaviest, without_weights
from orchestrator.trial.model import TrialModel


def sweep_of(model: object, **sections: Any) -> Sweep:
    base = {"name": "a", "model": str(model), "search": {"directions": {"choice": [3, 4]}}, "budget": {"trials": 2}}
    return parse(base | {"sampler": {"steps": 3}, "train": {"pool": 70, "iterations": 10}} | sections)


@pytest.fixture(scope="module")
def trial_model(tiny_model: Path) -> TrialModel:
    return TrialModel.load(sweep_of(tiny_model))


def taken(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_sets_and_pictures_are_as_large_as_was_counted(
    trial_model: TrialModel, tiny_model: Path, tmp_path: Path
) -> None:
    sweep = sweep_of(tiny_model)
    found = learned.Learner(trial_model.denoiser, trial_model.schedule, heaviest(sweep)).directions()
    found.save(tmp_path / "set")
    assert (
        taken(tmp_path / "set")
        <= upkeep.set_bytes(4, trial_model.denoiser, trial_model.schedule)
        < taken(tmp_path / "set") + 4096
    )
    trial_model.draw(sweep, found, tmp_path)
    real, counted = (tmp_path / "traversal.png").stat().st_size, upkeep.picture_bytes(4, trial_model.denoiser)
    assert real <= counted < 4 * real, "noise compresses least"


@pytest.mark.slow
def test_the_state_of_a_trial_is_as_large_as_was_counted(
    trial_model: TrialModel, tiny_model: Path, tmp_path: Path
) -> None:
    from orchestrator.trial.engine import Engines

    sweep = sweep_of(tiny_model, deepspeed={"zero": 0})
    settings = heaviest(sweep)
    engines = Engines(sweep.deepspeed, settings.batch)
    learner = learned.Learner(trial_model.denoiser, trial_model.schedule, settings, learned.Workers(engines.make))
    learner.iterate(0)
    engines.snapshot(1).write(tmp_path)
    engines.close()
    counted = upkeep.engine_bytes(without_weights(sweep), trial_model.schedule, settings)
    assert counted == pytest.approx(taken(tmp_path), rel=0.02)


def test_the_largest_state_of_a_sweep_is_counted_whatever_is_named_last(tiny_model: Path) -> None:
    """Without a discriminator, or with a smaller reconstructor, a state is smaller."""

    def state(**search: Any) -> int:
        sweep = sweep_of(tiny_model, search={"seed": {"choice": [0, 1]}, "directions": 4, **search})
        denoiser = without_weights(sweep)
        schedule = Schedule.ddim(denoiser, sweep.sampler.steps)
        return upkeep.disk_parts(sweep, denoiser, schedule, 1)["while_trials_run"]

    largest = state()
    assert state(discriminator_weight=0) < largest
    for values in ([0, 3], [3, 0]):
        assert state(discriminator_weight={"choice": values}) == largest
    both = ["pixels", "denoiser"]
    looks = [state(**{"learned.look": {"choice": values}}) for values in (both, both[::-1])]
    assert looks[0] == looks[1] >= largest


@pytest.mark.slow
def test_the_cache_is_as_large_as_was_counted(trial_model: TrialModel, tiny_model: Path, tmp_path: Path) -> None:
    sweep = sweep_of(tiny_model, evaluate={"seeds": 6})
    cache = SampleCache(tmp_path)
    draw_pool(trial_model.denoiser, trial_model.schedule, training_seeds(70, 0), cache=cache)
    spread = training_seeds(
        SPREAD_SAMPLES, 1
    )  # of random directions; where it is the seed of a trial too, less is taken
    list(draw_h(trial_model.denoiser, trial_model.schedule, spread, cache=cache))
    for seeds in (CALIBRATION_SEEDS[:78], FACTOR_SEEDS):
        list(draw_images(trial_model.denoiser, trial_model.schedule, seeds, cache=cache))
    for first in (1 << 30, 2 << 30):  # to choose by, and to report on
        for part in (range(first, first + 6), range(first + 6, first + 30)):
            list(draw_images(trial_model.denoiser, trial_model.schedule, part, cache=cache))
    parts = upkeep.disk_parts(sweep, without_weights(sweep), trial_model.schedule, 2)
    files = list(tmp_path.glob("*.safetensors"))
    assert 0 <= sum(file.stat().st_size for file in files) - parts["samples_cache"] < 512 * len(files)


@pytest.mark.slow
def test_more_trials_seeds_and_reports_take_more(tiny_model: Path) -> None:
    def parts(slots: int = 1, **sections: Any) -> dict[str, int]:
        sweep = sweep_of(tiny_model, **sections)
        denoiser = without_weights(sweep)
        return upkeep.disk_parts(sweep, denoiser, Schedule.ddim(denoiser, sweep.sampler.steps), slots)

    one = parts()
    assert parts(slots=2)["while_trials_run"] == 2 * one["while_trials_run"]
    assert parts(slots=9)["while_trials_run"] == 2 * one["while_trials_run"], "there are but two"
    assert parts(evaluate={"every": 5})["mlflow_files"] > one["mlflow_files"]
    many = parts(search={"seed": {"choice": [0, 1, 2]}}, budget={"trials": 3})
    more = parts(search={"seed": {"choice": [0, 1, 2, 3, 4]}}, budget={"trials": 5})
    added, again = (after["samples_cache"] - before["samples_cache"] for before, after in ((one, many), (many, more)))
    assert added == again > 0, "two seeds more"
    assert parts(recovery={"keep_trials": 1})["direction_sets_and_pictures"] * 2 == one["direction_sets_and_pictures"]
    still = parts(method="random", search={"directions": {"choice": [3, 4]}})
    assert still["while_trials_run"] < one["while_trials_run"]


@pytest.mark.slow
def test_images_are_counted_where_a_method_looks_at_them(tiny_model: Path) -> None:
    def cached(method: str) -> int:
        sweep = sweep_of(tiny_model, method=method, search={"directions": 3, f"{method}.samples": 64})
        denoiser = without_weights(sweep)
        return upkeep.disk_parts(sweep, denoiser, Schedule.ddim(denoiser, 3), 1)["samples_cache"]

    image = 4 * torch.Size(without_weights(sweep_of(tiny_model)).sample_shape).numel()
    assert cached("semantic") - cached("pca") == 64 * image


def test_free_space_is_that_where_the_folder_will_be(tmp_path: Path) -> None:
    space = os.statvfs(tmp_path)
    assert upkeep.free_at(tmp_path / "not" / "yet") == pytest.approx(space.f_bavail * space.f_frsize, rel=0.05)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """The hub's cache on this machine."""
    import huggingface_hub

    held: set[tuple[str, str]] = set()
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda name, file, revision=None: "/a/path" if (name, file) in held else None,
    )
    return held


CELEBA = "google/ddpm-celebahq-256"


def test_what_is_embedded_or_a_folder_is_not_downloaded(tiny_model: Path) -> None:
    for model in ("toyfaces", tiny_model):
        assert upkeep.downloads(sweep_of(model, predictor=str(tiny_model)), None) == []


@pytest.mark.usefixtures("hub")
def test_what_is_a_file_or_registered_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/sd.safetensors").touch()
    points = EntryPoints([EntryPoint("our/colours", "somewhere:load", catalogue.GROUP)])
    monkeypatch.setattr(catalogue, "entry_points", lambda **asked: points.select(**asked))
    for model in ("models/sd.safetensors", "our/colours"):
        assert upkeep.downloads(sweep_of(model), None) == []


@pytest.mark.slow
def test_what_the_hub_has_is_told_with_its_size_where_that_is_known(hub: set[tuple[str, str]]) -> None:
    sweep = sweep_of(CELEBA, predictor="google/vit-base-patch16-224")
    model, predictor = upkeep.downloads(sweep, without_weights(sweep))
    assert (model.what, model.name, model.bytes) == ("model", CELEBA, 4 * 113_673_219)
    assert (predictor.what, predictor.name, predictor.bytes) == ("predictor", "google/vit-base-patch16-224", None)
    assert upkeep.downloads(sweep, None)[0].bytes is None


@pytest.mark.parametrize(
    "file",
    [
        "diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ],
)
def test_what_was_downloaded_is_not_downloaded_again(hub: set[tuple[str, str]], file: str) -> None:
    hub |= {(CELEBA, file), ("a/b", "model.safetensors.index.json")}
    assert upkeep.downloads(sweep_of(CELEBA, predictor="a/b"), None) == []
