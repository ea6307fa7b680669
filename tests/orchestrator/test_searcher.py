"""Optuna is told the truth, whatever Tune believes."""

import math
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from orchestrator.ranking import rows
from orchestrator.searcher import DirectionSearch, load_study
from orchestrator.spec import Sweep, parse
from orchestrator.store import SweepFolder


@pytest.fixture
def sweep() -> Sweep:
    return parse(
        {
            "name": "searched",
            "model": "toyfaces",
            "train": {"iterations": 100},
            "search": {"directions": {"choice": [8, 16]}, "shift_scale": {"float": [0.5, 2.0]}},
            "objectives": [{"identifiability": "max"}, {"fidelity_kid": "min"}],
        }
    )


@pytest.fixture
def folder(tmp_path: Path, sweep: Sweep) -> SweepFolder:
    folder = SweepFolder(tmp_path, sweep.name)
    folder.create(sweep, "sqlite://", "1", "parent")
    return folder


def result(step: int = 100, identifiability: float = 0.9, kid: float = 0.1) -> dict[str, Any]:
    values = {"identifiability": identifiability, "fidelity_kid": kid}
    return {
        "global_step": step,
        "find_seconds": 2.0,
        **values,
        **{f"metrics/{name}": value for name, value in values.items()},
    }


@pytest.mark.parametrize(
    ("reported", "error", "state"),
    [
        (result(), False, TrialState.COMPLETE),
        (result(step=30), False, TrialState.PRUNED),
        (result(), True, TrialState.FAIL),
        (None, False, TrialState.FAIL),
        (result(kid=math.nan), False, TrialState.FAIL),
        (result(identifiability=math.inf), False, TrialState.FAIL),
        ({"global_step": 100, "identifiability": 0.9}, False, TrialState.FAIL),
    ],
)
def test_states(sweep: Sweep, folder: SweepFolder, reported: dict | None, error: bool, state: TrialState) -> None:
    search = DirectionSearch(sweep, folder.study, parallel=2)
    parameters = search.suggest("a")
    assert parameters is not None and {"method", "directions", "shift_scale"} <= parameters.keys()
    search.on_trial_complete("a", reported, error)
    search.on_trial_complete("a", reported, error)  # Tune may say it twice
    [trial] = load_study(sweep.name, folder.study).trials
    assert trial.state == state
    assert trial.values == ([0.9, 0.1] if state == TrialState.COMPLETE else None)
    assert trial.user_attrs["tune_id"] == "a"


def test_the_searcher_survives_a_pickle(sweep: Sweep, folder: SweepFolder, tmp_path: Path) -> None:
    search = DirectionSearch(sweep, folder.study, parallel=1)
    search.suggest("a")
    search.save(str(tmp_path / "searcher.pkl"))
    again = DirectionSearch(sweep, folder.study, parallel=1)
    again.restore(str(tmp_path / "searcher.pkl"))
    again.on_trial_complete("a", result())
    assert load_study(sweep.name, folder.study).trials[0].state == TrialState.COMPLETE


@pytest.fixture
def finite() -> Sweep:
    return parse(
        {
            "name": "searched",
            "model": "toyfaces",
            "method": {"choice": ["learned", "pca"]},
            "search": {"seed": {"choice": [0, 1]}, "start": {"choice": ["pca", "random"]}, "pca.samples": 64},
            "objectives": [{"identifiability": "max"}, {"fidelity_kid": "min"}],
        }
    )


def asked(search: DirectionSearch, *names: str) -> list[tuple[Any, ...]]:
    suggested = [search.suggest(name) for name in names]
    return [(each["method"], each["seed"], each.get("start")) for each in suggested if each is not None]


ALL = [
    *(("learned", seed, start) for seed in (0, 1) for start in ("pca", "random")),
    *(("pca", seed, None) for seed in (0, 1)),
]


def test_a_finite_space_is_run_through_once_in_order(finite: Sweep, folder: SweepFolder) -> None:
    search = DirectionSearch(finite, folder.study, parallel=2)
    assert asked(search, *"abcdef") == ALL
    assert search.suggest("a") == search.suggest("a"), "asked again, a trial is what it was"
    assert len(load_study(finite.name, folder.study).trials) == 6


def test_a_restored_search_goes_on_where_it_was(finite: Sweep, folder: SweepFolder, tmp_path: Path) -> None:
    """The kill came after `d` had been asked for and `e` enqueued, of both of which the snapshot knows nothing."""
    search = DirectionSearch(finite, folder.study, parallel=2)
    asked(search, "a", "b", "c")
    search.on_trial_complete("a", result())
    search.save(str(tmp_path / "searcher.pkl"))
    asked(search, "d")
    search._enqueue_next()

    again = DirectionSearch(finite, folder.study, parallel=2)
    again.restore(str(tmp_path / "searcher.pkl"))
    assert sorted(asked(again, "D", "E", "F"), key=ALL.index) == ALL[3:]
    states = [trial.state for trial in load_study(finite.name, folder.study).trials]
    assert TrialState.WAITING not in states


def test_a_space_larger_than_the_budget_is_searched(sweep: Sweep, folder: SweepFolder) -> None:
    assert DirectionSearch(sweep, folder.study, parallel=1).listed == []


def test_ranking_is_by_mean_rank_and_completed_first(sweep: Sweep, folder: SweepFolder) -> None:
    """b is second in one objective and first in the other; a first and third; c third and second."""
    search = DirectionSearch(sweep, folder.study, parallel=1)
    ends = {
        "a": result(identifiability=0.95, kid=0.9),
        "b": result(identifiability=0.94, kid=0.1),
        "c": result(identifiability=0.5, kid=0.3),
        "d": result(step=10),
        "e": None,
    }
    for name, end in ends.items():
        search.suggest(name)
        search.on_trial_complete(name, end)
    ranked = rows(folder, sweep)
    assert [row.trial_id for row in ranked] == ["b", "a", "c", "e", "d"]
    assert [row.trial_id for row in ranked if row.on_front] == ["b", "a"]
    assert [row.state for row in ranked] == ["completed"] * 3 + ["failed", "pruned"]
    assert [row.seconds for row in ranked] == [2.0] * 3 + [None, 2.0]


def test_a_sweep_without_trials_has_no_rows(sweep: Sweep, folder: SweepFolder) -> None:
    assert rows(folder, sweep) == []
