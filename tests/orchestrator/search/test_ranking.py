"""Which trials nothing beats, and in what order they stand: every sense of every objective, and equal trials."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.search.ledger import Ledger
from orchestrator.search.ranking import MethodRow, Repeated, Row, by_method, contenders, ranked, repeated, rows
from orchestrator.search.retries import Ends
from orchestrator.spec import Sweep, parse
from orchestrator.trial.outcome import TrialOutcome
from orchestrator.trial.state import Report
from tests.orchestrator.conftest import report_at
from tests.orchestrator.fabricated import started

OUT = TrialOutcome
BOTH = [{"identifiability": "max"}, {"fidelity_kid": "min"}]
Values = tuple[float, float]  # identifiability, fidelity_kid


def rows_of(tmp_path: Path, values: list[Values], objectives: list[dict[str, str]] = BOTH) -> list[Row]:
    """The rows of a sweep whose trials came to these values, in the order in which they began."""
    folder, sweep = started(tmp_path, "ranks", len(values), objectives=objectives)
    ledger = Ledger(sweep, folder.study_file, "weights")
    for identifiability, kid in values:
        given = ledger.next_attempt()
        assert given is not None
        ledger.end(given.trial_id, OUT.COMPLETED, "", report_at(100, identifiability, kid))
    return ranked(ledger.study, sweep)


def order(rows: list[Row]) -> list[int]:
    return [row.began for row in rows]


def front(rows: list[Row]) -> set[int]:
    return {row.began for row in rows if row.on_front}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(0.5, 0.1), (0.9, 0.5), (0.4, 0.2)], {1, 2}),  # the third is beaten in both
        ([(0.5, 0.1), (0.5, 0.1)], {1, 2}),  # equal trials do not beat each other
        ([(0.5, 0.1), (0.5, 0.2)], {1}),  # as good in one and worse in the other
        ([(0.4, 0.1), (0.5, 0.1), (0.5, 0.1)], {2, 3}),
        ([(0.9, 0.0), (0.1, 0.9)], {1}),
        ([(0.1, 0.9)], {1}),
    ],
)
def test_the_front_is_what_nothing_beats(tmp_path: Path, values: list[Values], expected: set[int]) -> None:
    assert front(rows_of(tmp_path, values)) == expected


@pytest.mark.parametrize(
    ("objectives", "best", "worst"),
    [
        ([{"identifiability": "max"}], 3, 1),
        ([{"fidelity_kid": "min"}], 2, 3),
    ],
)
def test_one_objective_ranks_in_its_own_sense(
    tmp_path: Path, objectives: list[dict[str, str]], best: int, worst: int
) -> None:
    rows = rows_of(tmp_path, [(0.1, 0.5), (0.5, 0.1), (0.9, 0.9)], objectives)
    assert order(rows)[0] == best and order(rows)[-1] == worst and front(rows) == {best}


def test_without_intervals_the_first_objective_decides_and_the_others_break_ties(tmp_path: Path) -> None:
    assert order(rows_of(tmp_path, [(0.1, 0.1), (0.9, 0.9), (0.8, 0.2), (0.9, 0.3)])) == [4, 2, 3, 1]


@pytest.mark.parametrize(
    ("first", "values", "expected"),
    [
        # (first objective, half its interval, second objective): the best may be as low as 0.8, or as high as 0.2.
        (
            {"identifiability": "max"},
            [(0.9, 0.1, 0.9), (0.8, 0.0, 0.2), (0.79, 0.5, 0.1), (0.85, 0.0, 0.5)],
            [2, 4, 1, 3],
        ),
        (
            {"strength_error": "min"},
            [(0.1, 0.1, 0.9), (0.2, 0.0, 0.2), (0.21, 0.5, 0.1), (0.15, 0.0, 0.5)],
            [2, 4, 1, 3],
        ),
    ],
)
def test_within_the_interval_of_the_best_the_second_objective_decides(
    tmp_path: Path, first: dict[str, str], values: list[tuple[float, float, float]], expected: list[int]
) -> None:
    [name] = first
    folder, sweep = started(tmp_path, "ranks", len(values), objectives=[first, {"fidelity_kid": "min"}])
    ledger = Ledger(sweep, folder.study_file, "weights")
    for value, half, kid in values:
        given = ledger.next_attempt()
        assert given is not None
        metrics = {name: value, f"{name}/low": value - half, f"{name}/high": value + half, "fidelity_kid": kid}
        ledger.end(given.trial_id, OUT.COMPLETED, "", Report(100, 1.0, metrics))
    made = ranked(ledger.study, sweep)
    assert order(made) == expected
    assert sorted(row.began for row in contenders(made, sweep)) == [1, 2, 4]


def test_trials_that_were_not_completed_come_after_and_are_on_no_front(tmp_path: Path) -> None:
    folder, sweep = started(tmp_path, "ranks", 5, objectives=BOTH)
    ledger = Ledger(sweep, folder.study_file, "weights")
    ends: list[tuple[TrialOutcome | None, int, dict[str, Any] | None]] = [
        (OUT.PRUNED, 25, report_at(25, 0.99, 0.0)),
        (OUT.COMPLETED, 100, report_at(100, 0.1, 0.9)),
        (OUT.PRUNED, 50, report_at(50, 0.99, 0.0)),
        (OUT.FAILED, 0, None),
        (None, 0, None),
    ]
    for outcome, step, report in ends:
        given = ledger.next_attempt()
        assert given is not None
        if report is not None:
            ledger.reported(given.trial_id, step, 0.5, False)
        if outcome is not None:
            ledger.end(given.trial_id, outcome, "why", report)
    made = ranked(ledger.study, sweep)
    assert [(row.began, row.state) for row in made] == [
        (2, "completed"),
        (4, "failed"),
        (3, "pruned"),
        (1, "pruned"),
        (5, "running"),
    ]
    assert front(made) == {2} and [row.over for row in made] == [True, True, True, True, False]
    assert [row.iteration for row in made] == [100, 0, 50, 25, 0] and made[1].reason == "why"
    assert [row.state for row in rows(folder, sweep)][-2:] == ["pruned", "pruned"], "sorted by state"
    assert {row.began: row.state for row in rows(folder, sweep)}[5] == "interrupted", "no process drives the sweep"


def test_a_row_holds_what_its_trial_has_told(tmp_path: Path) -> None:
    """Of the second attempt at a trial that was interrupted once, and of another that waits."""
    folder, sweep = started(tmp_path, "ranks", 3, objectives=BOTH)
    ledger = Ledger(sweep, folder.study_file, "weights")
    first, second = ledger.next_attempt(), ledger.next_attempt()
    assert first is not None and second is not None
    for each in (first, second):
        again = ledger.ends_for_retry(each.trial_id, OUT.PREEMPTED)
        ledger.end(each.trial_id, OUT.PREEMPTED, "", again=again)
    assert ledger.next_attempt() == replace(first, ends=Ends(preemptions=1))
    for step, value in ((50, 0.5), (25, 0.25), (75, None)):
        ledger.reported(first.trial_id, step, value, stopped=False)

    runs, waits = ranked(ledger.study, sweep)
    assert (runs.trial_id, runs.state, runs.attempts, runs.began, runs.over) == (first.trial_id, "running", 2, 1, False)
    assert list(runs.reports.items()) == [(25, 0.25), (50, 0.5)], "what could not be compared is none"
    assert runs.iteration == 75, "as far as it is known to have come"
    assert (waits.trial_id, waits.state, waits.attempts, waits.began, waits.over) == (
        *(second.trial_id, "waiting", 2),
        *(2, False),
    )
    assert waits.parameters == {name: second.parameters[name] for name in waits.parameters} and waits.parameters
    assert [row.state for row in ranked(ledger.study, sweep, driven=False)] == ["interrupted"] * 2

    ledger.end(first.trial_id, OUT.OUT_OF_MEMORY, "it was too large", report_at(80, 0.6, 0.2))
    [ended] = [row for row in ranked(ledger.study, sweep) if row.over]
    assert (ended.state, ended.iteration, ended.seconds, ended.memory) == ("out_of_memory", 80, 2.0, {"micro_batch": 2})
    assert ended.metrics == {"identifiability": 0.6, "fidelity_kid": 0.2} and ended.reason == "it was too large"
    assert not ended.on_front


def sweep_of(*methods: str, objectives: list[dict[str, str]] = BOTH) -> Sweep:
    search = {"directions": {"choice": [8, 12]}, "seed": {"choice": [0, 1, 2]}}
    data: dict[str, Any] = {"name": "a", "model": "b", "search": search, "method": {"choice": list(methods)}}
    return parse(data | {"objectives": objectives})


def completed(identifiability: float, kid: float, seconds: float | None = None, **parameters: object) -> Row:
    metrics = {"identifiability": identifiability, "fidelity_kid": kid}
    return Row("t", "completed", parameters, metrics, 100, on_front=False, seconds=seconds)


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        ([{"identifiability": "max"}], ["random", "learned", "jacobian", "pca"]),
        ([{"fidelity_kid": "min"}], ["learned", "random", "jacobian", "pca"]),
        (BOTH, ["learned", "random", "jacobian", "pca"]),
    ],
)
def test_methods_stand_by_the_mean_rank_of_their_trials_and_those_with_none_come_last(
    objectives: list[dict[str, str]], expected: list[str]
) -> None:
    """Mean ranks in (identifiability, KID): learned (2, 0.5), random (1.5, 2.5), jacobian (3, 4)."""
    sweep = sweep_of("pca", "jacobian", "random", "learned", objectives=objectives)
    made = [
        completed(0.9, 0.1, method="learned"),
        completed(0.5, 0.2, method="learned"),
        completed(0.8, 0.3, method="random"),
        completed(0.7, 0.35, method="random"),
        completed(0.6, 0.4, method="jacobian"),
        replace(completed(1.0, 0.0, method="pca"), state="pruned"),  # not measured at its end
    ]
    found = by_method(made, sweep)
    assert [row.method for row in found] == expected
    assert found[-1] == MethodRow("pca", 1, {}, None, 0)


def half(table: dict[str, float], name: str) -> float:
    """Half the width of an interval, which is checked to lie about its mean."""
    low, high = table[f"{name}/low"], table[f"{name}/high"]
    assert table[name] == pytest.approx((low + high) / 2)
    return (high - low) / 2


def test_a_method_is_told_by_the_mean_of_its_completed_trials_and_its_interval() -> None:
    extra = completed(0.5, 0.3, seconds=4.0, method="random")
    made = [
        completed(0.7, 0.1, seconds=2.0, method="random"),
        replace(extra, metrics={**extra.metrics, "fid": 3.0}),
        completed(0.6, 0.2, method="random"),
        replace(completed(0.0, 9.0, seconds=99.0, method="random"), state="failed"),
    ]
    [found, _] = by_method(made, sweep_of("learned", "random"))
    assert (found.method, found.trials, found.completed, found.seconds) == ("random", 4, 3, 3.0)
    assert found.metrics["identifiability"] == pytest.approx(0.6) and found.metrics["fidelity_kid"] == pytest.approx(
        0.2
    )
    error = 4.303 * 0.1 / math.sqrt(3)  # Student's t of 2 degrees of freedom
    assert [half(found.metrics, name) for name in ("identifiability", "fidelity_kid")] == pytest.approx(
        [error, error], rel=1e-3
    )
    assert found.metrics["fid"] == 3.0 and "fid/low" not in found.metrics, "of one there is no interval"


def test_the_intervals_of_trials_are_no_metrics_of_a_method() -> None:
    row = completed(0.7, 0.1, method="random")
    row = replace(row, metrics={**row.metrics, "identifiability/low": 0.6, "identifiability/high": 0.8})
    [found, _] = by_method([row], sweep_of("learned", "random"))
    assert found.metrics == {"identifiability": 0.7, "fidelity_kid": 0.1}, "of one trial there is no interval over runs"


def test_where_there_is_one_method_no_trial_need_name_it() -> None:
    data = {"name": "a", "model": "b", "search": {"directions": {"choice": [8, 12]}}}
    sweep = parse(data | {"objectives": [{"identifiability": "max"}]})
    [found] = by_method([completed(0.7, 0.1), completed(0.5, 0.1)], sweep)
    assert (found.method, found.trials, found.completed) == ("learned", 2, 2)


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [([{"identifiability": "max"}], [8, 12]), ([{"fidelity_kid": "min"}], [12, 8])],
)
def test_configurations_with_several_seeds_stand_by_their_mean_rank(
    objectives: list[dict[str, str]], expected: list[int]
) -> None:
    """Eight directions have more of both."""
    made = [
        completed(0.9, 0.5, directions=8, seed=1),
        completed(0.6, 0.1, directions=12, seed=0),
        completed(0.7, 0.4, directions=8, seed=0),
        completed(0.5, 0.2, directions=12, seed=2),
        replace(completed(0.0, 9.0, directions=8, seed=2), state="pruned"),
        completed(0.8, 0.3, directions=16, seed=0),  # once
        completed(0.8, 0.3, directions=24),
        completed(0.8, 0.3, directions=24),  # without seeds
    ]
    found = repeated(made, sweep_of("learned", objectives=objectives))
    assert [each.parameters["directions"] for each in found] == expected
    eight = found[expected.index(8)]
    assert (eight.parameters, eight.seeds) == ({"directions": 8}, [0, 1])
    assert eight.metrics["identifiability"] == pytest.approx(0.8)
    assert half(eight.metrics, "identifiability") == pytest.approx(
        12.706 * 0.1, rel=1e-3
    )  # deviation 0.2 / sqrt 2, over sqrt 2
    assert eight.metrics["fidelity_kid"] == pytest.approx(0.45)
    assert half(eight.metrics, "fidelity_kid") == pytest.approx(12.706 * 0.05, rel=1e-3)
    assert found[expected.index(12)].seeds == [0, 2]


def test_over_seeds_only_what_every_trial_was_measured_by_is_told() -> None:
    one, other = completed(0.9, 0.5, directions=8, seed=1), completed(0.9, 0.5, directions=8, seed=0)
    [found] = repeated([replace(one, metrics={**one.metrics, "fid": 1.0}), other], sweep_of("learned", objectives=BOTH))
    ends = ("", "/low", "/high")
    values = {f"{name}{end}": v for name, v in (("identifiability", 0.9), ("fidelity_kid", 0.5)) for end in ends}
    assert found == Repeated({"directions": 8}, [0, 1], values)
