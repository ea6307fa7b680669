"""Handle the signals that ask this process to end, so that they reach every wait of its main thread.

Ctrl-C sends SIGINT, `timeout`, systemd, Slurm and Docker send SIGTERM, and a terminal that closes sends SIGHUP.
"""

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME_S = 2.0  # `timeout` sends its signal twice, and a terminal that closes several: they mean one request
_PATIENCE_S = 5.0  # how long a wait may still come to its end after the process was asked to end
_SLICE_S = 0.2
_asked_at: list[float] = []  # when this process was asked to end; empty where it was not


@contextmanager
def handled(handler: Callable[[], None]) -> Iterator[None]:
    """Call `handler` at each request to end, for the duration of a block: at each Ctrl-C, and at other signals.

    Other signals within two seconds count once. SIGHUP stays ignored where it is, as under `nohup`. In a thread that is
    not the main one, nothing is changed.
    """
    last = float("-inf")

    def handle(number: int, _frame: object) -> None:
        nonlocal last
        since, last = time.monotonic() - last, time.monotonic()
        if number == signal.SIGHUP:
            _leave_terminal()
        if number == signal.SIGINT or since > _SAME_S:
            handler()

    mine = ENDING if threading.current_thread() is threading.main_thread() else ()
    handled = [number for number in mine if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in handled}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def interrupt() -> None:
    """Raise KeyboardInterrupt: the handler for work that leaves nothing to save."""
    raise KeyboardInterrupt


def ask_to_end() -> None:
    """Have every later `check` and `pause` of the main thread end its wait, after a few seconds' patience."""
    _asked_at.append(time.monotonic())


def forget() -> None:
    """Forget that this process was asked to end."""
    _asked_at.clear()


def check() -> None:
    """Raise KeyboardInterrupt in the main thread of a process that was asked to end some seconds ago."""
    if _asked_at and time.monotonic() - _asked_at[0] > _PATIENCE_S:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt


def pause(seconds: float) -> None:
    """Sleep between two attempts. Raises KeyboardInterrupt as `check` does."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check()
        time.sleep(min(left, _SLICE_S))


def _leave_terminal() -> None:
    """Send what is still printed to nowhere: every write to a terminal that has closed fails."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):
                os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
