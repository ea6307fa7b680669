"""An own Ray's folder belongs to the driver that holds its lock; work in a cluster is done as it would be here."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import ray
from ray.exceptions import RayTaskError, WorkerCrashedError

from core.errors import UserError
from orchestrator.sweep import cluster
from orchestrator.sweep.cluster import Cluster
from orchestrator.workers import worker  # noqa: F401  # Ray's decorators are at work while it is imported


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


@pytest.fixture
def other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray whose processes were started in another folder, and whose errors are Ray's."""
    (tmp_path / "elsewhere").mkdir()

    def there(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        here = Path.cwd()
        os.chdir(tmp_path / "elsewhere")
        try:
            return work(*arguments)
        except RuntimeError:
            raise WorkerCrashedError from None
        except Exception as error:
            raise RayTaskError("work", f"\x1b[36mray::work()\x1b[39m\n  File\n{error}", error) from None
        finally:
            os.chdir(here)

    monkeypatch.setattr(
        ray, "remote", lambda **_: lambda work: SimpleNamespace(remote=lambda *arguments: (work, arguments))
    )
    monkeypatch.setattr(ray, "get", lambda task: there(*task))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("other_machine")
def test_work_in_a_cluster_reads_relative_paths_from_the_folder_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("weights")
    assert Cluster("head:6379").run({"CPU": 1}, lambda path: Path(path).read_text(), "model") == "weights"


@pytest.mark.usefixtures("other_machine")
def test_an_error_in_a_cluster_is_the_sentence_alone() -> None:
    def refuse() -> None:
        raise UserError("model 'm' is not there")

    def crash() -> None:
        raise RuntimeError

    with pytest.raises(UserError, match="^model 'm' is not there$"):
        Cluster("head:6379").run({}, refuse)
    with pytest.raises(RuntimeError) as crashed:
        Cluster("head:6379").run({}, crash)
    assert type(crashed.value) is RuntimeError and len(str(crashed.value).splitlines()) == 1


def test_a_long_folder_for_temporary_files_is_too_long_for_rays_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path of a socket has at most 107 characters; Slurm's folders for jobs are long."""
    for root, fits in (("/scratch", True), ("/" + 27 * "a", True), ("/" + 28 * "a", False), ("/" + 14 * "ä", False)):
        monkeypatch.setattr(cluster, "_ROOT", Path(root))
        assert cluster._folder().parent == Path(root if fits else "/tmp")
        sockets = cluster._folder() / "r/session_2026-11-29_22-40-00_123456_1234567/sockets/plasma_store"
        assert len(os.fsencode(sockets)) <= 107


def test_a_cluster_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.init", Mock(side_effect=ConnectionError("no Raylet there\nmore")))
    with pytest.raises(UserError) as caught, cluster.Cluster("10.0.0.1:6379"):
        pass
    assert str(caught.value) == "--address: no Ray answers at 10.0.0.1:6379 (no Raylet there)"


def test_an_own_ray_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises Exception itself where a machine is too busy to start it in time."""
    busy = Exception("The current node timed out during startup. This could happen because ...\nmore")
    monkeypatch.setattr("ray.init", Mock(side_effect=busy))
    with pytest.raises(RuntimeError) as caught:
        cluster.Cluster(None).start()
    told = (
        "Ray did not start on this machine (The current node timed out during startup. This could happen because ...)"
    )
    assert str(caught.value) == f"{told}; the same command tries again"
