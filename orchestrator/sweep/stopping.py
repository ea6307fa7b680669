"""When a sweep starts nothing more: a signal, the hours of its budget, a full disk.

The first Ctrl-C (or SIGTERM) asks every trial to save and end, wherever it runs, by a file that they all see. What has
not ended after a while is ended. A second one ends everything at once; the next start repairs what that leaves.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ray import tune
from rich.console import Console

from orchestrator.store.disk import free_bytes
from orchestrator.store.folder import SweepFolder

GRACE_S = 60.0  # for trials to come to the end of an iteration and save
_LOOK_S = 2.0
_LEAST_FREE, _SETS = 16 << 20, 6  # bytes; and so many direction sets: no new trial starts with less disk than that


class Stopping:
    """For the duration of a block, what the process that drives a sweep listens to."""

    def __init__(self, folder: SweepFolder, console: Console, set_bytes: int = 0) -> None:
        self.folder, self.console = folder, console
        self.least_free = _LEAST_FREE + _SETS * set_bytes  # a trial's checkpoints, and what MLflow keeps of it
        self.asked: float | None = None  # when the user asked for an end
        self.ends: float | None = None  # when the hours of the budget are over
        self.full, self.looked = False, 0.0
        self.searching = False  # whether trials may be under way, that can save

    def __enter__(self) -> "Stopping":
        self.folder.stop.unlink(missing_ok=True)
        self.before = {number: signal.signal(number, self._signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.folder.stop.unlink(missing_ok=True)

    def _signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked is not None:
            os._exit(130)  # Ray's processes end with this one
        if not self.searching:
            raise KeyboardInterrupt
        self.asked = time.monotonic()
        with suppress(OSError, RuntimeError):  # a full disk; a line that was being printed
            self.folder.stop.touch()
            self.console.print(f"Stopping: trials save and end, within {GRACE_S:.0f} s; once more to end at once")

    @contextmanager
    def search(self) -> Iterator[None]:
        """While trials may be under way."""
        self.searching = True
        try:
            yield
        finally:
            self.searching = False

    def limit(self, hours: float | None, spent_s: float) -> None:
        """The sweep may take so many hours, of which so much is spent."""
        self.ends = None if hours is None else time.monotonic() + hours * 3600 - spent_s

    def time_is_up(self) -> bool:
        return self.ends is not None and time.monotonic() >= self.ends

    def over(self) -> bool:
        """Whether no trial starts any more."""
        return self.asked is not None or self.time_is_up()

    def held(self) -> bool:
        """Whether no trial starts at this moment: the disk is full."""
        self.look()
        return self.full

    def look(self) -> None:
        """See how the disk is doing, and say so where that has changed."""
        if time.monotonic() - self.looked < _LOOK_S:
            return
        self.looked = time.monotonic()
        free = free_bytes(self.folder.path)
        if (free < self.least_free) != self.full:
            self.full = not self.full
            now = f"{free >> 20} MiB are free at {self.folder.path}"
            self.console.print(
                f"Disk: only {now}; no new trial starts until there is more"
                if self.full
                else f"Disk: {now}; it goes on"
            )

    def stopper(self) -> "_Stopper":
        return _Stopper(self)


class _Stopper(tune.Stopper):  # type: ignore[misc]  # Ray ships no types
    """Tells Tune to end trials that are still there when they should not be."""

    def __init__(self, stopping: Stopping) -> None:
        self.stopping = stopping

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        late = self.stopping.asked is not None and time.monotonic() - self.stopping.asked > GRACE_S
        return late or self.stopping.time_is_up()

    def __getstate__(self) -> dict[str, Any]:
        return {}
