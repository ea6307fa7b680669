"""A runs folder that was moved or copied: it is noticed, and its store is mended without a look at any other folder."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from core.errors import UserError
from orchestrator.report import status
from orchestrator.spec import parse
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driving
from orchestrator.store.moved import mend, moved
from orchestrator.sweep import resume
from orchestrator.sweep import sweep as driver
from orchestrator.tracking.client import Tracking

SPEC = {"name": "a", "model": "toyfaces", "search": {"directions": {"choice": [8, 16]}}}
TABLES = {
    "experiments": ("experiment_id", "artifact_location"),
    "runs": ("experiment_id", "artifact_uri"),
    "model_versions": ("name", "source", "storage_location"),
    "logged_models": ("experiment_id", "artifact_location"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one sweep, and a store with addresses under it and elsewhere."""
    root = tmp_path / "scratch 50%"
    folder = SweepFolder(root, "a")
    folder.create(parse(SPEC), "weights")
    folder.add(experiment_id="1", parent_run="parent", tracking_uri="sqlite")
    places = (0, "/elsewhere/mlruns/0"), (1, _artifacts(root)), (2, f"{root.as_uri()}2/mlartifacts/a")
    with closing(sqlite3.connect(root / "mlflow.db")) as store, store:
        for table, (key, *columns) in TABLES.items():
            store.execute(f"CREATE TABLE {table} ({key} INTEGER, {', '.join(columns)})")
            for number, place in places:
                values = ", ".join("?" for _ in columns)
                store.execute(f"INSERT INTO {table} VALUES ({number}, {values})", [place] * len(columns))
    return root


def _artifacts(root: Path) -> str:
    return f"{root.as_uri()}/mlartifacts/a"


def _addresses(root: Path) -> dict[str, list[str]]:
    with closing(sqlite3.connect(root / "mlflow.db")) as store:
        return {
            f"{table}.{column}": [place for (place,) in store.execute(f"SELECT {column} FROM {table} ORDER BY rowid")]
            for table, (_, *columns) in TABLES.items()
            for column in columns
        }


def _moved(root: Path, to: Path) -> Path:
    return Path(shutil.move(root, to))


def _copied(root: Path, to: Path) -> Path:
    return shutil.copytree(root, to)


def test_a_folder_in_its_place_is_not_moved(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert moved(root) is None and moved(tmp_path / "link") is None and moved(tmp_path / "nothing") is None
    assert mend(root) == 0


@pytest.mark.parametrize("take", [_moved, _copied])
def test_a_moved_folder_is_noticed_and_mended(root: Path, tmp_path: Path, take: Callable[[Path, Path], Path]) -> None:
    before = _addresses(root)
    place = take(root, tmp_path / "project")
    assert moved(place) == (
        f"{place} was moved or copied from {root}, where MLflow still looks for its pictures and models; "
        f"mend it with: orchestrate status --repair --root {place}"
    )
    assert mend(place) == 5 and moved(place) is None
    expected = {name: [first, _artifacts(place), other] for name, (first, _, other) in before.items()}
    assert _addresses(place) == expected, "what is not under the root stays as it is"
    if take is _copied:
        assert _addresses(root) == before and moved(root) is None


def test_a_store_that_cannot_be_written_to_is_told_and_left_as_it_is(root: Path, tmp_path: Path) -> None:
    place = _moved(root, tmp_path / "project")
    before = _addresses(place)
    with closing(sqlite3.connect(place / "mlflow.db")) as store, store:
        store.execute("CREATE TRIGGER no BEFORE UPDATE ON model_versions BEGIN SELECT RAISE(ABORT, 'not here'); END")
    with pytest.raises(UserError) as told:
        mend(place)
    assert str(told.value) == f"{place / 'mlflow.db'} cannot be mended (not here); nothing was changed"
    assert _addresses(place) == before


def test_a_sweep_and_status_tell_of_it_and_repair_mends_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = _moved(root, tmp_path / "project")
    folder, console, told = SweepFolder(place, "a"), Console(width=400), moved(place)
    with pytest.raises(UserError) as refused:
        driver.run(folder.sweep(), place, None, console)
    assert str(refused.value) == told and not (place / "a" / "lock").exists()
    monkeypatch.setattr(resume, "_repaired", lambda folder, console: ["nothing to repair"])
    status.show(place, None, console)
    assert capsys.readouterr().out.splitlines()[-1] == told
    with driving(folder.lock, "sweep 'a'"), pytest.raises(UserError, match=r"was moved .* \(once a has ended\)"):
        resume.repair(place, None, console)
    resume.repair(place, "a", console)
    assert capsys.readouterr().out.splitlines() == [
        f"5 addresses in MLflow's store now name {place}",
        "a: nothing to repair",
    ]
    status.show(place, None, console)
    assert "was moved" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_copy_has_all_of_the_original_and_writes_nothing_into_it(tmp_path: Path) -> None:
    root, place = tmp_path / "scratch", tmp_path / "project"
    tracking, folder = Tracking(None, root), SweepFolder(root, "a")
    experiment = tracking.experiment("a")
    parent = tracking.start_parent(experiment, "a", {}, {"name": "a"})
    version = tracking.register("faces", parent, "sweep.json")
    folder.create(parse(SPEC), "weights")
    folder.add(experiment_id=experiment, parent_run=parent)
    _copied(root, place)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert mend(place) > 0
    copy = Tracking(None, place)
    copy.folder(copy.start_child(copy.experiment("a"), parent, "t1", {}), place / "a", "sets")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    shutil.rmtree(root)
    assert copy.download(parent, "sweep.json", tmp_path).is_file()
    assert copy.register("faces", parent, "sweep.json") == version, "its version is known at its new place"
    assert copy.client.get_model_version_download_uri("faces", version).startswith(place.as_uri())
