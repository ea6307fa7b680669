"""What Ray Tune is given to run, and which trials fall behind."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator.search.ledger import Ledger
from orchestrator.spec import Sweep, parse
from orchestrator.store.study import create_study
from orchestrator.sweep.tune_search import LedgerAsha, LedgerSearch
from orchestrator.trial.outcome import TrialOutcome
from tests.orchestrator.conftest import report_at


def sweep_with(**sections: Any) -> Sweep:
    base: dict[str, Any] = {"name": "a", "model": "toyfaces", "search": {"shift_scale": {"float": [0.5, 2.0]}}}
    base |= {"objectives": [{"identifiability": "max"}], "budget": {"trials": 9}}
    return parse(base | {"scheduler": {"asha": {"grace": 100}}} | sections)


def opened(sweep: Sweep, folder: Path) -> Ledger:
    create_study(sweep, folder / "study.db")
    return Ledger(sweep, folder / "study.db", "weights")


def test_it_hands_out_what_comes_next_until_all_is_done(tmp_path: Path) -> None:
    ledger, held, over = opened(sweep_with(budget={"trials": 1}), tmp_path), [True], [False]
    room = [0]
    search = LedgerSearch(ledger, lambda: held[0], lambda: over[0], lambda: room[0])
    assert search.suggest("t") is None, "the disk is full"
    held[0] = False
    assert search.suggest("t") is None and not ledger.begun(), "no machine has room"
    room[0] = 2
    given = search.suggest("t")
    assert isinstance(given, dict) and given["attempt"] == 1 and given["out_of_memory"] == 0
    assert given["parameters"]["method"] == "learned" and given["trial_id"] in ledger.running()
    assert search.suggest("u") is None, "it may have to be run again"
    again = ledger.ends_for_retry(given["trial_id"], TrialOutcome.OUT_OF_MEMORY)
    ledger.end(given["trial_id"], TrialOutcome.OUT_OF_MEMORY, "", again=again)
    second = search.suggest("v")
    assert second == given | {"attempt": 2, "out_of_memory": 1}
    ledger.end(given["trial_id"], TrialOutcome.COMPLETED, "", report_at(400))
    assert search.suggest("w") == Searcher.FINISHED


def test_when_the_sweep_is_over_nothing_starts(tmp_path: Path) -> None:
    ledger = opened(sweep_with(), tmp_path)
    assert LedgerSearch(ledger, lambda: False, lambda: True, lambda: 1).suggest("t") == Searcher.FINISHED
    assert not ledger.begun()


def trial(trial_id: str, method: str = "learned", attempt: int = 1) -> Any:
    """As much of Tune's trial as ASHA looks at. Tune gives every attempt an id of its own."""
    config = {"trial_id": trial_id, "parameters": {"method": method}}
    return SimpleNamespace(trial_id=f"{trial_id}_{attempt}", config=config)


def at(step: int, value: float, metric: str = "identifiability") -> dict[str, Any]:
    return {"global_step": step, metric: value}


def test_a_set_found_at_once_stops_no_trial_that_is_still_learning(tmp_path: Path) -> None:
    """The last rung is at iteration 300 of 400, so that the ends of others would be compared with the way there."""
    sweep = sweep_with(method={"choice": ["learned", "pca"]})
    asha = LedgerAsha(sweep, opened(sweep, tmp_path))
    for number in range(5):
        found = trial(f"pca{number}", "pca")
        asha.on_trial_add(None, found)
        assert asha.on_trial_result(None, found, at(400, 0.99)) == TrialScheduler.CONTINUE
        asha.on_trial_complete(None, found, at(400, 0.99))
    trials = [trial(f"learned{number}") for number in range(4)]
    for each in trials:
        asha.on_trial_add(None, each)
    values = [0.3, 0.4, 0.5, 0.1]
    ends = [asha.on_trial_result(None, each, at(300, value)) for each, value in zip(trials, values, strict=True)]
    assert ends == [TrialScheduler.CONTINUE] * 3 + [TrialScheduler.STOP]
    assert asha.on_trial_result(None, trials[0], at(400, 0.3)) == TrialScheduler.STOP, "at its end"


def test_trials_of_all_methods_that_train_are_compared(tmp_path: Path) -> None:
    sweep = sweep_with(method={"choice": ["learned", "guided"]})
    asha = LedgerAsha(sweep, opened(sweep, tmp_path))
    trials = [trial(f"{method}{number}", method) for number in range(2) for method in ("learned", "guided")]
    for each in trials:
        asha.on_trial_add(None, each)
    values = [0.3, 0.4, 0.5, 0.1]
    ends = [asha.on_trial_result(None, each, at(300, value)) for each, value in zip(trials, values, strict=True)]
    assert ends == [TrialScheduler.CONTINUE] * 3 + [TrialScheduler.STOP]


def test_nor_does_one_that_was_found_before_the_sweep_was_interrupted(tmp_path: Path) -> None:
    sweep = sweep_with(method={"choice": ["learned", "pca"]})
    ledger = opened(sweep, tmp_path)
    ledger.study.enqueue_trial({"method": "pca"})
    given = ledger.next_attempt()
    assert given is not None
    ledger.reported(given.trial_id, 400, 0.99, stopped=False)
    ledger.end(given.trial_id, TrialOutcome.COMPLETED, "", report_at(400, 0.99))
    asha = LedgerAsha(sweep, ledger)
    asha.on_trial_add(None, trial("learned"))
    assert asha.on_trial_result(None, trial("learned"), at(300, 0.5)) == TrialScheduler.CONTINUE


VALUES = [0.3, 0.9, 0.2, 0.5, 0.6, 0.1]
# Which of them go on from 100 iterations: with a reduction of 3, those in the best third of what came before.
CONTINUES = {"max": [1, 1, 0, 0, 1, 0], "min": [1, 0, 1, 0, 0, 1]}


@pytest.mark.parametrize(
    "interrupted_before", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("metric", "mode"), [("identifiability", "max"), ("fidelity_kid", "min")])
def test_asha_decides_as_if_it_had_never_been_interrupted(
    tmp_path: Path, interrupted_before: int, metric: str, mode: str
) -> None:
    """Trials report at 100; those that go on are at 300 in the same order. One that goes on repeats its last report."""
    decisions = []
    for name, interrupted in (("plain", None), ("interrupted", interrupted_before)):
        (tmp_path / name).mkdir()
        sweep = sweep_with(objectives=[{metric: mode}])
        decisions.append(_decided(sweep, metric, tmp_path / name, interrupted))
    assert decisions[0] == decisions[1]
    assert decisions[0][: len(VALUES)] == [
        TrialScheduler.CONTINUE if at_100 else TrialScheduler.STOP for at_100 in CONTINUES[mode]
    ]


def _decided(sweep: Sweep, metric: str, folder: Path, interrupted: int | None) -> list[str]:
    ledger, decided, names = opened(sweep, folder), [], []
    asha = LedgerAsha(sweep, ledger)
    for n, value in enumerate(VALUES):
        if n == interrupted:
            asha = LedgerAsha(sweep, opened(sweep, folder))
            for name in names:
                asha.on_trial_add(None, trial(name, attempt=2))
                repeated = asha.on_trial_result(None, trial(name, attempt=2), at(100, 0.0, metric))
                assert repeated == TrialScheduler.CONTINUE
        given = ledger.next_attempt()
        assert given is not None
        names.append(given.trial_id)
        asha.on_trial_add(None, trial(given.trial_id))
        decided.append(asha.on_trial_result(None, trial(given.trial_id), at(100, value, metric)))
        ledger.reported(given.trial_id, 100, value, decided[-1] == TrialScheduler.STOP)
    late = [asha.on_trial_result(None, trial(name), at(300, v, metric)) for name, v in zip(names, VALUES, strict=True)]
    return decided + late
