"""Record, watch and end the processes that make an attempt at a trial.

In the trial's folder, beside its checkpoints:

    process.json   the process of the attempt; of several that share the trial the first, others process.<rank>.json
    steps          changed with every step; holds the stacks of all threads where the process was ended for hanging
    doing.json     what a method that does not train has done so far; removed with the attempt's end
    stop.<n>       present when attempt n has to save and end although the sweep goes on
    ended.json     how the attempt ended, written by its own process; missing where that was killed
"""

import faulthandler
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from core.errors import UserError
from core.files import write_json
from orchestrator.store.checkpoints import CheckpointError
from orchestrator.store.disk import with_space
from orchestrator.trial.outcome import MachineLost, TrialOutcome, classify, sentence

STEPS = "steps"
_PROCESS, _ENDED, _DOING = "process.json", "ended.json", "doing.json"
_WRITE_S = 2.0


@dataclass(frozen=True)
class ProcessRecord:
    """A process, possibly on another machine, with the facts that distinguish it from a later process of its pid."""

    pid: int
    host: str
    born: str
    attempt: int
    rank: int = 0
    node: str | None = None  # Ray's name for the machine

    @classmethod
    def this(cls, attempt: int, rank: int = 0, node: str | None = None) -> "ProcessRecord":
        """Return the record of the calling process."""
        return cls(os.getpid(), socket.gethostname(), _born(os.getpid()), attempt, rank, node)

    @classmethod
    def of(cls, folder: Path, rank: int = 0) -> "ProcessRecord | None":
        """Return the process that makes the attempt at a trial, or made the last one; None where none is recorded."""
        try:
            return cls(**json.loads((folder / _file(rank)).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @classmethod
    def all_of(cls, folder: Path) -> list["ProcessRecord"]:
        """Return all processes recorded for a trial: those of this attempt, and of earlier ones."""
        ranks = (int(path.suffixes[0][1:]) for path in folder.glob("process.*.json") if path.suffixes[0][1:].isdigit())
        recorded = (cls.of(folder, rank) for rank in sorted({0, *ranks}))
        return [process for process in recorded if process is not None]

    def write(self, folder: Path) -> None:
        """Write the record into the trial's folder, waiting while the disk is full."""
        with_space(lambda: write_json(folder / _file(self.rank), asdict(self)))

    def remove(self, folder: Path) -> None:
        """Remove the record, unless another process has replaced it."""
        if ProcessRecord.of(folder, self.rank) == self:
            (folder / _file(self.rank)).unlink(missing_ok=True)

    def find(self) -> psutil.Process | None:
        """Return the process where it is alive and on this machine, else None."""
        try:
            if self.host == socket.gethostname() and _born(self.pid) == self.born:
                return psutil.Process(self.pid)
        except (psutil.NoSuchProcess, OSError):
            pass
        return None


def _file(rank: int) -> str:
    return f"process.{rank}.json" if rank else _PROCESS


def _born(pid: int) -> str:
    """Return when a process began, in ticks since this machine booted, which setting the clock does not change."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return f"{stat.rpartition(')')[2].split()[19]} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"


def stop_file(folder: Path, attempt: int) -> Path:
    """Return the file that asks an attempt to save and end."""
    return folder / f"stop.{attempt}"


def end_process(folder: Path) -> None:
    """Kill the processes on this machine that still make an attempt at a trial, and wait until they are gone.

    Raises RuntimeError where one has not ended after 30 seconds.
    """
    for process in filter(None, (recorded.find() for recorded in ProcessRecord.all_of(folder))):
        try:
            process.kill()
            process.wait(30)
        except psutil.NoSuchProcess:
            pass
        except psutil.TimeoutExpired:
            raise RuntimeError(f"process {process.pid} of trial {folder.name} cannot be ended") from None


def end_remotely(folder: Path, attempt: int, processes: int) -> None:
    """Make the processes of an attempt end at their next step, on whatever machine they are.

    Their records are overwritten with this process, and each of them ends when it finds its own record replaced.
    """
    for rank in range(processes):
        ProcessRecord.this(attempt, rank).write(folder)


@dataclass(frozen=True)
class Doing:
    """How far a step of a method has come that does not train: `done` of `total`, such as samples.

    first, began: how many were done when the step was first heard of, and when that was; at: when this was written.
    Both times are in seconds since the epoch.
    """

    what: str
    done: int
    total: int
    first: int
    began: float
    at: float

    def __str__(self) -> str:
        return f"{self.what} {self.done}/{self.total}"

    @classmethod
    def of(cls, folder: Path) -> "Doing | None":
        """Return what the process of a trial is doing; None where it has not said."""
        try:
            return cls(**json.loads((folder / _DOING).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def ends(self) -> float | None:
        """Return when the step will end at its pace so far; None where it has none yet."""
        gained = self.done - self.first
        return self.at + (self.total - self.done) * (self.at - self.began) / gained if gained > 0 else None


class DoingFile:
    """The writer of a trial's `Doing`, which is kept up to date every few seconds."""

    def __init__(self, folder: Path) -> None:
        self.file, self.written = folder / _DOING, 0.0
        self.step, self.first, self.began = ("", 0), 0, 0.0
        self.remove()

    def advanced(self, what: str, done: int, total: int) -> None:
        """Write how far the step has come, unless that was done a moment ago (core.progress.Listener)."""
        now = time.time()
        if (what, total) != self.step:
            self.step, self.first, self.began = (what, total), done, now
        elif now - self.written < _WRITE_S:
            return
        self.written = now
        with suppress(OSError):  # a full disk: it matters to no result
            write_json(self.file, asdict(Doing(what, done, total, self.first, self.began, now)))

    def remove(self) -> None:
        """Remove the file."""
        self.file.unlink(missing_ok=True)


class Hanging:
    """A check that ends processes without a step for `limit_s` seconds, whose own watchdog failed: suspended ones, say.

    The check measures how long the last step has stayed the last, so that neither setting the clock nor a sleep of the
    machine counts.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.seen: dict[Path, tuple[float, float]] = {}  # folder -> last step, when that was first seen

    def end(self, folder: Path) -> None:
        """End the process of a trial if it hangs."""
        try:
            step = (folder / STEPS).stat().st_mtime
        except OSError:
            return
        now = time.monotonic()
        last, since = self.seen.get(folder, (None, now))
        if step != last:
            self.seen[folder] = step, now
        elif step > 0 and now - since > self.limit_s:  # 0: the process waits for the driver
            with suppress(RuntimeError):
                end_process(folder)


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended; final: another attempt would end in the same way."""

    outcome: TrialOutcome
    reason: str
    final: bool = False


def write_end(folder: Path, attempt: int, error: Exception) -> None:
    """Write how an attempt ended, from the error that ends its process."""
    final = isinstance(error, UserError | CheckpointError)
    end = {"attempt": attempt, "outcome": classify(error), "reason": sentence(error), "final": final}
    with_space(lambda: write_json(folder / _ENDED, end))


def says_machine_lost(message: str) -> bool:
    """Return whether Ray's `message` says that the machine of a process is gone."""
    return "node has died" in message or "node was terminated" in message


def end_of(
    folder: Path, attempt: int, error_file: str | None, there: Callable[[str], bool] = lambda node: True
) -> AttemptEnd:
    """Return how this attempt ended, from the files that it left.

    error_file: Ray's own account of the error; there: tells whether the machine of a process that left no account
    answers.
    """
    try:
        content = json.loads((folder / _ENDED).read_text())
        if content["attempt"] == attempt:
            return AttemptEnd(TrialOutcome(content["outcome"]), str(content["reason"]), bool(content["final"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    recorded = ProcessRecord.of(folder)
    where = place_of_hang(folder / STEPS) if recorded and recorded.attempt == attempt else None
    if where is not None:
        return AttemptEnd(
            TrialOutcome.FAILED, f"made no step for too long (recovery.stalled_minutes); it stood at {where}"
        )
    message = Path(error_file).read_text(errors="replace") if error_file and Path(error_file).is_file() else ""
    if "OutOfMemoryError" in message:
        return AttemptEnd(TrialOutcome.OUT_OF_MEMORY, "its machine ran out of memory, and Ray ended it")
    if says_machine_lost(message):
        return AttemptEnd(TrialOutcome.PREEMPTED, str(MachineLost()))
    if "error raised in its creation task" in message:
        return AttemptEnd(TrialOutcome.FAILED, f"its process did not start: {message.strip().splitlines()[-1]}")
    if recorded and recorded.attempt == attempt and recorded.node and not there(recorded.node):
        return AttemptEnd(TrialOutcome.PREEMPTED, str(MachineLost()))
    return AttemptEnd(TrialOutcome.FAILED, "its process ended without a word (killed, or crashed in a library)")


_RATE_S = 1.0  # the timer is restarted at most this often, because a step may be counted thousands of times a second


class Watchdog:
    """A timer that ends the process when no `step` has come for `limit_s` seconds, and writes where the process was.

    A hang is a call that does not return, and other Python code may not get its turn to end it. faulthandler's timer
    needs
    no turn. It writes the stack of every thread and then ends the process.

    report: the file for these stacks, empty otherwise. The time of its last change is that of the last step, which
    other
    processes can read.
    """

    def __init__(self, limit_s: float, report: Path) -> None:
        self.limit_s, self.report = limit_s, report
        self.file = open(report, "w")
        self.last = 0.0
        self.step()

    def step(self, *_: object) -> None:
        """Restart the timer. Extra arguments are ignored, so that this can serve as a hook."""
        now = time.monotonic()
        if now - self.last >= min(_RATE_S, self.limit_s / 4):
            self.last = now
            faulthandler.dump_traceback_later(self.limit_s, exit=True, file=self.file)
            os.utime(self.file.fileno())

    def rest(self) -> None:
        """Stop the timer until the next step, while the process waits for another one; the file's time is set to 0."""
        faulthandler.cancel_dump_traceback_later()
        os.utime(self.file.fileno(), (0, 0))
        self.last = 0.0

    def close(self) -> None:
        """Stop the timer and close the file."""
        faulthandler.cancel_dump_traceback_later()
        self.file.close()


def place_of_hang(report: Path) -> str | None:
    """Return where a process was when its watchdog ended it, as `file, line N in function`; None if none was ended."""
    try:
        lines = report.read_text(errors="replace").splitlines()
    except OSError:
        return None
    if not any(line.startswith("Timeout") for line in lines):
        return None
    main = max((i for i, line in enumerate(lines) if line.startswith("Thread ")), default=0)  # the main thread is last
    frame = next((line.strip() for line in lines[main:] if line.strip().startswith("File ")), "")
    return frame.removeprefix("File ").replace('"', "") or "an unknown place"
