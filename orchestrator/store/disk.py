"""A disk that is full holds work up, and loses none of it."""

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from orchestrator.trial.outcome import Preempted

T = TypeVar("T")

_RETRY_S = 2.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


def full(error: BaseException) -> bool:
    """Whether this error says that there is no space left."""
    return (isinstance(error, OSError) and error.errno in _FULL) or "No space left on device" in str(error)


def with_space(
    write: Callable[[], T],
    waiting: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> T:
    """What `write` gives, tried again until there is space for it; what it left behind it has to clear away itself.

    waiting: called before every new try. Raises Preempted where `stop` says so in the meantime.
    """
    while True:
        try:
            return write()
        except Exception as error:
            if not full(error):
                raise
        waiting()
        if stop():
            raise Preempted
        time.sleep(_RETRY_S)


def free_bytes(path: Path) -> int:
    """What is free where `path` is."""
    return shutil.disk_usage(path).free
