"""A sweep as it is watched: the same table for the process that drives it and for any other."""

import io
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from orchestrator.report import live
from orchestrator.report.live import Screen, screen, summary, table
from orchestrator.report.progress import SweepProgress, TrialProgress, ends_at, progress_of, with_doing
from orchestrator.search.ranking import ranked_rows
from orchestrator.spec import parse
from orchestrator.workers.process_record import Doing

NOW = 10_000.0


def trial(name: str, state: str = "running", best: float | None = None, **more: Any) -> TrialProgress:
    over = state not in ("running", "waiting")
    facts = {"iteration": 50, "value": best, "began": NOW - 100, "ended": NOW if over else None}
    return TrialProgress(name, state, over, best=best, **{**facts, **more})


def stands(*trials: TrialProgress, **more: Any) -> SweepProgress:
    facts = {"mode": "max", "total": 8, "slots": 2, "spent": 100.0, "asof": NOW, "driven": True}
    return SweepProgress("a", "identifiability", iterations=150, trials=trials, **{**facts, **more})


def lines_of(shown: SweepProgress, width: int, height: int | None = None) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table(shown, NOW, height))
    return [line.rstrip() for line in console.export_text().splitlines()]


SOME = stands(
    trial("78df4b014f", "completed", 0.9, iteration=150),
    trial("bae439ab01", "out of memory", None),
    trial("d412149275", best=0.951, value=0.94, ends=NOW + 65),
    trial("f61af5e81e"),
)


def test_a_trial_that_is_over_has_the_interval_of_its_last_measurement() -> None:
    over = trial("78df4b014f", "completed", 0.9, iteration=150, interval=(0.86, 0.94))
    assert lines_of(stands(over), 80)[1] == "78df4b014f  completed    150/150  0.90 ± 0.04  0.900"


def test_the_table() -> None:
    assert lines_of(SOME, 80) == [
        "trial       state          iteration  objective   best  left",
        "d412149275  running           50/150      0.940  0.951  1:05",
        "f61af5e81e  running           50/150          -      -",
        "78df4b014f  completed        150/150      0.900  0.900",
        "bae439ab01  out of memory     50/150          -      -",
        "2 done, 2 running, 4 left; best identifiability 0.951 (trial d412149275); 1:40",
        "so far, about 3:52 left",
    ]


def test_a_method_that_does_not_train_shows_what_it_does_and_when_that_ends() -> None:
    """200 samples in 50 s: the other 800 take 200 s."""
    sampling = Doing("samples", 224, 1024, first=24, began=NOW - 60, at=NOW - 10)
    shown = with_doing(stands(trial("f61af5e81e", iteration=0), trial("78df4b014f", "completed", 0.9)), {})
    assert shown.trials[0].doing is None
    shown = with_doing(shown, {"f61af5e81e": sampling, "78df4b014f": sampling})
    assert lines_of(shown, 80)[1].split() == ["f61af5e81e", "running", "samples", "224/1024", "-", "-", "3:10"]
    assert shown.document(NOW)["trials"][0]["doing"] == "samples 224/1024" and shown.trials[1].doing is None
    assert with_doing(shown, {"f61af5e81e": replace(sampling, done=24)}).trials[0].ends is None


def test_the_lines_of_a_long_trial_say_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_SUMMARY_S", 0.0)
    console = Console(width=200, file=io.StringIO(), record=True)
    display = Screen(console, parse({"name": "a", "model": "toyfaces", "search": {"seed": {"choice": [0, 1]}}}), 1, 0.0)
    display.progress = stands(trial("f61af5e81e", iteration=0))
    display.show_doing({"f61af5e81e": Doing("samples", 64, 1024, 64, NOW, NOW)})
    display.print_summary_if_due()
    assert console.export_text().rstrip().endswith("so far; trial f61af5e81e: samples 64/1024")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_no_line_is_longer_than_the_terminal(width: int) -> None:
    lines = lines_of(SOME, width)
    assert max(map(len, lines)) <= width
    for each in SOME.trials:
        [row] = [line for line in lines if line.split()[0] == each.trial_id]
        assert width < 40 or f"{each.best:.3f}" in row if each.best else row
    assert "about 3:52 left" in " ".join(lines) or width < 24


def test_of_many_trials_those_under_way_and_the_best_that_are_over_are_shown() -> None:
    over = [trial(f"over{n}", "completed" if n % 2 else "pruned", n / 100, place=40 - n) for n in range(40)]
    active = [trial(f"active{n}") for n in range(12)]
    many = stands(*over, *active, total=100)
    lines = lines_of(many, 80, height=60)
    shown = [line.split()[0] for line in lines if line.startswith(("over", "active"))]
    assert shown == [f"active{n}" for n in range(12)] + ["over39", "over38", "over37", "over36", "over35"]
    assert "and 35 trials more: 18 pruned, 17 completed" in lines
    assert any(line.startswith("and 20 trials more") for line in lines_of(many, 80)), "more where it is printed once"
    low = lines_of(many, 80, height=16)
    assert len(low) <= 16 - 3 and [line.split()[0] for line in low[1:9]] == [f"active{n}" for n in range(8)]
    assert any(line.startswith("and 44 trials more: 4 running, ") for line in low)


def test_a_single_trial_is_never_hidden_behind_a_line_as_long_as_its_own() -> None:
    six = stands(*(trial(f"t{n}", "completed", 0.5, place=n) for n in range(6)))
    assert not any("more" in line for line in lines_of(six, 80, height=40))
    assert sum(line.startswith("t") and line[1].isdigit() for line in lines_of(six, 80, height=40)) == 6


def test_less_is_better_where_the_metric_says_so() -> None:
    few = stands(trial("a", "completed", 0.5), trial("b", "completed", 0.1), trial("c", "failed"), mode="min")
    best = few.best()
    assert best is not None and best.trial_id == "b"


def test_time_left_follows_from_a_trials_own_pace() -> None:
    assert ends_at([(0, 100.0)], 150) is None
    assert ends_at([(0, 100.0), (50, 260.0)], 150) == 260 + 100 * 160 / 50
    assert ends_at([(0, 100.0), (50, 260.0), (100, 360.0)], 150) == 460, "the first stretch holds the start"
    assert ends_at([(50, 100.0), (50, 101.0), (100, 201.0)], 150) == 201 + 101, "its last report is repeated"


def test_time_left_of_the_sweep() -> None:
    assert stands(trial("a")).left(NOW) is None, "nothing tells yet"
    known = trial("a", ends=NOW + 100)  # 200 s in all
    assert stands(known, total=1).left(NOW) == 100
    assert stands(known, trial("b"), total=4).left(NOW) == (100 + 100 + 2 * 200) / 2
    done = trial("c", "completed", began=NOW - 300, ended=NOW)
    assert stands(done, known, total=2, slots=4).left(NOW) == 100, "at least that of the longest"
    assert stands(done, trial("b"), total=2).left(NOW) == 200, "300 less the 100 it has been under way"
    assert stands(known, driven=False).left(NOW) is None
    assert stands(known).elapsed(NOW + 5) == 105 and stands(known, driven=False).elapsed(NOW + 5) == 100


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert summary(stands(trial("a")), NOW) == "0 done, 1 running, 7 left; 1:40 so far"


SWEEP = parse(
    {
        "name": "a",
        "model": "toyfaces",
        "search": {"shift_scale": {"float": [0.5, 2.0]}},
        "objectives": [{"identifiability": "max"}],
        "budget": {"trials": 4},
    }
)


def row(state: str, **attributes: Any) -> SimpleNamespace:
    """As Optuna gives it."""
    return SimpleNamespace(
        number=0,
        state=TrialState[state],
        params={},
        values=[attributes["metrics"]["identifiability"]] if state == "COMPLETE" else None,
        user_attrs=attributes,
        system_attrs={},
        datetime_start=None,
        datetime_complete=None,
    )


def test_trials_that_are_over_come_in_the_order_of_the_report() -> None:
    rows = {
        "early": row("PRUNED", reports={"100": {"value": 0.857, "stopped": True}}),
        "crashed": row("FAIL", outcome="failed"),
        "done": row("COMPLETE", metrics={"identifiability": 0.5}),
        "late": row("PRUNED", reports={"50": {"value": 0.909, "stopped": True}}),
        "best": row("COMPLETE", metrics={"identifiability": 0.8}),
    }
    progress = progress_of(SWEEP, rows, {}, 1, 0.0, driven=False)
    order = [each.trial_id for each in ranked_rows(rows, SWEEP, driven=False)]
    assert order == [each.trial_id for each in progress.ranked()] == ["best", "done", "crashed", "late", "early"]


def test_what_the_book_says_of_a_trial() -> None:
    reports = {"100": {"value": 0.3, "stopped": False}, "50": {"value": 0.7, "stopped": False}}
    rows = {
        "on its way": row("RUNNING", reports=reports),
        "over": row("FAIL", outcome="out_of_memory", global_step=20),
        "carried over": row("COMPLETE", metrics={"identifiability": 0.4}),
        "next": row("WAITING"),
    }
    found = progress_of(SWEEP, rows, {"on its way": [(0, 1.0), (120, 2.0)]}, 1, 0.0).trials
    assert [(each.state, each.over, each.iteration, each.value, each.best) for each in found] == [
        ("running", False, 120, 0.3, 0.7),
        ("out of memory", True, 20, None, None),
        ("completed", True, 0, 0.4, 0.4),
        ("waiting", False, 0, None, None),
    ]
    assert found[0].ends is not None
    assert [each.state for each in progress_of(SWEEP, rows, {}, 1, 0.0, driven=False).trials][::3] == [
        "interrupted"
    ] * 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.delenv("NO_COLOR", raising=False)

    def made(file: io.StringIO, term: str = "xterm") -> Any:
        monkeypatch.setenv("TERM", term)
        return screen(Console(file=file, width=80, height=24, force_terminal=file.isatty()), SWEEP, 2, 0.0)

    yield made


def test_outside_of_a_terminal_events_are_lines_and_once_a_minute_all_of_it(
    screen_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file, term in ((io.StringIO(), "xterm"), (Terminal(), "dumb")):
        with screen_of(file, term) as shown:
            shown.event("an event")
            shown.tell("a note [bold]")
            shown.update({"1a2b": row("RUNNING")})
            shown.print_summary_if_due()
            assert file.getvalue() == "an event\na note [bold]\n", "no escape, no markup"
            monkeypatch.setattr(live, "_SUMMARY_S", 0.0)
            shown.print_summary_if_due()
            monkeypatch.undo()
        assert file.getvalue().splitlines()[2] == "0 done, 1 running, 3 left; 0:00 so far"


def test_in_a_terminal_a_table_is_drawn_below_what_matters(screen_of: Any) -> None:
    file = Terminal()
    with screen_of(file) as shown:
        shown.event("an event")
        shown.update({"1a2b": row("RUNNING")})
        shown.mark("1a2b", 0, anew=True)
        shown.mark("1a2b", 50)
        shown.update({"1a2b": row("RUNNING")})
        shown.tell("a note")
        time.sleep(1.2)
        shown.print_summary_if_due()
    told = file.getvalue()
    assert "an event" not in told and told.index("a note") < told.rindex("1a2b   running     50/400")
    assert told.count("1a2b   running") <= 2 + 1.2 * 2, "drawn twice a second at most, and below each line"
    assert "so far" in told and told.rindex("\x1b[?25h") > told.rindex("\x1b[?25l"), "the cursor is there"


KILLED = """
import time
from rich.console import Console
from orchestrator.report.live import screen
from tests.orchestrator.report.test_live import SWEEP, row
with screen(Console(), SWEEP, 2, 0.0) as shown:
    shown.update({"1a2b": row("RUNNING")})
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_sweep_that_is_killed_leaves_the_cursor_to_be_seen() -> None:
    driver, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=Path(__file__).parents[3], stdout=terminal, stderr=terminal, env=environment
    )
    told = b""
    while b"so far" not in told:
        told += os.read(driver, 4096)
    process.kill()
    process.wait(30)
    os.close(terminal)
    os.close(driver)
    assert told.rindex(b"\x1b[?25h") > told.rindex(b"\x1b[?25l")


def test_a_screen_knows_no_more_than_it_was_told() -> None:
    file = io.StringIO()
    shown = Screen(Console(file=file, width=80), SWEEP, 2, 0.0)
    shown.console.print(shown)
    shown.print_summary_if_due()
    assert file.getvalue().strip() == ""
