"""Files that earlier versions wrote can be read: tests/kept has small ones, from before the code lay in folders.

model/    a champion as MLflow keeps it, with its bundle in data/bundle; its code is imported as orchestrator.pyfunc
begun/    a sweep of four trials that was killed while two of them were done and two were running
"""

import shutil
from pathlib import Path

import pytest

from core import DirectionSet
from core.errors import UserError
from orchestrator.search.fork import carry_over, forked
from orchestrator.search.ledger import Ledger
from orchestrator.search.ranking import rows
from orchestrator.store.folder import SweepFolder
from orchestrator.store.study import create_study

KEPT = Path(__file__).parent / "kept"


@pytest.fixture
def begun(tmp_path: Path) -> SweepFolder:
    """A copy, for a study is written to."""
    shutil.copytree(KEPT / "begun", tmp_path / "begun")
    return SweepFolder(tmp_path, "begun")


def test_a_bundle_is_read() -> None:
    directions = DirectionSet.load(KEPT / "model" / "data" / "bundle")
    assert len(directions) == 3 and directions.provenance["sweep"] == "before" and len(directions.dials) == 3


def test_a_study_is_read(begun: SweepFolder) -> None:
    first, second, *others = rows(begun, begun.sweep())
    assert [first.state, second.state] == ["completed"] * 2 and len(others) == 2
    assert {each.state for each in others} == {"interrupted"}
    assert (first.trial_id, first.iteration) == ("d79dd39557", 400) and first.metrics["identifiability"] > 0.9
    assert begun.trial(first.trial_id).latest().step == 400 and not begun.trial(first.trial_id).latest().damaged


def test_a_sweep_does_not_go_on_and_a_new_one_tries_its_best_first(begun: SweepFolder, tmp_path: Path) -> None:
    """Its trials were measured otherwise."""
    with pytest.raises(UserError, match="^sweep 'begun' was started by an earlier version, "):
        begun.refuse_changed(begun.sweep())
    source, sweep = forked(begun.sweep(), tmp_path)
    assert source == begun and sweep.name == "begun-2"
    study, weights = tmp_path / "study.db", begun.read()["weights"]
    carry_over(begun, sweep, create_study(sweep, study), weights)
    ledger = Ledger(sweep, study, weights)
    for row in rows(begun, begun.sweep())[:2]:
        given = ledger.next_attempt()
        assert given is not None and row.parameters.items() <= given.parameters.items()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # MLflow's, of its own
def test_a_registered_model_is_loaded_by_the_name_that_its_code_had() -> None:
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model(str(KEPT / "model"))
    name = DirectionSet.load(KEPT / "model" / "data" / "bundle").names[0]
    images = model.predict(pd.DataFrame({"seed": [1, 1], "direction": [name] * 2, "scale": [0.0, 2.0]}))
    assert images.shape == (2, 32, 32, 3) and (images[0] != images[1]).any()
