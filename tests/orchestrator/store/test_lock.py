"""One process at a time drives a sweep, and a dead one holds nobody up."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from core.errors import UserError
from orchestrator.store import lock
from orchestrator.store.lock import driver, driving

HOLDER = """
import sys, time
from pathlib import Path
from typing import IO
from orchestrator.store.lock import driving
with driving(Path(sys.argv[1]), "sweep 'a'"):
    print("holds", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """The lock in the hands of another process, until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "holds\n"
        yield process
        process.communicate()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.2)


def test_a_second_process_is_refused_by_name_and_free_after_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a" / "lock"
    with held(path) as process:
        found = driver(path)
        assert found is not None and found.pid == process.pid
        sentence = rf"^sweep 'a' is being run by process {process.pid} on .*, since .*; wait for it, or stop it first$"
        with pytest.raises(UserError, match=sentence), driving(path, "sweep 'a'"):
            pytest.fail("two at a time")
        assert driver(path) == found, "who was refused took nothing away"
    assert driver(path) is None
    with driving(path, "sweep 'a'"):
        mine = driver(path)
        assert mine is not None and mine.pid == os.getpid()
    assert path.read_text() == ""


def test_the_kernel_frees_what_a_killed_process_held(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert str(process.pid) in path.read_text(), "its name is still there"
        assert driver(path) is None
        with driving(path, "sweep 'a'"):
            mine = driver(path)
            assert mine is not None and mine.pid == os.getpid(), "in place of the other's name"


def test_who_only_looks_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another who looks does not take it for a driver, and one who wants to drive waits for it."""
    path = tmp_path / "lock"
    path.touch()
    with open(path) as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert driver(path) is None
        monkeypatch.setattr(lock.time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        with driving(path, "sweep 'a'"):
            assert driver(path) is not None


def test_one_who_has_not_yet_put_down_its_name_drives_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.0)
    path = tmp_path / "lock"
    with open(path, "a+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        found = driver(path)
        assert found is not None and found.pid == 0
        with pytest.raises(UserError, match=r"is being run by another process; wait"), driving(path, "sweep 'a'"):
            pytest.fail("two at a time")


def test_nobody_drives_where_there_is_no_lock(tmp_path: Path) -> None:
    assert driver(tmp_path / "lock") is None
    assert not list(tmp_path.iterdir())


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), driving(tmp_path / "lock", "sweep 'a'"):
        raise RuntimeError
    assert driver(tmp_path / "lock") is None and (tmp_path / "lock").read_text() == ""


@pytest.mark.parametrize("made_again", [False, True], ids=["removed", "removed and made again"])
def test_a_lock_on_a_file_that_is_gone_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_again: bool
) -> None:
    """A sweep's folder may be removed between opening its lock and taking it; another may have the new one by then."""
    path, taken = tmp_path / "lock", lock._taken

    def late(file: IO[str]) -> bool:
        path.unlink()
        if made_again:
            path.write_text("")
        return taken(file)

    monkeypatch.setattr(lock, "_taken", late)
    sentence = "^sweep 'a' has just been given up by another process; start it again$"
    with pytest.raises(UserError, match=sentence), driving(path, "sweep 'a'"):
        pytest.fail("two could drive the sweep")
    monkeypatch.undo()
    with driving(path, "sweep 'a'"):
        assert driver(path) is not None


def test_who_drives_is_told_by_process_machine_and_time(tmp_path: Path) -> None:
    before = time.strftime("%Y-%m-%d %H:%M:%S")
    with driving(tmp_path / "lock", "sweep 'a'"):
        found = driver(tmp_path / "lock")
        assert found is not None and (found.pid, found.host) == (os.getpid(), socket.gethostname())
        assert before <= found.since <= time.strftime("%Y-%m-%d %H:%M:%S")
        assert str(found) == f"process {os.getpid()} on {socket.gethostname()}, since {found.since}"
