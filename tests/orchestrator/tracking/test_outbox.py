"""What a sweep tells its embedded store arrives once and in order, whatever happens to the store or to the sweep."""

import errno
import fcntl
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, patch

import pytest
from PIL import Image

from core.files import write_json
from orchestrator.store.disk import with_space
from orchestrator.store.spool import refused
from orchestrator.tracking.client import Tracking
from orchestrator.tracking.outbox import Outbox

pytestmark = pytest.mark.slow  # making an MLflow database takes seconds

STEPS = 24


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an embedded store in which the tests have their sweeps."""
    root = tmp_path_factory.mktemp("store")
    Tracking(None, root).experiment("faces")
    return root


@pytest.fixture
def outbox(store: Path, tmp_path: Path) -> Iterator[Outbox]:
    made = _outbox(Tracking(None, store), tmp_path / "outbox")
    yield made
    made.close(0)


def _outbox(tracking: Tracking, path: Path) -> Outbox:
    """The outbox of a new sweep; what it tells is gathered in `said`."""
    experiment = tracking.experiment("faces")
    parent = tracking.start_parent(experiment, "faces", {}, {})
    said: list[str] = []
    made = Outbox(path, tracking, experiment, parent, said.append)
    made.said = said  # type: ignore[attr-defined]
    return made


def _tell_everything(outbox: Outbox, folder: Path, steps: int = STEPS) -> None:
    """A trial from its start to its end, as a driver tells it that is started anew and repeats what it has told."""
    outbox.start("t1", {"directions": 8}, {"method": "learned"}, 1000)
    for step in range(steps):
        outbox.metrics("t1", [{"step": step, "loss": step / 10, "speed": float("nan")}], 2000 + step)
        if step % 6 == 0:
            _picture(folder / "grid.png", step)
            outbox.image("t1", folder / "grid.png", "traversal", step, 2000 + step)
            outbox.folder("t1", _directions(folder, step), "directions")
    outbox.end("t1", "FINISHED", {"outcome": "completed"}, 5000)


def _picture(path: Path, shade: int) -> None:
    path.unlink(missing_ok=True)  # as checkpoints are: a file once written does not change
    Image.new("RGB", (300, 20), (shade, 0, 0)).save(path)


def _directions(folder: Path, step: int) -> Path:
    shutil.rmtree(folder / "set", ignore_errors=True)
    (folder / "set").mkdir()
    (folder / "set" / "set.json").write_text(str(step))
    return folder / "set"


def _arrived_once(outbox: Outbox, folder: Path, steps: int = STEPS) -> None:
    tracking = outbox.tracking
    [run] = tracking.children(outbox.experiment_id, outbox.parent_run)
    run_id = run.info.run_id
    assert run.info.status == "FINISHED" and (run.info.start_time, run.info.end_time) == (1000, 5000)
    assert run.data.params == {"directions": "8"}
    assert run.data.tags["outcome"] == "completed" and run.data.tags["method"] == "learned"
    history = tracking.client.get_metric_history(run_id, "loss")
    assert [(p.step, p.value, p.timestamp) for p in history] == [(n, n / 10, 2000 + n) for n in range(steps)]
    assert len(tracking.client.get_metric_history(run_id, "speed")) == steps
    names = [Path(file.path).name for file in tracking.client.list_artifacts(run_id, "images")]
    kinds = Counter((int(name.split("+")[2]), name.endswith("+compressed.webp")) for name in names)
    assert kinds == {(step, small): 1 for step in range(0, steps, 6) for small in (False, True)}
    there = tracking.download(run_id, "directions", folder)
    assert [path.name for path in there.iterdir()] == ["set.json"]
    assert (there / "set.json").read_text() == str((steps - 1) // 6 * 6)
    shutil.rmtree(there)
    assert (outbox.pending(), refused(outbox.path)) == (0, 0)
    assert sorted(path.name for path in outbox.path.iterdir()) == ["refused", "steps"]


def test_all_of_it_arrives(outbox: Outbox, tmp_path: Path) -> None:
    _tell_everything(outbox, tmp_path)
    assert outbox.pending() > STEPS, "nothing is sent before the outbox is opened"
    with outbox.sending(60):
        pass
    _arrived_once(outbox, tmp_path)
    next_one = Outbox(outbox.path, outbox.tracking, outbox.experiment_id, outbox.parent_run)
    _tell_everything(next_one, tmp_path)
    assert next_one.pending() == 2 + STEPS // 6, "of what a resumed trial repeats, no step waits again"
    with next_one.sending(60):
        pass
    _arrived_once(next_one, tmp_path)


def test_the_next_driver_knows_what_was_put_down(outbox: Outbox, tmp_path: Path) -> None:
    outbox.metrics("t1", [{"step": 1, "loss": 1.0}, {"step": 3, "loss": 0.5, "globality": 0.1}])
    _picture(tmp_path / "a.png", 0)
    outbox.image("t1", tmp_path / "a.png", "grid", 3)
    next_one = Outbox(outbox.path, outbox.tracking, outbox.experiment_id, outbox.parent_run)
    assert [next_one.last_step("t1", name) for name in ("loss", "globality", "never")] == [3, 3, -1]
    next_one.metrics("t1", [{"step": 3, "loss": 0.4}])
    next_one.image("t1", tmp_path / "a.png", "grid", 3)
    assert next_one.pending() == 2


def test_the_sweeps_own_run(outbox: Outbox, tmp_path: Path) -> None:
    tracking, parent = outbox.tracking, outbox.parent_run
    outbox.metrics(None, [{"step": 0, "champion/globality": 0.5}])
    outbox.folder(None, _directions(tmp_path, 0), "champion")
    outbox.register("faces", "champion")
    outbox.end(None, "KILLED", milliseconds=7000)
    with outbox.sending(60):
        pass
    run = tracking.client.get_run(parent)
    assert (run.info.status, run.info.end_time) == ("KILLED", 7000) and run.data.metrics == {"champion/globality": 0.5}
    assert tracking.client.get_model_version_by_alias("faces", "champion").run_id == parent
    outbox.start(None)
    with outbox.sending(60):
        pass
    assert tracking.status(parent) == "RUNNING"


def test_answers_that_are_lost_leave_nothing_twice(outbox: Outbox, tmp_path: Path) -> None:
    """Every call arrives, and the first answer to each is lost, as when a server is killed or hangs."""
    client, lost = outbox.tracking.client, set()

    def losing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            answer = call(*args, **kwargs)
            key = name + repr([arg for arg in args if "/tmp" not in str(arg)]) + repr(kwargs)
            if key not in lost:
                lost.add(key)
                raise ConnectionError("no answer")
            return answer

        return called

    changing = ["create_run", "log_batch", "log_artifacts", "set_tag", "update_run", "set_terminated", "delete_run"]
    changing += ["create_registered_model", "create_model_version", "set_registered_model_alias"]
    _tell_everything(outbox, tmp_path, 2)
    outbox.folder(None, _directions(tmp_path, 0), "champion")
    outbox.register("lost", "champion")
    with patch("orchestrator.tracking.outbox._LONGEST_WAIT_S", 0.01):
        for name in changing:
            setattr(client, name, losing(name, getattr(client, name)))
        with outbox.sending(60):
            pass
        for name in changing:
            delattr(client, name)
    assert {"create_run", "log_batch", "create_model_version"} <= {key.split("[")[0] for key in lost}
    _arrived_once(outbox, tmp_path, 2)
    [version] = client.search_model_versions("name = 'lost'")
    assert client.get_model_version_by_alias("lost", "champion").version == version.version


def test_a_server_that_makes_a_run_after_its_sender_gave_up(outbox: Outbox, tmp_path: Path) -> None:
    client = outbox.tracking.client
    late: list[tuple[Any, ...]] = []
    create = client.create_run

    def hanging(*args: Any) -> Any:
        if not late:
            late.append(args)
            raise ConnectionError("no answer")
        found = create(*args)
        create(*late[0])
        return found

    _tell_everything(outbox, tmp_path, 2)
    with patch.object(client, "create_run", hanging), outbox.sending(60):
        pass
    _arrived_once(outbox, tmp_path, 2)


def test_a_run_that_a_hanging_server_makes_much_later_is_deleted(outbox: Outbox) -> None:
    tags = {"role": "unclaimed", "sweep_run": outbox.parent_run}
    stray = outbox.tracking.client.create_run(outbox.experiment_id, tags=tags).info.run_id
    with outbox.sending(60):
        pass
    assert outbox.tracking.client.get_run(stray).info.lifecycle_stage == "deleted"


def test_a_refused_record_holds_nobody_up(outbox: Outbox, tmp_path: Path) -> None:
    (tmp_path / "no picture.png").write_text("text")
    outbox.start("t1")
    outbox.metrics("t1", [{"step": 1, "a name: with a colon, a comma; and a # sign": 1.0}])
    outbox.image("t1", tmp_path / "no picture.png", "grid", 1)
    outbox.metrics("t2", [{"step": 1, "loss": 1.0}])
    outbox.tags("t2", {"a": "b"})
    outbox.end("t1", "FINISHED")
    with outbox.sending(60):
        pass
    [run] = outbox.tracking.children(outbox.experiment_id, outbox.parent_run)
    assert run.info.status == "FINISHED" and (outbox.pending(), refused(outbox.path)) == (0, 4)
    assert (outbox.path / "refused" / "00000003" / "no picture.png").is_file()
    assert "trial t2 has no run in the store" in (outbox.path / "refused" / "00000004.txt").read_text()
    said = outbox.said  # type: ignore[attr-defined]
    assert len(said) == 3 and all("was refused and set aside: " in text for text in said)


def test_a_run_that_was_deleted(outbox: Outbox) -> None:
    with outbox.sending(60):
        outbox.start("t1")
        _until(lambda: outbox.pending() == 0)
        [run] = outbox.tracking.children(outbox.experiment_id, outbox.parent_run)
        outbox.tracking.client.delete_run(run.info.run_id)
        for step in range(3):
            outbox.metrics("t1", [{"step": step, "loss": 1.0}])
        outbox.start("t2")
    assert (outbox.pending(), refused(outbox.path)) == (0, 3)
    assert len(outbox.said) == 1 and "'active' state" in outbox.said[0]  # type: ignore[attr-defined]


def test_a_store_that_does_not_know_the_sweep_is_waited_for(outbox: Outbox) -> None:
    said: list[str] = []
    lost = Outbox(outbox.path, outbox.tracking, outbox.experiment_id, "0" * 32, said.append)
    lost.start("t1")
    lost.metrics("t2", [{"step": 1, "loss": 1.0}])
    with patch("orchestrator.tracking.outbox._LONGEST_WAIT_S", 0.05):
        lost.open()
        assert not lost.close(2)
    assert (lost.pending(), refused(lost.path)) == (2, 0)
    assert lost.tracking.children(lost.experiment_id, lost.parent_run) == []
    assert "not found" in said[0]


@pytest.mark.parametrize("content", ["", '{"kind": "metr', "[]", "{}", '{"kind": "dance", "trial": null, "time": 1}'])
def test_a_damaged_record_is_set_aside(outbox: Outbox, content: str) -> None:
    outbox.tags(None, {"before": "1"})
    outbox.tags(None, {"lost": "1"})
    outbox.tags(None, {"after": "1"})
    (outbox.path / "00000002.json").write_text(content)
    next_one = Outbox(outbox.path, outbox.tracking, outbox.experiment_id, outbox.parent_run)
    with next_one.sending(60):
        pass
    tags = outbox.tracking.client.get_run(outbox.parent_run).data.tags
    assert "before" in tags and "after" in tags and "lost" not in tags
    assert (next_one.pending(), refused(next_one.path)) == (0, 1)


def test_a_disk_of_ours_that_is_full_is_waited_for(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is put down by halves, and what is waited for is put down and sent once."""
    monkeypatch.setattr("orchestrator.store.disk._RETRY_S", 0.01)
    no_space = OSError(errno.ENOSPC, "No space left on device")
    with patch("orchestrator.store.spool.write_json", side_effect=no_space):
        with pytest.raises(OSError, match="No space left"):
            outbox.tags(None, {"a": "0"})
    waited: list[int] = []
    with patch("orchestrator.store.spool.write_json", wraps=write_json, side_effect=[no_space, no_space, DEFAULT]):
        with_space(lambda: outbox.tags(None, {"a": "1"}), lambda: waited.append(outbox.pending()))
    assert waited == [0, 0] and outbox.pending() == 1
    with outbox.sending(60):
        pass
    assert outbox.pending() == 0
    assert outbox.tracking.client.get_run(outbox.parent_run).data.tags["a"] == "1"


def test_an_embedded_store_that_another_process_holds(outbox: Outbox, store: Path, tmp_path: Path) -> None:
    other = sqlite3.connect(store / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with outbox.sending(60):
        began = time.monotonic()
        _tell_everything(outbox, tmp_path, 2)
        assert time.monotonic() - began < 5
        time.sleep(3)
        assert outbox.pending() > 2
        other.execute("ROLLBACK")
    other.close()
    _arrived_once(outbox, tmp_path, 2)


def test_two_processes_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from orchestrator.tracking.client import Tracking; "
    code += "print(Tracking(None, Path(sys.argv[1])).experiment('same'))"
    command = [sys.executable, "-c", code, str(tmp_path / "runs")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=200)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0] and len(answers) == 1


def test_whoever_opens_an_embedded_store_waits_for_the_other(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from orchestrator.tracking.client import Tracking; "
    code += "print('ready', flush=True); Tracking(None, Path(sys.argv[1])).check()"
    with open(tmp_path / "mlflow.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(2)
        assert process.poll() is None and not (tmp_path / "mlflow.db").exists()
    assert process.wait(120) == 0
    process.stdout.close()


def _until(true: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def test_what_a_trial_takes_of_its_machine_is_counted_on(outbox: Outbox) -> None:
    """Over all its reports and attempts, whatever their iterations; each sample has its own time."""
    outbox.start("t1", {}, {}, 1000)
    outbox.usage("t1", [{"milliseconds": 1500, "system/cpu": 10.0}, {"milliseconds": 2500, "system/cpu": 20.0}])
    outbox.usage("t1", [{"milliseconds": 3500, "system/cpu": 30.0, "system/gpu_0": 1.0}])
    _send(outbox)
    later = Outbox(outbox.path, outbox.tracking, outbox.experiment_id, outbox.parent_run)
    later.usage("t1", [{"milliseconds": 4500, "system/cpu": 40.0}])
    _send(later)
    run = _child(outbox)
    points = outbox.tracking.client.get_metric_history(run.info.run_id, "system/cpu")
    found = sorted((point.step, point.timestamp, point.value) for point in points)
    assert found == [(0, 1500, 10.0), (1, 2500, 20.0), (2, 3500, 30.0), (3, 4500, 40.0)]
    assert "milliseconds" not in run.data.metrics


def test_files_and_inputs_of_a_sweep(outbox: Outbox, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>")
    model = {"name": "toyfaces", "digest": "ab12", "source_type": "model", "source": "{}", "context": "model"}
    outbox.start("t1", {}, {}, 1000, [model])
    for _ in range(2):
        outbox.file(None, tmp_path / "report.html", "champion")
        outbox.inputs(None, [model])
    _send(outbox)
    client, parent = outbox.tracking.client, outbox.parent_run
    assert [file.path for file in client.list_artifacts(parent, "champion")] == ["champion/report.html"]
    for run in (client.get_run(parent), _child(outbox)):
        assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["toyfaces"]


def test_points_of_an_older_outbox_still_count(outbox: Outbox) -> None:
    """Its records have no time beside each value."""
    outbox.start("t1", {}, {}, 1000)
    outbox.metrics("t1", [{"step": 3, "loss": 0.5}], 2000)
    [*_, newest] = sorted(outbox.path.glob("[0-9]*.json"))
    record = json.loads(newest.read_text())
    write_json(newest, record | {"points": [["loss", 0.5, 3]]})
    old = Outbox(outbox.path, outbox.tracking, outbox.experiment_id, outbox.parent_run)
    assert old.last_step("t1", "loss") == 3
    _send(old)
    [point] = outbox.tracking.client.get_metric_history(_child(outbox).info.run_id, "loss")
    assert (point.value, point.step, point.timestamp) == (0.5, 3, 2000)


def _send(outbox: Outbox) -> None:
    with outbox.sending(60):
        pass
    assert outbox.pending() == refused(outbox.path) == 0


def _child(outbox: Outbox) -> Any:
    [run] = outbox.tracking.children(outbox.experiment_id, outbox.parent_run)
    return run
