"""Settle what was running when a sweep was killed: for its next start (`settle`), or without one (`repair`).

No process may run any more. A trial that had reported its last iteration is ended; every other goes on later, in a new
attempt, as far as `recovery` allows. Optuna and MLflow then show nothing as running.
"""

from pathlib import Path

from rich.console import Console

from core.errors import UserError
from orchestrator.report.status import names_of
from orchestrator.search.ledger import Ledger
from orchestrator.store.checkpoints import CheckpointError
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driver, driving
from orchestrator.store.moved import mend, moved
from orchestrator.text import counted
from orchestrator.tracking.client import Tracking
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.record import SweepRecord
from orchestrator.trial.outcome import ADVICE, TrialOutcome
from orchestrator.trial.state import Report, State
from orchestrator.workers.process_record import end_process

_FLUSH_S = 60.0


def repair(root: Path, name: str | None, console: Console) -> None:
    """Repair one sweep, or all of `root`. Sweeps that are running are left alone. Raises UserError for no sweep.

    A root that was moved is mended first, for all of its sweeps: the store is theirs together.
    """
    names = names_of(root, name)
    if where := moved(root):
        running = [each for each in names_of(root, None) if driver(SweepFolder(root, each).lock)]
        if running:
            raise UserError(f"{where} (once {' and '.join(running)} has ended)")
        console.print(f"{counted(mend(root), 'address', 'addresses')} in MLflow's store now name {root.resolve()}")
    for each in names:
        folder = SweepFolder(root, each)
        if holder := driver(folder.lock):
            console.print(f"{each}: is being run by {holder}; nothing to repair", highlight=False)
            continue
        try:
            with driving(folder.lock, f"sweep '{each}'"):
                lines = _repaired(folder, console)
        except UserError as error:
            if name:
                raise
            lines = [str(error)]
        for line in lines:
            console.print(f"{each}: {line}", highlight=False, soft_wrap=True)


def _repaired(folder: SweepFolder, console: Console) -> list[str]:
    state, sweep = folder.read(), folder.sweep()
    if "parent_run" not in state:
        return ["was interrupted before its first trial; the same command starts it"]
    tracking = Tracking(sweep.tracking.uri, folder.root)
    outbox = Outbox(folder.outbox, tracking, state["experiment_id"], state["parent_run"], console.print)
    ledger = Ledger(sweep, folder.study_place, state["weights"], tell=console.print)
    record, running, ended = SweepRecord(sweep, folder, ledger, outbox), list(ledger.running()), 0
    with outbox.sending(_FLUSH_S):
        going_on = settle(record)
    if not outbox.pending():  # no end of a run that MLflow shows as running is on its way
        with outbox.sending(_FLUSH_S):
            ended = end_runs(record, tracking)
    lines = [f"{counted(len(running), 'trial')} closed, of which {len(going_on)} will go on"] if running else []
    lines += [f"{counted(ended, 'run')} ended in MLflow"] if ended else []
    lines += [f"{counted(outbox.pending(), 'record')} still wait for MLflow"] if outbox.pending() else []
    return lines or ["nothing to repair"]


def settle(record: SweepRecord, over: str | None = None) -> list[str]:
    """Close every row that is running, when no process runs any more. Return the trials that will be resumed.

    over: why the sweep has ended for good, where it has; unfinished trials are then pruned for that reason.
    """
    record.ledger.close_strays()
    if over is not None:
        record.ledger.take_waiting()
    for trial_id, row in record.ledger.begun().items():
        if row.state.is_finished() and record.folder.trial(trial_id).resumable():  # a kill came before `tidy`
            record.tidy(trial_id)
    return [trial_id for trial_id in record.ledger.running() if _settle(record, trial_id, over)]


def end_runs(record: SweepRecord, tracking: Tracking) -> int:
    """End the runs that MLflow shows as running though no process runs. Return how many; 0 without an answer."""
    state, interrupted = record.folder.read(), TrialOutcome.PREEMPTED
    try:
        runs: list[str | None] = [each for _, each in tracking.running(state["experiment_id"], state["parent_run"])]
        if tracking.status(state["parent_run"]) == "RUNNING":
            runs.append(None)
    except UserError:  # runs that the ledger knows are in the outbox already
        return 0
    for trial_id in runs:
        record.outbox.end(trial_id, "KILLED", {"outcome": str(interrupted), "reason": ADVICE[interrupted]})
    return len(runs)


def _settle(record: SweepRecord, trial_id: str, over: str | None) -> bool:
    end_process(record.folder.trial(trial_id).path)
    report = _last_report(record, trial_id)
    # A resumed trial repeats its last report, so an unrecorded one is compared with the others then.
    if report is not None and (report.global_step >= record.sweep.train.iterations or _was_stopped(record, trial_id)):
        record.reported(trial_id, report)
        record.ended(trial_id, *record.ledger.judge(report), report)
        return False
    if over is not None:
        if report is not None:
            record.reported(trial_id, report)
        record.ended(trial_id, TrialOutcome.PRUNED, over, report)
        return False
    interrupted = TrialOutcome.PREEMPTED
    return record.ended(trial_id, interrupted, ADVICE[interrupted], report) is not None


def _last_report(record: SweepRecord, trial_id: str) -> Report | None:
    """Return the report in the newest checkpoint of a trial; None where there is none."""
    try:
        latest = record.folder.trial(trial_id).latest()
    except CheckpointError:
        return None
    for note in latest.damaged:  # the trial will no longer find the damaged one
        record.outbox.tell(f"trial {trial_id}  note  {note}")
    return State.read(latest.path).report if latest.path else None


def _was_stopped(record: SweepRecord, trial_id: str) -> bool:
    return any(report["stopped"] for report in record.ledger.reports(trial_id).values())
