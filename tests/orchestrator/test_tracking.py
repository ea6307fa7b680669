"""The MLflow store: runs by explicit id, and outages that stop nothing."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from core.errors import UserError
from orchestrator.tracking import Tracking, fail_open, flatten, store_uri

pytestmark = pytest.mark.slow  # making an MLflow database takes seconds


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs with a space")


@pytest.fixture(scope="module")
def tracking(root: Path) -> Tracking:
    return Tracking(None, root)


def test_parent_and_children(tracking: Tracking, tmp_path: Path) -> None:
    experiment = tracking.experiment("faces")
    assert tracking.experiment("faces") == experiment
    parent = tracking.start_parent(experiment, "faces", {"sweep": "faces"}, {"name": "faces", "train": {"batch": 16}})
    child = tracking.start_child(experiment, parent, "t1", {"directions": 8})
    assert tracking.start_child(experiment, parent, "t1", {"directions": 8}) == child, "a resumed trial keeps its run"
    assert tracking.last_step(child, "globality") == 0
    for step in (5, 10):
        tracking.metrics(child, {"globality": step / 10}, step, 1)
    assert tracking.last_step(child, "globality") == 10
    Image.new("RGB", (8, 8)).save(tmp_path / "grid.png")
    tracking.image(child, tmp_path / "grid.png", "traversal", 5)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.json").write_text("{}")
    tracking.folder(child, tmp_path / "set", "directions")
    tracking.end(child, "FINISHED", {"outcome": "completed"})

    [run] = tracking.children(experiment, parent)
    assert run.info.status == "FINISHED" and run.data.params == {"directions": "8"}
    assert run.data.tags["outcome"] == "completed" and run.data.metrics == {"globality": 1.0}
    assert tracking.client.get_run(parent).data.params["train.batch"] == "16"
    names = [Path(file.path).name for file in tracking.client.list_artifacts(child, "images")]
    assert any(name.startswith("traversal") and name.endswith(".png") for name in names)
    fetched = tracking.download(child, "directions", tmp_path)
    assert (fetched / "a.json").read_text() == "{}"


def test_the_best_set_gets_the_alias(tracking: Tracking) -> None:
    experiment = tracking.experiment("registered")
    runs = [tracking.start_parent(experiment, name, {}, {}) for name in ("one", "two")]
    assert [tracking.register("sets", run, "champion") for run in runs] == ["1", "2"]
    assert tracking.client.get_model_version_by_alias("sets", "champion").run_id == runs[1]


def test_what_is_not_there(tracking: Tracking, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run 'nobody' has no artifact 'directions' in sqlite:"):
        tracking.download("nobody", "directions", tmp_path)


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tracking.uri: the MLflow store http://127.0.0.1:9 does not answer"):
        Tracking("http://127.0.0.1:9", tmp_path).check()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_failing_call_is_told_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    @fail_open
    def record() -> None:
        raise ConnectionError("the store is away\nmore")

    with caplog.at_level(logging.WARNING):
        record()
    assert caplog.messages == ["tracking: record was not recorded (the store is away)"]


def test_nested_settings_become_flat_parameters(root: Path) -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
    assert store_uri("http://server", root) == "http://server"
    assert store_uri(None, root) == f"sqlite:///{root}/mlflow.db"
