"""Show a sweep while it runs: as a table that is redrawn in a terminal, as lines of text elsewhere.

The table's content changes when something happens (orchestrator.sweep.tune_callback). Between such moments only its
clocks move, at most twice a second.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text

from orchestrator.report.progress import Mark, SweepProgress, TrialProgress, progress_of, with_doing
from orchestrator.spec import Sweep
from orchestrator.text import Column, clock, counted, narrowed, with_interval
from orchestrator.workers.process_record import Doing

_PER_SECOND = 2
_SUMMARY_S = 60.0  # seconds between two summary lines where there is no table
_FEW = 5  # finished trials shown where the table is redrawn, the best ones
_MANY = 20  # the same where it is printed once
_BESIDE = 8  # lines of a terminal not used for trials: heading, summary, the next prompt


def table(progress: SweepProgress, now: float, height: int | None = None) -> RenderableType:
    """Return the trials under way and the best finished ones, as many as the height allows, and a summary line."""
    return _View(progress, now, height)


def summary(progress: SweepProgress, now: float) -> str:
    """Return `2 done, 2 running, 4 left; best identifiability 0.951 (trial 1a2b); 6:12 so far, about 12:40 left`."""
    states = Counter(trial.state for trial in progress.of(over=False))
    done, known = len(progress.of(over=True)), len(progress.trials)
    parts = [f"{done} done", *(f"{count} {state}" for state, count in states.items()), f"{progress.total - known} left"]
    sentences, best, left = [", ".join(parts)], progress.best(), progress.left(now)
    if best is not None:
        sentences.append(f"best {progress.metric} {best.best:.3f} (trial {best.trial_id})")
    about = "" if left is None else f", about {clock(left)} left"
    return "; ".join([*sentences, f"{clock(progress.elapsed(now))} so far{about}"])


class Screen:
    """The display of a running sweep.

    `tell` always prints. `event` prints only where there is no table, because the table shows the same.
    """

    def __init__(self, console: Console, sweep: Sweep, slots: int, spent: float) -> None:
        self.console, self.sweep, self.slots = console, sweep, slots
        self.spent, self.began = spent, time.time()
        self.marks: dict[str, list[Mark]] = {}
        self.doing: Mapping[str, Doing] = {}  # by trial id
        self.progress: SweepProgress | None = None
        self.drawn, self.last_summary = False, time.monotonic()

    def tell(self, line: str) -> None:
        """Print a line."""
        # Errors may contain brackets, so no markup. Above a table, lines have to be wrapped at the terminal's width.
        self.console.print(line, highlight=False, markup=False, soft_wrap=not self.drawn)

    def event(self, line: str) -> None:
        """Print a line where there is no table."""
        if not self.drawn:
            self.tell(line)

    def mark(self, trial_id: str, iteration: int, anew: bool = False) -> None:
        """Note that a trial has reached an iteration now. anew: it begins here, or resumes after an interruption."""
        if anew:
            self.marks[trial_id] = []
        self.marks.setdefault(trial_id, []).append((iteration, time.time()))

    def update(self, rows: Mapping[str, Any]) -> None:
        """Take in the study's rows after a change."""
        spent = self.spent + time.time() - self.began
        self.progress = with_doing(progress_of(self.sweep, rows, self.marks, self.slots, spent), self.doing)

    def show_doing(self, doing: Mapping[str, Doing]) -> None:
        """Take in what trials under way are doing whose method does not train, by trial id."""
        self.doing = doing
        if self.progress is not None:
            self.progress = with_doing(self.progress, doing)

    def print_summary_if_due(self) -> None:
        """Print a summary line once a minute where there is no table."""
        if self.drawn or self.progress is None or time.monotonic() - self.last_summary < _SUMMARY_S:
            return
        self.last_summary = time.monotonic()
        doing = [f"; trial {each.trial_id}: {each.doing}" for each in self.progress.of(over=False) if each.doing]
        self.tell(summary(self.progress, time.time()) + "".join(doing[:_FEW]))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.progress is not None:
            yield table(self.progress, time.time(), console.height)


@contextmanager
def screen(console: Console, sweep: Sweep, slots: int, spent: float) -> Iterator[Screen]:
    """Yield the display of a sweep for the duration of a block, and leave the terminal in order however it ends."""
    display = Screen(console, sweep, slots, spent)
    if not drawable(console):
        yield display
        return
    with redrawn(console, lambda: display):
        display.drawn = True
        try:
            yield display
        finally:
            display.drawn = False


def drawable(console: Console) -> bool:
    """Return whether a table can be redrawn here: only in a terminal that can move its cursor."""
    return console.is_interactive and console.file.isatty()


@contextmanager
def redrawn(console: Console, get: Callable[[], RenderableType]) -> Iterator[None]:
    """Redraw what `get` returns for the duration of a block, and clear it after that."""
    with Live(console=console, get_renderable=get, refresh_per_second=_PER_SECOND, transient=True):
        console.show_cursor(True)  # a killed process could not show it again
        yield


class _View:
    def __init__(self, progress: SweepProgress, now: float, height: int | None) -> None:
        self.progress, self.now, self.height = progress, now, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows, hidden = self._chosen()
        parts: list[RenderableType] = [narrowed(self._columns(rows), options.max_width)] if rows else []
        if hidden:
            states = Counter(trial.state for trial in hidden)
            line = ", ".join(f"{count} {state}" for state, count in states.items())
            parts.append(Text(f"and {counted(len(hidden), 'trial')} more: {line}"))
        line = (
            summary(self.progress, self.now)
            if self.progress.driven
            else f"{clock(self.progress.elapsed(0))} under way in all"
        )
        yield Group(*parts, Text(line))

    def _chosen(self) -> tuple[list[TrialProgress], list[TrialProgress]]:
        """Return (trials to show, trials only to count)."""
        active, over = self.progress.of(over=False), self.progress.ranked()
        room = len(active) + _MANY if self.height is None else max(1, self.height - _BESIDE)
        few = min(_MANY if self.height is None else _FEW, max(0, room - len(active)))
        if len(active) <= room and len(over) == few + 1:
            few += 1  # a line that counts one trial is as long as the trial's own
        return active[:room] + over[:few], active[room:] + over[few:]

    def _reached(self, trial: TrialProgress) -> str:
        return trial.doing or f"{trial.iteration}/{self.progress.iterations}"

    def _columns(self, rows: list[TrialProgress]) -> list[Column]:
        lefts = [row.left(self.now) for row in rows]
        columns = [
            Column("trial", [row.trial_id for row in rows], worth=6),
            Column("state", [row.state for row in rows], worth=4),
            Column("iteration", [self._reached(row) for row in rows], worth=3, number=True),
            Column("objective", [_objective(row) for row in rows], worth=1, number=True),
            Column("best", [_fixed(row.best) for row in rows], worth=5, number=True),
        ]
        if self.progress.driven:
            texts = ["" if left is None else clock(left) for left in lefts]
            columns.append(Column("left", texts, worth=2, number=True))
        return columns


def _objective(trial: TrialProgress) -> str:
    return _fixed(trial.value) if trial.interval is None else with_interval(trial.value, trial.interval)


def _fixed(value: float | None) -> str:
    """Return a value with as many digits each time, for a table that is redrawn."""
    return "-" if value is None else f"{value:.3f}"
