"""How a sweep stands, from what is on disk."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from core.errors import UserError
from orchestrator.ledger import Ledger
from orchestrator.lock import driving
from orchestrator.outcome import TrialOutcome
from orchestrator.spec import parse
from orchestrator.spool import Spool
from orchestrator.status import show
from orchestrator.store import SweepFolder
from orchestrator.study import create_study
from tests.orchestrator.conftest import report_at


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """Three trials: one completed, one that was on its way when its sweep was killed, one that waits to go on."""
    search = {"shift_scale": {"float": [0.5, 2.0]}}
    sweep = parse({"name": "a", "model": "toyfaces", "search": search, "budget": {"trials": 4}})
    folder = SweepFolder(tmp_path, "a")
    folder.create(sweep, "weights")
    create_study(sweep, folder.study)
    folder.add(study=folder.study.name)
    ledger = Ledger(sweep, folder.study, "weights")
    given = [ledger.next() for _ in range(3)]
    ids = [each.trial_id for each in given if each is not None]
    ledger.end(ids[0], TrialOutcome.COMPLETED, "", report_at(400, 0.75))
    ledger.reported(ids[1], 100, 0.5, stopped=False)
    again = ledger.may_go_on(ids[2], TrialOutcome.FAILED)
    ledger.end(ids[2], TrialOutcome.FAILED, "crashed", again=again)
    return folder


def text_of(root: Path, name: str | None = None) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    show(root, name, console)
    return console.export_text()


def test_what_was_interrupted_runs_or_is_complete(folder: SweepFolder, tmp_path: Path) -> None:
    assert text_of(tmp_path).startswith(
        "a: interrupted, the same command goes on; 3 of 4 trials: 1 completed, 2 interrupted; "
        "best identifiability 0.750 (trial "
    )
    with driving(folder.lock, "sweep 'a'"):
        running = text_of(tmp_path)
    assert running.startswith("a: running (process ") and "1 completed, 1 running, 1 waiting" in running
    folder.result.write_text("{}")
    assert text_of(tmp_path).startswith("a: complete; 3 of 4 trials")


def test_one_sweep_with_its_trials(folder: SweepFolder, tmp_path: Path) -> None:
    lines = text_of(tmp_path, "a").splitlines()
    rows = [line.split()[1:3] for line in lines if "interrupted" in line and not line.startswith("a:")]
    assert [state for state, _ in rows] == ["interrupted"] * 2
    assert {iteration for _, iteration in rows} == {"100", "0"}, "the last that was reported"


def test_what_mlflow_has_not_got_is_told(folder: SweepFolder, tmp_path: Path) -> None:
    spool = Spool(folder.outbox)
    for _ in range(3):
        spool.put({"kind": "tags"})
    spool.set_aside(1, "refused")
    assert "; 2 records for MLflow not sent yet; 1 record refused by MLflow, in " in text_of(tmp_path)


def test_a_damaged_sweep_hides_no_other(folder: SweepFolder, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sweep.json").write_text("{")
    text = text_of(tmp_path)
    assert text.startswith("a: interrupted") and "b: " in text and "sweep.json is damaged" in text
    with pytest.raises(UserError, match="sweep.json is damaged"):
        show(tmp_path, "b", Console(file=io.StringIO()))
    folder.study.unlink()
    assert "study.db is missing" in text_of(tmp_path)


def test_a_sweep_before_its_first_trial(tmp_path: Path) -> None:
    search = {"directions": {"choice": [8, 16]}}
    SweepFolder(tmp_path, "c").create(parse({"name": "c", "model": "toyfaces", "search": search}), "weights")
    assert text_of(tmp_path, "c").strip() == "c: interrupted, the same command goes on; 0 of 2 trials"
