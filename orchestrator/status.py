"""How the sweeps under a root stand, in one line each, or one sweep's trials; reads only what is on disk."""

from collections import Counter
from pathlib import Path

from rich.console import Console

from core.errors import UserError
from orchestrator.layout import counted
from orchestrator.lock import driver
from orchestrator.ranking import Row, rows
from orchestrator.report import trials_table
from orchestrator.space import trials
from orchestrator.spec import Sweep
from orchestrator.spool import pending, refused
from orchestrator.store import SweepFolder


def show(root: Path, name: str | None, console: Console) -> None:
    """One sweep, or all of them. Raises UserError where there is none."""
    for each in names_of(root, name):
        folder = SweepFolder(root, each)
        try:
            sweep = folder.sweep()
            ranked = rows(folder, sweep)
        except UserError as error:
            if name:
                raise
            console.print(f"{each}: {error}", highlight=False)
            continue
        console.print(summary(folder, sweep, ranked), highlight=False, soft_wrap=True)
        if name and ranked:
            console.print(trials_table(sweep, ranked, console.width))


def summary(folder: SweepFolder, sweep: Sweep, ranked: list[Row]) -> str:
    """`toyfaces: complete; 8 of 8 trials: 5 completed, 3 pruned; best identifiability 0.93 (trial 1a2b)`."""
    counts = Counter(row.state for row in ranked)
    parts = [f"{sweep.name}: {_standing(folder)}"]
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    parts.append(f"{len(ranked)} of {trials(sweep)} trials" + (f": {states}" if states else ""))
    if counts["completed"]:
        metric = sweep.objectives[0].metric
        parts.append(f"best {metric} {ranked[0].metrics[metric]:.3f} (trial {ranked[0].trial_id})")
    if unsent := pending(folder.outbox):
        parts.append(f"{counted(unsent, 'record')} for MLflow not sent yet")
    if lost := refused(folder.outbox):
        parts.append(f"{counted(lost, 'record')} refused by MLflow, in {folder.outbox / 'refused'}")
    return "; ".join(parts)


def _standing(folder: SweepFolder) -> str:
    holder = driver(folder.lock)
    if holder is not None:
        return f"running ({holder})"
    return "complete" if folder.result.is_file() else "interrupted, the same command goes on"


def names_of(root: Path, name: str | None) -> list[str]:
    """The sweep that is named, or all there are."""
    names = [name] if name else sorted(path.parent.name for path in root.glob("*/sweep.json"))
    if not names:
        raise UserError(f"no sweep has run in {root}; start one with: orchestrate sweep SPEC")
    return names
