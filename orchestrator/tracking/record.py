"""Record the events of trials in MLflow, in the ledger and on disk.

Every event is first put into the outbox for MLflow, then into the ledger; then files that are no longer needed are
removed. A kill between two of these leaves a row that is still running, and `settle` then repeats what may be missing.
Everything here can be done twice and has the same effect as once.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from orchestrator.search.ledger import ENDS, SECONDS, Ledger, parameters_of
from orchestrator.search.ranking import ranked
from orchestrator.search.retries import Ends
from orchestrator.search.space import with_constants
from orchestrator.secrets import scrub
from orchestrator.spec import Sweep
from orchestrator.store.checkpoints import CheckpointError, remove_checkpoints
from orchestrator.store.disk import with_space
from orchestrator.store.folder import SweepFolder
from orchestrator.tracking.lineage import of_trial
from orchestrator.tracking.notes import NOTE, UNDER_WAY, trial_note
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.views import RESULT
from orchestrator.trial.outcome import TrialOutcome
from orchestrator.trial.state import Report

# outcome -> the status of its run in MLflow; FAILED for any other
_STATUS = {TrialOutcome.COMPLETED: "FINISHED", TrialOutcome.PRUNED: "FINISHED", TrialOutcome.PREEMPTED: "KILLED"}


@dataclass(frozen=True)
class SweepRecord:
    """The records of a sweep under way: its folder, its ledger, and its outbox to MLflow."""

    sweep: Sweep
    folder: SweepFolder
    ledger: Ledger
    outbox: Outbox
    emptied: set[str] = field(default_factory=set)  # trials whose checkpoints were removed, since others were better

    def started(self, trial_id: str, parameters: Mapping[str, Any], attempt: int) -> None:
        """Record that an attempt at a trial has begun."""
        values = with_constants(parameters, self.sweep.space)
        inputs = of_trial(self.sweep, self.ledger.weights, values)
        tags = {"sweep": self.sweep.name, "method": str(values["method"]), "attempt": str(attempt)}
        tags |= {"on_front": "false", **UNDER_WAY}
        with_space(lambda: self.outbox.start(trial_id, parameters, tags, inputs=inputs))

    def reported(self, trial_id: str, report: Report, stopped: bool = False) -> bool:
        """Record a report of a running trial. Return False where it is known: a resumed trial repeats its last one."""
        if str(report.global_step) in self.ledger.reports(trial_id):
            return False
        with_space(lambda: self._record(trial_id, report))
        metric, _ = self.sweep.checkpoint_metric
        self.ledger.reported(trial_id, report.global_step, report.metrics.get(metric), stopped)
        return True

    def _record(self, trial_id: str, report: Report) -> None:
        """Put everything that MLflow shows of a report into the outbox."""
        training = [
            {"step": point["step"], **{f"training/{name}": value for name, value in point.items() if name != "step"}}
            for point in report.curve
        ]
        # The objectives first: MLflow's comparison of runs opens on the metric that they have first.
        first = {name: report.metrics[name] for name in self.sweep.objective_names if name in report.metrics}
        measured = {"step": report.global_step, **first, **report.metrics, SECONDS: report.find_seconds}
        self.outbox.metrics(trial_id, [measured, *training], report.milliseconds)
        if report.usage:
            self.outbox.usage(trial_id, report.usage)
        if report.memory:
            self.outbox.tags(trial_id, {name: str(value) for name, value in report.memory.items()})
        try:
            checkpoint = self.folder.trial(trial_id).result()
        except CheckpointError:  # damaged since; the trial reports that when it resumes
            return
        self.outbox.folder(trial_id, checkpoint / "directions", "directions")
        self.outbox.image(trial_id, checkpoint / "traversal.png", "traversal", report.global_step, report.milliseconds)

    def ended(
        self,
        trial_id: str,
        outcome: TrialOutcome,
        reason: str,
        report: Report | None = None,
        final: bool = False,
    ) -> Ends | None:
        """Record that an attempt has ended. Return the ends so far, for the next attempt; None where the trial is over.

        final: another attempt would end in the same way.
        """
        reason = scrub(reason, self.sweep.tracking.uri, self.sweep.study.uri)  # before the note escapes its letters
        again = None if final else self.ledger.ends_for_retry(trial_id, outcome)
        status = "KILLED" if again else _STATUS.get(outcome, "FAILED")
        row = self.ledger.running()[trial_id]
        if not self.ledger.reports(trial_id):  # it may have ended before its start was recorded
            self.started(trial_id, parameters_of(row), Ends(**row.user_attrs.get(ENDS, {})).attempt)
        if again is None:
            self._log_result(trial_id)
        note = trial_note(self.sweep, trial_id, parameters_of(row), str(outcome), reason, report)
        tags = {"outcome": str(outcome), "reason": reason, NOTE: note}
        with_space(lambda: self.outbox.end(trial_id, status, tags, int(time.time() * 1000)))
        self.ledger.end(trial_id, outcome, reason, report, again)
        if again is None:
            self.tidy(trial_id)
        return again

    def _log_result(self, trial_id: str) -> None:
        """Record the last picture of a trial that is over where the view of all trials looks for it."""
        with suppress(CheckpointError):  # none was drawn, or it is damaged
            picture = self.folder.trial(trial_id).result() / "traversal.png"
            with_space(lambda: self.outbox.image(trial_id, picture, *RESULT))

    def tidy(self, trial_id: str) -> None:
        """Remove the networks' state of a trial that is over, and all checkpoints of trials that are not the best."""
        try:
            with_space(self.folder.trial(trial_id).keep_result_only)
        except CheckpointError:  # no sound checkpoint is left to keep
            pass
        over = [row for row in ranked(self.ledger.study, self.sweep) if row.over]
        front = [row for row in over if row.on_front]  # ranks change with every trial; the best is on the front
        order = [*front, *(row for row in over if not row.on_front)]
        count = max(self.sweep.recovery.keep_trials, len(front))
        lost = [row.trial_id for row in order[count:] if row.trial_id not in self.emptied]
        remove_checkpoints(self.folder.trial(trial_id) for trial_id in lost)
        self.emptied.update(lost)
