"""The process that makes an attempt at a trial: where it is, how it ended, and how it is ended.

In the trial's folder, beside its checkpoints:

    process.json   which process it is
    steps          changed with every step; where the process was ended for making none, the stacks of its threads
    ended.json     how the attempt ended, by its own account; missing where it was killed
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from core.errors import UserError
from core.files import write_json
from orchestrator.checkpoints import CheckpointError
from orchestrator.disk import with_space
from orchestrator.outcome import TrialOutcome, classify, sentence
from orchestrator.watchdog import stood

STEPS = "steps"
_PROCESS, _ENDED = "process.json", "ended.json"


@dataclass(frozen=True)
class Process:
    """A process that may be on another machine, told from any that has its number later."""

    pid: int
    host: str
    born: float
    attempt: int

    @classmethod
    def this(cls, attempt: int) -> "Process":
        return cls(os.getpid(), socket.gethostname(), psutil.Process().create_time(), attempt)

    @classmethod
    def of(cls, folder: Path) -> "Process | None":
        """The process that makes the attempt at a trial, or made it."""
        try:
            return cls(**json.loads((folder / _PROCESS).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        with_space(lambda: write_json(folder / _PROCESS, asdict(self)))

    def find(self) -> psutil.Process | None:
        """The process, where it is alive and on this machine."""
        try:
            found = psutil.Process(self.pid) if self.host == socket.gethostname() else None
            return found if found and abs(found.create_time() - self.born) < 1 else None
        except psutil.NoSuchProcess:
            return None


def end_process(folder: Path) -> None:
    """End what still makes an attempt at a trial, on this machine, and see it gone."""
    recorded = Process.of(folder)
    process = recorded.find() if recorded else None
    if process is not None:
        try:
            process.kill()
            process.wait(30)
        except psutil.NoSuchProcess:
            pass


def end_if_hanging(folder: Path, limit_s: float) -> None:
    """End a process that has made no step for so long, though it should have ended itself: it is suspended, say."""
    try:
        idle = time.time() - (folder / STEPS).stat().st_mtime
    except OSError:
        return
    if idle > limit_s:
        end_process(folder)


@dataclass(frozen=True)
class End:
    """How an attempt ended; final: another one would end in the same way."""

    outcome: TrialOutcome
    reason: str
    final: bool = False


def write_end(folder: Path, attempt: int, error: Exception) -> None:
    """The account that a process gives of the error that it ends with."""
    final = isinstance(error, UserError | CheckpointError)
    end = {"attempt": attempt, "outcome": classify(error), "reason": sentence(error), "final": final}
    with_space(lambda: write_json(folder / _ENDED, end))


def end_of(folder: Path, attempt: int, error_file: str | None) -> End:
    """How this attempt ended, by what it left behind; error_file: Ray's own account of it."""
    try:
        found = json.loads((folder / _ENDED).read_text())
        if found["attempt"] == attempt:
            return End(TrialOutcome(found["outcome"]), str(found["reason"]), bool(found["final"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    where = stood(folder / STEPS)
    if where is not None:
        return End(TrialOutcome.FAILED, f"made no step for too long (recovery.stalled_minutes); it stood at {where}")
    if error_file and Path(error_file).is_file() and "OutOfMemoryError" in Path(error_file).read_text(errors="replace"):
        return End(TrialOutcome.OUT_OF_MEMORY, "its machine ran out of memory, and Ray ended it")
    return End(TrialOutcome.FAILED, "its process ended without a word (killed, or crashed in a library)")
