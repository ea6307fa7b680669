"""Record the events of Ray Tune in the sweep's study and MLflow, and show them on the screen as they happen."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune

from orchestrator.report.live import Screen
from orchestrator.search.space import searched
from orchestrator.text import number
from orchestrator.tracking.record import SweepRecord
from orchestrator.trial.outcome import TrialOutcome
from orchestrator.trial.state import STEP, Report
from orchestrator.workers.placement import answers, free_resources, leaving
from orchestrator.workers.process_record import Doing, Hanging, ProcessRecord, end_of, stop_file

_LOOK_S = 5.0  # seconds between two checks of the processes of trials
_LATE_S = 60.0  # seconds beyond a process's own limit until this callback ends it


class RecordCallback(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """The callback that follows every trial of a sweep."""

    def __init__(self, record: SweepRecord, screen: Screen, each_step: Callable[[], None]) -> None:
        self.record, self.screen, self.each_step = record, screen, each_step
        sweep = record.sweep
        self.iterations, self.objective = sweep.train.iterations, sweep.objectives[0].metric
        self.searched = searched(sweep.space)
        self.started, self.looked = time.monotonic(), 0.0
        self.hanging = Hanging(sweep.recovery.stalled_minutes * 60 + _LATE_S)

    def get_state(self) -> dict[str, Any] | None:
        """Return None: the ledger holds all state."""
        return None

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: Tune pickles its callbacks, but the result is never read."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Run the checks of each step, and every five seconds those of the trials' processes."""
        self.each_step()
        self.screen.print_summary_if_due()
        if time.monotonic() - self.looked > _LOOK_S:
            self.looked = time.monotonic()
            away, doing = leaving(), {}
            for trial in trials:
                if trial.status == "RUNNING":
                    self.hanging.end(self._folder(trial))
                    self._leave(trial, away)
                    if found := Doing.of(self._folder(trial)):
                        doing[trial.config["trial_id"]] = found
            self.screen.show_doing(doing)

    def _leave(self, trial: Any, away: set[str]) -> None:
        """Ask a trial to save and end before a machine that it runs on goes away."""
        folder, attempt = self._folder(trial), trial.config["attempt"]
        request = stop_file(folder, attempt)
        nodes = {process.node for process in ProcessRecord.all_of(folder) if process.attempt == attempt}
        if nodes & away and not request.exists():
            with suppress(OSError):
                request.touch()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record and show that an attempt has begun."""
        config = trial.config
        self.record.started(config["trial_id"], config["parameters"], config["attempt"])
        chosen = {name: config["parameters"][name] for name in self.searched if name in config["parameters"]}
        begins = "starts" if config["attempt"] == 1 else f"goes on (attempt {config['attempt']})"
        self._say(trial, begins, ", ".join(f"{name}={number(value, 4)}" for name, value in chosen.items()))
        reached = max(map(int, self.record.ledger.reports(config["trial_id"])), default=0)
        self.screen.mark(config["trial_id"], reached, anew=True)
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record and show a report."""
        report = Report.from_json(result)
        for note in report.notes:
            self._say(trial, "note", note, matters=True)
        stopped = bool(result.get("done")) and report.global_step < self.iterations
        if self.record.reported(trial.config["trial_id"], report, stopped):
            step = f"iteration {report.global_step}/{self.iterations}"
            self._say(trial, step, f"{self.objective} {report.metrics[self.objective]:.3f}")
            self.screen.mark(trial.config["trial_id"], report.global_step)
            self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the end of a trial that completed or was stopped."""
        outcome, reason = self.record.ledger.judge(Report.from_json(trial.last_result or {}))
        self._ended(trial, outcome, reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the end of an attempt that failed, with the reason that its files show."""
        free_resources(self._folder(trial))
        end = end_of(self._folder(trial), trial.config["attempt"], trial.error_file, answers)
        self._ended(trial, end.outcome, end.reason, end.final)

    def _ended(self, trial: Any, outcome: TrialOutcome, reason: str, final: bool = False) -> None:
        report = Report.from_json(trial.last_result) if STEP in (trial.last_result or {}) else None
        if trial.config["trial_id"] not in self.record.ledger.running():
            return
        again = self.record.ended(trial.config["trial_id"], outcome, reason, report, final)
        plain = outcome in (TrialOutcome.COMPLETED, TrialOutcome.PRUNED)
        self._say(trial, outcome, "" if plain else reason + ("; it will go on" if again else ""), matters=not plain)
        self._show()

    def _folder(self, trial: Any) -> Path:
        return self.record.folder.trial(trial.config["trial_id"]).path

    def _show(self) -> None:
        self.screen.update(self.record.ledger.begun())

    def _say(self, trial: Any, what: str, more: str = "", matters: bool = False) -> None:
        """Show an event. matters: show it also while the screen shows a table."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        line = f"{minutes:4}:{seconds:02}  trial {trial.config['trial_id']}  {what:<18} {more}".rstrip()
        (self.screen.tell if matters else self.screen.event)(line)
