"""Which trials nothing beats, and in what order they stand: every sense of every objective, and equal trials."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger import Ledger
from orchestrator.outcome import TrialOutcome
from orchestrator.ranking import Row, ranked, rows
from tests.orchestrator.conftest import report_at
from tests.orchestrator.fabricated import started

OUT = TrialOutcome
BOTH = [{"identifiability": "max"}, {"fidelity_kid": "min"}]
Values = tuple[float, float]  # identifiability, fidelity_kid


def found(tmp_path: Path, values: list[Values], objectives: list[dict[str, str]] = BOTH) -> list[Row]:
    """The rows of a sweep whose trials came to these values, in the order in which they began."""
    folder, sweep = started(tmp_path, "ranks", len(values), objectives=objectives)
    ledger = Ledger(sweep, folder.study, "weights")
    for identifiability, kid in values:
        given = ledger.next()
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
    assert front(found(tmp_path, values)) == expected


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
    rows = found(tmp_path, [(0.1, 0.5), (0.5, 0.1), (0.9, 0.9)], objectives)
    assert order(rows)[0] == best and order(rows)[-1] == worst and front(rows) == {best}


def test_several_objectives_rank_by_the_mean_of_their_ranks_and_the_first_breaks_ties(tmp_path: Path) -> None:
    """Ranks by (identifiability, KID): 1: 0 + 3, 2: 1 + 1, 3: 2 + 2, 4: 3 + 0; of 1 and 4 the first has more."""
    assert order(found(tmp_path, [(0.9, 0.9), (0.8, 0.2), (0.7, 0.3), (0.1, 0.1)])) == [2, 1, 4, 3]


def test_equal_values_share_a_rank(tmp_path: Path) -> None:
    """Two with the most identifiability are both first in it, so that KID decides between them."""
    assert order(found(tmp_path, [(0.9, 0.3), (0.9, 0.2), (0.8, 0.1)])) == [2, 1, 3]


def test_trials_that_were_not_completed_come_after_and_are_on_no_front(tmp_path: Path) -> None:
    folder, sweep = started(tmp_path, "ranks", 5, objectives=BOTH)
    ledger = Ledger(sweep, folder.study, "weights")
    ends: list[tuple[TrialOutcome | None, int, dict[str, Any] | None]] = [
        (OUT.PRUNED, 25, report_at(25, 0.99, 0.0)),
        (OUT.COMPLETED, 100, report_at(100, 0.1, 0.9)),
        (OUT.PRUNED, 50, report_at(50, 0.99, 0.0)),
        (OUT.FAILED, 0, None),
        (None, 0, None),
    ]
    for outcome, step, report in ends:
        given = ledger.next()
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
