"""The MLflow store: runs by explicit id, calls that may arrive twice, failures in a sentence."""

import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import patch

import mlflow
import pytest
import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from PIL import Image, UnidentifiedImageError

from benchmarks.servers import mlflow_server
from core.errors import UserError
from orchestrator.tracking.client import Tracking
from orchestrator.tracking.mlflow_store import flatten, permanent, store_uri

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
    tracking.points(child, [("globality", step / 10, step, None) for step in (5, 10)], 1)
    ends = [("globality/low", 0.5, 10, None), ("globality/high", 1.5, 10, None)]
    tracking.points(child, ends, 1)
    Image.new("RGB", (8, 8)).save(tmp_path / "grid.png")
    tracking.image(child, tmp_path / "grid.png", "traversal", 5, 1)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.json").write_text("{}")
    tracking.folder(child, tmp_path / "set", "directions")
    tracking.end(child, "FINISHED", {"outcome": "completed"})

    [run] = tracking.children(experiment, parent)
    assert run.info.status == "FINISHED" and run.data.params == {"directions": "8"}
    assert run.data.tags["outcome"] == "completed"
    assert run.data.metrics == {"globality": 1.0, "globality/low": 0.5, "globality/high": 1.5}
    assert tracking.client.get_run(parent).data.params["train.batch"] == "16"
    names = [Path(file.path).name for file in tracking.client.list_artifacts(child, "images")]
    assert any(name.startswith("traversal") and name.endswith(".png") for name in names)
    fetched = tracking.download(child, "directions", tmp_path)
    assert (fetched / "a.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["what?now", "a%20b", "#;é {x}&'\"+@:", "{x} é"])
def test_all_of_a_store_lies_under_its_root_whatever_its_name(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    tracking = Tracking(None, root)
    assert tracking.check() is None
    run = tracking.start_parent(tracking.experiment(f"of {name}"), "faces", {}, {"a": 1})
    assert (tracking.download(run, "sweep.json", tmp_path)).is_file()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [name]
    assert sorted(path.name for path in root.iterdir()) == ["mlartifacts", "mlflow.db", "mlflow.lock"]
    assert [path.name for path in (root / "mlartifacts").iterdir()] == [f"of {name}"]


def test_the_best_set_gets_the_alias(tracking: Tracking) -> None:
    experiment = tracking.experiment("registered")
    runs = [tracking.start_parent(experiment, name, {}, {}) for name in ("one", "two")]
    assert [tracking.register("sets", run, "champion") for run in runs] == ["1", "2"]
    assert tracking.register("sets", runs[1], "champion") == "2", "a version that is there is not made again"
    assert tracking.client.get_model_version_by_alias("sets", "champion").run_id == runs[1]


@pytest.mark.parametrize("name", ["Kim's faces", 'the "best"', "50%20; #1 @é {x} `y` \\ *"])
def test_a_model_may_have_any_name_that_a_sweep_file_may_give(tracking: Tracking, name: str) -> None:
    run = tracking.start_parent(tracking.experiment("names"), name, {}, {})
    assert [tracking.register(name, run, "champion") for _ in range(2)] == ["1", "1"]
    assert tracking.register(f"{name} too", run, "champion") == "1", "another model of the same run has its own version"
    assert tracking.client.get_model_version_by_alias(name, "champion").run_id == run


def test_what_is_told_twice_is_there_once(tracking: Tracking, tmp_path: Path) -> None:
    experiment = tracking.experiment("twice")
    parent = tracking.start_parent(experiment, "twice", {}, {})
    Image.new("RGB", (600, 30)).save(tmp_path / "grid.png")
    points = [(f"metric {n % 3}", float("nan") if n == 7 else n / 10, n, None) for n in range(1500)]
    for _ in range(2):
        child = tracking.start_child(experiment, parent, "t1", {"directions": 8}, {"method": "pca"}, 1000)
        tracking.points(child, points, 2000)
        tracking.image(child, tmp_path / "grid.png", "faces/grid", 5, 2000)
        tracking.end(child, "FAILED", {"outcome": "failed"}, 3000)
    assert tracking.start_child(experiment, parent, "t1", {"directions": 9, "new": 1}, {}, 9000) == child
    [run] = tracking.children(experiment, parent)
    assert run.data.params == {"directions": "8", "new": "1"}, "a parameter stays as it is"
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("RUNNING", 1000, 3000)
    assert sum(len(tracking.client.get_metric_history(child, f"metric {n}")) for n in range(3)) == 1500
    assert len(tracking.client.list_artifacts(child, "images")) == 2


def test_pictures_are_named_as_mlflow_names_them(tracking: Tracking, tmp_path: Path) -> None:
    """Its page finds a run's pictures, and their steps, by these names."""
    experiment = tracking.experiment("pictures")
    ours, theirs = (tracking.start_parent(experiment, name, {}, {}) for name in ("ours", "theirs"))
    Image.new("RGB", (600, 30)).save(tmp_path / "grid.png")
    tracking.image(ours, tmp_path / "grid.png", "faces/grid", 5, 2000)
    with Image.open(tmp_path / "grid.png") as image:
        tracking.client.log_image(theirs, image, key="faces/grid", step=5, timestamp=2000, synchronous=True)

    def names(run: str) -> list[str]:
        files = tracking.client.list_artifacts(run, "images")
        return sorted(re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4,12}){4}", "UUID", file.path) for file in files)

    assert len(names(ours)) == 2 and names(ours) == names(theirs)
    tags = [tracking.client.get_run(run).data.tags["mlflow.loggedImages"] for run in (ours, theirs)]
    assert tags[0] == tags[1]


def test_what_the_store_holds_running(tracking: Tracking) -> None:
    experiment = tracking.experiment("running")
    parent = tracking.start_parent(experiment, "running", {}, {})
    runs = {trial: tracking.start_child(experiment, parent, trial, {}) for trial in ("t1", "t2", "t3")}
    tracking.end(runs["t2"], "KILLED", {})
    assert sorted(tracking.running(experiment, parent)) == sorted((runs[t], t) for t in ("t1", "t3"))
    tracking.end(parent, "FAILED", {})
    assert tracking.status(parent) == "FAILED"
    tracking.restart(parent)
    assert tracking.status(parent) == "RUNNING"


def test_an_experiment_that_another_sweep_makes_at_the_same_time(tracking: Tracking) -> None:
    there = tracking.experiment("race")
    real, answers = tracking.client.get_experiment_by_name, [None]
    with patch.object(tracking.client, "get_experiment_by_name", lambda name: answers.pop() if answers else real(name)):
        assert tracking.experiment("race") == there


def test_a_parameter_longer_than_mlflow_takes_is_cut_and_whole_in_a_file(tracking: Tracking) -> None:
    prompts = ["a face of a person who smiles"] * 300
    run = tracking.start_parent(tracking.experiment("long"), "long", {}, {"denoiser": {"prompts": prompts}})
    kept = tracking.client.get_run(run).data.params["denoiser.prompts"]
    assert len(kept) == 500 and str(prompts).startswith(kept)
    whole = json.loads(Path(tracking.client.download_artifacts(run, "sweep.json")).read_text())
    assert whole["denoiser"]["prompts"] == prompts


def test_an_experiment_that_was_deleted_is_told_how_to_restore_it(tracking: Tracking) -> None:
    """MLflow keeps the name of a deleted experiment, and takes no runs in it."""
    assert tracking.known_experiment("deleted") is None
    number = tracking.experiment("deleted")
    tracking.client.delete_experiment(number)
    for ask in (tracking.known_experiment, tracking.experiment):
        with pytest.raises(UserError) as caught:
            ask("deleted")
        told = f"tracking.experiment: 'deleted' was deleted in the MLflow store {tracking.uri}, which keeps its name; "
        assert str(caught.value).startswith(f"{told}restore it (mlflow experiments restore --experiment-id {number}, ")
    tracking.client.restore_experiment(number)
    assert tracking.experiment("deleted") == tracking.known_experiment("deleted") == number


def test_a_store_that_is_busy_is_asked_again(tracking: Tracking) -> None:
    busy = MlflowException("(sqlite3.OperationalError) database is locked", TEMPORARILY_UNAVAILABLE)
    with patch.object(tracking.client, "create_experiment", side_effect=[busy, busy, "7"]):
        assert tracking.experiment("busy") == "7"


def test_an_embedded_store_that_cannot_be_opened_says_why(tracking: Tracking, tmp_path: Path) -> None:
    """One that is damaged, and one of another version of MLflow."""
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/mlflow.db").write_bytes(b"no database" * 99)
    with pytest.raises(UserError, match=r"^--root: .*/damaged cannot be opened \(file is not a database\)$"):
        Tracking(None, tmp_path / "damaged").check()
    tracking.experiment("there")
    (tmp_path / "older").mkdir()
    with closing(sqlite3.connect(tracking.root / "mlflow.db")) as made:
        with closing(sqlite3.connect(tmp_path / "older/mlflow.db")) as older:
            made.backup(older)
            older.execute("UPDATE alembic_version SET version_num = 'bd07f7e963c5'")
            older.commit()
    with pytest.raises(
        UserError,
        match=r"^--root: .*/older cannot be opened \(Detected out-of-date database schema .*mlflow db upgr",
    ):
        Tracking(None, tmp_path / "older").check()


def test_a_failure_is_told_in_a_sentence(tracking: Tracking) -> None:
    with pytest.raises(
        UserError, match="tracking.uri: the MLflow store sqlite:.* failed .*Run with id=nobody not found"
    ):
        tracking.status("nobody")


def test_secrets_reach_no_store(root: Path) -> None:
    tracking = Tracking(None, root)
    experiment = tracking.experiment("secrets")
    uri = tracking.uri
    tracking.uri = "http://sweep:geheim99@host"
    try:
        spec = {"tracking": {"uri": tracking.uri}, "more": [f"see {tracking.uri}", "sweep"]}
        parent = tracking.start_parent(experiment, "secrets", {"from": tracking.uri}, spec)
    finally:
        tracking.uri = uri
    run = tracking.client.get_run(parent)
    assert run.data.params["tracking.uri"] == "http://***@host" and run.data.tags["from"] == "http://***@host"
    assert not any("geheim99" in path.read_text(errors="replace") for path in root.rglob("*.json"))
    assert "geheim99" not in str(run.to_dictionary())
    assert run.data.tags["role"] == "sweep" and run.data.params["more"] == "['see http://***@host', 'sweep']"


@contextmanager
def answering(version: str | None) -> Iterator[str]:
    """A server that says it is of a version, and that it has no experiments; its address."""

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path != "/version" or version is not None
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write((version or "" if self.path == "/version" else "{}").encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://anna:geheim@127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


OURS = mlflow.__version__
MAJOR, MINOR, _ = OURS.split(".", 2)


@pytest.mark.parametrize("version", ["2.22.0", f"{int(MAJOR) + 1}.0.0rc1"])
def test_a_server_of_another_generation_is_refused(tmp_path: Path, version: str) -> None:
    with answering(version) as uri, pytest.raises(UserError) as told:
        Tracking(uri, tmp_path).check()
    text = str(told.value)
    assert f"is version {version}, and the client here is {OURS}" in text and "\n" not in text and "geheim" not in text
    assert f"run a server of version {MAJOR} (pip install mlflow=={OURS})" in text


VERSIONS = {
    OURS: None,
    f"{MAJOR}.{MINOR}.99": None,
    f"{MAJOR}.{int(MINOR) + 1}.0": f"is version {MAJOR}.{int(MINOR) + 1}.0, the client here {OURS}; the same is safer",
    None: f"does not say which version of MLflow it is; this one is written for {OURS}",
    "<html>": f"does not say which version of MLflow it is; this one is written for {OURS}",
}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_of_a_near_version_is_used(tmp_path: Path, version: str | None) -> None:
    with answering(version) as uri:
        told = Tracking(uri, tmp_path).check()
    expected = VERSIONS[version]
    assert told is None if expected is None else expected in str(told) and "geheim" not in str(told)


def test_the_embedded_store_has_no_version_of_its_own(tracking: Tracking) -> None:
    assert tracking.check() is None


def test_a_real_server(tmp_path: Path) -> None:
    with mlflow_server(f"sqlite:///{tmp_path}/mlflow.db", (tmp_path / "artifacts").as_uri()) as uri:
        assert Tracking(uri, tmp_path).check() is None
        with patch.object(mlflow, "__version__", "4.0.0"), pytest.raises(UserError, match=f"is version {OURS}, and"):
            Tracking(uri, tmp_path).check()


def test_what_a_run_has_worked_on(tracking: Tracking) -> None:
    """Told twice, it is there once."""
    experiment = tracking.experiment("inputs")
    run = tracking.start_parent(experiment, "inputs", {}, {})
    model = {"name": "toyfaces", "digest": "ab12", "source_type": "model", "source": "{}", "context": "model"}
    samples = model | {"name": "samples", "digest": "cd34", "context": "training", "profile": '{"num_rows": 8}'}
    for told in ([model], [model, samples], []):
        tracking.inputs(run, told)
    found = tracking.client.get_run(run).inputs.dataset_inputs
    assert [(each.dataset.name, each.dataset.digest, each.tags[0].value) for each in found] == [
        ("toyfaces", "ab12", "model"),
        ("samples", "cd34", "training"),
    ]
    assert {tag.key for each in found for tag in each.tags} == {"mlflow.data.context"}


def test_the_experiment_keeps_a_view(tracking: Tracking) -> None:
    experiment = tracking.experiment("views")
    for _ in range(2):
        tracking.tag_experiment(experiment, {"mlflow.sharedViewState.a": "{}"})
    assert tracking.experiment_tags(experiment)["mlflow.sharedViewState.a"] == "{}"


def _http_error(status: int) -> OSError:
    error = requests.HTTPError("artifacts")
    error.response = requests.Response()
    error.response.status_code = status
    return error


PERMANENT = [
    MlflowException("deleted", INVALID_PARAMETER_VALUE),
    RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "gone"}),
    RestException({"error_code": "BAD_REQUEST", "message": "out of range"}),
    _http_error(413),
    UnidentifiedImageError("no picture"),
    ValueError("key"),
    KeyError("step"),
]
PASSING = [
    MlflowException("API request to http://x failed with exception"),
    MlflowException("API request to endpoint failed with error code 400 != 200", BAD_REQUEST),
    RestException({"error_code": "BAD_REQUEST", "message": "QueuePool limit of size 5 overflow 10 reached"}),
    *(RestException({"error_code": code}) for code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "INTERNAL_ERROR")),
    *(RestException({"error_code": code}) for code in ("REQUEST_LIMIT_EXCEEDED", "TEMPORARILY_UNAVAILABLE")),
    MlflowException("(sqlite3.OperationalError) database is locked", TEMPORARILY_UNAVAILABLE),
    ConnectionError("refused"),
    TimeoutError(),
    OSError("No space left on device"),
    *(_http_error(status) for status in (401, 403, 404, 429, 500, 503)),
    RuntimeError("whatever"),
    UserError("the store cannot be opened"),
]


@pytest.mark.parametrize("error", [*PERMANENT, *PASSING], ids=lambda error: f"{type(error).__name__} {error}"[:50])
def test_refusals_for_ever_and_failures_that_pass(error: Exception) -> None:
    assert permanent(error) == (error in PERMANENT)


def test_what_is_not_there(tracking: Tracking, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="run 'nobody' has no artifact 'directions' in .* .Run with id=nobody not found"
    ):
        tracking.download("nobody", "directions", tmp_path)


def test_a_root_that_cannot_be_written_to_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as told:
        Tracking(None, tmp_path / "file" / "runs").check()
    root = tmp_path / "file" / "runs"
    assert str(told.value) == (
        f"--root: the MLflow store in {root} cannot be opened ([Errno 20] Not a directory: '{root}'); "
        "name a folder to write to"
    )


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        Tracking("http://127.0.0.1:9", tmp_path).check()
    text = str(told.value)
    assert text.startswith("tracking.uri: the MLflow store http://127.0.0.1:9 does not answer (API request to ")
    assert text.endswith(
        "; start it, correct the address, or give none (tracking.uri, MLFLOW_TRACKING_URI) to use the embedded store"
    )
    assert "Connection refused" in text and "\n" not in text
    assert not (tmp_path / "mlflow.db").exists()


REFUSALS = {
    (
        401,
        "You are not authenticated.",
    ): "wants to know who asks; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASS",
    (403, "Permission denied"): "refuses this user; have the right to read and make experiments granted, or set ",
    (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}'): "refuses this user; have the right ",
    (403, "Invalid Host header - possible DNS rebinding attack"): "start it with --allowed-hosts '127.0.0.1:",
}


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_server_that_refuses_says_what_to_do(tmp_path: Path, answer: tuple[int, str]) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(answer[0])
            self.end_headers()
            self.wfile.write(answer[1].encode())

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(UserError) as told:
                Tracking(f"http://anna:geheim@127.0.0.1:{server.server_port}", tmp_path).check()
        finally:
            server.shutdown()
    text = str(told.value)
    assert REFUSALS[answer] in text and "\n" not in text and "geheim" not in text
    assert text.startswith(f"tracking.uri: the MLflow store http://***@127.0.0.1:{server.server_port} ")


def test_nested_settings_become_flat_parameters(root: Path) -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
    assert store_uri("http://server", root) == "http://server"
    assert store_uri(None, root) == f"sqlite:///{root}/mlflow.db"
