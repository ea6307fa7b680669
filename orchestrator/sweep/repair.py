"""Repair the records of a sweep after a crash, without resuming it: Optuna and MLflow then show nothing as running."""

from pathlib import Path

from rich.console import Console

from core.errors import UserError
from orchestrator.report.status import names_of
from orchestrator.search.ledger import Ledger
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driver, driving
from orchestrator.sweep.record import SweepRecord
from orchestrator.text import counted
from orchestrator.tracking.client import Tracking
from orchestrator.tracking.outbox import Outbox

_FLUSH_S = 60.0


def repair(root: Path, name: str | None, console: Console) -> None:
    """Repair one sweep, or all of `root`. Sweeps that are running are left alone. Raises UserError for no sweep."""
    for each in names_of(root, name):
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
        going_on = record.settle()
    if not outbox.pending():  # no end of a run that MLflow shows as running is on its way
        with outbox.sending(_FLUSH_S):
            ended = record.end_runs(tracking)
    lines = [f"{counted(len(running), 'trial')} closed, of which {len(going_on)} will go on"] if running else []
    lines += [f"{counted(ended, 'run')} ended in MLflow"] if ended else []
    lines += [f"{counted(outbox.pending(), 'record')} still wait for MLflow"] if outbox.pending() else []
    return lines or ["nothing to repair"]
