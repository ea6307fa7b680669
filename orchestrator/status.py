"""How the sweeps under a root stand, in one line each, or one sweep's trials; reads only what is on disk."""

from collections import Counter
from pathlib import Path

from rich.console import Console

from core.errors import UserError
from orchestrator.ranking import Row, rows
from orchestrator.report import trials_table
from orchestrator.space import trials
from orchestrator.spec import Sweep
from orchestrator.store import SweepFolder


def show(root: Path, name: str | None, console: Console) -> None:
    """One sweep, or all of them. Raises UserError where there is none."""
    names = [name] if name else sorted(path.parent.name for path in root.glob("*/sweep.json"))
    if not names:
        raise UserError(f"no sweep has run in {root}; start one with: orchestrate sweep SPEC")
    for each in names:
        folder = SweepFolder(root, each)
        sweep = folder.sweep()
        ranked = rows(folder, sweep)
        console.print(summary(folder, sweep, ranked), highlight=False)
        if name and ranked:
            console.print(trials_table(sweep, ranked, console.width))


def summary(folder: SweepFolder, sweep: Sweep, ranked: list[Row]) -> str:
    """`toyfaces: complete; 8 of 8 trials: 5 completed, 3 pruned; best identifiability 0.93 (trial 1a2b)`."""
    counts = Counter(row.state for row in ranked)
    complete = (folder.path / "result.json").is_file()
    parts = [f"{sweep.name}: {'complete' if complete else 'not complete'}"]
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    parts.append(f"{len(ranked)} of {trials(sweep)} trials" + (f": {states}" if states else ""))
    if counts["completed"]:
        metric = sweep.objectives[0].metric
        parts.append(f"best {metric} {ranked[0].metrics[metric]:.3f} (trial {ranked[0].trial_id})")
    return "; ".join(parts)
