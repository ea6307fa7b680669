"""Make the charts of a report with Plotly, and the same numbers as tables.

Optuna's own figures show trials by row numbers, put several parameters into one frame and are cut off on a phone; here
each chart is one small frame. Colours are names, `var(--front)`, whose values the page's style sheet sets, so that they
follow its light or dark scheme. Every name from a sweep is escaped, because Plotly reads text as HTML.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate, combinations
from math import ceil, floor, log10
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go

from core.intervals import interval_of
from orchestrator.report.findings import Findings
from orchestrator.search.ranking import Row
from orchestrator.spec import Choice, FloatRange, IntRange
from orchestrator.text import counted, measured, number, plain

_BAR_HEIGHT = 34  # pixels
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")  # one for each method, in addition to its colour
_STAR = {"symbol": "star", "size": 17, "color": "var(--champion)", "line": {"width": 1, "color": "var(--paper)"}}


@dataclass(frozen=True)
class Chart:
    """One figure with its title."""

    title: str
    figure: go.Figure


@dataclass(frozen=True)
class Table:
    """Headings, and rows of texts."""

    headings: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """Charts of one kind with a note on them, and their numbers as a table."""

    anchor: str
    title: str
    note: str
    charts: list[Chart] = field(default_factory=list)
    table: Table | None = None


def sections(findings: Findings) -> list[Section]:
    """Return the sections for which the sweep has results."""
    if not findings.rows:
        return []
    parts = (_front(findings), _importance(findings), _slices(findings), _history(findings), _curves(findings))
    return [section for section in parts if section is not None]


def _front(findings: Findings) -> Section | None:
    names = findings.sweep.objective_names
    if len(names) < 2:
        return None
    done = _completed(findings)
    charts = [_pair(findings, done, x, y) for x, y in combinations(names, 2)] if done else []
    note = (
        "No other trial is as good in every objective and better in one. Lines through a point are its intervals. "
        "A click on a point leads to its trial."
    )
    rows = [[row.trial_id, *_values(row, findings)] for row in findings.front]
    table = Table(["trial", *_headings(findings)], rows) if rows else None
    return Section("front", "Pareto front", note if done else "No trial was completed.", charts, table)


def _pair(findings: Findings, done: list[Row], x: str, y: str) -> Chart:
    """Return the chart of two objectives against each other."""

    def at(row: Row) -> tuple[Any, Any]:
        return row.metrics[x], row.metrics[y]

    front = sorted((row for row in done if row.on_front), key=at)
    ring = {"symbol": "circle-open", "size": 16, "color": "var(--front)", "line": {"width": 2}}
    mode = "lines+markers" if len(findings.sweep.objectives) == 2 else "markers"
    line = {"color": "var(--front)", "width": 1, "dash": "dot"}
    traces = list(_by_method(findings, done, at, error_x=x, error_y=y))
    traces.append(_points(findings, front, at, name="Pareto front", marker=ring, mode=mode, line=line))
    traces += _champion(findings, done, at)
    return Chart(
        f"{_aimed(findings, y)} against {_aimed(findings, x)}", frame(traces, titled(plain(x)), titled(plain(y)))
    )


def _importance(findings: Findings) -> Section:
    note = (
        "How differently the best tenth of the completed trials chose a parameter (PED-ANOVA, by Optuna). "
        "A share says that a parameter mattered, not which value is good: that is below."
    )
    importance = {metric: each for metric, each in findings.importance.items() if each.shares}
    charts = [_bars(metric, each.shares) for metric, each in importance.items()]
    words = dict.fromkeys(each.note for each in findings.importance.values() if each.note)
    rows = [[plain(m), name, f"{share:.1%}"] for m, each in importance.items() for name, share in each.shares.items()]
    table = Table(["objective", "parameter", "share"], rows) if rows else None
    return Section(
        "importance", "Which parameters mattered", " ".join([note, *words] if rows else words), charts, table
    )


def _bars(metric: str, shares: dict[str, float]) -> Chart:
    names = [label(name) for name in reversed(shares)]
    values = list(reversed(shares.values()))
    bar = go.Bar(
        x=values,
        y=names,
        orientation="h",
        marker={"color": "var(--series-1)"},
        text=[f"{value:.0%}" for value in values],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )
    figure = frame(
        [bar], {"tickformat": ".0%", "range": [0, 1.15 * values[-1]]}, {"type": "category", "ticksuffix": " "}
    )
    return Chart(f"Shares for {plain(metric)}", figure.update_layout(height=90 + _BAR_HEIGHT * len(names)))


def _slices(findings: Findings) -> Section | None:
    done = _completed(findings)
    if not done or not findings.searched:
        return None
    charts = [
        _slice(findings, done, name, metric) for name in findings.searched for metric in findings.sweep.objective_names
    ]
    table = Table(["trial", *_headings(findings)], [[row.trial_id, *_values(row, findings)] for row in done])
    note = "Completed trials. Lines through a point are its intervals."
    return Section("slices", "Each parameter against each objective", note, charts, table)


def _slice(findings: Findings, done: list[Row], name: str, metric: str) -> Chart:
    values = findings.sweep.space[name]
    listed = isinstance(values, Choice)

    def at(row: Row) -> tuple[Any, Any]:
        value = row.parameters[name]
        return (label(value) if listed else value), row.metrics[metric]

    axis = titled(label(name))
    if isinstance(values, Choice):
        known = [label(value) for value in values.values]
        axis |= {"type": "category", "categoryorder": "array", "categoryarray": known}
        axis["range"] = [-0.5, len(known) - 0.5]
    elif isinstance(values, FloatRange | IntRange) and values.log:
        axis |= {"type": "log"} | marks([row.parameters[name] for row in done if name in row.parameters])
    having = [row for row in done if name in row.parameters]
    traces = [*_by_method(findings, having, at, error_y=metric), *_champion(findings, having, at)]
    return Chart(f"{_aimed(findings, metric)} by {name}", frame(traces, axis, titled(plain(metric))))


def _history(findings: Findings) -> Section | None:
    done = sorted(_completed(findings), key=lambda row: row.began)
    if not done:
        return None
    charts: list[Chart] = []
    best: dict[str, list[float]] = {}
    for objective in findings.sweep.objectives:
        metric, pick = objective.metric, max if objective.mode == "max" else min
        best[metric] = list(accumulate((row.metrics[metric] for row in done), pick))
        charts.append(_progress(findings, done, metric, best[metric]))
    names = findings.sweep.objective_names
    headings = ["began as", "trial", *(part for name in names for part in (plain(name), f"best {plain(name)} so far"))]
    rows = [
        [
            *(str(row.began), row.trial_id),
            *(cell for name in names for cell in (measured(row.metrics, name), number(best[name][i]))),
        ]
        for i, row in enumerate(done)
    ]
    note = "Completed trials in the order in which they began. Lines through a point are its intervals."
    return Section("history", "How the search went", note, charts, Table(headings, rows))


def _progress(findings: Findings, done: list[Row], metric: str, best: list[float]) -> Chart:
    def at(row: Row) -> tuple[Any, Any]:
        return row.began, row.metrics[metric]

    line = {"color": "var(--front)", "width": 2, "shape": "hv"}
    x = [row.began for row in done]
    traces = [go.Scatter(x=x, y=best, mode="lines", line=line, name="best so far", hoverinfo="skip")]
    traces += [*_by_method(findings, done, at, error_y=metric), *_champion(findings, done, at)]
    figure = frame(traces, whole_numbers("trial"), titled(plain(metric)))
    return Chart(f"{_aimed(findings, metric)}, trial by trial", figure)


def _curves(findings: Findings) -> Section | None:
    """Return the values that trials were compared by while they ran; None where no trial has a curve to show."""
    curved = [row for row in findings.rows if len(row.reports) > 1 or (row.reports and row.state == "pruned")]
    if not curved:
        return None
    metric, _ = findings.sweep.checkpoint_metric
    kinds = {"completed": ("var(--series-1)", "solid"), "pruned": ("var(--series-2)", "dash")}
    traces = [_lines(kind, [row for row in curved if row.state == kind], *look) for kind, look in kinds.items()]
    traces.append(_lines("others", [row for row in curved if row.state not in kinds], "var(--muted)", "dot"))
    pruned = sum(row.state == "pruned" for row in findings.rows)
    note = "Measured while trials ran."
    if pruned:
        note += (
            f" Stopped early, for others were ahead at the same iteration, or time was up: {counted(pruned, 'trial')}."
        )
    rows = [[row.trial_id, row.state, "; ".join(f"{i}: {number(v)}" for i, v in row.reports.items())] for row in curved]
    figure = frame([trace for trace in traces if trace.x], whole_numbers("iteration"), titled(plain(metric)))
    table = Table(["trial", "state", f"iteration: {plain(metric)}"], rows)
    return Section("curves", "Trials while they ran", note, [Chart(f"{plain(metric)} by iteration", figure)], table)


def _lines(name: str, rows: list[Row], color: str, dash: str) -> go.Scatter:
    """Return the curves of some trials as one trace, with a gap after each."""
    steps = [(step, value, row.trial_id) for row in rows for step, value in [*row.reports.items(), (None, None)]]
    x, y, ids = zip(*steps, strict=True) if steps else ((), (), ())
    hover = "%{customdata}<br>%{x}: %{y:.3g}<extra></extra>"
    look = {"mode": "lines+markers", "line": {"color": color, "dash": dash, "width": 1.5}, "marker": {"size": 6}}
    return go.Scatter(x=x, y=y, customdata=[escape(i) for i in ids], name=name, hovertemplate=hover, **look)


def _by_method(
    findings: Findings, rows: list[Row], at: Callable[[Row], tuple[Any, Any]], **metrics: str
) -> Iterator[go.Scatter]:
    """Yield trials as points with their intervals, with a colour and a shape for each method.

    metrics: error_x, error_y: the metric on that axis.
    """
    methods = findings.sweep.methods
    for i, method in enumerate(methods):
        marker = {"symbol": _SYMBOLS[i], "size": 9, "color": f"var(--series-{i + 1})", "opacity": 0.85}
        own = [row for row in rows if row.parameters.get("method", method) == method]
        if own:
            bars = {axis: _error_bars(own, metric) for axis, metric in metrics.items()}
            name = method if len(methods) > 1 else "completed"
            yield _points(findings, own, at, name=name, marker=marker, **bars)


def _error_bars(rows: list[Row], metric: str) -> dict[str, Any]:
    """Return the intervals of a metric as the error bars of an axis; of length 0 where one is not known."""
    values = [row.metrics[metric] for row in rows]
    intervals = [interval_of(row.metrics, metric) or (value, value) for row, value in zip(rows, values, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, (_, high) in zip(values, intervals, strict=True)],
        "arrayminus": [value - low for value, (low, _) in zip(values, intervals, strict=True)],
        "color": "var(--interval)",
        "thickness": 1.5,
        "width": 0,
    }


def _champion(findings: Findings, rows: list[Row], at: Callable[[Row], tuple[Any, Any]]) -> list[go.Scatter]:
    own = [row for row in rows if row.trial_id == findings.champion]
    return [_points(findings, own, at, name="champion", marker=_STAR)] if own else []


def _points(findings: Findings, rows: list[Row], at: Callable[[Row], tuple[Any, Any]], **look: Any) -> go.Scatter:
    where = [at(row) for row in rows]
    return go.Scatter(
        x=[x for x, _ in where],
        y=[y for _, y in where],
        customdata=[row.trial_id for row in rows],
        text=[_hover_text(findings, row) for row in rows],
        **{"mode": "markers", "hovertemplate": "%{text}<extra></extra>"} | look,
    )


def _hover_text(findings: Findings, row: Row) -> str:
    """Return the text that a point shows when it is pointed at."""
    names = {name: row.parameters[name] for name in findings.searched if name in row.parameters}
    values = names | {plain(name): measured(row.metrics, name) for name in findings.sweep.objective_names}
    return "<br>".join([f"trial {escape(row.trial_id)}", *(f"{name} {label(v)}" for name, v in values.items())])


def _aimed(findings: Findings, metric: str) -> str:
    modes = {objective.metric: objective.mode for objective in findings.sweep.objectives}
    better = {"max": " (more is better)", "min": " (less is better)"}
    return plain(metric) + better[modes[metric]]


def _completed(findings: Findings) -> list[Row]:
    return [row for row in findings.rows if row.state == "completed"]


def _headings(findings: Findings) -> list[str]:
    return [*findings.searched, *map(plain, findings.sweep.objective_names)]


def _values(row: Row, findings: Findings) -> list[str]:
    parameters = [row.parameters.get(name) for name in findings.searched]
    return [*map(number, parameters), *(measured(row.metrics, name) for name in findings.sweep.objective_names)]


_HEIGHT, _LEGEND_ROW = 320, 20  # pixels; a row of a legend has two entries
_LINE = 24  # characters in a line of a label


def frame(traces: Sequence[Any], x: dict[str, Any], y: dict[str, Any]) -> go.Figure:
    """Return a figure that cannot be dragged or zoomed, so that a finger on it scrolls the page."""
    axis = {"gridcolor": "var(--grid)", "linecolor": "var(--grid)", "zeroline": False, "automargin": True}
    axis |= {"fixedrange": True, "tickcolor": "var(--grid)"}
    return go.Figure(
        traces,
        {
            "template": "none",
            "height": _HEIGHT + _LEGEND_ROW * (len(traces) // 2),
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": "var(--ink)", "size": 13, "family": "system-ui, sans-serif"},
            "hoverlabel": {"bgcolor": "var(--paper)", "bordercolor": "var(--grid)", "font": {"color": "var(--ink)"}},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "showlegend": len(traces) > 1,
            "dragmode": False,
            "xaxis": axis | x,
            "yaxis": axis | y,
        },
    )


def titled(text: str) -> dict[str, Any]:
    """Return an axis with a title."""
    return {"title": {"text": text}}


def whole_numbers(what: str) -> dict[str, Any]:
    """Return an axis of whole numbers."""
    return titled(what) | {"tickformat": "d"}


def marks(values: list[float]) -> dict[str, Any]:
    """Return the marks of a logarithmic axis: 1, 2 and 5 of each power of ten; more for near values, fewer for far."""
    low, high = min(values, default=1), max(values, default=1)
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    digits = range(1, 10) if high < 3 * low else (1, 2, 5) if high < 50 * low else (1,)
    marks = [digit * 10.0**power for power in powers for digit in digits]
    return {"tickvals": marks, "ticktext": [f"{mark:g}" for mark in marks], "tickangle": 0}


def label(value: object) -> str:
    """Return a value or a name as HTML text for Plotly, wrapped."""
    return "<br>".join(escape(line) for line in wrap(number(value), _LINE)) or " "
