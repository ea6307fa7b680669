"""The champion as a model that MLflow loads: the images that `applied` draws, and a sentence for every mistake."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from core import Denoiser, DirectionSet, Schedule, noise
from core.chain.sampling import sample
from core.errors import UserError
from core.execution.streaming import Streamed
from core.methods import random
from core.pictures.traversal_grid import to_picture
from orchestrator.spec import Sweep, parse
from orchestrator.tracking import pyfunc
from orchestrator.tracking.client import Tracking

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning"),  # MLflow's, of its own
]


@pytest.fixture(scope="module")
def sweep(tiny_model: Path) -> Sweep:
    search = {"directions": {"choice": [2, 3]}}
    return parse({"name": "a", "model": str(tiny_model), "method": "random", "sampler": {"steps": 4}, "search": search})


@pytest.fixture(scope="module")
def directions(sweep: Sweep) -> DirectionSet:
    denoiser = Denoiser.from_pretrained(sweep.model)
    found = random.find(denoiser, Schedule.ddim(denoiser, 4), random.Settings(3, shift_scale=2.0))
    return replace(found, names=("smile", "7", "yaw"))


@pytest.fixture(scope="module")
def saved(sweep: Sweep, directions: DirectionSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("model")
    (home / "bundle").mkdir()
    directions.write(home / "bundle")
    (home / "bundle" / "gallery.html").write_text("<p>" * 1000)
    for _ in range(2):
        pyfunc.save(home / "bundle", sweep, home / "made", 1_700_000_000_000, "run", "ab" * 16)
    return home / "made"


@pytest.fixture(scope="module")
def model(saved: Path) -> Iterator[Any]:
    import mlflow

    yield mlflow.pyfunc.load_model(str(saved))


def test_its_folder_holds_no_pickle_and_is_the_same_again(
    saved: Path, sweep: Sweep, directions: DirectionSet, tmp_path: Path
) -> None:
    files = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    assert {"MLmodel", "data/bundle/directions.safetensors", "data/bundle/directions.json"} <= files
    assert not any(name.endswith((".pkl", ".html")) for name in files)
    described = yaml.safe_load((saved / "MLmodel").read_text())
    assert described["flavors"]["python_function"]["loader_module"] == "orchestrator.pyfunc"
    assert (described["model_uuid"], described["run_id"]) == ("ab" * 16, "run")
    assert f"{pyfunc.PACKAGE}==" in (saved / "requirements.txt").read_text()
    (tmp_path / "bundle").mkdir()
    directions.write(tmp_path / "bundle")
    pyfunc.save(tmp_path / "bundle", sweep, tmp_path / "made", 1_700_000_000_000, "run", "ab" * 16)
    for path in (path for path in saved.rglob("*") if path.is_file()):
        assert (tmp_path / "made" / path.relative_to(saved)).read_bytes() == path.read_bytes(), path.name


def test_it_draws_what_the_chain_draws(model: Any, sweep: Sweep, directions: DirectionSet) -> None:
    rows = pd.DataFrame({"seed": [5, 5, 6], "direction": ["yaw", 0, "7"], "scale": [1.0, -2.0, 0.0]})
    images = model.predict(rows)
    assert images.shape == (3, 8, 8, 3) and images.dtype == np.uint8
    assert Image.fromarray(images[0]).size == (8, 8)
    denoiser = Denoiser.from_pretrained(sweep.model)
    x_T = noise([5, 5, 6], denoiser.sample_shape)
    shift = directions.shift(torch.tensor([2, 0, 1]), torch.tensor([1.0, -2.0, 0.0]))
    drawn = sample(denoiser, Schedule.ddim(denoiser, 4), x_T, shift)
    assert np.array_equal(images, np.stack([np.asarray(to_picture(image)) for image in drawn]))
    assert (images[0] != images[1]).any()


def test_one_by_one_or_many_at_a_time(model: Any) -> None:
    """A mapping of lists will do, the scale may be left out, and a sample is the same in any batch."""
    many = model.predict({"seed": list(range(20)), "direction": [2] * 20})
    one = model.predict({"seed": [19], "direction": ["yaw"], "scale": [1.0]})
    assert many.shape[0] == 20 and np.array_equal(many[19], one[0])
    assert model.predict(pd.DataFrame({"seed": pd.Series([], dtype="int64"), "direction": []})).shape == (0, 8, 8, 3)


def test_a_chain_of_another_length(model: Any) -> None:
    rows = {"seed": [3], "direction": [0], "scale": [0.0]}
    assert np.array_equal(model.predict(rows), model.predict(rows, params={"steps": 4})), "its own"
    assert (model.predict(rows) != model.predict(rows, params={"steps": 9})).any()


@pytest.fixture
def half(saved: Path) -> Iterator[Any]:
    import mlflow

    yield mlflow.pyfunc.load_model(str(saved), model_config={"precision": "bf16", "weights": "cpu"})


def test_it_is_run_as_the_sweep_was_or_as_it_is_asked_for(model: Any, half: Any) -> None:
    """An older version's model does not say: float32, on the device."""
    denoisers = [loaded._model_impl.denoiser for loaded in (model, half)]
    assert [denoiser.dtype for denoiser in denoisers] == [torch.float32, torch.bfloat16]
    assert [isinstance(denoiser.cut, Streamed) for denoiser in denoisers] == [False, True]
    rows = {"seed": [5], "direction": ["yaw"], "scale": [0.1]}
    drawn, exact = (loaded.predict(rows).astype(int) for loaded in (half, model))
    assert (drawn != exact).any() and abs(drawn - exact).mean() < 8
    editor = model._model_impl
    told = {name: value for name, value in editor.config.items() if name not in ("precision", "weights")}
    older = pyfunc.Editor(editor.directions, told)
    assert older.precision == "fp32" and np.array_equal(older.predict(rows), model.predict(rows))


def test_each_model_is_run_in_its_own_precision(model: Any, saved: Path) -> None:
    """The switches are those of the process, which may hold two."""
    import mlflow

    loose = mlflow.pyfunc.load_model(str(saved), model_config={"precision": "tf32"})
    for loaded, said in ((model, "highest"), (loose, "high"), (model, "highest")):
        loaded.predict({"seed": [5], "direction": ["yaw"]})
        assert torch.get_float32_matmul_precision() == said


@pytest.mark.parametrize(("weights", "kept"), [("device", "device"), ("cpu", "cpu"), ("partitioned", "cpu")])
def test_it_says_how_the_sweep_ran_its_model_and_where_that_is(
    sweep: Sweep,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: str,
    kept: str,
) -> None:
    """From every working folder: a single file, too."""
    (tmp_path / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    given = {"train": sweep.train.model_copy(update={"precision": "bf16"}), "model": "model.safetensors"}
    given["gradient"] = sweep.gradient.model_copy(update={"weights": weights})
    pyfunc.save(saved / "data" / "bundle", sweep.model_copy(update=given), tmp_path / "made", 1, "run", "ab" * 16)
    [flavor] = yaml.safe_load((tmp_path / "made" / "MLmodel").read_text())["flavors"].values()
    expected = {"model": str(tmp_path / "model.safetensors"), "precision": "bf16", "weights": kept}
    assert {name: flavor["config"][name] for name in expected} == expected


def test_where_memory_runs_out_what_takes_less_is_told(
    model: Any, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    editor, tried = model._model_impl, []
    draw = editor._draw

    def tight(schedule: Any, seeds: Any, *given: Any) -> Any:
        tried.append(len(seeds))
        if len(seeds) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return draw(schedule, seeds, *given)

    monkeypatch.setattr(editor, "_draw", tight)
    most, rows = 4, {"seed": list(range(9)), "direction": [0] * 9}
    assert model.predict(rows).shape == (9, 8, 8, 3) and tried == [9, 8, 4, 4, 1]
    most = 0
    told = "memory ran out; these take less of it: model_config={'weights': 'cpu'}, model_config={'precision': 'bf16'}"
    with pytest.raises(UserError) as error:
        model.predict(rows)
    assert str(error.value) == told
    monkeypatch.setattr("core.model.denoiser.Denoiser.from_pretrained", lambda *_, **__: tight(None, [0]))
    with pytest.raises(UserError) as error:
        mlflow.pyfunc.load_model(str(saved))
    assert str(error.value) == told


MISTAKES = {
    "smlie": "the set has no direction named 'smlie'; did you mean 'smile'?",
    "12": "direction 12 is outside the set: it has 0 to 2",
    3: "direction 3 is outside the set: it has 0 to 2",
    0.5: "direction: got 0.5; allowed: a name or a whole number",
    True: "direction: got True; allowed: a name or a number",
}


@pytest.mark.parametrize("direction", MISTAKES)
def test_a_direction_that_is_not_there(model: Any, direction: Any) -> None:
    with pytest.raises(UserError) as told:
        model.predict({"seed": [0], "direction": [direction]})
    assert str(told.value) == MISTAKES[direction]


def test_a_scale_that_is_no_number(model: Any) -> None:
    with pytest.raises(UserError, match="scale: got nan; allowed: a finite number"):
        model.predict({"seed": [0], "direction": [0], "scale": [float("nan")]})


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("/nowhere", r"model '/nowhere' is not there: .* or give load_model the place as model_config={'model': ...}"),
        ("toyfaces", r"model 'toyfaces' has other weights \(\w{16}\) than those that the directions were found in"),
    ],
)
def test_a_diffusion_model_that_is_not_at_hand(saved: Path, place: str, told: str) -> None:
    import mlflow

    with pytest.raises(UserError, match=told) as raised:
        mlflow.pyfunc.load_model(str(saved), model_config={"model": place})
    assert "\n" not in str(raised.value)


def test_it_loads_by_its_alias(saved: Path, tmp_path: Path) -> None:
    """Registered twice there is one version of it."""
    import mlflow

    tracking = Tracking(None, tmp_path)
    run = tracking.start_parent(tracking.experiment("a"), "a", {}, {})
    tracking.folder(run, saved, "model")
    for _ in range(2):
        assert tracking.register("sets", run, "model", "what it is") == "1"
    assert tracking.client.get_model_version("sets", "1").description == "what it is"
    mlflow.set_tracking_uri(tracking.uri)
    try:
        loaded = mlflow.pyfunc.load_model("models:/sets@champion")
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # None: as it was
    assert loaded.metadata.signature.to_dict() == {"inputs": ANY, "outputs": ANY, "params": ANY}
    assert loaded.predict(loaded.input_example).shape == (2, 8, 8, 3)
