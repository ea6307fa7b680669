"""A disk that is full holds work up, and loses none of it."""

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_RETRY_S = 2.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


def full(error: BaseException) -> bool:
    """Whether this error says that there is no space left."""
    return (isinstance(error, OSError) and error.errno in _FULL) or "No space left on device" in str(error)


def with_space(write: Callable[[], T], waiting: Callable[[], None] = lambda: None) -> T:
    """Return what `write` returns, called again every two seconds until the disk has space for what it writes.

    write: has to clear away itself what a failed call left. waiting: called before every new try; what it raises ends
    the waiting.
    """
    while True:
        try:
            return write()
        except Exception as error:
            if not full(error):
                raise
        waiting()
        time.sleep(_RETRY_S)


def free_bytes(path: Path) -> int:
    """What is free where `path` is."""
    return shutil.disk_usage(path).free
