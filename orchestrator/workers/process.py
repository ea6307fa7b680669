"""The process that makes an attempt at a trial: where it is, how it ended, and how it is ended.

In the trial's folder, beside its checkpoints:

    process.json   which process it is; of a trial that several processes share the first, others process.<rank>.json
    steps          changed with every step; where the process was ended for making none, the stacks of its threads
    stop.<n>       there when attempt n shall save and end, though the sweep goes on
    ended.json     how the attempt ended, by its own account; missing where it was killed
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
_PROCESS, _ENDED = "process.json", "ended.json"


@dataclass(frozen=True)
class Process:
    """A process that may be on another machine, told from any that has its number later."""

    pid: int
    host: str
    born: str
    attempt: int
    rank: int = 0
    node: str | None = None  # Ray's name for the machine

    @classmethod
    def this(cls, attempt: int, rank: int = 0, node: str | None = None) -> "Process":
        return cls(os.getpid(), socket.gethostname(), _born(os.getpid()), attempt, rank, node)

    @classmethod
    def of(cls, folder: Path, rank: int = 0) -> "Process | None":
        """The process that makes the attempt at a trial, or made it."""
        try:
            return cls(**json.loads((folder / _file(rank)).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @classmethod
    def all_of(cls, folder: Path) -> list["Process"]:
        """All processes that share the attempt, or shared one before."""
        ranks = (int(path.suffixes[0][1:]) for path in folder.glob("process.*.json") if path.suffixes[0][1:].isdigit())
        found = (cls.of(folder, rank) for rank in sorted({0, *ranks}))
        return [process for process in found if process is not None]

    def write(self, folder: Path) -> None:
        with_space(lambda: write_json(folder / _file(self.rank), asdict(self)))

    def remove(self, folder: Path) -> None:
        """Its record, where that is still its own."""
        if Process.of(folder, self.rank) == self:
            (folder / _file(self.rank)).unlink(missing_ok=True)

    def find(self) -> psutil.Process | None:
        """The process, where it is alive and on this machine."""
        try:
            if self.host == socket.gethostname() and _born(self.pid) == self.born:
                return psutil.Process(self.pid)
        except (psutil.NoSuchProcess, OSError):
            pass
        return None


def _file(rank: int) -> str:
    return f"process.{rank}.json" if rank else _PROCESS


def _born(pid: int) -> str:
    """When a process began, in ticks since this machine did: no clock that is set changes that."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return f"{stat.rpartition(')')[2].split()[19]} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"


def stop_file(folder: Path, attempt: int) -> Path:
    """The file that asks an attempt to save and end."""
    return folder / f"stop.{attempt}"


def end_process(folder: Path) -> None:
    """End what still makes an attempt at a trial, on this machine, and see it gone."""
    for process in filter(None, (recorded.find() for recorded in Process.all_of(folder))):
        try:
            process.kill()
            process.wait(30)
        except psutil.NoSuchProcess:
            pass
        except psutil.TimeoutExpired:
            raise RuntimeError(f"process {process.pid} of trial {folder.name} cannot be ended") from None


def take_back(folder: Path, attempt: int, processes: int) -> None:
    """Have the processes that share an attempt end with their next step, on whatever machine they are.

    Each of them sees that the trial is another's now: this one's.
    """
    for rank in range(processes):
        Process.this(attempt, rank).write(folder)


class Hanging:
    """Finds processes that have made no step for `limit_s`, though they should have ended themselves: suspended, say.

    Measured by how long a last step stays the last, so that no clock that is set, and no sleep of the machine, counts.
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
        elif step > 0 and now - since > self.limit_s:  # 0: it waits for the driver
            with suppress(RuntimeError):
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


def lost_machine(told: str) -> bool:
    """Whether this is how Ray tells that the machine of a process is gone."""
    return "node has died" in told or "node was terminated" in told


def end_of(folder: Path, attempt: int, error_file: str | None, there: Callable[[str], bool] = lambda node: True) -> End:
    """How this attempt ended, by what it left behind.

    error_file: Ray's own account of it; there: whether a machine that a silent process ran on still answers.
    """
    try:
        found = json.loads((folder / _ENDED).read_text())
        if found["attempt"] == attempt:
            return End(TrialOutcome(found["outcome"]), str(found["reason"]), bool(found["final"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    recorded = Process.of(folder)
    where = stood(folder / STEPS) if recorded and recorded.attempt == attempt else None
    if where is not None:
        return End(TrialOutcome.FAILED, f"made no step for too long (recovery.stalled_minutes); it stood at {where}")
    told = Path(error_file).read_text(errors="replace") if error_file and Path(error_file).is_file() else ""
    if "OutOfMemoryError" in told:
        return End(TrialOutcome.OUT_OF_MEMORY, "its machine ran out of memory, and Ray ended it")
    if lost_machine(told):
        return End(TrialOutcome.PREEMPTED, str(MachineLost()))
    if "error raised in its creation task" in told:
        return End(TrialOutcome.FAILED, f"its process did not start: {told.strip().splitlines()[-1]}")
    if recorded and recorded.attempt == attempt and recorded.node and not there(recorded.node):
        return End(TrialOutcome.PREEMPTED, str(MachineLost()))
    return End(TrialOutcome.FAILED, "its process ended without a word (killed, or crashed in a library)")


_RATE_S = 1.0  # a step may be counted thousands of times a second; the timer is wound up this often


class Watchdog:
    """Ends the process when no `step` has come for `limit_s` seconds, and says where it stood.

    A hang is a call that does not return: nothing that waits its turn in Python can end it. faulthandler's timer needs
    no turn, and writes what every thread was doing before it ends the process.

    report: the file that then holds the stack of every thread, and is empty otherwise; the time of its last change is
    that of the last step, which a process beside this one can look at.
    """

    def __init__(self, limit_s: float, report: Path) -> None:
        self.limit_s, self.report = limit_s, report
        self.file = open(report, "w")
        self.last = 0.0
        self.step()

    def step(self, *_: object) -> None:
        """Something moved. Extra arguments are ignored, so that it can serve as a hook."""
        now = time.monotonic()
        if now - self.last >= min(_RATE_S, self.limit_s / 4):
            self.last = now
            faulthandler.dump_traceback_later(self.limit_s, exit=True, file=self.file)
            os.utime(self.file.fileno())

    def rest(self) -> None:
        """From now until the next step it waits for somebody else, for however long; time 0 says so."""
        faulthandler.cancel_dump_traceback_later()
        os.utime(self.file.fileno(), (0, 0))
        self.last = 0.0

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.file.close()


def stood(report: Path) -> str | None:
    """Where a process that was ended stood, as `file, line N in function`; None where none was ended."""
    try:
        lines = report.read_text(errors="replace").splitlines()
    except OSError:
        return None
    if not any(line.startswith("Timeout") for line in lines):
        return None
    main = max((i for i, line in enumerate(lines) if line.startswith("Thread ")), default=0)  # the first thread is last
    frame = next((line.strip() for line in lines[main:] if line.strip().startswith("File ")), "")
    return frame.removeprefix("File ").replace('"', "") or "an unknown place"
