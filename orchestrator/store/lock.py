"""Lock a sweep so that one process at a time drives it. The kernel frees the lock of a process that has died."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from core.errors import UserError

_PATIENCE_S = 1.0  # `driver` in another process holds the lock for a moment


@dataclass(frozen=True)
class Driver:
    """The process that drives a sweep, or drove it last."""

    pid: int
    host: str
    since: str  # local time

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def driving(path: Path, what: str) -> Iterator[None]:
    """Hold the lock for the duration of a block. Raises UserError, naming the holder, where another process has it."""
    with _opened(path) as file:
        if not _taken(file):
            holder = _named(file) or "another process"
            raise UserError(f"{what} is being run by {holder}; wait for it, or stop it first")
        if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
            raise UserError(f"{what} has just been given up by another process; start it again")
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        file.truncate(0)
        file.write(json.dumps(asdict(Driver(os.getpid(), socket.gethostname(), now))))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _opened(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a+")


def driver(path: Path) -> Driver | None:
    """Return the process that holds the lock at this moment, or None where no process does."""
    try:
        with open(path) as file:
            if _lock(file, fcntl.LOCK_SH):
                return None
            return _named(file) or Driver(0, "an unknown machine", "an unknown time")
    except FileNotFoundError:
        return None


def _taken(file: IO[str]) -> bool:
    until = time.monotonic() + _PATIENCE_S
    while not _lock(file, fcntl.LOCK_EX):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _named(file: IO[str]) -> Driver | None:
    file.seek(0)
    try:
        return Driver(**json.loads(file.read()))
    except (ValueError, TypeError):  # the holder has the lock but has not written its name yet
        return None
