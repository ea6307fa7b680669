"""Lay out facts and tables for a terminal of any width.

A table wider than the terminal becomes `name: value` lines, and nothing is cut. A table that is redrawn leaves out
columns instead (`narrowed`), the least important first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from core.intervals import interval_of

_GAP = 2  # character cells between two columns
_SMALLEST = 6  # decimal places of a figure with its interval
_ROUNDING = 1e-12  # the half width, relative to the figure, that float64 alone makes


@dataclass
class Grid:
    """A table of plain text under a title; lines where the terminal is narrower than the table.

    named: the first cell of a row is its name; numbers: all other columns are numbers, aligned to the right; by_column:
    the
    lines follow one column after the other.
    """

    title: str
    headings: tuple[str, ...]
    named: bool = True
    numbers: bool = False
    by_column: bool = False
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(f"\n{self.title}", style="bold")
        if width_of([self.headings, *self.rows]) <= options.max_width:
            yield self._table()
        else:
            yield from self._lines()

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
        for number, heading in enumerate(self.headings):
            table.add_column(Text(heading), justify="right" if number and self.numbers else "left")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def _lines(self) -> Iterator[RenderableType]:
        rows, headings = self.rows, self.headings
        if self.by_column:
            headings, *rows = zip(*[self.headings, *self.rows], strict=True)
        for row in rows:
            parts = [(f"{name}: " if name else "") + cell for name, cell in zip(headings, row, strict=True) if cell]
            if not self.named:
                parts[0] = f"- {parts[0]}"
            elif self.by_column or len(row) == 1 or not row[1]:
                parts[0] = row[0]
            else:
                parts[:2] = [f"{row[0]}: {row[1]}"]
            yield Text(parts[0])
            yield from (_hanging(line) for line in parts[1:])


@dataclass
class Facts:
    """Names and values under a title, without headings; a long value is wrapped within its column."""

    title: str
    facts: dict[str, str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(f"\n{self.title}", style="bold")
        names = max(map(cell_len, self.facts), default=0) + _GAP
        if 2 * names > options.max_width:  # the column of values would be too narrow for words
            yield from (Text(f"{name}: {fact}") for name, fact in self.facts.items())
            return
        table = Table(box=None, show_header=False, padding=(0, _GAP, 0, 0), pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, fact in self.facts.items():
            table.add_row(Text(name), Text(fact))
        yield table


@dataclass(frozen=True)
class Column:
    """A column of a table that is redrawn. worth: the column with the least is left out first."""

    heading: str
    cells: Sequence[str]
    worth: int = 0
    number: bool = False

    @property
    def width(self) -> int:
        """Width in character cells."""
        return max(map(cell_len, (self.heading, *self.cells)))


def narrowed(columns: Sequence[Column], width: int) -> Table:
    """Return a table of the columns that fit side by side, one line for each row."""
    kept = list(columns)
    while len(kept) > 1 and sum(column.width + _GAP for column in kept) - _GAP > width:
        kept.remove(min(kept, key=lambda column: column.worth))
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for column in kept:
        table.add_column(Text(column.heading), justify="right" if column.number else "left", overflow="fold")
    for row in zip(*(column.cells for column in kept), strict=True):
        table.add_row(*map(Text, row))
    return table


def facts_table(title: str, facts: dict[str, str]) -> Facts:
    """Return names and values under a title, without headings."""
    return Facts(title, facts)


def table_of(title: str, *columns: str, named: bool = True, numbers: bool = False, by_column: bool = False) -> Grid:
    """Return an empty table with these headings; see Grid."""
    return Grid(title, columns, named, numbers, by_column)


def add_row(table: Grid, *cells: str) -> None:
    """Add a row of plain text: a name such as [bold] is not markup."""
    table.rows.append(cells)


def width_of(rows: Sequence[Sequence[str]]) -> int:
    """Return the width of these rows in character cells, without a wrapped line."""
    return sum(max(map(cell_len, column)) + _GAP for column in zip(*rows, strict=True)) - _GAP


@contextmanager
def progress_bar(console: Console, total: int) -> Iterator[Callable[[int], object]]:
    """Show how many of `total` images are drawn, only in a terminal and for more than one image.

    Yields the function to call with each number of images that were drawn.
    """
    if not console.is_terminal or total < 2:
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("drawing", total=total)
        yield lambda count: progress.advance(task, count)


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a count with its noun: 1, "trial" -> "1 trial"; 2, "trial" -> "2 trials"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def joined(parts: Sequence[str]) -> str:
    """Return parts of a sentence as a list: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def clock(seconds: float) -> str:
    """Return seconds as a clock: 65 -> "1:05", 3700 -> "1:01:40", 200000 -> "55:33:20"."""
    minutes, left = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def nbytes(count: float) -> str:
    """Return a count of bytes as text: "512 bytes", "1.5 MB", "20 GB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def _hanging(line: str) -> Padding:
    """Return a line indented below the one it belongs to."""
    return Padding(Text(line), (0, 0, 0, _GAP))


def plain(name: str) -> str:
    """Return a name with spaces for underscores: fidelity_kid -> fidelity kid."""
    return name.replace("_", " ")


def number(value: object, digits: int = 3) -> str:
    """Return a value for a table: a measured one with three digits, `-` for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def signed(value: float, interval: tuple[float, float] | None = None) -> str:
    """Return a difference with its sign; with an interval as `with_interval` shows it."""
    if interval is not None:
        return with_interval(value, interval, sign="+")
    return f"{value:+.3g}" if value else "0"


def with_interval(value: float | None, interval: tuple[float, float] | None, sign: str = "") -> str:
    """Return a figure and half the width of its interval, `0.87 ± 0.04`; as `number` does where it has no interval.

    The half width has one digit, two where it begins with 1, 2 or 3, and the figure ends at the same place. sign: "+"
    for a difference, which shows its sign, and two digits in any case, so that its interval is seen to exclude 0.
    """
    if value is None or interval is None:
        return number(value)
    half = (interval[1] - interval[0]) / 2
    if half <= _ROUNDING * abs(value):
        half = 0.0
    digit, _, exponent = f"{half:.0e}".partition("e")
    places = (digit in "123" or bool(sign)) - int(exponent) if half else 3
    if places > _SMALLEST:
        return f"{value:{sign}.3g} ± {half:.1g}"
    shown, width = round(value, places) + 0.0, round(half, places)  # + 0.0: no minus before a rounded 0
    return f"{shown:{sign}.{max(0, places)}f} ± {width:.{max(0, places)}f}"


def measured(table: Mapping[str, float], name: str) -> str:
    """Return a metric of a flat table (core.intervals) with its interval; `-` where the table does not have it."""
    return with_interval(table.get(name), interval_of(table, name))


def in_code(text: object) -> str:
    """Return a text of one line that cannot break out of its backticks in Markdown."""
    return " ".join(str(text).replace("`", "'").split())
