"""What the outbox promises, on a store in memory that fails when it is told to: in order, once, and nothing lost."""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec, patch

import pytest
from mlflow.exceptions import MlflowException

from core.files import write_json
from orchestrator.secrets import scrub
from orchestrator.store.spool import Spool, refused
from orchestrator.tracking.client import Tracking
from orchestrator.tracking.outbox import Outbox

URI = "http://anna:geheim99@store:5000"
AWAY = ConnectionError("no route")
NEVER = MlflowException.invalid_parameter_value("not like this")
MODEL = {"name": "toyfaces", "digest": "ab12", "source_type": "model", "source": "{}", "context": "model"}
LONG_S = 20.0  # far more than anything here takes


class Store:
    """A store that keeps what arrives, in order, and fails, refuses or loses its answers as its test says."""

    def __init__(self) -> None:
        self.tracking: Any = create_autospec(Tracking, instance=True)
        self.tracking.shown = "http://store:5000"
        self.tracking.scrub.side_effect = lambda value: scrub(value, URI)
        self.tried: list[str] = []
        self.arrived: list[tuple[Any, ...]] = []
        self.fails: deque[BaseException | None] = deque()  # of the next calls, those that do not arrive
        self.loses: deque[BaseException | None] = deque()  # of the next that arrive, those whose answer is lost
        self.runs: set[str] = set()
        for name in ("restart", "tags", "inputs", "points", "end", "register", "folder", "image", "start_child"):
            getattr(self.tracking, name).side_effect = self._call(name)
        self.tracking.child.side_effect = self._child

    def _call(self, name: str) -> Callable[..., Any]:
        def called(*given: Any) -> Any:
            self.tried.append(name)
            if self.fails and (error := self.fails.popleft()):
                raise error
            self.arrived.append((name, *(_content(each) if isinstance(each, Path) else each for each in given)))
            run = f"run of {given[2]}" if name == "start_child" else None
            self.runs |= {run} if run else set()
            if self.loses and (error := self.loses.popleft()):
                raise error
            return run

        return called

    def _child(self, experiment_id: str, parent: str, trial_id: str) -> Any:
        assert (experiment_id, parent) == ("7", "parent")
        run = f"run of {trial_id}"
        return Mock(**{"info.run_id": run}) if run in self.runs else None

    def outbox(self, path: Path, tell: Callable[[str], None] = lambda text: None) -> Outbox:
        return Outbox(path, self.tracking, "7", "parent", tell)


def _content(path: Path) -> Any:
    """What a path holds, for the outbox may remove it."""
    return {file.name: file.read_text() for file in path.iterdir()} if path.is_dir() else path.read_text()


def _send(outbox: Outbox) -> bool:
    outbox.open()
    return outbox.close(LONG_S)


def _tags(outbox: Outbox, *names: str) -> None:
    for name in names:
        outbox.tags(None, {name: "1"})


def _those_of(store: Store) -> list[str]:
    """The names of the tags that arrived, in order."""
    return [next(iter(call[2])) for call in store.arrived if call[0] == "tags"]


def _points(*values: tuple[int, float], name: str = "loss") -> list[dict[str, float]]:
    return [{"step": step, name: value} for step, value in values]


@pytest.fixture(autouse=True)
def disk_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about what is where when a process dies, not a machine."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def waits() -> Iterator[list[float]]:
    """How long the outbox would have waited before each new attempt."""
    waited: list[float] = []

    def pause(self: Outbox, seconds: float) -> bool:
        waited.append(seconds)
        return False

    with patch.object(Outbox, "_pause", pause):
        yield waited


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


def test_what_is_refused_for_ever_is_set_aside_and_holds_nobody_up(
    store: Store, tmp_path: Path, waits: list[float]
) -> None:
    said: list[str] = []
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.json").write_text("{}")
    outbox = store.outbox(tmp_path / "box", said.append)
    _tags(outbox, "a", "b", "c", "d")
    outbox.folder(None, tmp_path / "set", "champion")
    outbox.metrics("t9", _points((1, 0.5)))
    _tags(outbox, "e")
    other = MlflowException.invalid_parameter_value(f"nothing from {URI}")
    store.fails = deque([None, NEVER, NEVER, None, other])
    assert _send(outbox)
    assert _those_of(store) == ["a", "d", "e"] and waits == []
    aside = outbox.path / "refused"
    names = ("00000002", "00000003", "00000005", "00000006")
    assert refused(outbox.path) == 4 and [path.stem for path in sorted(aside.glob("*.txt"))] == list(names)
    assert json.loads((aside / "00000002.json").read_text())["tags"] == {"b": "1"}
    assert (aside / "00000005" / "set.json").is_file()
    reasons = [(aside / f"{name}.txt").read_text() for name in names]
    assert "not like this" in reasons[0] and "trial t9 has no run in the store" in reasons[3]
    assert "http://***@store:5000" in reasons[2] and "geheim99" not in "".join([*reasons, *said])
    # The reason of two records is told once.
    assert len(said) == 3 and all(" was refused and set aside: " in text for text in said)
    assert str(aside / "00000002.json") in said[0] and "not like this" in said[0]
    assert {call.args for call in store.tracking.check_run.call_args_list} == {("parent",)}


def test_a_record_set_aside_and_moved_back_goes_first(store: Store, tmp_path: Path) -> None:
    outbox = store.outbox(tmp_path)
    _tags(outbox, "a", "b")
    store.fails = deque([NEVER])
    _send(outbox)
    (tmp_path / "refused" / "00000001.json").rename(tmp_path / "00000001.json")
    later = store.outbox(tmp_path)
    _tags(later, "c")
    assert _send(later) and _those_of(store) == ["b", "a", "c"]


def test_a_store_that_does_not_know_the_sweeps_run_is_waited_for(
    store: Store, tmp_path: Path, waits: list[float]
) -> None:
    """Its refusals mean nothing: it is another store, or one that is half up."""
    said: list[str] = []
    outbox = store.outbox(tmp_path, said.append)
    _tags(outbox, "a")
    outbox.metrics("t9", _points((1, 0.5)))
    unknown = MlflowException("no such run", error_code=5)
    store.fails = deque([NEVER, NEVER])
    store.tracking.check_run.side_effect = [unknown, unknown, unknown, None]
    assert _send(outbox)
    assert _those_of(store) == ["a"] and refused(tmp_path) == 1, "once the store knows the sweep, it means what it says"
    assert waits == [1.0, 2.0, 1.0]
    assert "does not answer (no such run); 2 records wait" in said[0]


def test_waits_double_up_to_the_longest_and_begin_anew(store: Store, tmp_path: Path, waits: list[float]) -> None:
    outbox = store.outbox(tmp_path)
    _tags(outbox, "a", "b")
    store.fails = deque([*[AWAY] * 7, None, *[AWAY] * 2])
    assert _send(outbox)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 1.0, 2.0]


def test_a_store_that_is_away_is_told_of_once_and_once_when_it_is_back(
    store: Store, tmp_path: Path, waits: list[float]
) -> None:
    said: list[str] = []
    outbox = store.outbox(tmp_path, said.append)
    _tags(outbox, "a", "b", "c", "d")
    lost = ConnectionError(f"no answer from {URI}\nat all")
    store.fails = deque([AWAY, None, lost, lost, lost, None, None, AWAY, AWAY])
    assert _send(outbox)
    name = "tracking: the MLflow store http://store:5000"
    why = "no answer from http://***@store:5000"
    assert said == [
        f"{name} does not answer ({why}); 3 records wait in {tmp_path}, training goes on",
        f"{name} is back; 2 records that waited are being sent",
        f"{name} does not answer (no route); 1 records wait in {tmp_path}, training goes on",
        f"{name} is back; 0 records that waited are being sent",
    ]


def test_nobody_left_to_tell_holds_nothing_up(store: Store, tmp_path: Path, waits: list[float]) -> None:
    outbox = store.outbox(tmp_path, Mock(side_effect=ValueError("closed")))
    _tags(outbox, "a", "b", "c")
    store.fails = deque([AWAY, AWAY, None, NEVER])
    store.tracking.delete_unclaimed.side_effect = AWAY
    assert _send(outbox)
    assert _those_of(store) == ["a", "c"]


def test_a_wait_is_cut_short_by_whoever_closes_but_once(store: Store, tmp_path: Path) -> None:
    """A store that is away until the end is not asked without a pause."""
    outbox = store.outbox(tmp_path)
    _tags(outbox, "a")
    store.fails = deque([AWAY])
    outbox.open()
    _until(lambda: store.tried != [])
    assert outbox.close(0.8) and _those_of(store) == ["a"], "the first wait is of a second"
    _tags(outbox, "b")
    store.tried.clear()
    store.fails = deque([AWAY] * 100)
    outbox.open()
    assert not outbox.close(0.1) and outbox.pending() == 1
    assert 1 <= len(store.tried) <= 3


def test_a_store_that_hangs_is_given_up_in_time(store: Store, tmp_path: Path) -> None:
    """What is in hand may still arrive, nothing behind it does; then the next one sends the rest, and each once."""
    answering = threading.Event()
    tags = store.tracking.tags.side_effect

    def hanging(*given: Any) -> None:
        assert answering.wait(LONG_S)
        tags(*given)

    store.tracking.tags.side_effect = hanging
    outbox = store.outbox(tmp_path)
    _tags(outbox, "a", "b", "c")
    began = time.monotonic()
    with pytest.raises(KeyError), outbox.sending(0.05):
        raise KeyError("of the block")
    assert time.monotonic() - began < LONG_S / 4 and outbox.pending() == 3
    answering.set()
    _until(lambda: store.tracking.delete_unclaimed.called)
    assert _those_of(store) == ["a"] and outbox.pending() == 2
    with outbox.sending(LONG_S):
        _tags(outbox, "d")
    assert _those_of(store) == ["a", "b", "c", "d"] and outbox.pending() == 0


def test_two_senders_never_send_at_once(store: Store, tmp_path: Path) -> None:
    """An outbox that is opened again while its first sender still waits for an answer."""
    answering, inside, most = threading.Event(), [0], [0]
    tags = store.tracking.tags.side_effect

    def slow(*given: Any) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        assert answering.wait(LONG_S)
        tags(*given)
        inside[0] -= 1

    store.tracking.tags.side_effect = slow
    outbox = store.outbox(tmp_path)
    _tags(outbox, "a", "b", "c")
    outbox.open()
    assert not outbox.close(0.01)
    outbox.open()
    answering.set()
    assert outbox.close(LONG_S)
    assert _those_of(store) == ["a", "b", "c"] and most == [1]


def test_what_another_process_has_sent_meanwhile_is_left_out(store: Store, tmp_path: Path) -> None:
    outbox = store.outbox(tmp_path)
    _tags(outbox, "a", "b")
    (tmp_path / "00000001.json").unlink()
    assert _send(outbox)
    assert _those_of(store) == ["b"] and refused(tmp_path) == 0


def test_no_secret_reaches_a_file(store: Store, tmp_path: Path) -> None:
    outbox = store.outbox(tmp_path)
    outbox.start("t1", {"uri": URI}, {"reason": f"no answer from {URI}"}, 1)
    outbox.register("faces", "champion", "of geheim99")
    written = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert "geheim99" not in written and "http://***@store:5000" in written
    _send(outbox)
    assert store.arrived[0][4] == {"uri": "http://***@store:5000"}
    assert store.arrived[-1] == ("register", "faces", "parent", "champion", "of ***")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "dance", "trial": null, "time": 1}'])
def test_a_damaged_record_holds_nobody_up(store: Store, tmp_path: Path, waits: list[float], content: str) -> None:
    _tags(store.outbox(tmp_path), "before", "lost", "after")
    (tmp_path / "00000002.json").write_text(content)
    outbox = store.outbox(tmp_path)
    assert _send(outbox)
    assert _those_of(store) == ["before", "after"] and refused(tmp_path) == 1 and waits == []


def test_a_record_whose_files_have_gone_is_set_aside(store: Store, tmp_path: Path, waits: list[float]) -> None:
    (tmp_path / "grid.png").write_text("picture")
    outbox = store.outbox(tmp_path / "box")
    outbox.image(None, tmp_path / "grid.png", "grid", 1)
    outbox.file(None, tmp_path / "grid.png", "champion")
    _tags(outbox, "after")
    (outbox.path / "00000001" / "grid.png").unlink()
    (outbox.path / "00000002" / "grid.png").unlink()
    (outbox.path / "00000002").rmdir()
    # A record that cannot be read stays so, whatever the store knows.
    store.tracking.check_run.side_effect = AWAY
    assert _send(outbox)
    assert _those_of(store) == ["after"] and refused(outbox.path) == 2 and waits == []
    assert "its files have gone: grid.png" in (outbox.path / "refused" / "00000001.txt").read_text()


def test_a_disk_of_ours_that_is_full_sends_again_and_sets_nothing_aside(
    store: Store, tmp_path: Path, waits: list[float]
) -> None:
    outbox = store.outbox(tmp_path)
    outbox.metrics(None, _points((1, 0.5)))
    full = OSError(28, "No space left on device")
    with patch("orchestrator.store.spool.write_json", side_effect=full), pytest.raises(OSError, match="No space"):
        outbox.metrics(None, _points((2, 0.5)))
    assert outbox.last_step(None, "loss") == 1 and outbox.pending() == 1, "nothing is put down by halves"
    with patch("orchestrator.tracking.outbox.write_json", wraps=write_json, side_effect=[full, None]):
        assert _send(outbox)
    assert store.tried == ["points", "points"] and refused(tmp_path) == 0 and waits == [1.0]


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


def test_steps_that_a_disk_has_damaged_are_not_known(store: Store, tmp_path: Path) -> None:
    """And what a driver that was killed had begun beside them is removed."""
    steps = tmp_path / "steps"
    (steps / ".writing-x").mkdir(parents=True)
    for name, content in [("t1", "{"), ("t2", "7"), ("t3", '{"loss": 4}'), ("sweep", '{"loss": 2}')]:
        (steps / f"{name}.json").write_text(content)
    spool = Spool(tmp_path)
    spool.put({"kind": "image", "trial": None, "time": 1})
    spool.put({"kind": "metrics", "trial": None, "time": 1, "points": [["speed", 1.0, 9], ["loss", 1.0, 1]]})
    outbox = store.outbox(tmp_path)
    assert [outbox.last_step(trial, "loss") for trial in ("t1", "t2", "t3", None)] == [-1, -1, 4, 2]
    assert outbox.last_step(None, "speed") == 9
    assert not (steps / ".writing-x").exists()


class Died(BaseException):
    """The process is no more: from here on nothing it does has an effect."""


class Mortal:
    """Makes one change of the disk, and each that follows, end in Died instead: also those that would tidy up."""

    CHANGES = ("replace", "rename", "link", "mkdir", "unlink", "rmdir", "chmod")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: float = float("inf")  # changes before it dies
        for name in self.CHANGES:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))
        monkeypatch.setattr(threading, "excepthook", lambda what: None)  # a sender dies as its process does

    def _counted(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **more: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Died
            return change(*given, **more)

        return counted


def _drive(store: Store, folder: Path, attempt: int) -> Outbox:
    """A trial from its start to its end, told by one driver; whoever comes after it tells it again, at other times."""
    outbox = store.outbox(folder / "box")
    outbox.start("t1", {"directions": 8}, {}, attempt)
    outbox.metrics("t1", _points((1, 0.1)), attempt)
    _send(outbox)
    outbox.metrics("t1", _points((2, 0.2)), attempt)
    outbox.metrics("t9", _points((1, 0.1)), attempt)  # of a trial without a run: it is refused
    outbox.image("t1", folder / "grid.png", "grid", 2, attempt)
    outbox.end("t1", "FINISHED", {}, attempt)
    _send(outbox)
    return outbox


def test_a_driver_that_dies_between_any_two_changes_of_the_disk_loses_and_doubles_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mortal = Mortal(monkeypatch)
    died, ended = 0, False
    while not ended:
        folder = tmp_path / str(died)
        folder.mkdir()
        (folder / "grid.png").write_text("picture")
        store.arrived, store.runs = [], set()
        mortal.left = died
        try:
            _drive(store, folder, 1)
            ended = mortal.left >= 0  # else its sender has died
        except Died:
            pass
        mortal.left = float("inf")
        outbox = _drive(store, folder, 2)
        assert outbox.pending() == 0, died
        # An answer may be lost with the process: then all of a record arrives again, and is the same.
        points = [(call[2][0][2], call[3]) for call in _first(store, "points")]
        pictures = [(call[4], call[5]) for call in _first(store, "image")]
        assert ([step for step, _ in points], [step for step, _ in pictures]) == ([1, 2], [2]), (died, points, pictures)
        assert _first(store, "end")[-1][2] == "FINISHED" and store.arrived[-1][0] == "end"
        aside = [path.name for path in (outbox.path / "refused").iterdir()]
        assert {f"{name[:8]}.{kind}" for name in aside for kind in ("json", "txt")} == set(aside) != set(), died
        assert sorted(path.name for path in outbox.path.iterdir()) == ["refused", "steps"], died
        known = {path.name: json.loads(path.read_text()) for path in (outbox.path / "steps").iterdir()}
        assert known == {"t1.json": {"loss": 2, "image grid": 2}, "t9.json": {"loss": 1}}, died
        died += 1
    assert died > 50, "each change of the disk was the last of a driver"


def _first(store: Store, kind: str) -> list[tuple[Any, ...]]:
    """What has arrived of a kind, in order; what is the same in every respect, once."""
    found: list[tuple[Any, ...]] = []
    for call in store.arrived:
        if call[0] == kind and call not in found:
            found.append(call)
    return found


def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.001)


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


def test_a_sender_that_hangs_holds_no_process_up(store: Store, tmp_path: Path) -> None:
    outbox = store.outbox(tmp_path / "outbox")
    outbox.open()
    [sender] = [thread for thread in threading.enumerate() if thread.name == "outbox"]
    assert sender.daemon
    assert outbox.close(LONG_S)


def test_a_wait_ends_by_itself_and_is_cut_short_by_whoever_closes(store: Store, tmp_path: Path) -> None:
    outbox = store.outbox(tmp_path / "outbox")
    assert outbox._pause(0.01) is False
    outbox._hurry = True
    assert outbox._pause(LONG_S) is True and outbox._pause(0.01) is False
