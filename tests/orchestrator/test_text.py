"""Tables in terminals of any width: what is too wide becomes lines, and nothing is cut."""

import io

import pytest
from rich.console import Console, RenderableType

from orchestrator.text import (
    Column,
    add_row,
    clock,
    facts_table,
    joined,
    measured,
    narrowed,
    nbytes,
    signed,
    table_of,
    with_interval,
)

NAMES = ("alpha", "a much longer name", "c")


def lines_of(shown: RenderableType, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(shown)
    return [line.rstrip() for line in console.export_text().splitlines()]


def grid(**how: bool) -> RenderableType:
    table = table_of("A title", "name", "values", "only when", **how)
    for name in NAMES:
        add_row(table, name, "1, 2, 3", "" if name == "c" else "x is y")
    return table


def test_a_table_that_fits_is_a_table() -> None:
    assert lines_of(grid(), 80) == [
        "",
        "A title",
        "name                values   only when",
        "alpha               1, 2, 3  x is y",
        "a much longer name  1, 2, 3  x is y",
        "c                   1, 2, 3",
    ]
    assert len(lines_of(grid(), 38)) == 6, "it is 38 columns wide"


def test_a_table_that_does_not_fit_becomes_lines() -> None:
    assert lines_of(grid(), 37) == [
        "",
        "A title",
        "alpha: 1, 2, 3",
        "  only when: x is y",
        "a much longer name: 1, 2, 3",
        "  only when: x is y",
        "c: 1, 2, 3",
    ]


def test_rows_without_a_name_and_tables_read_by_column() -> None:
    assert lines_of(grid(named=False), 30)[2:5] == ["- name: alpha", "  values: 1, 2, 3", "  only when: x is y"]
    assert lines_of(grid(by_column=True), 30)[2:6] == [
        "values",
        "  alpha: 1, 2, 3",
        "  a much longer name: 1, 2, 3",
    ] + ["  c: 1, 2, 3"]


@pytest.mark.parametrize("width", range(6, 60))
@pytest.mark.parametrize("how", [{}, {"named": False}, {"by_column": True}], ids=str)
def test_nothing_is_cut_at_any_width(width: int, how: dict[str, bool]) -> None:
    for shown, words in (
        (grid(**how), [*NAMES, "1, 2, 3", "x is y", "A title"]),
        (
            facts_table("Facts", {"name": "a/very/long/path/that/no/line/holds", "other": "x y"}),
            ["a/very/long/path/th"],
        ),
    ):
        lines = lines_of(shown, width)
        assert max(map(len, lines)) <= width
        together = "".join("".join(lines).split())
        assert all("".join(word.split()) in together for word in words)


def test_a_long_fact_goes_on_below_itself() -> None:
    facts = facts_table("Facts", {"model": "one two three four"})
    assert lines_of(facts, 20)[2:] == ["model  one two three", "       four"]
    assert lines_of(facts, 12)[2:] == ["model: one", "two three", "four"]


def test_a_table_that_is_drawn_again_leaves_out_columns_of_little_worth() -> None:
    columns = [
        Column("trial", ["1a2b"], worth=3),
        Column("iteration", ["1/2"], worth=1, number=True),
        Column("best", ["0.5"], worth=2, number=True),
    ]
    assert lines_of(narrowed(columns, 22), 22) == ["trial  iteration  best", "1a2b         1/2   0.5"]
    assert lines_of(narrowed(columns, 21), 21) == ["trial  best", "1a2b    0.5"]
    assert lines_of(narrowed(columns, 7), 7) == ["trial", "1a2b"]


def test_what_a_cell_holds_is_no_markup() -> None:
    table = table_of("[red]", "[bold]")
    add_row(table, "[link=x]y[/]")
    assert lines_of(table, 40)[1:] == ["[red]", "[bold]", "[link=x]y[/]"]


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3700, "1:01:40"), (-1, "0:00")]
)
def test_clocks(seconds: float, told: str) -> None:
    assert clock(seconds) == told


@pytest.mark.parametrize(("count", "told"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (71.8e9, "71.8 GB")])
def test_bytes(count: float, told: str) -> None:
    assert nbytes(count) == told


@pytest.mark.parametrize(
    ("value", "half", "shown"),
    [
        (0.8731, 0.0412, "0.87 ± 0.04"),
        (0.8731, 0.0141, "0.873 ± 0.014"),  # two digits where the half width begins with 1, 2 or 3
        (0.8731, 0.0349, "0.873 ± 0.035"),
        (0.5, 0.096, "0.50 ± 0.10"),  # it begins with 1 when it is rounded
        (2.345, 1.2, "2.3 ± 1.2"),
        (1234.5, 420.0, "1200 ± 400"),
        (12.0, 31.0, "12 ± 31"),
        (-0.001, 0.04, "0.00 ± 0.04"),  # no minus before 0
        (0.5, 0.0, "0.500 ± 0.000"),
        (1.0, 3e-16, "1.000 ± 0.000"),  # rounding of equal values
        (3.2e-7, 4e-8, "3.2e-07 ± 4e-08"),
    ],
)
def test_a_figure_ends_where_half_its_interval_does(value: float, half: float, shown: str) -> None:
    assert with_interval(value, (value - half, value + half)) == shown


def test_a_figure_without_an_interval_stands_alone() -> None:
    assert with_interval(0.87312, None) == "0.873" and with_interval(None, None) == "-"


@pytest.mark.parametrize(
    ("value", "half", "shown"),
    [(0.09, 0.088, "+0.090 ± 0.088"), (-0.5, 0.04, "-0.500 ± 0.040"), (0.0, 0.2, "+0.00 ± 0.20")],
)
def test_a_difference_has_its_sign_and_shows_that_its_interval_excludes_0(
    value: float, half: float, shown: str
) -> None:
    assert signed(value, (value - half, value + half)) == shown


def test_a_metric_of_a_table_is_shown_with_its_interval() -> None:
    table = {"coverage": 0.5, "coverage/low": 0.46, "coverage/high": 0.54, "fid": 31.25}
    assert [measured(table, name) for name in ("coverage", "fid", "lpips")] == ["0.50 ± 0.04", "31.2", "-"]


@pytest.mark.parametrize(
    ("parts", "told"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_lists_in_a_sentence(parts: list[str], told: str) -> None:
    assert joined(parts) == told
