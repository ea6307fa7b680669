"""How the sweeps under a root stand, in one line each, or one sweep's trials; reads only what is on disk.

The table is the one that the sweep itself draws (orchestrator.report.live), from another shell.
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
from orchestrator.report.live import drawable, drawing, table
from orchestrator.report.progress import Mark, SweepProgress, progress_of, sweep_state
from orchestrator.search.ledger import newest_rows, spent_s
from orchestrator.search.ranking import Row, ranked
from orchestrator.search.space import trials
from orchestrator.spec import Sweep
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driver
from orchestrator.store.spool import pending, refused
from orchestrator.store.study import open_study
from orchestrator.text import counted

_EVERY_S = 3.0  # between two looks of `watch`


@dataclass(frozen=True)
class SweepStatus:
    """What the disk says of one sweep."""

    folder: SweepFolder
    sweep: Sweep
    rows: list[Row]
    progress: SweepProgress


def show(root: Path, name: str | None, console: Console) -> None:
    """One sweep, or all of them. Raises UserError where there is none."""
    _print(_looked(root, name), name, console)


def watch(root: Path, name: str | None, console: Console, every_s: float = _EVERY_S) -> None:
    """The same again and again, until none of them runs any more or the user has seen enough (Ctrl-C)."""
    found = _looked(root, name)
    with suppress(KeyboardInterrupt):
        if drawable(console):
            with drawing(console, lambda: _screen(found, name, console.height)):
                while _driven(found):
                    time.sleep(every_s)
                    found = _looked(root, name)
        while _driven(found):
            _print(found, None, console)
            time.sleep(every_s)
            found = _looked(root, name)
    _print(found, name, console)


def document(root: Path, name: str | None) -> str:
    """What `show` says, as JSON: `sweeps`, each with `name`, `state` and how its trials stand, or with an `error`.

    state: running, complete or interrupted; times in seconds; what is not known is null.
    """
    now = time.time()
    return json.dumps({"format": 1, "sweeps": [_document(each, now) for each in _looked(root, name)]}, indent=2)


def summary(folder: SweepFolder, sweep: Sweep, found: list[Row]) -> str:
    """`toyfaces: complete; 8 of 8 trials: 5 completed, 3 pruned; best identifiability 0.93 (trial 1a2b)`."""
    counts = Counter(row.state for row in found)
    parts = [f"{sweep.name}: {sweep_state(folder)}"]
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    parts.append(f"{len(found)} of {trials(sweep)} trials" + (f": {states}" if states else ""))
    if counts["completed"]:
        metric = sweep.objectives[0].metric
        parts.append(f"best {metric} {found[0].metrics[metric]:.3f} (trial {found[0].trial_id})")
    if unsent := pending(folder.outbox):
        parts.append(f"{counted(unsent, 'record')} for MLflow not sent yet")
    if lost := refused(folder.outbox):
        parts.append(f"{counted(lost, 'record')} refused by MLflow, in {folder.outbox / 'refused'}")
    return "; ".join(parts)


def names_of(root: Path, name: str | None) -> list[str]:
    """The sweep that is named, or all there are."""
    names = [name] if name else sorted(path.parent.name for path in root.glob("*/sweep.json"))
    if not names:
        raise UserError(f"no sweep has run in {root}; start one with: orchestrate sweep SPEC")
    return names


def read(folder: SweepFolder) -> SweepStatus:
    """How one sweep stands. Raises UserError where its files, or its study, are missing or damaged.

    As many trials run at a time as the study holds running: how many could is known to the process that drives it.
    """
    sweep, driven = folder.sweep(), driver(folder.lock) is not None
    if "study" not in folder.read():
        return SweepStatus(folder, sweep, [], progress_of(sweep, {}, {}, 1, 0.0, driven))
    study = open_study(sweep.name, folder.book)
    rows = newest_rows(study)
    running = [trial_id for trial_id, row in rows.items() if row.state.name == "RUNNING"]
    marks = {trial_id: list(_marks(folder.trial(trial_id).path, rows[trial_id])) for trial_id in running}
    progress = progress_of(sweep, rows, marks, max(1, len(running)), spent_s(study), driven)
    return SweepStatus(folder, sweep, ranked(study, sweep, driven), progress)


def _marks(trial: Path, row: Any) -> Iterator[Mark]:
    """When a trial's attempt began, and when it wrote each checkpoint that is still there."""
    written: list[Mark] = []
    for state in trial.glob("checkpoint_*/state.json"):
        with suppress(OSError, ValueError):  # it may be gone by now
            written.append((int(state.parent.name.rpartition("_")[2]), state.stat().st_mtime))
    began = row.datetime_start.timestamp() if row.datetime_start else 0.0
    yield max((step for step, when in written if when < began), default=0), began
    yield from sorted(mark for mark in written if mark[1] >= began)


def _looked(root: Path, name: str | None) -> Sequence[SweepStatus | str]:
    """How they stand; of a sweep among many that cannot be read, why."""
    found: list[SweepStatus | str] = []
    for each in names_of(root, name):
        try:
            found.append(read(SweepFolder(root, each)))
        except UserError as error:
            if name:
                raise
            found.append(f"{each}: {error}")
    return found


def _driven(found: Sequence[SweepStatus | str]) -> bool:
    return any(each.progress.driven for each in found if isinstance(each, SweepStatus))


def _print(found: Sequence[SweepStatus | str], name: str | None, console: Console) -> None:
    for part in _parts(found, name):
        # In a terminal lines are broken between words; a program that reads them gets each one whole.
        console.print(part, highlight=False, soft_wrap=isinstance(part, Text) and not console.is_terminal)


def _screen(found: Sequence[SweepStatus | str], name: str | None, height: int) -> RenderableType:
    return Group(*_parts(found, name, height))


def _parts(found: Sequence[SweepStatus | str], name: str | None, height: int | None = None) -> Iterator[RenderableType]:
    for each in found:
        if isinstance(each, str):
            yield Text(each)
            continue
        yield Text(summary(each.folder, each.sweep, each.rows))
        if name and each.progress.trials:
            yield table(each.progress, time.time(), height)


def _document(found: SweepStatus | str, now: float) -> dict[str, Any]:
    if isinstance(found, str):
        name, _, error = found.partition(": ")
        return {"name": name, "error": error}
    return {
        "name": found.sweep.name,
        "state": sweep_state(found.folder).partition(" ")[0].rstrip(","),
        "driver": str(driver(found.folder.lock) or "") or None,
        **found.progress.document(now),
        "mlflow_records_waiting": pending(found.folder.outbox),
        "mlflow_records_refused": refused(found.folder.outbox),
    }
