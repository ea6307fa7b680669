"""What the outbox promises, on a store in memory that fails when it is told to: in order, once, and nothing lost."""

import json
from collections import deque
from pathlib import Path
from unittest.mock import patch

import pytest

from orchestrator.store.spool import Spool, refused
from tests.orchestrator.tracking.conftest import AWAY, URI, Store, _points, _send, _tags, _those_of

pytestmark = pytest.mark.usefixtures("disk_without_waiting")

MODEL = {"name": "toyfaces", "digest": "ab12", "source_type": "model", "source": "{}", "context": "model"}


def test_every_kind_of_record_goes_in_order_and_once(store: Store, tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.json").write_text("{}")
    (tmp_path / "grid.png").write_text("picture")
    outbox = store.outbox(tmp_path / "box", said.append)
    outbox.start("t1", {"directions": 8}, {"method": "learned"}, 1000, [MODEL])
    outbox.metrics("t1", [{"step": 1, "loss": 0.5, "speed": 2}, {"step": 2, "loss": 0.25, "milliseconds": 1500}], 2000)
    outbox.image("t1", tmp_path / "grid.png", "traversal", 2, 2500)
    outbox.folder("t1", tmp_path / "set", "directions")
    outbox.inputs("t1", [MODEL])
    outbox.tags("t1", {"a": "b"})
    outbox.end("t1", "FINISHED", {"outcome": "completed"}, 3000)
    outbox.start(None, None, {"state": "running"})
    outbox.metrics(None, _points((0, 1.0)), 4000)
    outbox.file(None, tmp_path / "grid.png", "champion")
    outbox.register("faces", "champion", "of faces")
    outbox.end(None, "KILLED", milliseconds=5000)
    (tmp_path / "grid.png").unlink()
    assert store.tried == [] and outbox.pending() == 12, "nothing is sent before the outbox is opened"
    assert _send(outbox)
    child = "run of t1"
    assert store.arrived == [
        ("start_child", "7", "parent", "t1", {"directions": "8"}, {"method": "learned"}, 1000),
        ("inputs", child, [MODEL]),
        ("points", child, [("loss", 0.5, 1, None), ("speed", 2.0, 1, None), ("loss", 0.25, 2, 1500)], 2000),
        ("image", child, "picture", "traversal", 2, 2500),
        ("folder", child, {"set.json": "{}"}, "directions"),
        ("inputs", child, [MODEL]),
        ("tags", child, {"a": "b"}),
        ("end", child, "FINISHED", {"outcome": "completed"}, 3000),
        ("restart", "parent"),
        ("tags", "parent", {"state": "running"}),
        ("inputs", "parent", []),
        ("points", "parent", [("loss", 1.0, 0, None)], 4000),
        ("folder", "parent", {"grid.png": "picture"}, "champion"),
        ("register", "faces", "parent", "champion", "of faces"),
        ("end", "parent", "KILLED", {}, 5000),
    ]
    assert (outbox.pending(), refused(outbox.path), said) == (0, 0, [])
    assert sorted(path.name for path in outbox.path.iterdir()) == ["refused", "steps"], "what has arrived is removed"
    store.tracking.delete_unclaimed.assert_called_once_with("7", "parent")
    store.tracking.child.assert_not_called()


def test_a_record_without_a_time_is_of_now(store: Store, tmp_path: Path) -> None:
    outbox = store.outbox(tmp_path)
    with patch("orchestrator.tracking.outbox.time.time", return_value=12.3456):
        outbox.end(None, "FINISHED")
    _send(outbox)
    assert store.arrived == [("end", "parent", "FINISHED", {}, 12345)]


def test_what_fails_goes_again_before_what_comes_behind_it(store: Store, tmp_path: Path, waits: list[float]) -> None:
    outbox = store.outbox(tmp_path)
    outbox.start("t1", milliseconds=1)
    outbox.metrics("t1", _points((1, 0.5)), 2)
    outbox.end("t1", "FINISHED", milliseconds=3)
    store.fails = deque([None, None, AWAY, AWAY, None, AWAY])
    assert _send(outbox)
    assert store.tried == ["start_child", "inputs", *["points"] * 3, *["end"] * 2]
    assert [call[0] for call in store.arrived] == ["start_child", "inputs", "points", "end"]


def test_an_answer_that_is_lost_brings_the_same_record_again(store: Store, tmp_path: Path, waits: list[float]) -> None:
    """The store can tell a point that it has, for all of it is the same."""
    outbox = store.outbox(tmp_path)
    outbox.metrics(None, _points((1, 0.5)))
    outbox.metrics(None, _points((2, 0.25)))
    store.loses = deque([AWAY, AWAY])
    assert _send(outbox)
    first, again, third, second = store.arrived
    assert first == again == third and first != second
    assert second[2] == [("loss", 0.25, 2, None)]


def test_steps_that_were_put_down_are_not_put_down_again(store: Store, tmp_path: Path) -> None:
    """Neither while they wait, nor by the next driver when the store has them; each metric counts for itself."""
    (tmp_path / "grid.png").write_text("picture")
    box = tmp_path / "box"
    first = store.outbox(box)
    first.start("t1", milliseconds=1)
    first.metrics("t1", [{"step": 3, "loss": 1.0}, {"step": 5, "loss": float("nan"), "globality": 0.1}])
    first.metrics("t2", _points((9, 1.0)))
    first.image("t1", tmp_path / "grid.png", "grid", 5)
    first.image("t1", tmp_path / "grid.png", "grid", 5)
    for outbox in (first, store.outbox(box)):
        assert outbox.pending() == 4
        assert [outbox.last_step("t1", name) for name in ("loss", "globality", "image grid")] == [5, 5, 5]
        assert (outbox.last_step("t1", "never"), outbox.last_step("t2", "loss"), outbox.last_step(None, "loss")) == (
            -1,
            9,
            -1,
        )
        outbox.metrics("t1", [{"step": 4, "loss": 0.4}, {"step": 5, "loss": 0.5}])
        assert outbox.pending() == 4
    assert _send(first) and refused(box) == 1, "t2 was never started"
    assert json.loads((box / "steps" / "t1.json").read_text()) == {"loss": 5, "globality": 5, "image grid": 5}
    store.arrived.clear()
    later = store.outbox(box)
    later.metrics("t1", [{"step": 0, "speed": 7.0}, {"step": 5, "loss": 0.5}, {"step": 6, "loss": 0.6}], 8)
    later.image("t1", tmp_path / "grid.png", "grid", 5)
    later.image("t1", tmp_path / "grid.png", "grid", 6, 8)
    assert _send(later)
    assert store.arrived == [
        ("points", "run of t1", [("speed", 7.0, 0, None), ("loss", 0.6, 6, None)], 8),
        ("image", "run of t1", "picture", "grid", 6, 8),
    ]
    assert later.last_step("t1", "loss") == 6 and later.last_step("t1", "globality") == 5


def test_what_json_does_not_know_arrives(store: Store, tmp_path: Path) -> None:
    outbox = store.outbox(tmp_path)
    outbox.metrics(None, [{"step": 0, "lost": float("nan"), "high": float("inf"), "low": float("-inf")}])
    _send(outbox)
    [(_, _, points, _)] = store.arrived
    assert [(name, str(value)) for name, value, *_ in points] == [("lost", "nan"), ("high", "inf"), ("low", "-inf")]


def test_what_a_trial_takes_is_counted_on_whoever_drives(store: Store, tmp_path: Path) -> None:
    outbox = store.outbox(tmp_path)
    outbox.start("t1", milliseconds=1)
    outbox.usage("t1", [{"milliseconds": 1500, "cpu": 10.0}, {"milliseconds": 2500, "cpu": 20.0}])
    outbox.usage("t1", [{"milliseconds": 3500, "cpu": 30.0, "gpu": 1.0}])
    _send(outbox)
    later = store.outbox(tmp_path)
    later.usage("t1", [{"milliseconds": 4500, "gpu": 2.0, "cpu": 40.0}])
    later.usage("t1", [])
    _send(later)
    points = [point for name, _, *rest in store.arrived if name == "points" for point in rest[0]]
    assert [point for point in points if point[0] == "cpu"] == [
        ("cpu", 10.0, 0, 1500),
        ("cpu", 20.0, 1, 2500),
        ("cpu", 30.0, 2, 3500),
        ("cpu", 40.0, 3, 4500),
    ]
    assert [point for point in points if point[0] != "cpu"] == [("gpu", 1.0, 2, 3500), ("gpu", 2.0, 3, 4500)]


def test_the_next_driver_finds_the_run_of_a_trial_once(store: Store, tmp_path: Path) -> None:
    first = store.outbox(tmp_path)
    first.start("t1", milliseconds=1)
    _send(first)
    later = store.outbox(tmp_path)
    later.metrics("t1", _points((1, 0.5)), 2)
    later.end("t1", "FAILED", milliseconds=3)
    assert _send(later)
    assert [call[:2] for call in store.arrived[2:]] == [("points", "run of t1"), ("end", "run of t1")]
    store.tracking.child.assert_called_once_with("7", "parent", "t1")


def test_what_another_process_has_sent_meanwhile_is_left_out(store: Store, tmp_path: Path) -> None:
    outbox = store.outbox(tmp_path)
    _tags(outbox, "a", "b")
    (tmp_path / "00000001.json").unlink()
    assert _send(outbox)
    assert _those_of(store) == ["b"] and refused(tmp_path) == 0


def test_no_secret_reaches_a_file(store: Store, tmp_path: Path) -> None:
    outbox = store.outbox(tmp_path)
    outbox.start("t1", {"uri": URI}, {"reason": f"no answer from {URI}"}, 1)
    outbox.register("faces", "champion", f"of {URI}")
    written = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert "geheim99" not in written and "http://***@store:5000" in written
    _send(outbox)
    assert store.arrived[0][4] == {"uri": "http://***@store:5000"}
    assert store.arrived[-1] == ("register", "faces", "parent", "champion", "of http://***@store:5000")


@pytest.mark.parametrize("password", ["start", "sweep", "mlflow", "traversal", "outcome", "completed", "toyfaces"])
def test_a_password_that_is_a_word_of_ours_spoils_no_record(tmp_path: Path, password: str) -> None:
    (tmp_path / "traversal.png").write_text("picture")
    arrived = []
    for uri in (URI, f"postgresql://mlflow:{password}@store/db"):
        store = Store(uri)
        outbox = store.outbox(tmp_path / password / uri[:4])
        outbox.start("t1", {"method": "sweep"}, {"role": "sweep", "mlflow.start": "completed"}, 1000, [MODEL])
        outbox.image("t1", tmp_path / "traversal.png", "traversal", 2, 2500)
        outbox.register("sweep", "mlflow", "`mlflow.pyfunc.load_model`")
        outbox.end("t1", "FINISHED", {"outcome": "completed"}, 3000)
        assert _send(outbox) and refused(outbox.path) == 0
        arrived.append(store.arrived)
    assert arrived[0] == arrived[1] != []


def test_points_of_an_older_outbox_count(store: Store, tmp_path: Path) -> None:
    """Its records have no time beside each value, and no description of a model."""
    spool = Spool(tmp_path)
    spool.put({"kind": "metrics", "trial": None, "time": 2000, "points": [["loss", 0.5, 3]]})
    spool.put({"kind": "register", "trial": None, "time": 2000, "name": "faces", "artifact": "champion"})
    spool.put({"kind": "start", "trial": "t1", "time": 2000, "parameters": {}, "tags": {}})
    outbox = store.outbox(tmp_path)
    assert outbox.last_step(None, "loss") == 3
    assert _send(outbox)
    assert store.arrived[:2] == [
        ("points", "parent", [("loss", 0.5, 3, None)], 2000),
        ("register", "faces", "parent", "champion", ""),
    ]
    assert store.arrived[-1] == ("inputs", "run of t1", [])


def test_values_stay_numbers_but_for_those_that_json_does_not_know(store: Store, tmp_path: Path) -> None:
    outbox = store.outbox(tmp_path / "outbox")
    outbox.metrics("t1", [{"step": 1, "loss": 0.5, "nan": float("nan"), "high": float("inf")}], 1000)
    record = json.loads((tmp_path / "outbox" / "00000001.json").read_text())
    assert record["points"] == [["loss", 0.5, 1, None], ["nan", "nan", 1, None], ["high", "inf", 1, None]]


def test_a_file_goes_to_the_run_of_its_trial(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    outbox = store.outbox(tmp_path / "outbox")
    outbox.start("t1", {}, {}, 1000)
    outbox.file("t1", tmp_path / "a.txt", "notes")
    assert _send(outbox)
    assert store.arrived[-1] == ("folder", "run of t1", {"a.txt": "text"}, "notes")
