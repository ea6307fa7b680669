"""Which process makes an attempt, how it ended, and that no other process is ended in its place."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from core.errors import NonFiniteError, UserError
from orchestrator.store.checkpoints import CheckpointError
from orchestrator.trial.outcome import Preempted, TrialOutcome
from orchestrator.workers import process_record as module
from orchestrator.workers.process_record import (
    STEPS,
    AttemptEnd,
    Doing,
    DoingFile,
    Hanging,
    ProcessRecord,
    Watchdog,
    _born,
    end_of,
    end_process,
    end_remotely,
    stop_file,
    write_end,
)

OUT = TrialOutcome


def test_what_a_trial_does_is_written_every_few_seconds_and_at_each_new_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    doing = DoingFile(tmp_path)
    assert Doing.of(tmp_path) is None
    for now[0], what, done, total, written in (
        (1000.0, "samples", 8, 64, "samples 8/64"),
        (1001.0, "samples", 16, 64, "samples 8/64"),
        (1004.0, "samples", 24, 64, "samples 24/64"),
        (1004.5, "steps", 1, 3, "steps 1/3"),
    ):
        doing.advanced(what, done, total)
        assert str(Doing.of(tmp_path)) == written
    assert DoingFile(tmp_path) and Doing.of(tmp_path) is None, "what a killed attempt left"
    doing.remove()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def recorded(child: subprocess.Popen[bytes], folder: Path) -> ProcessRecord:
    """As a child would have put itself down."""
    process = replace(ProcessRecord.this(1), pid=child.pid, born=_born(child.pid))
    process.write(folder)
    return process


def test_a_process_is_found_again(tmp_path: Path) -> None:
    mine = ProcessRecord.this(3)
    mine.write(tmp_path)
    assert ProcessRecord.of(tmp_path) == mine and (mine.pid, mine.attempt) == (os.getpid(), 3)
    found = mine.find()
    assert found is not None and found.pid == os.getpid()


def test_a_process_that_is_left_over_is_ended(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    recorded(child, tmp_path)
    end_process(tmp_path)
    assert not psutil.pid_exists(child.pid)
    end_process(tmp_path)  # it has gone


def test_all_that_share_an_attempt_are_found_and_ended(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    mine = ProcessRecord.this(1)
    gone = [replace(mine, rank=rank, host="another machine") for rank in (0, 10, 2)]
    last = replace(mine, rank=3, pid=child.pid, born=_born(child.pid))
    for each in (*gone, last):
        each.write(tmp_path)
    for name in ("process.x.json", "process.7.json"):
        (tmp_path / name).write_text("{}")
    assert [each.rank for each in ProcessRecord.all_of(tmp_path)] == [0, 2, 3, 10]
    assert ProcessRecord.of(tmp_path) == gone[0] and ProcessRecord.of(tmp_path, 10) == gone[1]
    end_process(tmp_path)
    assert not psutil.pid_exists(child.pid)


def test_a_record_is_removed_by_the_process_that_it_is_of(tmp_path: Path) -> None:
    one, later = ProcessRecord.this(1, 2), ProcessRecord.this(2, 2)
    later.write(tmp_path)
    one.remove(tmp_path)
    assert ProcessRecord.of(tmp_path, 2) == later, "it is another attempt's by now"
    later.remove(tmp_path)
    later.remove(tmp_path)
    assert ProcessRecord.of(tmp_path, 2) is None


def test_an_attempt_that_is_taken_back_is_nobody_elses(tmp_path: Path) -> None:
    for rank in (0, 1, 2):
        replace(ProcessRecord.this(4, rank), host="another machine").write(tmp_path)
    end_remotely(tmp_path, 4, 2)
    assert [each == ProcessRecord.this(4, each.rank) for each in ProcessRecord.all_of(tmp_path)] == [True, True, False]


def test_a_process_that_has_gone_is_not_found() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    assert replace(ProcessRecord.this(1), pid=gone.pid).find() is None


def test_every_attempt_is_asked_to_stop_by_a_file_of_its_own(tmp_path: Path) -> None:
    assert [stop_file(tmp_path, attempt).name for attempt in (1, 12)] == ["stop.1", "stop.12"]


@pytest.mark.parametrize("other", [{"born": "1 another start of the machine"}, {"host": "another machine"}])
def test_another_process_with_its_number_is_left_alone(
    tmp_path: Path, child: subprocess.Popen[bytes], other: dict[str, object]
) -> None:
    replace(recorded(child, tmp_path), **other).write(tmp_path)  # type: ignore[arg-type]
    end_process(tmp_path)
    assert child.poll() is None


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"pid": 1}'])
def test_where_nobody_is_put_down_nobody_is_ended(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "process.json").write_text(content)
    assert ProcessRecord.of(tmp_path) is None
    end_process(tmp_path)


def test_a_process_that_is_suspended_is_ended_from_outside(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    """When its last step has stayed the last for long enough, whatever the clock says it was made at."""
    recorded(child, tmp_path)
    hanging = Hanging(0.2)
    hanging.end(tmp_path)
    for age in (1000, 900):
        os.utime(tmp_path / STEPS if age < 1000 else _touched(tmp_path / STEPS), (0, time.time() - age))
        hanging.end(tmp_path)
        time.sleep(0.3)
    assert child.poll() is None, "it has made a step"
    hanging.end(tmp_path)
    assert not psutil.pid_exists(child.pid)


def test_a_step_counts_as_hanging_when_it_has_stayed_the_last_for_longer_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Path] = []
    monkeypatch.setattr(module, "end_process", ended.append)
    os.utime(_touched(tmp_path / STEPS), (0, 1000))
    hanging = Hanging(30)
    for now, expected in ((500.0, 0), (530.0, 0), (530.1, 1)):
        monkeypatch.setattr(module.time, "monotonic", lambda now=now: now)
        hanging.end(tmp_path)
        assert len(ended) == expected


def test_each_rank_has_a_file_of_its_own_and_the_first_the_plain_one() -> None:
    assert [module._file(rank) for rank in (0, 1, 12)] == ["process.json", "process.1.json", "process.12.json"]


def test_a_process_that_waits_for_the_driver_does_not_hang(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    recorded(child, tmp_path)
    watchdog, hanging = Watchdog(30, tmp_path / STEPS), Hanging(0.1)
    watchdog.rest()
    for _ in range(3):
        hanging.end(tmp_path)
        time.sleep(0.15)
    watchdog.close()
    assert child.poll() is None


def _touched(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (Preempted(), AttemptEnd(OUT.PREEMPTED, "was asked to end, and saved what it had")),
        (NonFiniteError("loss became nan"), AttemptEnd(OUT.DIVERGED, "loss became nan")),
        (MemoryError("not even one sample fits"), AttemptEnd(OUT.OUT_OF_MEMORY, "not even one sample fits")),
        (ValueError("first\nlast"), AttemptEnd(OUT.FAILED, "last")),
        (UserError("the mask is missing"), AttemptEnd(OUT.FAILED, "the mask is missing", final=True)),
        (CheckpointError("none is sound"), AttemptEnd(OUT.FAILED, "none is sound", final=True)),
    ],
)
def test_an_attempt_tells_how_it_ends(tmp_path: Path, error: Exception, end: AttemptEnd) -> None:
    write_end(tmp_path, 2, error)
    assert end_of(tmp_path, 2, None) == end
    assert end_of(tmp_path, 3, None).reason.startswith("its process ended without a word"), "that was another attempt"


def test_a_process_that_was_killed_tells_nothing(tmp_path: Path) -> None:
    silent = AttemptEnd(OUT.FAILED, "its process ended without a word (killed, or crashed in a library)")
    assert end_of(tmp_path, 1, None) == end_of(tmp_path, 1, str(tmp_path / "missing")) == silent
    (tmp_path / "ended.json").write_text(json.dumps({"attempt": 1})[:-4])
    assert end_of(tmp_path, 1, None) == silent


def test_one_that_hung_is_told_with_its_line(tmp_path: Path) -> None:
    ProcessRecord.this(1).write(tmp_path)
    (tmp_path / STEPS).write_text(
        'Timeout (0:00:01)!\nThread 0x1 (most recent call first):\n  File "a.py", line 3 in f'
    )
    assert end_of(tmp_path, 1, None).reason == (
        "made no step for too long (recovery.stalled_minutes); it stood at a.py, line 3 in f"
    )
    (tmp_path / "error.txt").write_text("its node has died")
    assert end_of(tmp_path, 1, str(tmp_path / "error.txt")).outcome == OUT.FAILED, "it hung before it was ended"
    assert end_of(tmp_path, 2, str(tmp_path / "error.txt")) == LOST, "another attempt hung"


LOST = AttemptEnd(OUT.PREEMPTED, "lost a machine that it ran on")


@pytest.mark.parametrize(
    ("told", "end"),
    [
        (
            "ray.exceptions.OutOfMemoryError: Task was killed",
            AttemptEnd(OUT.OUT_OF_MEMORY, "its machine ran out of memory, and Ray ended it"),
        ),
        ("RayActorError: The actor died because its node has died. Node Id: ab", LOST),
        ("The actor died because its node was terminated expectedly: received SIGTERM", LOST),
        (
            "The actor died because of an error raised in its creation task\nImportError: no such thing",
            AttemptEnd(OUT.FAILED, "its process did not start: ImportError: no such thing"),
        ),
        (
            "RayActorError: The actor died unexpectedly",
            AttemptEnd(OUT.FAILED, "its process ended without a word (killed, or crashed in a library)"),
        ),
    ],
)
def test_what_ray_says_of_an_end(tmp_path: Path, told: str, end: AttemptEnd) -> None:
    """A lost machine is no crash of the trial's: it has a budget of its own (recovery.preemptions)."""
    (tmp_path / "error.txt").write_text(told)
    assert end_of(tmp_path, 1, str(tmp_path / "error.txt")) == end


def test_a_process_with_an_account_of_its_own_is_believed_before_ray(tmp_path: Path) -> None:
    write_end(tmp_path, 1, NonFiniteError("loss became nan"))
    (tmp_path / "error.txt").write_text("its node has died")
    assert end_of(tmp_path, 1, str(tmp_path / "error.txt")).outcome == OUT.DIVERGED
    assert end_of(tmp_path, 2, str(tmp_path / "error.txt")) == LOST


@pytest.mark.parametrize(("there", "outcome"), [(True, TrialOutcome.FAILED), (False, TrialOutcome.PREEMPTED)])
def test_a_silent_end_is_no_crash_where_the_machine_is_silent_too(
    tmp_path: Path, there: bool, outcome: TrialOutcome
) -> None:
    ProcessRecord.this(2, node="n").write(tmp_path)
    assert end_of(tmp_path, 2, None, lambda node: there).outcome == outcome
    assert end_of(tmp_path, 3, None, lambda node: there).outcome == TrialOutcome.FAILED, "of another attempt"
    asked: list[str] = []
    end_of(tmp_path, 2, None, lambda node: bool(asked.append(node)))
    assert asked == ["n"]
    ProcessRecord.this(2).write(tmp_path)
    assert end_of(tmp_path, 2, None, lambda node: there).outcome == TrialOutcome.FAILED, "of no machine of Ray's"
