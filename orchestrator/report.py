"""What a sweep found, in the terminal: the ranked trials, the Pareto front, the champion beside random directions."""

from typing import Any

from rich.console import Console
from rich.table import Table

from core.metrics import METRICS
from orchestrator.ranking import Row, rows
from orchestrator.spec import Sweep
from orchestrator.store import SweepFolder

_WIDE = 120  # columns


def show(folder: SweepFolder, console: Console) -> None:
    """Print the report of a sweep that runs or has run. Raises UserError where there is none."""
    sweep = folder.sweep()
    ranked = rows(folder, sweep)
    if not ranked:
        console.print(f"Sweep '{sweep.name}' has no trials yet.")
        return
    console.print(trials_table(sweep, ranked, console.width))
    if len(sweep.objectives) > 1:
        front = [row.trial_id for row in ranked if row.on_front]
        names = " and ".join(objective.metric for objective in sweep.objectives)
        console.print(f"Pareto front of {names}: {', '.join(front) or 'empty'} (marked *)")
    if (folder.path / "result.json").is_file():
        result = folder.read("result.json")
        console.print(comparison_table(result))
        console.print(f"Champion: trial {result['trial']}, in {folder.champion}")


def trials_table(sweep: Sweep, ranked: list[Row], width: int) -> Table:
    """One line a trial, best first; metrics that are no objective where the width allows."""
    names = list(dict.fromkeys(name for row in ranked for name in row.parameters))
    metrics = list(sweep.objective_names)
    if width >= _WIDE:
        metrics += [name for name in METRICS if name not in metrics and any(name in row.metrics for row in ranked)]
    table = Table(title=f"Trials of '{sweep.name}', best first", box=None, pad_edge=False)
    for heading in ("", "trial", "state", "iteration"):
        table.add_column(heading, justify="right" if heading == "iteration" else "left", no_wrap=True)
    for name in names + metrics:
        table.add_column(name.replace("_", " "), justify="right")
    for row in ranked:
        cells = [_cell(row.parameters.get(name)) for name in names] + [_cell(row.metrics.get(name)) for name in metrics]
        table.add_row("*" if row.on_front else "", row.trial_id, row.state, str(row.iteration), *cells)
    return table


def comparison_table(result: dict[str, Any]) -> Table:
    """The champion and the baseline on the reporting seeds."""
    table = Table(title="On seeds that trained and chose nothing", box=None, pad_edge=False)
    table.add_column("metric")
    for name in ("champion", "random"):
        table.add_column(name, justify="right")
    table.add_column("better")
    for metric, mode in METRICS.items():
        if metric in result["champion"]:
            values = [_cell(result[name].get(metric)) for name in ("champion", "random")]
            table.add_row(metric.replace("_", " "), *values, "more" if mode == "max" else "less")
    return table


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
