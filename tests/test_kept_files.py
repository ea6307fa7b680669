"""Files that earlier versions wrote open as they did: tests/kept has small ones, from before the code lay in folders.

model/    a champion as MLflow keeps it, with its bundle in data/bundle; its code is imported as orchestrator.pyfunc
begun/    a sweep of four trials that was killed while two of them were done and two were running
"""

import shutil
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from core import DirectionSet
from orchestrator.search.ledger import Ledger
from orchestrator.search.ranking import rows
from orchestrator.store.folder import SweepFolder
from orchestrator.sweep.resume import settle
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.record import SweepRecord

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


def test_a_sweep_goes_on(begun: SweepFolder) -> None:
    """What was running goes on, under the ids that it had; what was done is not run again."""
    sweep = begun.sweep()
    assert sweep.identity() == begun.read()["identity"]
    outbox = create_autospec(Outbox, instance=True)
    record = SweepRecord(sweep, begun, Ledger(sweep, begun.study_place, begun.read()["weights"]), outbox)
    assert sorted(settle(record)) == ["02231d20cd", "2b939e1003"]
    waiting = {assignment.trial_id for _ in range(2) if (assignment := record.ledger.next_attempt())}
    assert waiting == {"02231d20cd", "2b939e1003"} and record.ledger.next_attempt() is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # MLflow's, of its own
def test_a_registered_model_is_loaded_by_the_name_that_its_code_had() -> None:
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model(str(KEPT / "model"))
    name = DirectionSet.load(KEPT / "model" / "data" / "bundle").names[0]
    images = model.predict(pd.DataFrame({"seed": [1, 1], "direction": [name] * 2, "scale": [0.0, 2.0]}))
    assert images.shape == (2, 32, 32, 3) and (images[0] != images[1]).any()
