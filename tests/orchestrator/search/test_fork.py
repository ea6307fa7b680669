"""A changed sweep file as a new sweep that learns from the old one."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from orchestrator.search.fork import carry_over, forked
from orchestrator.search.ledger import Ledger
from orchestrator.search.space import trials
from orchestrator.spec import SCHEMA_VERSION, Sweep, parse
from orchestrator.store.folder import SweepFolder
from orchestrator.store.study import create_study
from orchestrator.trial.outcome import TrialOutcome
from tests.orchestrator.conftest import report_at

SEARCH = {"directions": {"choice": [8, 16]}, "shift_scale": {"float": [0.5, 2.0]}}


def sweep_with(**sections: Any) -> Sweep:
    base = {"name": "a", "model": "toyfaces", "train": {"iterations": 100}, "search": SEARCH}
    return parse(base | {"objectives": [{"identifiability": "max"}]} | sections)


def started(root: Path, sweep: Sweep) -> SweepFolder:
    folder = SweepFolder(root, sweep.name)
    folder.create(sweep, "weights")
    create_study(sweep, folder.study_file)
    return folder


def run(folder: SweepFolder, count: int) -> dict[float, dict[str, Any]]:
    """So many trials, each as good as its scale is large; their parameters, the best first."""
    sweep = folder.sweep()
    ledger, found = Ledger(sweep, folder.study_file, "weights"), {}
    for _ in range(count):
        given = ledger.next_attempt()
        assert given is not None
        value = float(given.parameters["shift_scale"])
        ledger.end(given.trial_id, TrialOutcome.COMPLETED, "", report_at(100, value))
        found[value] = {name: given.parameters[name] for name in ("directions", "shift_scale")}
    return {value: found[value] for value in sorted(found, reverse=True)}


def carried(source: SweepFolder, root: Path, sweep: Sweep) -> Ledger:
    """The ledger of a fork as its first trial finds it; carrying over is interrupted and done again."""
    folder = SweepFolder(root, "a-2")
    folder.create(sweep, "weights")
    for _ in range(2):
        carry_over(source, sweep, create_study(sweep, folder.study_file), "weights")
    return Ledger(sweep, folder.study_file, "weights")


def fork_of(root: Path, **sections: Any) -> Sweep:
    _, sweep = forked(sweep_with(**sections), root)
    assert sweep.name == "a-2"
    return sweep


def test_a_changed_file_is_a_new_sweep_in_the_same_experiment(tmp_path: Path) -> None:
    first = started(tmp_path, sweep_with())
    source, second = forked(sweep_with(seed=1), tmp_path)
    assert source == first and (second.name, second.experiment, second.seed) == ("a-2", "a", 1)
    started(tmp_path, second)
    source, third = forked(sweep_with(seed=2), tmp_path)
    assert source is not None and (source.name, third.name, third.experiment) == ("a-2", "a-3", "a")


def test_the_same_command_goes_on_with_its_fork(tmp_path: Path) -> None:
    started(tmp_path, sweep_with())
    _, second = forked(sweep_with(seed=1), tmp_path)
    started(tmp_path, second)
    assert forked(sweep_with(seed=1), tmp_path)[1] == second
    assert SweepFolder(tmp_path, "a-2").changed(second) is None


def test_where_nothing_has_changed_there_is_no_fork(tmp_path: Path) -> None:
    sweep = sweep_with()
    assert forked(sweep, tmp_path) == (None, sweep)
    started(tmp_path, sweep)
    assert forked(sweep, tmp_path) == (None, sweep)


@pytest.mark.slow
def test_what_would_come_to_the_same_is_carried_over_once(tmp_path: Path) -> None:
    source = started(tmp_path, sweep_with())
    found = run(source, 3)
    ledger = carried(source, tmp_path, fork_of(tmp_path, budget={"trials": 30}))
    assert {row.value: row.params for row in ledger.study.trials} == found
    assert all(row.state == TrialState.COMPLETE for row in ledger.study.trials)
    assert not ledger.begun(), "they are trials of the old sweep"


@pytest.mark.slow
@pytest.mark.parametrize(
    "search",
    [
        pytest.param({"directions": {"choice": [8, 16]}, "shift_scale": {"float": [0.1, 0.2]}}, id="range"),
        pytest.param({"directions": {"choice": [4, 32]}, "shift_scale": {"float": [0.5, 2.0]}}, id="choice"),
    ],
)
def test_what_the_new_space_does_not_hold_is_not_learned_from(tmp_path: Path, search: dict[str, Any]) -> None:
    source = started(tmp_path, sweep_with())
    run(source, 3)
    ledger = carried(source, tmp_path, fork_of(tmp_path, search=search))
    assert not [row for row in ledger.study.trials if row.state == TrialState.COMPLETE]


@pytest.mark.slow
def test_results_of_an_earlier_version_are_not_carried_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same configuration would be measured otherwise: it is tried again."""
    source = started(tmp_path, sweep_with())
    found = run(source, 3)
    monkeypatch.setattr("orchestrator.spec.sweep.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    ledger = carried(source, tmp_path, fork_of(tmp_path))
    assert [row.state for row in ledger.study.trials] == [TrialState.WAITING] * 3
    assert [row.system_attrs["fixed_params"] for row in ledger.study.trials] == list(found.values())


@pytest.mark.slow
def test_else_the_best_are_tried_first(tmp_path: Path) -> None:
    source = started(tmp_path, sweep_with())
    best = list(run(source, 7).values())[:5]
    ledger = carried(source, tmp_path, fork_of(tmp_path, seed=1))
    assert [row.state for row in ledger.study.trials] == [TrialState.WAITING] * 5
    given = [ledger.next_attempt() for _ in best]
    assert [{name: each.parameters[name] for name in SEARCH} for each in given if each] == best
    assert len(ledger.begun()) == 5


@pytest.mark.slow
def test_of_those_what_is_out_of_range_is_left_out(tmp_path: Path) -> None:
    source = started(tmp_path, sweep_with())
    run(source, 3)
    search = {"directions": {"choice": [8, 16]}, "shift_scale": {"float": [0.1, 0.2]}}
    ledger = carried(source, tmp_path, fork_of(tmp_path, seed=1, search=search))
    given = [ledger.next_attempt() for _ in range(3)]
    assert all(each is not None and 0.1 <= float(each.parameters["shift_scale"]) <= 0.2 for each in given)


@pytest.mark.slow
def test_they_count_among_the_trials_of_the_budget(tmp_path: Path) -> None:
    source = started(tmp_path, sweep_with())
    run(source, 7)
    sweep = fork_of(tmp_path, seed=1, budget={"trials": 3})
    ledger = carried(source, tmp_path, sweep)
    given = [ledger.next_attempt() for _ in range(5)]
    assert trials(sweep) == 3 and len([each for each in given if each is not None]) == 3
