"""Wait while a disk is full: work is delayed, and none is lost."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from orchestrator.interruption import pause

T = TypeVar("T")

_RETRY_S = 2.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException) -> bool:
    """Return whether this error says that there is no space left on a disk."""
    return (isinstance(error, OSError) and error.errno in _FULL) or "No space left on device" in str(error)


def with_space(write: Callable[[], T], waiting: Callable[[], None] = lambda: None) -> T:
    """Return what `write` returns, calling it again every two seconds until the disk has space.

    write: has to clear away what a failed call left.
    waiting: called before every new try; an exception that it raises ends the waiting. So does a request to end
    (orchestrator.interruption).
    """
    while True:
        try:
            return write()
        except Exception as error:
            if not is_full(error):
                raise
        waiting()
        pause(_RETRY_S)


def free_bytes(path: Path) -> int:
    """Return the free space of the disk that holds `path`, in bytes."""
    return shutil.disk_usage(path).free
