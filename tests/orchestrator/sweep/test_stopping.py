"""When a sweep starts nothing more."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.store.folder import SweepFolder
from orchestrator.sweep import stopping as module
from orchestrator.sweep.stopping import Stopping


@pytest.fixture
def stopping(tmp_path: Path) -> Stopping:
    folder = SweepFolder(tmp_path, "a")
    folder.path.mkdir()
    return Stopping(folder, Console(file=io.StringIO(), width=200))


def output_of(stopping: Stopping) -> str:
    assert isinstance(stopping.console.file, io.StringIO)
    return stopping.console.file.getvalue()


@pytest.mark.usefixtures("hangup_counts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_every_trial_to_save_and_end(stopping: Stopping, number: int) -> None:
    before = signal.getsignal(number)
    stopping.folder.stop.touch()  # of a start that was killed
    with stopping:
        assert not stopping.folder.stop.exists() and not stopping.no_more_trials()
        with stopping.search():
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        assert stopping.folder.stop.exists() and stopping.no_more_trials()
        assert "Stopping: trials save and end, within 60 s; once more to end at once" in output_of(stopping)
    assert not stopping.folder.stop.exists() and signal.getsignal(number) == before


def test_where_no_trial_runs_there_is_nothing_to_wait_for(stopping: Stopping) -> None:
    with stopping, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert not stopping.no_more_trials()


@pytest.mark.slow
def test_the_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from orchestrator.sweep.stopping import Stopping
from orchestrator.store.folder import SweepFolder
folder = SweepFolder(Path(sys.argv[1]), "a")
folder.path.mkdir()
with Stopping(folder, Console()) as stopping, stopping.search():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        print("still here", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and done.stdout.count("still here") == 1


def test_trials_that_do_not_end_in_time_are_ended(stopping: Stopping, monkeypatch: pytest.MonkeyPatch) -> None:
    stopper = stopping.stopper()
    assert not stopper("t", {}) and not stopper.stop_all()
    stopping.stop_asked_at = time.monotonic()
    assert not stopper.stop_all(), "they have a minute"
    stopping.stop_asked_at -= module.GRACE_S + 1
    assert stopper.stop_all()


def test_the_hours_of_the_budget_count_what_was_spent_before(stopping: Stopping) -> None:
    stopping.limit(None, 1e9)
    assert not stopping.time_is_up()
    stopping.limit(1.0, 3590)
    assert not stopping.no_more_trials()
    stopping.limit(1.0, 3601)
    assert stopping.no_more_trials() and stopping.stopper().stop_all()


@pytest.mark.parametrize(("set_mib", "least_mib"), [(0, 16), (10, 76), (1000, 6016)])
def test_a_trial_starts_where_six_of_its_sets_fit_beside_16_mib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_mib: int, least_mib: int
) -> None:
    """What a trial writes grows with its set: checkpoints, MLflow's copies, the champion."""
    folder = SweepFolder(tmp_path, "a")
    folder.path.mkdir()
    asked: list[Path] = []
    for free, held in (((least_mib << 20) - 1, True), (least_mib << 20, False)):
        monkeypatch.setattr(module, "free_bytes", lambda path, free=free: asked.append(path) or free)
        assert Stopping(folder, Console(file=io.StringIO()), set_mib << 20).paused_by_disk() == held
    assert asked == [folder.path] * 2


def test_the_disk_is_looked_at_every_two_seconds_at_the_most(
    stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = [1000.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "free_bytes", lambda path: looks.append(now[0]) or 1 << 40)
    for now[0] in (1000.0, 1001.9, 1002.0, 1003.0, 1004.5):
        stopping.paused_by_disk()
    assert looks == [1000.0, 1002.0, 1004.5]


def test_a_disk_that_is_nearly_full_holds_up_what_is_new_and_says_so_once(
    stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.0)
    free = [1 << 40]
    monkeypatch.setattr(module, "free_bytes", lambda path: free[0])
    assert not stopping.paused_by_disk()
    for free[0], held in ((1 << 20, True), (2 << 20, True), (1 << 39, False), (1 << 38, False)):
        assert stopping.paused_by_disk() == held
    where = stopping.folder.path
    assert output_of(stopping).splitlines() == [
        f"Disk: only 1 MiB are free at {where}; no new trial starts until there is more",
        f"Disk: {(1 << 39) >> 20} MiB are free at {where}; it goes on",
    ]
