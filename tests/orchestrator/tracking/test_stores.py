"""Sweeps on servers: the study in PostgreSQL, runs on an MLflow server over PostgreSQL, files in an S3 behind it."""

import gc
import json
import os
import random
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from PIL import Image

from benchmarks.servers import (
    PASSWORD,
    Postgresql,
    environment,
    free_port,
    mlflow_server,
    postgresql,
    postgresql_binaries,
    s3_client,
    s3_secrets,
    s3_server,
    wait,
)
from benchmarks.stores import Load, SweepRun, drive, side_by_side, sweep_of, wrong
from core.errors import UserError
from orchestrator.bundle.export import result_of
from orchestrator.search.ledger import METRICS, OUTCOME, Assignment, Ledger
from orchestrator.search.ranking import rows
from orchestrator.spec import Sweep, parse
from orchestrator.store import database as module
from orchestrator.store.database import Database, passing_reason, shown_place
from orchestrator.store.folder import SweepFolder
from orchestrator.store.study import check_place, create_study, open_study, refuse_damaged
from orchestrator.tracking.client import Tracking
from orchestrator.trial.outcome import TrialOutcome
from tests.orchestrator.conftest import Command, report_at

BINARIES = postgresql_binaries()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BINARIES is None, reason="no PostgreSQL on this machine: install its initdb and postgres"),
]

SMALL = Load(streams=8, reports=5, curve=48)  # 500 points in each stream
AWAY_S = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[Postgresql]:
    assert BINARIES is not None
    with postgresql(BINARIES) as started:
        yield started


@pytest.fixture(scope="module")
def study(server: Postgresql) -> str:
    """The address of a database for studies."""
    return server.database("studies")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server("stores") as address:
        yield address


@pytest.fixture(scope="module")
def mlflow_uri(server: Postgresql, s3: str) -> Iterator[str]:
    """A server that keeps its runs in PostgreSQL and files in the S3, whose keys nobody else has."""
    backend = server.database("mlflow").replace("postgresql", "postgresql+psycopg", 1)
    with mlflow_server(backend, "s3://stores/artifacts", **s3_secrets(s3)) as address:
        yield address


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(os.environ) - set(environment()):
        if not name.startswith("MLFLOW_"):
            monkeypatch.delenv(name)


def started_sweep(name: str, root: Path, uri: str | None, **sections: Any) -> tuple[Sweep, SweepFolder]:
    """A sweep whose study has been made."""
    base: dict[str, Any] = {"name": name, "model": "toyfaces", "train": {"iterations": 100}, "study": {"uri": uri}}
    base |= {"search": {"directions": {"choice": [8, 16]}, "shift_scale": {"float": [0.5, 2.0]}}}
    sweep = parse(base | {"objectives": [{"identifiability": "max"}, {"fidelity_kid": "min"}]} | sections)
    folder = SweepFolder(root, name)
    folder.create(sweep, "weights")
    create_study(sweep, folder.study_place)
    folder.add(study=shown_place(folder.study_place))
    return sweep, folder


def test_eight_trials_at_a_time(
    tmp_path: Path, study: str, mlflow_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of("streams", SMALL, mlflow_uri, study)
    course = drive(sweep, tmp_path, SMALL)
    assert course.unsent == 0 and not wrong(sweep, tmp_path, SMALL)
    with capsys.disabled():
        print(f"\n{SMALL.points * SMALL.streams / course.sent_s:,.0f} points/s through one driver")
    ranked = rows(SweepFolder(tmp_path, "streams"), sweep)
    assert [row.state for row in ranked] == ["completed"] * 8 and not (tmp_path / "streams" / "study.db").exists()


def test_two_sweeps_side_by_side(tmp_path: Path, study: str, mlflow_uri: str, server: Postgresql) -> None:
    load = Load(streams=4, reports=4, curve=23)
    fresh = server.database("side")  # of two that find no tables, each wants to make them
    seconds, courses = side_by_side(2, tmp_path, load, mlflow_uri, fresh)
    assert [course.unsent for course in courses] == [0] * 2
    for number in range(2):
        sweep = sweep_of(f"sweep-{number}", load, mlflow_uri, fresh)
        assert not wrong(sweep, tmp_path, load)
        assert len(rows(SweepFolder(tmp_path, sweep.name), sweep)) == 4
    assert server.query("side", "SELECT count(*) FROM studies") == "2"


def test_servers_that_are_away_for_a_while(tmp_path: Path, study: str, mlflow_uri: str, server: Postgresql) -> None:
    """Study and runs are in the same PostgreSQL, which goes in the middle and comes back."""
    load = replace(SMALL, reports=40, curve=8)
    sweep, courses = sweep_of("away", load, mlflow_uri, study), list[SweepRun]()
    driver = threading.Thread(target=lambda: courses.append(drive(sweep, tmp_path, load)), daemon=True)
    driver.start()
    count = f"SELECT count(*) FROM trial_user_attributes WHERE key = 'reports' AND value_json LIKE '%\"{3 * 8}\"%'"
    there = "SELECT to_regclass('trial_user_attributes') IS NOT NULL"
    wait(lambda: server.query("studies", there) == "t", "the study's tables")
    wait(lambda: server.query("studies", count) != "0", "the third report")
    server.stop()
    try:
        time.sleep(AWAY_S)
        assert driver.is_alive()
    finally:
        server.start()
    driver.join(240)
    assert [course.unsent for course in courses] == [0] and not wrong(sweep, tmp_path, load)
    assert [row.state for row in rows(SweepFolder(tmp_path, "away"), sweep)] == ["completed"] * 8


def _life(sweep: Sweep, folder: SweepFolder) -> list[dict[str, Any]]:
    """Every row of trials that end in every way, of interruptions, new starts, and more trials than chance draws."""

    def opened() -> Ledger:
        ledger = Ledger(sweep, folder.study_place, "weights")
        ledger.close_strays()
        return ledger

    def next_of(ledger: Ledger) -> Assignment:
        given = ledger.next_attempt()
        assert given is not None
        return given

    ledger = opened()
    for outcome in (TrialOutcome.PREEMPTED, TrialOutcome.FAILED, TrialOutcome.DIVERGED, TrialOutcome.PRUNED):
        given = next_of(ledger)
        ledger.reported(given.trial_id, 50, 0.4, stopped=outcome == TrialOutcome.PRUNED)
        again = ledger.ends_for_retry(given.trial_id, outcome)
        ledger.end(given.trial_id, outcome, "why \u2028 \x00 ü", report_at(50, float("inf"), float("nan")), again)
    for number in range(8):
        ledger = opened() if number % 3 == 0 else ledger
        given = next_of(ledger)
        scale = float(given.parameters["shift_scale"])
        ledger.end(given.trial_id, TrialOutcome.COMPLETED, "", report_at(100, scale, abs(scale - 1) / 3))
    ledger.count_time(0)
    next_of(ledger)
    told = opened().study.trials
    return [
        {"state": row.state, "values": row.values, "params": row.params, "number": row.number}
        | {"told": repr(sorted(row.user_attrs.items())), "kept": repr(sorted(row.system_attrs.items()))}
        for row in told
    ]


def test_a_study_is_the_same_on_postgresql_and_sqlite(tmp_path: Path, study: str) -> None:
    lives = [_life(*started_sweep("life", tmp_path / kind, uri)) for kind, uri in (("file", None), ("server", study))]
    assert lives[0] == lives[1] and len(lives[0]) == 13
    assert any(METRICS in row["told"] and OUTCOME in row["told"] for row in lives[1])


@pytest.mark.filterwarnings("ignore:<psycopg.Connection:ResourceWarning")  # of studies that failed to open
def test_answers_that_are_lost_leave_nothing_twice(tmp_path: Path, study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server often ends right after a commit, before it has said so."""
    from sqlalchemy.engine.default import DefaultDialect

    expected = _life(*started_sweep("life", tmp_path / "undisturbed", None))
    sweep, folder = started_sweep("life", tmp_path / "disturbed", study)
    commits, commit, chance = 0, DefaultDialect.do_commit, random.Random(0)

    def lost(self: Any, connection: Any) -> None:
        nonlocal commits
        commit(self, connection)
        commits += 1
        if chance.random() < 0.4:
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr("orchestrator.store.study._RETRY_S", 0.0)
    monkeypatch.setattr("optuna.storages._rdb.storage.time.sleep", lambda _: None)
    monkeypatch.setattr(DefaultDialect, "do_commit", lost)
    found = _life(sweep, folder)
    gc.collect()
    assert commits > 100 and found == expected


def test_sweeps_of_one_name_do_not_mix(tmp_path: Path, study: str, server: Postgresql) -> None:
    made = [started_sweep("twin", tmp_path / root, study) for root in ("one", "other")]
    ledgers = [Ledger(sweep, folder.study_place, "weights") for sweep, folder in made]
    for _ in range(3):
        assert ledgers[0].next_attempt() is not None
    assert [len(ledger.study.trials) for ledger in ledgers] == [3, 0]
    create_study(*[(sweep, folder.study_place) for sweep, folder in made][0])  # a start that was killed
    assert server.query("studies", "SELECT count(*) FROM studies WHERE study_name LIKE 'twin-%'") == "2"


def test_a_study_stays_where_it_is(tmp_path: Path, study: str, server: Postgresql) -> None:
    sweep, folder = started_sweep("stays", tmp_path, study)
    state = folder.path / "sweep.json"
    assert stat.S_IMODE(state.stat().st_mode) == 0o600 and PASSWORD not in json.dumps(folder.read()["study"])
    for uri in (None, server.uri("postgres"), study.replace("127.0.0.1", "localhost")):
        other = sweep.model_copy(update={"study": sweep.study.model_copy(update={"uri": uri})})
        folder.refuse_changed(other)  # it is the same sweep
        with pytest.raises(UserError, match="^study.uri: the trials of sweep 'stays' are in postgresql://[*]") as told:
            folder.study_place_of(other)
        assert "\n" not in str(told.value) and "geheim" not in str(told.value)
    renewed = study.replace("geheim", "renewed").replace("postgresql://", "postgresql+psycopg://")
    other = sweep.model_copy(update={"study": sweep.study.model_copy(update={"uri": renewed})})
    assert folder.study_place_of(other) == Database(renewed, f"stays-{folder.read()['id']}")
    folder.keep_address(other)
    assert folder.sweep().study.uri == renewed and stat.S_IMODE(state.stat().st_mode) == 0o600


def test_a_study_that_has_gone(tmp_path: Path, study: str, server: Postgresql) -> None:
    sweep, folder = started_sweep("gone", tmp_path, study)
    server.query("studies", "UPDATE studies SET study_name = 'hidden' WHERE study_name LIKE 'gone-%'")
    for call in (lambda: refuse_damaged(folder.study_place, "gone"), lambda: open_study("gone", folder.study_place)):
        with pytest.raises(UserError, match="does not hold the study 'gone-.*; nothing was written$"):
            call()
    empty = Database(server.database("empty"), "gone")
    assert (
        not empty.holds() and server.query("empty", "SELECT count(*) FROM pg_tables WHERE schemaname='public'") == "0"
    )


def test_a_database_of_no_use_is_told_in_one_sentence(study: str, server: Postgresql) -> None:
    sweep, _ = sweep_of("x", SMALL, None, study), check_place(sweep_of("x", SMALL, None, study))
    server.query("postgres", "CREATE ROLE guest LOGIN PASSWORD 'guest-word'")
    there = server.uri("studies", "")
    cases = {
        study.replace("geheim", "wrongword"): "password authentication failed",
        server.uri("nowhere"): 'database "nowhere" does not exist',
        f"postgresql://anna:wrongword@127.0.0.1:{free_port()}/x": "Connection refused",
        "postgresql://anna:wrongword@host:port/x": "is no address of a database; allowed: postgresql://user@host",
        there.replace("//", "//guest:guest-word@"): "may not write to the table studies",
        server.uri("postgres", "guest:guest-word@"): "may not write to the database",
    }
    for uri, why in cases.items():
        place_of = sweep.study.model_copy(update={"uri": uri})
        with pytest.raises(UserError) as told:
            check_place(sweep.model_copy(update={"study": place_of}))
        text = str(told.value)
        assert why in text and "\n" not in text and text.startswith("study.uri: ")
        assert not any(word in text for word in ("geheim", "wrongword", "guest-word")), text


def test_the_password_may_stand_elsewhere(server: Postgresql, study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    Database(server.uri("studies", "anna@"), "x").check()


def test_without_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'psycopg'")

    monkeypatch.setattr(module, "create_engine", missing)
    with pytest.raises(UserError, match="^study.uri: PostgreSQL needs psycopg; install it with: pip install"):
        Database("postgresql://host/x", "x").check()


def test_a_sweep_is_refused_before_anything_is_written(command: Command, tmp_path: Path) -> None:
    uri = f"postgresql://anna:geheim@127.0.0.1:{free_port()}/x"
    spec = {
        "name": "refused",
        "model": "toyfaces",
        "search": {"directions": {"choice": [8, 16]}},
        "study": {"uri": uri},
    }
    (tmp_path / "refused.json").write_text(json.dumps(spec))
    done = command("sweep", "refused.json", "--root", tmp_path / "runs")
    told = done.stdout + done.stderr
    assert done.returncode == 2 and "study.uri: the database postgresql://***@127.0.0.1" in told
    assert "geheim" not in told and not (tmp_path / "runs" / "refused").exists()


@pytest.mark.parametrize(
    ("state", "passes"),
    [("57P01", True), ("40P01", True), ("53100", True), ("08006", True), ("42P01", False), ("22001", False)],
)
def test_what_passes(state: str, passes: bool) -> None:
    from sqlalchemy.exc import DBAPIError

    error = psycopg.errors.lookup(state)("said")
    wrapped = DBAPIError.instance("SELECT", {}, error, psycopg.Error)
    assert (passing_reason(wrapped) == "said") == passes  # type: ignore[arg-type]
    assert passing_reason(ValueError("x")) is None


def test_files_go_through_the_server_alone(tmp_path: Path, mlflow_uri: str, s3: str) -> None:
    """Whoever sends them has no key of the store behind it; names with signs of addresses arrive."""
    assert not [name for name in os.environ if name.startswith("AWS_")]
    tracking = Tracking(mlflow_uri, tmp_path)
    tracking.check()
    experiment = tracking.experiment("files")
    run = tracking.start_parent(experiment, "files", {"sweep_id": "1"}, {"name": "files"})
    Image.new("RGB", (300, 20), (9, 8, 7)).save(tmp_path / "grid.png")
    (tmp_path / "set").mkdir()
    for name in ("100%+a b.json", "50%.txt", "ü.json"):
        (tmp_path / "set" / name).write_text(name)
    tracking.image(run, tmp_path / "grid.png", "50%+more/of it", 7, 1000)
    tracking.folder(run, tmp_path / "set", "a set")
    names = sorted(Path(file.path).name for file in tracking.client.list_artifacts(run, "images"))
    assert len(names) == 2 and all(name.startswith("50%+more~of it+step+7+timestamp+1000+") for name in names)
    fetched = tracking.download(run, "a set", tmp_path / "fetched")
    assert {path.name: path.read_text() for path in fetched.iterdir()} == {
        name: name for name in ("100%+a b.json", "50%.txt", "ü.json")
    }
    pictures = tracking.download(run, "images", tmp_path / "fetched")
    [picture] = pictures.glob("*.png")
    with Image.open(picture) as image:
        assert image.size == (300, 20) and image.getpixel((0, 0)) == (9, 8, 7)
    kept = s3_client(s3).list_objects_v2(Bucket="stores", Prefix="artifacts/")["Contents"]
    assert any("50%+more~of it+step+7" in each["Key"] for each in kept)


def test_a_set_that_only_mlflow_has(tmp_path: Path, study: str, mlflow_uri: str) -> None:
    load = Load(streams=1, reports=2, curve=3, files=True)
    sweep = sweep_of("fetched", load, mlflow_uri, study)
    assert drive(sweep, tmp_path, load).unsent == 0 and not wrong(sweep, tmp_path, load)
    folder = SweepFolder(tmp_path, "fetched")
    [row] = rows(folder, sweep)
    for checkpoint in folder.trial(row.trial_id).path.glob("checkpoint_*"):
        checkpoint.rename(tmp_path / checkpoint.name)
    (tmp_path / "to").mkdir()
    found = result_of(folder, row.trial_id, tmp_path / "to")
    assert json.loads((found / "directions" / "directions.json").read_text()) == {"number": 2}
    with Image.open(found / "traversal.png") as image:
        assert image.getpixel((0, 0)) == (2, 0, 0)


def test_a_server_that_does_not_know_its_own_name(tmp_path: Path) -> None:
    with mlflow_server(f"sqlite:///{tmp_path}/m.db", str(tmp_path / "files"), "--allowed-hosts", "elsewhere:80") as uri:
        with pytest.raises(UserError) as told:
            Tracking(uri, tmp_path).check()
    host = uri.removeprefix("http://")
    assert f"does not know itself by that name; start it with --allowed-hosts '{host}'" in str(told.value)
