"""What is written down when something happens to a trial: for MLflow, in the ledger, on disk.

Whatever happens, the outbox has it first, then the ledger, then what is no longer needed goes. A kill between two of
these leaves a row that is still running, and `settle` then does again what may not have been done: everything here can
be done twice and leaves what doing it once leaves.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import UserError
from orchestrator.search.ledger import ENDS, SECONDS, Ends, Ledger, parameters_of
from orchestrator.search.ranking import ranked
from orchestrator.search.space import whole
from orchestrator.spec import Sweep
from orchestrator.store.checkpoints import CheckpointError, keep_best
from orchestrator.store.disk import with_space
from orchestrator.store.folder import SweepFolder
from orchestrator.tracking.client import Tracking
from orchestrator.tracking.lineage import of_trial
from orchestrator.tracking.notes import NOTE, UNDER_WAY, trial_note
from orchestrator.tracking.outbox import Outbox
from orchestrator.trial.outcome import ADVICE, TrialOutcome
from orchestrator.trial.state import Report, State
from orchestrator.workers.process import end_process

# How MLflow says that a run has ended.
_STATUS = {TrialOutcome.COMPLETED: "FINISHED", TrialOutcome.PRUNED: "FINISHED", TrialOutcome.PREEMPTED: "KILLED"}


@dataclass(frozen=True)
class SweepRecord:
    """All that is kept of a sweep under way."""

    sweep: Sweep
    folder: SweepFolder
    ledger: Ledger
    outbox: Outbox
    emptied: set[str] = field(default_factory=set)  # trials that were not good enough to keep their sets

    def started(self, trial_id: str, parameters: Mapping[str, Any], attempt: int) -> None:
        """An attempt at a trial has begun."""
        given = whole(parameters, self.sweep.space)
        inputs = of_trial(self.sweep, self.ledger.weights, given)
        tags = {"sweep": self.sweep.name, "method": str(given["method"]), "attempt": str(attempt)}
        tags |= {"on_front": "false", **UNDER_WAY}
        with_space(lambda: self.outbox.start(trial_id, parameters, tags, inputs=inputs))

    def reported(self, trial_id: str, report: Report, stopped: bool = False) -> bool:
        """A running trial has reported. False where that report is known: a trial that goes on repeats its last one."""
        if str(report.global_step) in self.ledger.reports(trial_id):
            return False
        with_space(lambda: self._record(trial_id, report))
        metric, _ = self.sweep.compared
        self.ledger.reported(trial_id, report.global_step, report.metrics.get(metric), stopped)
        return True

    def _record(self, trial_id: str, report: Report) -> None:
        """Everything that MLflow shows of a report."""
        training = [
            {"step": point["step"], **{f"training/{name}": value for name, value in point.items() if name != "step"}}
            for point in report.curve
        ]
        measured = {"step": report.global_step, **report.metrics, SECONDS: report.find_seconds}
        self.outbox.metrics(trial_id, [*training, measured], report.milliseconds)
        if report.usage:
            self.outbox.usage(trial_id, report.usage)
        if report.memory:
            self.outbox.tags(trial_id, {name: str(value) for name, value in report.memory.items()})
        try:
            checkpoint = self.folder.trial(trial_id).result()
        except CheckpointError:  # damaged since; the trial will say so when it goes on
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
        """An attempt has ended. Returns what the next one has behind it, None where the trial is over.

        final: another attempt would end in the same way.
        """
        again = None if final else self.ledger.may_go_on(trial_id, outcome)
        status = "KILLED" if again else _STATUS.get(outcome, "FAILED")
        row = self.ledger.running()[trial_id]
        if not self.ledger.reports(trial_id):  # it may have ended before it began
            self.started(trial_id, parameters_of(row), Ends(**row.user_attrs.get(ENDS, {})).attempt)
        note = trial_note(self.sweep, trial_id, parameters_of(row), str(outcome), reason, report)
        tags = {"outcome": str(outcome), "reason": reason, NOTE: note}
        with_space(lambda: self.outbox.end(trial_id, status, tags, int(time.time() * 1000)))
        self.ledger.end(trial_id, outcome, reason, report, again)
        if again is None:
            self._tidy(trial_id)
        return again

    def _tidy(self, trial_id: str) -> None:
        """Of trials that are over only the best keep their sets; nobody needs the state of their networks."""
        try:
            with_space(self.folder.trial(trial_id).ended)
        except CheckpointError:  # there is nothing sound to keep
            pass
        over = [row for row in ranked(self.ledger.study, self.sweep) if row.over]
        front = [row for row in over if row.on_front]  # ranks change with every trial; the best is always among these
        order = [*front, *(row for row in over if not row.on_front)]
        count = max(self.sweep.recovery.keep_trials, len(front))
        lost = [row.trial_id for row in order[count:] if row.trial_id not in self.emptied]
        keep_best([self.folder.trial(trial_id) for trial_id in lost], 0)
        self.emptied.update(lost)

    def settle(self, over: str | None = None) -> list[str]:
        """Close every row that is running, for nothing runs. Returns the trials that go on.

        over: why the sweep has ended for good; trials on their way are then pruned for that reason.
        """
        self.ledger.close_strays()
        if over is not None:
            self.ledger.take_waiting()
        for trial_id, row in self.ledger.begun().items():
            if row.state.is_finished() and self.folder.trial(trial_id).resumable():  # killed before it was tidied
                self._tidy(trial_id)
        return [trial_id for trial_id in self.ledger.running() if self._settle(trial_id, over)]

    def end_runs(self, tracking: Tracking) -> int:
        """End in MLflow what it holds running though nothing runs; how many runs that were, as far as it answers."""
        state, interrupted = self.folder.read(), TrialOutcome.PREEMPTED
        try:
            runs: list[str | None] = [each for _, each in tracking.running(state["experiment_id"], state["parent_run"])]
            if tracking.status(state["parent_run"]) == "RUNNING":
                runs.append(None)
        except UserError:  # what the ledger knows of is in the outbox all the same
            return 0
        for trial_id in runs:
            self.outbox.end(trial_id, "KILLED", {"outcome": str(interrupted), "reason": ADVICE[interrupted]})
        return len(runs)

    def _settle(self, trial_id: str, over: str | None) -> bool:
        end_process(self.folder.trial(trial_id).path)
        report = self._last_report(trial_id)
        # A trial that goes on repeats its last report, so that it is compared with the others where it was not yet.
        if report is not None and (report.global_step >= self.sweep.train.iterations or self._was_stopped(trial_id)):
            self.reported(trial_id, report)
            self.ended(trial_id, *self.ledger.judge(report), report)
            return False
        if over is not None:
            if report is not None:
                self.reported(trial_id, report)
            self.ended(trial_id, TrialOutcome.PRUNED, over, report)
            return False
        interrupted = TrialOutcome.PREEMPTED
        return self.ended(trial_id, interrupted, ADVICE[interrupted], report) is not None

    def _last_report(self, trial_id: str) -> Report | None:
        """What the newest checkpoint of a trial says that it has reported."""
        try:
            found = self.folder.trial(trial_id).latest()
        except CheckpointError:
            return None
        for note in found.damaged:  # the trial will not find it any more
            self.outbox.tell(f"trial {trial_id}  note  {note}")
        return State.read(found.path).report if found.path else None

    def _was_stopped(self, trial_id: str) -> bool:
        return any(report["stopped"] for report in self.ledger.reports(trial_id).values())
