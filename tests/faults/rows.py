"""The matrix: what was done to real sweeps, what was promised, whether it held."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.faults.sweep_under_test import Broken


@dataclass
class Row:
    """One fault. It holds when it was reached and its check passed; `why` says what came instead."""

    done: str
    promised: str
    times: int = 0
    seconds: float = 0.0
    held: bool | None = None  # None: not reached
    why: str = ""

    @property
    def verdict(self) -> str:
        if self.held is None:
            return "skipped" if self.why else "NOT reached"
        return "held" if self.held else "NOT"


@dataclass
class Scenario:
    """A flow of real sweeps that settles some rows; one that breaks off leaves the others unreached."""

    play: Callable[["Scenario"], None]
    rows: dict[str, Row]
    seconds: float = 0.0
    broke: str = ""
    started: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        began = time.monotonic()
        try:
            self.play(self)
        except Exception as error:  # of the harness itself, too: a row that was not reached does not hold
            self.broke = f"{type(error).__name__}: {error}"
        self.seconds = time.monotonic() - began

    @contextmanager
    def row(self, name: str, times: int = 1) -> Iterator[None]:
        """What happens in the block is what the row promises. The flow goes on where that is broken."""
        row, began = self.rows[name], time.monotonic()
        try:
            yield
            row.held = row.held is not False
        except Broken as broken:
            row.held, row.why = False, row.why or str(broken)
        finally:
            row.times += times
            row.seconds += time.monotonic() - began

    def skip(self, why: str) -> None:
        """What this machine cannot do is said, not counted as held."""
        for row in self.rows.values():
            row.why = why


def table(scenarios: list[Scenario]) -> str:
    """The matrix in Markdown."""
    lines = ["| what was done | times | what was promised | | s |", "|---|---|---|---|---|"]
    for scenario in scenarios:
        for row in scenario.rows.values():
            why = row.why or (scenario.broke if row.held is None else "")
            verdict = row.verdict + (f": {_plain(why)}" if why else "")
            lines.append(f"| {row.done} | {row.times:,} | {row.promised} | {verdict} | {row.seconds:.0f} |")
    return "\n".join(lines)


def failed(scenarios: list[Scenario]) -> bool:
    """Whether any row does not hold; one that was skipped for want of rights is told and allowed."""
    return any(row.verdict.startswith("NOT") for scenario in scenarios for row in scenario.rows.values())


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:600]
