"""Run trials in a process of their own under Ray Tune, which asks for one report at a time.

The process runs one trial after the other, as long as none fails, so that the model stays loaded.
"""

import gc
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from core.samples.cache import SampleCache
from orchestrator.spec import Sweep
from orchestrator.store.folder import SweepFolder
from orchestrator.trial.state import Report
from orchestrator.workers.process_record import STEPS, DoingFile, ProcessRecord, Watchdog, stop_file, write_end
from orchestrator.workers.usage import Usage

if TYPE_CHECKING:
    from orchestrator.trial.model import TrialModel

_LOOK_S = 5.0  # seconds between two checks whether another process has taken the attempt over
_ASK_S = 0.5  # seconds between two checks whether the process has to end


class AttemptProcess:
    """One process of one attempt: it records itself, checks whether it has to end, and ends where it is replaced.

    rank: the rank among the processes that share the trial (orchestrator.workers.worker_group).
    """

    def __init__(self, sweep: Sweep, folder: SweepFolder, config: dict[str, Any], rank: int = 0) -> None:
        self.folder, self.path = folder, folder.trial(config["trial_id"]).path
        self.path.mkdir(parents=True, exist_ok=True)
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
        self.record = ProcessRecord.this(config["attempt"], rank, node)
        self.record.write(self.path)
        self.stopped, self.last_asked, self.looked = False, 0.0, time.monotonic()
        steps = f"{STEPS}.{rank}" if rank else STEPS
        self.watchdog = Watchdog(sweep.recovery.stalled_minutes * 60, self.path / steps)
        self.doing = DoingFile(self.path)
        self.usage = Usage() if sweep.tracking.system_metrics and not rank else None

    def moved(self) -> None:
        """Count a step of the trial. Ends this process where another has taken the trial over, lest both write."""
        self.watchdog.step()
        if self.usage:
            self.usage.look()
        if time.monotonic() - self.looked > _LOOK_S:
            self.looked = time.monotonic()
            if ProcessRecord.of(self.path, self.record.rank) not in (None, self.record):
                os._exit(1)

    def shall_stop(self) -> bool:
        """Return whether this attempt, or the whole sweep, has to end. Called after every call of the network."""
        if not self.stopped and time.monotonic() - self.last_asked > _ASK_S:
            self.last_asked = time.monotonic()
            self.stopped = self.folder.stop.exists() or stop_file(self.path, self.record.attempt).exists()
        return self.stopped

    def with_usage(self, report: Report) -> Report:
        """Return the report with what the trial has used of this machine since the last report."""
        return replace(report, usage=self.usage.taken()) if self.usage else report

    def leave(self) -> None:
        """End this process's part in the attempt; the process itself may go on with another trial."""
        self.watchdog.close()
        self.doing.remove()
        stop_file(self.path, self.record.attempt).unlink(missing_ok=True)
        self.record.remove(self.path)


class TrialWorker(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """A process that Ray Tune runs, making attempts at one trial after the other. Each `step` runs to the next report.

    home: the folder that relative paths of the sweep file start from.
    """

    def setup(self, config: dict[str, Any], sweep: Sweep, folder: SweepFolder, home: Path) -> None:
        """Prepare the process and begin the first attempt."""
        at_home(home)
        self.sweep, self.folder = sweep, folder
        self.trial_model: TrialModel | None = None
        self.reports: Iterator[Report] | None = None
        # This is the main thread, the only one that may set handlers. Ray's own handler would end the process at once.
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked in processes of an own Ray
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the attempt and begin one at another trial, in the same process."""
        self.cleanup()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial to its next report, and return that as a result for Ray Tune."""
        self.process.watchdog.step()
        try:
            if self.reports is None:
                self.reports = self._reports()
            report = next(self.reports)
        except Exception as error:
            write_end(self.process.path, self.config["attempt"], error)
            raise
        self.process.watchdog.rest()
        return as_result(self.process.with_usage(report), self.sweep)

    def cleanup(self) -> None:
        """End the attempt and free the trial's networks."""
        if self.reports is not None:
            self.reports.close()  # type: ignore[attr-defined]  # a generator
            self.reports = None
        gc.collect()  # the networks of the trial refer to each other
        self.process.leave()

    def _begin(self, config: dict[str, Any]) -> None:
        self.process = AttemptProcess(self.sweep, self.folder, config)

    def _reports(self) -> Iterator[Report]:
        from orchestrator.trial.run import TrialContext, run_trial  # imports torch, which takes a while

        process, before = self.process, self.config["out_of_memory"]
        context = TrialContext(process.shall_stop, process.moved, out_of_memory=before, advanced=process.doing.advanced)
        cache = SampleCache(self.folder.cache, waiting=context.network_called)
        trial = self.folder.trial(self.config["trial_id"])
        return run_trial(self.config["parameters"], self.sweep, trial, cache, context, self._load)

    def _load(self, sweep: Sweep, cache: SampleCache | None) -> "TrialModel":
        from orchestrator.trial.model import TrialModel

        self.trial_model = replace(self.trial_model, cache=cache) if self.trial_model else TrialModel.load(sweep, cache)
        return self.trial_model

    def _on_sigterm(self, *_: object) -> None:
        self.process.stopped = True


def at_home(home: Path) -> None:
    """Change to the folder where the sweep was started, if this machine has it."""
    with suppress(OSError):
        os.chdir(home)


def as_result(report: Report, sweep: Sweep) -> dict[str, Any]:
    """Return a report as Ray Tune wants it: with its metrics at the top level too, and whether the trial is done."""
    return {**report.to_json(), **report.metrics, "done": report.global_step >= sweep.train.iterations}
