"""The folder of an own Ray: it belongs to the driver that holds its lock."""

import fcntl
import os
from pathlib import Path

import pytest

from orchestrator.sweep import cluster


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cluster, "_ROOT", tmp_path)
    monkeypatch.setattr(cluster, "_LONGEST_TEMP", 1000)
    return tmp_path


def test_a_start_removes_the_folders_of_drivers_that_died_and_of_no_other(temporary: Path) -> None:
    """No process ids: a driver in another container that shares the folder counts its processes by itself."""
    alive, dead, others = (temporary / f"hso-{name}" for name in ("00000001", "00000002", "4194302"))
    for folder in (alive, dead, others):
        folder.mkdir()
    held = os.open(alive, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    lock = cluster._make_folder()
    assert alive.exists() and others.exists() and not dead.exists()
    os.close(held)
    os.close(lock)


def test_the_folder_of_a_driver_is_its_own_while_it_lives(temporary: Path) -> None:
    lock = cluster._make_folder()
    own = cluster._folder()
    assert (
        own.parent == temporary and own.stat().st_mode & 0o777 == 0o700 and (own / "token").stat().st_mode & 0o77 == 0
    )
    with pytest.raises(BlockingIOError):
        cluster._remove_unless_locked(own)
    os.close(lock)
    cluster._remove_unless_locked(own)
    assert not own.exists()
