"""A checkpoint is whole or absent, whenever its process is killed and whenever its disk is full."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store import checkpoints
from orchestrator.store.checkpoints import Latest, TrialFolder
from tests.orchestrator.store.test_checkpoints import content, names


def test_a_writer_that_fails_leaves_nothing_behind(trial: TrialFolder) -> None:
    path = trial.save(100, content("first"))
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(folder: Path) -> None:
        content("second")(folder)
        raise full

    for step in (100, 110):
        with pytest.raises(OSError) as error:
            trial.save(step, write)
        assert error.value is full
    assert names(trial) == ["checkpoint_00000100"] and trial.latest() == Latest(path, 100, ())


@pytest.mark.parametrize(("renames", "stands"), [(0, "first"), (1, "first"), (2, "second")])
def test_a_kill_while_a_checkpoint_takes_the_place_of_another_loses_neither_and_leaves_nothing(
    trial: TrialFolder, monkeypatch: pytest.MonkeyPatch, renames: int, stands: str
) -> None:
    """After so many renames, of which there are two."""
    trial.save(100, content("first"))
    move, done = checkpoints._move, []

    def killed(path: Path, to: Path) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        move(path, to)
        done.append(to)
        if len(done) == renames:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(checkpoints, "_move", killed)
        with pytest.raises(KeyboardInterrupt):
            trial.save(100, content("second"))
    latest = trial.latest()
    assert latest.path is not None and latest.damaged == ()
    assert (latest.path / "seconds.json").read_text() == stands
    assert names(trial) == ["checkpoint_00000100"]


def test_a_kill_while_one_is_removed_does_not_look_like_damage(
    trial: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is out of sight before its first file goes."""
    for step in (1, 2):
        trial.save(step, content("x"))
    rmtree = checkpoints.shutil.rmtree

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.exists() and path.name.endswith(".gone"):
            (path / "seconds.json").unlink()
            raise KeyboardInterrupt
        rmtree(path, ignore_errors=ignore_errors)

    with monkeypatch.context() as broken:
        broken.setattr(checkpoints.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            trial.save(3, content("x"))
    assert names(trial) == [".checkpoint_00000001.gone", "checkpoint_00000002", "checkpoint_00000003"]
    assert trial.latest() == Latest(trial.path / "checkpoint_00000003", 3, ())
    assert names(trial) == ["checkpoint_00000002", "checkpoint_00000003"]


def test_what_killed_processes_left_is_cleared_away(trial: TrialFolder) -> None:
    trial.save(1, content("x"))
    for name in ("..checkpoint_00000002.new-abc", ".checkpoint_00000002.new", ".checkpoint_00000001.old", ".x.gone"):
        (trial.path / name).mkdir()
    trial.latest()
    assert names(trial) == ["checkpoint_00000001"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root mounts a disk, and not everywhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before(small_disk: Path) -> None:
    trial = TrialFolder(small_disk / "abc")
    path = trial.save(1, lambda folder: (folder / "x").write_bytes(b"x" * 20_000) and None)
    with pytest.raises(OSError) as error:
        trial.save(2, lambda folder: (folder / "x").write_bytes(b"x" * 60_000) and None)
    assert error.value.errno == errno.ENOSPC
    assert names(trial) == ["checkpoint_00000001"] and trial.latest() == Latest(path, 1, ())
    trial.save(2, lambda folder: (folder / "x").write_bytes(b"x" * 20_000) and None)
    assert trial.latest().step == 2


def test_an_engine_meets_a_full_disk_as_an_error_of_the_disk(small_disk: Path) -> None:
    import torch

    from orchestrator.store.state_file import write_state

    trial = TrialFolder(small_disk / "abc")
    with pytest.raises(OSError) as error:
        trial.save(1, lambda folder: write_state(folder / "engines", {"x": torch.zeros(50_000)}, {}))
    assert error.value.errno == errno.ENOSPC and names(trial) == []


# Every process here is a child of one that has imported all, so that hundreds of them may be killed.
KILLS = """
import os, pathlib, shutil, signal, sys, time
from orchestrator.store.checkpoints import TrialFolder, remove_checkpoints

root = pathlib.Path(sys.argv[1])

def content(text):
    def write(folder):
        (folder / "engines").mkdir()
        (folder / "directions").mkdir()
        for name in ("engines/x", "engines/y", "directions/z"):
            with open(folder / name, "w") as file:
                for _ in range(3):
                    file.write(text)
                    file.flush()
                    os.truncate(file.fileno(), file.tell())  # tells the counter below where it is
    return write

def before(trial):
    for step in (1, 2, 3):
        trial.save(step, content(str(step)), 1 / step)

def again(trial): trial.save(3, content("again"))
def next(trial): trial.save(4, content("next"))
def ended(trial): trial.keep_result_only()
def damaged(trial):
    trial.latest()
def emptied(trial): remove_checkpoints([trial])

def child(act, trial, last):
    pid = os.fork()
    if pid == 0:
        count = 0
        def hook(event, details):
            nonlocal count
            if event.startswith(("os.", "open", "shutil.")) and event != "os.fork":
                count += 1
                if count == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        act(trial)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def check(act, trial):
    latest = trial.latest()
    if act is not emptied:
        assert trial.damage_of(latest.path) is None
        assert latest.step >= (2 if act is damaged else 3), latest
        assert trial.result() == latest.path
    left = sorted(path.name for path in trial.path.iterdir())
    assert not [name for name in left if name.startswith(".")], left
    if act is not damaged:
        assert latest.damaged == () and not [name for name in left if name.startswith("damaged")], (latest, left)
    act(trial)  # it can be done after all
    if act is not emptied:
        assert trial.damage_of(trial.latest().path) is None

for act in (again, next, ended, damaged, emptied):
    last, status = 0, None
    while status != 0:
        last += 1
        trial = TrialFolder(root / act.__name__ / str(last))
        before(trial)
        if act is damaged:
            (trial.path / "damaged_00000000").mkdir()
            (trial.path / "checkpoint_00000003" / "engines" / "x").unlink()
        status = child(act, trial, last)
        assert status in (0, signal.SIGKILL), (act, last, status)
        check(act, trial)
        shutil.rmtree(trial.path)
    print("KILLED", act.__name__, last - 1)

for delay in range(10):  # and from outside, whenever
    trial = TrialFolder(root / f"outside{delay}")
    trial.save(1, content("first"))
    pid = os.fork()
    if pid == 0:
        for step in range(2, 1000):
            trial.save(step // 2, content(str(step) * 100_000), step)
        os._exit(0)
    time.sleep(0.013 * (1 + delay))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    latest = trial.latest()
    assert trial.damage_of(latest.path) is None and latest.damaged == ()
    assert not [path for path in trial.path.iterdir() if path.name.startswith(".")]
    print("OUTSIDE", latest.step)
"""


@pytest.mark.slow
def test_a_process_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    """Before every single thing that it asks of the disk, and at times of nobody's choosing."""
    done = subprocess.run([sys.executable, "-c", KILLS, str(tmp_path)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = {words[1]: int(words[2]) for line in done.stdout.splitlines() if (words := line.split())[0] == "KILLED"}
    assert list(kills) == ["again", "next", "ended", "damaged", "emptied"] and min(kills.values()) > 20, kills
    assert done.stdout.count("OUTSIDE") == 10
