"""Decide when a sweep starts no more trials: after a signal, at the end of its budget's hours, on a full disk.

The first Ctrl-C (or SIGTERM, or SIGHUP) asks every trial to save and end, by a file that all machines see. Trials that
have not ended after GRACE_S seconds are ended. A second request ends everything at once; the next start repairs what
that leaves.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from ray import tune
from rich.console import Console

from orchestrator import interruption
from orchestrator.store.disk import free_bytes
from orchestrator.store.folder import SweepFolder

GRACE_S = 60.0  # seconds for trials to end their iteration and save
_LOOK_S = 2.0
_LEAST_FREE, _SETS = 16 << 20, 6  # no new trial starts with less free: bytes, plus this many direction sets


class Stopping:
    """The conditions that stop a sweep, checked for the duration of a block in the process that drives it."""

    def __init__(self, folder: SweepFolder, console: Console, set_bytes: int = 0) -> None:
        self.folder, self.console = folder, console
        self.least_free = _LEAST_FREE + _SETS * set_bytes  # a trial's checkpoints, and its files in MLflow
        self.stop_asked_at: float | None = None  # when the user asked to stop
        self.deadline: float | None = None  # when the budget's hours are over
        self.full, self.looked = False, 0.0
        self.searching = False  # whether trials may be under way, which have to save
        self.signals = ExitStack()

    def __enter__(self) -> "Stopping":
        self.folder.stop.unlink(missing_ok=True)
        self.signals.enter_context(interruption.handled(self._stop))
        return self

    def __exit__(self, *_: object) -> None:
        self.signals.close()
        interruption.forget()
        self.folder.stop.unlink(missing_ok=True)

    def _stop(self) -> None:
        if self.stop_asked_at is not None:
            os._exit(130)  # Ray's processes end with this one
        if not self.searching:
            raise KeyboardInterrupt
        self.stop_asked_at = time.monotonic()
        interruption.ask_to_end()
        with suppress(OSError, RuntimeError):  # a full disk; a line that was just being printed
            self.folder.stop.touch()
            self.console.print(f"Stopping: trials save and end, within {GRACE_S:.0f} s; once more to end at once")

    @contextmanager
    def search(self) -> Iterator[None]:
        """Mark the block in which trials may be under way."""
        self.searching = True
        try:
            yield
        finally:
            self.searching = False

    def limit(self, hours: float | None, spent_s: float) -> None:
        """Set the end of the sweep after so many hours, of which `spent_s` seconds are spent; None sets no end."""
        self.deadline = None if hours is None else time.monotonic() + hours * 3600 - spent_s

    def time_is_up(self) -> bool:
        """Return whether the budget's hours are over."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def no_more_trials(self) -> bool:
        """Return whether no more trials start."""
        return self.stop_asked_at is not None or self.time_is_up()

    def paused_by_disk(self) -> bool:
        """Return whether no trial starts at this moment because the disk is full."""
        self.check_disk()
        return self.full

    def check_disk(self) -> None:
        """Check the free disk, at most every two seconds, and print a line where it has become full or free again."""
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
        """Return the stopper by which Tune ends trials that are late."""
        return _Stopper(self)


class _Stopper(tune.Stopper):  # type: ignore[misc]  # Ray ships no types
    """A stopper by which Tune ends all trials, GRACE_S seconds after a signal or when the budget's hours are over."""

    def __init__(self, stopping: Stopping) -> None:
        self.stopping = stopping

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Return whether every trial has to end now: the time to save, or the budget's time, is up."""
        late = self.stopping.stop_asked_at is not None and time.monotonic() - self.stopping.stop_asked_at > GRACE_S
        return late or self.stopping.time_is_up()

    def __getstate__(self) -> dict[str, Any]:
        return {}
