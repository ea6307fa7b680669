"""What a sweep found, in the terminal: the ranked trials, the methods side by side, the Pareto front, the champion."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.ranking import MethodRow, Row, by_method, rows
from orchestrator.spec import METRICS, Sweep
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
    for line in (*out_of_memory_lines(ranked), *failure_lines(ranked)):
        console.print(line, soft_wrap=True, highlight=False)
    if len(sweep.methods) > 1:
        console.print(methods_table(by_method(ranked, sweep)))
    if len(sweep.objectives) > 1:
        front = [row.trial_id for row in ranked if row.on_front]
        names = " and ".join(objective.metric for objective in sweep.objectives)
        console.print(f"Pareto front of {names}: {', '.join(front) or 'empty'} (marked *)")
    if folder.result.is_file():
        result = folder.read("result.json")
        console.print(comparison_table(result))
        console.print(f"Champion: trial {result['trial']}, in {folder.champion}")


def trials_table(sweep: Sweep, ranked: list[Row], width: int) -> Table:
    """One line a trial, best first; metrics that are no objective where the width allows."""
    names = list(dict.fromkeys(name for row in ranked for name in row.parameters))
    metrics = _shown(sweep, ranked, width)
    table = Table(title=f"Trials of '{sweep.name}', best first", box=None, pad_edge=False)
    for heading in ("", "trial", "state", "iteration"):
        table.add_column(heading, justify="right" if heading == "iteration" else "left", no_wrap=True)
    for name in names + metrics:
        table.add_column(name.replace("_", " "), justify="right")
    for row in ranked:
        cells = [_cell(row.parameters.get(name)) for name in names] + [_cell(row.metrics.get(name)) for name in metrics]
        table.add_row("*" if row.on_front else "", row.trial_id, row.state, str(row.iteration), *cells)
    return table


def out_of_memory_lines(ranked: list[Row]) -> list[str]:
    """One line for each trial that went on in smaller parts."""
    return [
        f"Trial {row.trial_id} ran out of memory (retries: {row.memory['out_of_memory_retries']}) and went on with "
        f"{_trained(row.memory)}{row.memory['sampler_batch']} samples drawn at a time."
        for row in ranked
        if row.memory.get("out_of_memory_retries")
    ]


def failure_lines(ranked: list[Row]) -> list[str]:
    """One line for each trial that is over without a result, with the reason."""
    return [
        f"Trial {row.trial_id} {row.state.replace('_', ' ')}"
        f"{f' in attempt {row.attempts}' if row.attempts > 1 else ''}: {row.reason or 'no reason known'}."
        for row in ranked
        if row.over and row.state not in ("completed", "pruned")
    ]


def _trained(memory: Mapping[str, Any]) -> str:
    """How a trial trained; nothing for a method that does not."""
    return f"{memory['gradient']}, micro_batch {memory['micro_batch']}, " if "gradient" in memory else ""


def methods_table(methods: list[MethodRow]) -> Table:
    """One column a method, best first: each metric's mean and standard deviation over its completed trials."""
    table = Table(title="Methods, best first (mean ± standard deviation)", box=None, pad_edge=False)
    table.add_column("")
    for row in methods:
        table.add_column(row.method, justify="right", no_wrap=True)
    table.add_column("better")
    table.add_row("completed", *(f"{row.completed} of {row.trials}" for row in methods), "")
    for name, mode in METRICS.items():
        if any(name in row.metrics for row in methods):
            cells = [_spread(*row.metrics.get(name, (None, None))) for row in methods]
            table.add_row(name.replace("_", " "), *cells, "more" if mode == "max" else "less")
    table.add_row("seconds to find", *("-" if row.seconds is None else f"{row.seconds:.0f}" for row in methods), "")
    return table


def _shown(sweep: Sweep, lines: Sequence[Row], width: int) -> list[str]:
    """The objectives; where the width allows, every other metric that was measured too."""
    objectives = list(sweep.objective_names)
    others = [name for name in METRICS if name not in objectives and any(name in line.metrics for line in lines)]
    return objectives + others if width >= _WIDE else objectives


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


def _spread(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
