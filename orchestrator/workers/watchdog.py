"""Ends a process that has stopped moving, and says where it stood.

A hang is a call that does not return: nothing that waits its turn in Python can end it. faulthandler's timer needs no
turn, and writes what every thread was doing before it ends the process.
"""

import faulthandler
import os
import time
from pathlib import Path

_RATE_S = 1.0  # a step may be counted thousands of times a second; the timer is wound up this often


class Watchdog:
    """Wound up by every `step`; the process ends when none has come for `limit_s` seconds.

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
