"""An outbox whose store is away or hangs waits for it, and holds neither a trial nor the end of a sweep up."""

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from mlflow.exceptions import MlflowException

from orchestrator.store.spool import refused
from tests.orchestrator.tracking.conftest import AWAY, LONG_S, URI, Store, _points, _send, _tags, _those_of
from tests.orchestrator.tracking.test_outbox_damage import NEVER

pytestmark = pytest.mark.usefixtures("disk_without_waiting")


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


def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.001)


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
