"""Print what a sweep found: the ranked trials, the methods side by side, the Pareto front, the champion."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from orchestrator.report.findings import Findings, read
from orchestrator.search.comparison import Compared
from orchestrator.search.ranking import MethodRow, Repeated, Row
from orchestrator.spec import METRICS, Sweep
from orchestrator.store.folder import SweepFolder
from orchestrator.text import (
    Grid,
    add_row,
    counted,
    measured,
    number,
    plain,
    signed,
    table_of,
    width_of,
    with_interval,
)

BETTER = {"max": "more", "min": "less"}
OVER_RUNS = "mean ± half its 95 % interval over runs"
WHAT_AN_INTERVAL_IS = (
    "± is half the width of a figure's 95 % interval over samples; ahead or behind is said where the interval of the "
    "difference excludes 0."
)


def show(folder: SweepFolder, console: Console, ended: bool = False) -> Findings:
    """Print the report of a sweep and return its findings. Raises UserError where there is no such sweep.

    ended: whether the caller drives the sweep, and its last trial is over.
    """
    findings = read(folder, ended=ended)
    _print(findings, console)
    return findings


def _print(findings: Findings, console: Console) -> None:

    def tell(line: str) -> None:
        console.print(Text(line))

    if not findings.rows:
        tell(f"Sweep '{findings.sweep.name}' has no trials yet.")
        return
    tell(f"Sweep '{findings.sweep.name}' is {findings.state}; {findings.counts}.")
    console.print(trials_table(findings.sweep, findings.rows, console.width))
    for line in (*out_of_memory_lines(findings.rows), *failure_lines(findings.rows)):
        tell(line)
    if findings.repeats:
        console.print(repeats_table(findings.repeats, findings.sweep))
    if findings.methods:
        console.print(methods_table(findings.methods))
        if findings.first_method:
            tell(findings.first_method)
    if len(findings.sweep.objectives) > 1:
        front = ", ".join(row.trial_id for row in findings.front) or "empty"
        tell(f"Pareto front of {' and '.join(findings.sweep.objective_names)}: {front} (marked *)")
    if findings.compared:
        console.print(comparison_table(findings.compared, console.width))
    tell(findings.conclusion)
    tell(WHAT_AN_INTERVAL_IS)
    if findings.champion:
        console.print(Text(f"It is in {findings.folder.champion}"), soft_wrap=True)


def trials_table(sweep: Sweep, ranked: list[Row], width: int) -> RenderableType:
    """Return one line for each trial, best first; metrics that are no objective only where the width allows."""
    objectives = list(sweep.objective_names)
    others = [name for name in METRICS if name not in objectives and any(name in row.metrics for row in ranked)]
    whole = _trials_grid(sweep, ranked, objectives + others)
    if not others or width_of([whole.headings, *whole.rows]) <= width:
        return _fitted(whole, width)
    hint = Text(f"{counted(len(others), 'more metric')} on a wider terminal, with --json, and on the page")
    return Group(_fitted(_trials_grid(sweep, ranked, objectives), width), hint)


def _fitted(table: Grid, width: int) -> RenderableType:
    """Return the table, or two or three lines for each row where it is too wide: there may be hundreds of trials."""
    if width_of([table.headings, *table.rows]) <= width:
        return table
    lines: list[RenderableType] = [Text(f"\n{table.title}", style="bold")]
    for name, *cells in table.rows:
        named = zip(table.headings[2:], cells[1:], strict=True)
        parts = (f"{heading} {cell}" for heading, cell in named if cell != "-")
        lines += [Text(f"{name}: {cells[0]}"), Padding(Text(", ".join(parts)), (0, 0, 0, 2))]
    return Group(*lines)


def _trials_grid(sweep: Sweep, ranked: list[Row], metrics: list[str]) -> Grid:
    names = list(dict.fromkeys(name for row in ranked for name in row.parameters))
    headings = ["trial", "state", "iteration", *map(plain, names + metrics)]
    table = table_of(f"Trials of '{sweep.name}', best first", *headings, numbers=True)
    for row in ranked:
        cells = [number(row.parameters.get(name)) for name in names] + [measured(row.metrics, n) for n in metrics]
        add_row(table, f"{row.trial_id}{' *' if row.on_front else ''}", plain(row.state), str(row.iteration), *cells)
    return table


def out_of_memory_lines(ranked: list[Row]) -> list[str]:
    """Return one line for each trial that ran out of memory and went on in smaller parts."""
    return [
        f"Trial {row.trial_id} ran out of memory (retries: {row.memory['out_of_memory_retries']}) and went on with "
        f"{_trained(row.memory)}{row.memory['sampler_batch']} samples drawn at a time."
        for row in ranked
        if row.memory.get("out_of_memory_retries")
    ]


def failure_lines(ranked: list[Row]) -> list[str]:
    """Return one line for each trial that is over without a result, with the reason."""
    return [
        f"Trial {row.trial_id} {row.state.replace('_', ' ')}"
        f"{f' in attempt {row.attempts}' if row.attempts > 1 else ''}: {row.reason or 'no reason known'}."
        for row in ranked
        if row.over and row.state not in ("completed", "pruned")
    ]


def _trained(memory: Mapping[str, Any]) -> str:
    """Return how a trial trained; empty for a method that does not train."""
    return f"{memory['gradient']}, micro_batch {memory['micro_batch']}, " if "gradient" in memory else ""


def methods_table(methods: list[MethodRow]) -> Grid:
    """Return one column for each method, best first: means of metrics over completed trials, with their intervals."""
    names = [row.method for row in methods]
    table = table_of(f"Methods, best first ({OVER_RUNS})", "", *names, "better", numbers=True, by_column=True)
    add_row(table, "completed", *(f"{row.completed} of {row.trials}" for row in methods), "")
    for name, mode in METRICS.items():
        if any(name in row.metrics for row in methods):
            add_row(table, plain(name), *(measured(row.metrics, name) for row in methods), BETTER[mode])
    seconds = ["-" if row.seconds is None else f"{row.seconds:.0f}" for row in methods]
    add_row(table, "seconds to find", *seconds, "")
    return table


def repeats_table(repeats: Sequence[Repeated], sweep: Sweep) -> Grid:
    """Return one line for each configuration that was completed with several seeds."""
    names = list(dict.fromkeys(name for each in repeats for name in each.parameters))
    headings = [plain(heading) for heading in ("seeds", *names, *sweep.objective_names)]
    table = table_of(f"Over seeds, best first ({OVER_RUNS})", *headings, named=False, numbers=True)
    for each in repeats:
        cells = [number(each.parameters.get(name)) for name in names]
        values = [measured(each.metrics, name) for name in sweep.objective_names]
        add_row(table, ", ".join(map(str, each.seeds)), *cells, *values)
    return table


def comparison_table(compared: Sequence[Compared], width: int) -> RenderableType:
    """Return the champion beside random directions on the reporting seeds, two lines a metric where it is too wide."""
    headings = ("metric", "verdict", "champion", "random", "difference", "better is")
    table = table_of("On seeds that trained and chose nothing", *headings, numbers=True)
    for each in compared:
        values = with_interval(each.champion, each.champion_interval), with_interval(each.random, each.random_interval)
        difference = "-" if each.difference is None else signed(each.difference, each.interval)
        add_row(table, plain(each.metric), number(each.verdict), *values, difference, BETTER[each.mode])
    return _fitted(table, width)
