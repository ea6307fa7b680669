"""A trial in a process of its own, as Ray Tune runs it: asked for the next report, it works until it has one."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from ray import tune

from core.cache import SampleCache
from orchestrator.ledger import METRICS, STEP
from orchestrator.process import STEPS, Process, write_end
from orchestrator.spec import Sweep
from orchestrator.store import SweepFolder
from orchestrator.watchdog import Watchdog

_LOOK_S = 5.0  # between two looks at whether the attempt is still this process's
_ASK_S = 0.5  # between two looks at whether it shall end


class TrialWorker(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """One attempt at a trial. Each `step` is the way to the next report."""

    def setup(self, config: dict[str, Any], sweep: Sweep, folder: SweepFolder) -> None:
        self.sweep, self.folder = sweep, folder
        self.stopped, self.asked = False, 0.0
        self.trial = folder.trial(config["trial_id"])
        self.trial.path.mkdir(parents=True, exist_ok=True)
        self.process, self.looked = Process.this(config["attempt"]), time.monotonic()
        self.process.write(self.trial.path)
        self.watchdog = Watchdog(sweep.recovery.stalled_minutes * 60, self.trial.path / STEPS)
        # In this process's first thread, where Python handles signals; Ray's own handler would end it at once.
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self.reports: Iterator[dict[str, Any]] | None = None

    def step(self) -> dict[str, Any]:
        self.watchdog.step()
        try:
            if self.reports is None:
                self.reports = self._begin()
            report = next(self.reports)
        except Exception as error:
            write_end(self.trial.path, self.config["attempt"], error)
            raise
        self.watchdog.rest()
        return {**report, **report[METRICS], "done": report[STEP] >= self.sweep.train.iterations}

    def cleanup(self) -> None:
        if self.reports is not None:
            self.reports.close()  # type: ignore[attr-defined]  # a generator
        self.watchdog.close()

    def _begin(self) -> Iterator[dict[str, Any]]:
        from orchestrator.trial import Surroundings, run_trial  # torch and all: it takes a while

        around = Surroundings(self._shall_stop, self._moved)
        cache = SampleCache(self.folder.cache, waiting=around.step)
        smaller = self.config["out_of_memory"]
        return run_trial(self.config["parameters"], self.sweep, self.trial, cache, around, smaller)

    def _moved(self) -> None:
        """The trial has made a step. The process ends where another has taken the trial over, lest both write."""
        self.watchdog.step()
        if time.monotonic() - self.looked > _LOOK_S:
            self.looked = time.monotonic()
            if Process.of(self.trial.path) not in (None, self.process):
                os._exit(1)

    def _shall_stop(self) -> bool:
        """Whether somebody asked this process, or all of the sweep's, to end; asked after every call of the network."""
        if not self.stopped and time.monotonic() - self.asked > _ASK_S:
            self.asked, self.stopped = time.monotonic(), self.folder.stop.exists()
        return self.stopped

    def _on_sigterm(self, *_: object) -> None:
        self.stopped = True
