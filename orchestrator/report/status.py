"""Show the state of sweeps under a root, in one line each, or the trials of one sweep, from what is on disk.

The table is the one that the sweep itself shows (orchestrator.report.live).
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from core.errors import UserError
from orchestrator.report.live import drawable, redrawn, table
from orchestrator.report.progress import Mark, SweepProgress, progress_of, sweep_state, with_doing
from orchestrator.search.ledger import newest_rows, spent_s
from orchestrator.search.ranking import Row, best_row, ranked
from orchestrator.search.space import trials
from orchestrator.spec import Sweep
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driver
from orchestrator.store.moved import moved
from orchestrator.store.spool import pending, refused
from orchestrator.store.study import open_study
from orchestrator.text import counted, measured
from orchestrator.workers.process_record import Doing

_EVERY_S = 3.0  # seconds between two updates of `watch`


@dataclass(frozen=True)
class SweepStatus:
    """The state of one sweep on disk."""

    folder: SweepFolder
    sweep: Sweep
    rows: list[Row]
    progress: SweepProgress


def show(root: Path, name: str | None, console: Console) -> None:
    """Print the state of one sweep, or of all. Raises UserError where there is none."""
    _print(_looked(root, name), name, console)
    if where := moved(root):
        console.print(where, highlight=False, soft_wrap=True)


def watch(root: Path, name: str | None, console: Console, every_s: float = _EVERY_S) -> None:
    """Print the state repeatedly, until no sweep runs any more, nobody reads it, or the user presses Ctrl-C."""
    statuses = _looked(root, name)
    with suppress(KeyboardInterrupt):
        if drawable(console):
            with redrawn(console, lambda: _screen(statuses, name, console.height)):
                while _driven(statuses):
                    time.sleep(every_s)
                    statuses = _looked(root, name)
        while _driven(statuses) and not console.quiet:
            _print(statuses, None, console)
            time.sleep(every_s)
            statuses = _looked(root, name)
    _print(statuses, name, console)


def document(root: Path, name: str | None) -> str:
    """Return what `show` prints as JSON: `sweeps`, each with `name`, `state` and its progress, or with an `error`.

    state: running, complete, interrupted, or over where no trial was completed; times in seconds; null for what is not
    known.
    """
    now = time.time()
    return json.dumps({"format": 1, "sweeps": [_document(each, now) for each in _looked(root, name)]}, indent=2)


def summary(folder: SweepFolder, sweep: Sweep, rows: list[Row]) -> str:
    """Return a line such as `toyfaces: complete; 8 of 8 trials: 8 completed; best coverage 0.9 ± 0.2 (trial 1a2b)`."""
    counts = Counter(row.state for row in rows)
    parts = [f"{sweep.name}: {sweep_state(folder, rows, trials(sweep))}"]
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    parts.append(f"{len(rows)} of {trials(sweep)} trials" + (f": {states}" if states else ""))
    if counts["completed"]:
        best, metric = best_row(rows, sweep), sweep.objectives[0].metric
        parts.append(f"best {metric} {measured(best.metrics, metric)} (trial {best.trial_id})")
    if unsent := pending(folder.outbox):
        parts.append(f"{counted(unsent, 'record')} for MLflow not sent yet")
    if lost := refused(folder.outbox):
        parts.append(f"{counted(lost, 'record')} refused by MLflow, in {folder.outbox / 'refused'}")
    return "; ".join(parts)


def names_of(root: Path, name: str | None) -> list[str]:
    """Return the name that is given, or those of all sweeps. Raises UserError where there is none."""
    names = [name] if name else sorted(path.parent.name for path in root.glob("*/sweep.json"))
    if not names:
        raise UserError(f"no sweep has run in {root}; start one with: orchestrate sweep SPEC")
    return names


def read(folder: SweepFolder) -> SweepStatus:
    """Return the state of one sweep. Raises UserError where its files, or its study, are missing or damaged.

    Trials at a time are those that the study holds as running; only the driver knows how many could run.
    """
    sweep, driven = folder.sweep(), driver(folder.lock) is not None
    if "study" not in folder.read():
        return SweepStatus(folder, sweep, [], progress_of(sweep, {}, {}, 1, 0.0, driven))
    study = open_study(sweep.name, folder.study_place)
    rows = newest_rows(study)
    working = [trial_id for trial_id, row in rows.items() if row.state.name == "RUNNING"]
    marks = {
        trial_id: list(_marks(folder.trial(trial_id).path, row))
        for trial_id, row in rows.items()
        if not row.state.is_finished()
    }
    progress = progress_of(sweep, rows, marks, max(1, len(working)), spent_s(study), driven)
    if driven:
        progress = with_doing(
            progress, {trial_id: found for trial_id in working if (found := Doing.of(folder.trial(trial_id).path))}
        )
    return SweepStatus(folder, sweep, ranked(study, sweep, driven), progress)


def _marks(trial: Path, row: Any) -> Iterator[Mark]:
    """Yield when a trial's attempt began, and when it wrote each checkpoint that still exists.

    Of a trial that waits for its next attempt, yield the checkpoint that it goes on from alone: it has no pace.
    """
    written: list[Mark] = []
    for state in trial.glob("checkpoint_*/state.json"):
        with suppress(OSError, ValueError):  # it may be removed meanwhile
            written.append((int(state.parent.name.rpartition("_")[2]), state.stat().st_mtime))
    if row.datetime_start is None:
        yield from sorted(written)[-1:]
        return
    began = row.datetime_start.timestamp()
    yield max((step for step, when in written if when < began), default=0), began
    yield from sorted(mark for mark in written if mark[1] >= began)


def _looked(root: Path, name: str | None) -> Sequence[SweepStatus | str]:
    """Return the state of each sweep; among several, the reason in place of one that cannot be read."""
    statuses: list[SweepStatus | str] = []
    for each in names_of(root, name):
        try:
            statuses.append(read(SweepFolder(root, each)))
        except UserError as error:
            if name:
                raise
            statuses.append(f"{each}: {error}")
    return statuses


def _driven(statuses: Sequence[SweepStatus | str]) -> bool:
    return any(each.progress.driven for each in statuses if isinstance(each, SweepStatus))


def _print(statuses: Sequence[SweepStatus | str], name: str | None, console: Console) -> None:
    for part in _parts(statuses, name):
        # A terminal breaks lines between words; a program that reads the output gets whole lines.
        console.print(part, highlight=False, soft_wrap=isinstance(part, Text) and not console.is_terminal)


def _screen(statuses: Sequence[SweepStatus | str], name: str | None, height: int) -> RenderableType:
    return Group(*_parts(statuses, name, height))


def _parts(
    statuses: Sequence[SweepStatus | str], name: str | None, height: int | None = None
) -> Iterator[RenderableType]:
    for each in statuses:
        if isinstance(each, str):
            yield Text(each)
            continue
        yield Text(summary(each.folder, each.sweep, each.rows))
        if name and each.progress.trials:
            yield table(each.progress, time.time(), height)


def _document(status: SweepStatus | str, now: float) -> dict[str, Any]:
    if isinstance(status, str):
        name, _, error = status.partition(": ")
        return {"name": name, "error": error}
    return {
        "name": status.sweep.name,
        "state": sweep_state(status.folder, status.rows, trials(status.sweep)).partition(" ")[0].rstrip(",:"),
        "driver": str(driver(status.folder.lock) or "") or None,
        **status.progress.document(now),
        "mlflow_records_waiting": pending(status.folder.outbox),
        "mlflow_records_refused": refused(status.folder.outbox),
    }
