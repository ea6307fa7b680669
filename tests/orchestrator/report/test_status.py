"""How a sweep stands, from what is on disk."""

import io
import json
import os
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from rich.console import Console

from core.errors import UserError
from orchestrator.cli.main import main
from orchestrator.report.status import read, show, watch
from orchestrator.search.ledger import Ledger
from orchestrator.spec import parse
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driving
from orchestrator.store.spool import Spool
from orchestrator.store.study import create_study
from orchestrator.trial.outcome import TrialOutcome
from tests.orchestrator.conftest import report_at


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """Three trials: one completed, one that was on its way when its sweep was killed, one that waits to go on."""
    given = {"search": {"shift_scale": {"float": [0.5, 2.0]}}, "objectives": [{"identifiability": "max"}]}
    sweep = parse({"name": "a", "model": "toyfaces", "budget": {"trials": 4}} | given)
    folder = SweepFolder(tmp_path, "a")
    folder.create(sweep, "weights")
    create_study(sweep, folder.study_file)
    folder.add(study=folder.study_file.name)
    ledger = Ledger(sweep, folder.study_file, "weights")
    given = [ledger.next_attempt() for _ in range(3)]
    ids = [each.trial_id for each in given if each is not None]
    ledger.end(ids[0], TrialOutcome.COMPLETED, "", report_at(400, 0.75))
    ledger.reported(ids[1], 100, 0.5, stopped=False)
    again = ledger.ends_for_retry(ids[2], TrialOutcome.FAILED)
    ledger.end(ids[2], TrialOutcome.FAILED, "crashed", again=again)
    return folder


def text_of(root: Path, name: str | None = None) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    show(root, name, console)
    return console.export_text()


@pytest.mark.slow
def test_what_was_interrupted_runs_or_is_complete(folder: SweepFolder, tmp_path: Path) -> None:
    assert text_of(tmp_path).startswith(
        "a: interrupted, the same command goes on; 3 of 4 trials: 1 completed, 2 interrupted; "
        "best identifiability 0.75 (trial "
    )
    with driving(folder.lock, "sweep 'a'"):
        running = text_of(tmp_path)
    assert running.startswith("a: running (process ") and "1 completed, 1 running, 1 waiting" in running
    folder.result.write_text("{}")
    assert text_of(tmp_path).startswith("a: complete; 3 of 4 trials")


def rows_of(text: str) -> list[list[str]]:
    """The cells of the table, without the trials' ids."""
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("trial "))
    return [line.split()[1:] for line in lines[first + 1 : first + 4]]


@pytest.mark.slow
def test_one_sweep_with_its_trials(folder: SweepFolder, tmp_path: Path) -> None:
    text = text_of(tmp_path, "a")
    assert rows_of(text) == [
        ["interrupted", "100/400", "0.500", "0.500"],
        ["interrupted", "0/400", "-", "-"],
        ["completed", "400/400", "0.750", "0.750"],
    ]
    assert text.splitlines()[-1] == "0:00 under way in all"


@pytest.mark.slow
def test_a_trial_that_waits_stands_where_it_goes_on_from(folder: SweepFolder, tmp_path: Path) -> None:
    waiting = read(folder).progress.trials[2]
    for step in (9, 11):
        file = folder.trial(waiting.trial_id).path / f"checkpoint_{step:08d}" / "state.json"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    assert rows_of(text_of(tmp_path, "a"))[1] == ["interrupted", "11/400", "-", "-"]
    with driving(folder.lock, "sweep 'a'"):
        found = read(folder).progress.trials[2]
    assert (found.iteration, found.ends) == (11, None)


@pytest.mark.slow
def test_a_sweep_that_runs_says_how_long_it_will(folder: SweepFolder, tmp_path: Path) -> None:
    running = next(iter(read(folder).progress.of(over=False)))
    began = running.began or 0.0
    for step, when in ((50, began - 1), (100, began + 20), (120, began + 30)):
        file = folder.trial(running.trial_id).path / f"checkpoint_{step:08d}" / "state.json"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        os.utime(file, (when, when))
    with driving(folder.lock, "sweep 'a'"):
        found, text = read(folder).progress, text_of(tmp_path, "a")
    assert found.trials[1].iteration == 120 and found.trials[1].ends == pytest.approx(began + 30 + 280 / 2)
    assert rows_of(text)[0][:4] == ["running", "120/400", "0.500", "0.500"]
    assert rows_of(text)[1] == ["waiting", "0/400", "-", "-"]
    assert "1 done, 1 running, 1 waiting, 1 left; best identifiability 0.750 (trial " in text and "about " in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("driven", [True, False])
def test_it_fits_the_terminal(folder: SweepFolder, tmp_path: Path, width: int, driven: bool) -> None:
    """Of columns those of least worth are left out; all else is there."""
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=True)
    with driving(folder.lock, "sweep 'a'") if driven else nullcontext():
        show(tmp_path, None, console)
        show(tmp_path, "a", console)
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    text = " ".join(" ".join(lines).split())
    assert text.count("3 of 4 trials: 1 completed, ") == 2
    for trial in read(folder).progress.trials:
        [row] = [line for line in lines if line.split()[:1] == [trial.trial_id] and len(line.split()) > 2]
        assert ("0.750" in row) == (trial.state == "completed")


@pytest.mark.slow
def test_as_json(folder: SweepFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sweep.json").write_text("{")
    assert main(["status", "--json", "--root", str(tmp_path)]) == 0
    found, damaged = json.loads(capsys.readouterr().out)["sweeps"]
    assert damaged["name"] == "b" and "is damaged" in damaged["error"]
    assert found.pop("trials")[0] == {
        "trial_id": found["best_trial"],
        "state": "completed",
        "over": True,
        "iteration": 400,
        "value": 0.75,
        "best": 0.75,
        "interval": None,
        "doing": None,
        "elapsed_seconds": pytest.approx(0.0, abs=60),
        "left_seconds": None,
    }
    assert len(found.pop("best_trial")) == 10
    assert found == {
        "name": "a",
        "state": "interrupted",
        "driver": None,
        "metric": "identifiability",
        "better": "max",
        "iterations": 400,
        "trials_total": 4,
        "trials_done": 1,
        "trials_active": 2,
        "best": 0.75,
        "elapsed_seconds": 0.0,
        "left_seconds": None,
        "mlflow_records_waiting": 0,
        "mlflow_records_refused": 0,
    }


@pytest.mark.slow
def test_watching_ends_with_the_sweep_or_with_ctrl_c(
    folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    with driving(folder.lock, "sweep 'a'") as _:
        looks = iter([None, None])

        def interrupted(_: float) -> None:
            if next(looks, 1):
                raise KeyboardInterrupt

        monkeypatch.setattr(time, "sleep", interrupted)
        watch(tmp_path, "a", console)
    lines = console.export_text().splitlines()
    assert [line.startswith("a: running (process ") for line in lines].count(True) == 4, "three looks, and the end"
    monkeypatch.undo()
    watch(tmp_path, "a", console)  # nothing runs: it ends at once
    assert console.export_text().splitlines()[0].startswith("a: interrupted")


def test_watching_ends_where_nobody_reads_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("orchestrator.report.status._looked", lambda *_: [])
    monkeypatch.setattr("orchestrator.report.status._driven", lambda _: True)
    monkeypatch.setattr("orchestrator.report.status._print", lambda _, __, console: setattr(console, "quiet", True))
    watch(tmp_path, "a", Console(file=io.StringIO()), every_s=0.0)


def test_watching_and_data_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["status", "--json", "--watch"])
    assert "--watch" in capsys.readouterr().err


@pytest.mark.slow
def test_what_mlflow_has_not_got_is_told(folder: SweepFolder, tmp_path: Path) -> None:
    spool = Spool(folder.outbox)
    for _ in range(3):
        spool.put({"kind": "tags"})
    spool.set_aside(1, "refused")
    assert "; 2 records for MLflow not sent yet; 1 record refused by MLflow, in " in text_of(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["{", "{}", '{"id": 1, "identity": 1, "spec": {}, "weights": 1, "versions": 1}'])
def test_a_damaged_sweep_hides_no_other(folder: SweepFolder, tmp_path: Path, content: str) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sweep.json").write_text(content)
    text = text_of(tmp_path)
    assert text.startswith("a: interrupted") and "b: " in text and "sweep.json is damaged" in text
    with pytest.raises(UserError, match="sweep.json is damaged"):
        show(tmp_path, "b", Console(file=io.StringIO()))
    folder.study_file.unlink()
    assert "study.db is missing" in text_of(tmp_path)


def test_a_sweep_before_its_first_trial(tmp_path: Path) -> None:
    search = {"directions": {"choice": [8, 16]}}
    SweepFolder(tmp_path, "c").create(parse({"name": "c", "model": "toyfaces", "search": search}), "weights")
    assert text_of(tmp_path, "c").strip() == "c: interrupted, the same command goes on; 0 of 2 trials"
