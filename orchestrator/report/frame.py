"""One frame of a chart: its axes, margins and labels, the same for all, and readable on a phone."""

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go

from orchestrator.report.wording import number

_HEIGHT, _LEGEND_ROW = 320, 20  # pixels; a row of a legend has two entries
_LINE = 24  # characters of a label


def frame(traces: Sequence[Any], x: dict[str, Any], y: dict[str, Any]) -> go.Figure:
    """One frame that stays as it is under a finger, so that a page scrolls."""
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
    """An axis with a title."""
    return {"title": {"text": text}}


def whole_numbers(what: str) -> dict[str, Any]:
    """An axis of whole numbers."""
    return titled(what) | {"tickformat": "d"}


def marks(values: list[float]) -> dict[str, Any]:
    """The marks of a logarithmic axis: of each power of ten 1, 2 and 5, more or fewer as the values are near or far."""
    low, high = min(values, default=1), max(values, default=1)
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    digits = range(1, 10) if high < 3 * low else (1, 2, 5) if high < 50 * low else (1,)
    marks = [digit * 10.0**power for power in powers for digit in digits]
    return {"tickvals": marks, "ticktext": [f"{mark:g}" for mark in marks], "tickangle": 0}


def label(value: object) -> str:
    """A value or a name as Plotly shall show it."""
    return "<br>".join(escape(line) for line in wrap(number(value), _LINE)) or " "
