"""Records that are refused or damaged hold nobody up, and a driver that dies or a full disk loses none."""

import json
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from mlflow.exceptions import MlflowException

from core.files import write_json
from orchestrator.store.spool import Spool, refused
from orchestrator.tracking.outbox import Outbox
from tests.orchestrator.tracking.conftest import AWAY, URI, Store, _points, _send, _tags, _those_of

pytestmark = pytest.mark.usefixtures("disk_without_waiting")

NEVER = MlflowException.invalid_parameter_value("not like this")


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
        assert refused(outbox.path) == 1, f"a record is refused once; died {died}"
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
