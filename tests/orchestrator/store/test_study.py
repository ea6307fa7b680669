"""The study's file is refused as it is where it is damaged, and waited for where another process has it."""

import random
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy.engine.default import DefaultDialect

from core.errors import UserError
from orchestrator import interruption
from orchestrator.spec import Sweep, parse
from orchestrator.store import study as module
from orchestrator.store.study import create_study, open_study

SWEEP: dict[str, Any] = {"name": "a", "model": "toyfaces", "search": {"directions": {"choice": [8, 16]}}}


@pytest.fixture
def sweep() -> Sweep:
    return parse(SWEEP)


@pytest.fixture
def path(sweep: Sweep, tmp_path: Path) -> Path:
    study = create_study(sweep, tmp_path / "study.db")
    for _ in range(3):
        study.tell(study.ask(), 0.5)
    study._storage.remove_session()
    return tmp_path / "study.db"


ODD = "what?now#50%20{x};é &'\"+@:"  # characters that mean something else in an address


def test_a_study_lies_in_its_own_folder_whatever_the_name_of_that(sweep: Sweep, tmp_path: Path) -> None:
    folders = [tmp_path / "what", tmp_path / ODD]
    for number, folder in enumerate(folders, start=1):
        folder.mkdir()
        study = create_study(sweep, folder / "study.db")
        for _ in range(number):
            study.tell(study.ask(), 0.5)
        study._storage.remove_session()
    assert [len(open_study("a", folder / "study.db").trials) for folder in folders] == [1, 2]
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == {
        *(folder.relative_to(tmp_path) for folder in folders),
        *(folder.relative_to(tmp_path) / "study.db" for folder in folders),
    }


def test_a_folder_that_no_address_can_hold_is_refused(sweep: Sweep) -> None:
    with pytest.raises(UserError) as told:
        create_study(sweep, Path("/runs\udcff/study.db"))
    assert str(told.value) == (
        r"--root: '/runs\udcff' is not UTF-8, so no database can be opened there; name another folder"
    )


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    match how:
        case "overwritten":
            content[4096 : 4096 * 3] = b"\xff" * 8192
        case "truncated":
            del content[len(content) // 2 :]
        case "text":
            content[:] = b"this is no database, but a text of some length\n" * 100
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["overwritten", "truncated", "text"])
def test_a_damaged_file_is_refused_by_name_and_left_as_it_is(path: Path, how: str) -> None:
    damaged(path, how)
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        open_study("a", path)
    told = str(caught.value)
    assert told.startswith(f"{path} is damaged (") and "\n" not in told
    assert told.endswith(f"; restore it from a copy, or remove {path.parent} to start over; nothing was written")
    assert path.read_bytes() == before and [each.name for each in path.parent.iterdir()] == ["study.db"]


@pytest.mark.parametrize("content", [b"", "another database"])
def test_a_database_without_the_study_is_left_as_it_is(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "study.db"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE mine (x)")
        connection.close()
    before = path.read_bytes()
    with pytest.raises(UserError, match=str(path)):
        open_study("a", path)
    assert path.read_bytes() == before


def test_a_file_that_is_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=f"^{tmp_path}/study.db is missing; restore it from a copy, or remove {tmp_path}"
    ):
        open_study("a", tmp_path / "study.db")
    assert not list(tmp_path.iterdir())


def test_a_study_of_another_name(path: Path) -> None:
    with pytest.raises(UserError, match=f"^{path} is damaged .it does not hold the study of this sweep.; restore it "):
        open_study("b", path)


@pytest.mark.slow
def test_what_an_interrupted_start_has_made_is_taken_up(sweep: Sweep, path: Path) -> None:
    assert len(create_study(sweep, path).trials) == 3


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY_S", 0.1)
    monkeypatch.setattr(module, "_RETRY_S", 0.1)


class Holder(threading.Thread):
    """Another process's hold on the file, for some seconds."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__()
        self.seconds, self.began = seconds, threading.Event()
        self.path = path

    def run(self) -> None:
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        self.began.set()
        time.sleep(self.seconds)
        connection.execute("ROLLBACK")
        connection.close()

    def __enter__(self) -> None:
        self.start()
        self.began.wait()

    def __exit__(self, *_: object) -> None:
        self.join()


CALLS = {
    "tell": lambda study: study._storage.set_trial_state_values(4, TrialState.COMPLETE, [0.5]),
    "note": lambda study: study.set_user_attr("a", 1),
    "ask": lambda study: study.ask(),
    "read": lambda study: study.get_trials(),
    "spent": lambda study: study.user_attrs,
}


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("call", ["tell", "note", "ask", "read", "spent"])
def test_a_file_that_another_process_holds_is_waited_for(path: Path, call: str) -> None:
    said: list[str] = []
    study = open_study("a", path, said.append)
    study.ask()
    began = time.monotonic()
    with Holder(path, 1.5):
        CALLS[call](study)
        assert time.monotonic() - began > 1.2
    assert said == ["study: database is locked; waiting, nothing is lost"]
    assert len(open_study("a", path).trials) == (5 if call == "ask" else 4)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_user_who_asks_for_an_end_does_not_wait_for_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_PATIENCE_S", 0.2)
    study = open_study("a", path)
    study.ask()
    with Holder(path, 4):
        began = time.monotonic()
        interruption.ask_to_end()
        try:
            with pytest.raises(KeyboardInterrupt):
                CALLS["tell"](study)
        finally:
            interruption.forget()
        assert time.monotonic() - began < 3


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.RUNNING])
def test_an_answer_that_is_lost_leaves_one_row(path: Path, monkeypatch: pytest.MonkeyPatch, state: TrialState) -> None:
    """A disk often fails right after what was asked is done."""
    study, commit, commits = open_study("a", path), DefaultDialect.do_commit, 0
    chance = random.Random(0)

    def lost(self: Any, connection: Any) -> None:
        nonlocal commits
        commit(self, connection)
        commits += 1
        if chance.random() < 0.4:
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("optuna.storages._rdb.storage.time.sleep", lambda _: None)
    monkeypatch.setattr(DefaultDialect, "do_commit", lost)
    study.enqueue_trial({"x": 0.5}, user_attrs={"mine": 1})
    trial = study.ask()
    assert trial.suggest_float("x", 0, 1) == 0.5 and trial.user_attrs == {"mine": 1}
    other = study.ask()
    other.suggest_float("x", 0, 1)
    if state == TrialState.COMPLETE:
        study.tell(trial, 0.25)
        with pytest.raises(UpdateFinishedTrialError):
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    assert commits > 10
    assert [row.state for row in open_study("a", path).trials][3:] == [state, TrialState.RUNNING]


@pytest.mark.usefixtures("impatient")
def test_so_is_one_that_is_held_when_it_is_opened(path: Path) -> None:
    with Holder(path, 1.0):
        assert len(open_study("a", path).trials) == 3


@pytest.mark.usefixtures("impatient")
def test_what_waiting_does_not_help_is_raised(path: Path) -> None:
    study = open_study("a", path)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE study_user_attributes")
    connection.close()
    with pytest.raises(StorageInternalError):
        study.set_user_attr("a", 1)


@pytest.mark.parametrize("objectives", [["identifiability"], ["identifiability", "fidelity_kid"]])
def test_optunas_own_tools_name_the_objectives(tmp_path: Path, objectives: list[str]) -> None:
    modes = {"identifiability": "max", "fidelity_kid": "min"}
    sweep = parse({**SWEEP, "objectives": [{name: modes[name]} for name in objectives]})
    study = create_study(sweep, tmp_path / "study.db")
    create_study(sweep, tmp_path / "study.db")  # as after an interrupted start
    study.tell(study.ask(), [0.5, 0.1][: len(objectives)])
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    assert optuna.load_study(study_name="a", storage=storage).metric_names == objectives
    storage.engine.dispose()
    study._storage.remove_session()


def test_a_study_of_an_older_version_has_no_names_and_is_read(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        assert connection.execute("DELETE FROM study_system_attributes WHERE key = 'study:metric_names'").rowcount == 1
    connection.close()
    study = open_study("a", path)
    assert study.metric_names is None and [trial.value for trial in study.trials] == [0.5] * 3
    study._storage.remove_session()
