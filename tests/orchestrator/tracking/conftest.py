"""A store in memory that fails when it is told to, and an outbox that does not wait for it."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec, patch

import pytest

from orchestrator.secrets import hide_addresses, scrub
from orchestrator.tracking.client import Tracking
from orchestrator.tracking.outbox import Outbox

URI = "http://anna:geheim99@store:5000"
AWAY = ConnectionError("no route")
LONG_S = 20.0  # far more than anything here takes


class Store:
    """A store that keeps what arrives, in order, and fails, refuses or loses its answers as its test says."""

    def __init__(self, uri: str = URI) -> None:
        self.tracking: Any = create_autospec(Tracking, instance=True)
        self.tracking.shown = "http://store:5000"
        self.tracking.scrub.side_effect = lambda message: scrub(message, uri)
        self.tracking.hide_address.side_effect = lambda value: hide_addresses(value, uri)
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


@pytest.fixture
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
