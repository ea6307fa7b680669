"""How facts and tables look in the terminal."""

from rich.table import Table
from rich.text import Text


def facts_table(title: str, facts: dict[str, str]) -> Table:
    """Names and what they are, without a heading."""
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 0)
    )
    for name, fact in facts.items():
        add_row(table, name, fact)
    return table


def table_of(title: str, *columns: str) -> Table:
    """An empty table with these headings."""
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        min_width=len(title),  # of a narrow table the title would be broken
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Cells as plain text: a name such as [bold] is not markup."""
    table.add_row(*(Text(cell) for cell in cells))


def counted(count: int, one: str, many: str | None = None) -> str:
    """1, "trial" -> "1 trial"; 2, "trial" -> "2 trials"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
