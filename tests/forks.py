"""Processes of their own for scripts that need torch and DeepSpeed: forks of one that has imported both.

The import is most of what a short script of these would take. The server is Python's own (multiprocessing's
forkserver); it begins no thread and no process group, so that every fork is as fresh as a new interpreter.
"""

import gc
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

# For scripts whose trials are measured while the figures are no matter: few samples, networks and sources that are
# hardly better than where they start.
HARDLY_MEASURED = """
from core.metrics import evaluation, identifiability
from core.statistics import projection_pursuit
identifiability.ITERATIONS = projection_pursuit._ITERATIONS = 2
evaluation.FACTOR_SEEDS = evaluation.FACTOR_SEEDS[:8]
"""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["core.methods", "orchestrator.trial.engine", "orchestrator.trial.run", "benchmarks.parity"]
)


@dataclass(frozen=True)
class Ended:
    """What a script came to."""

    returncode: int | None
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Fork:
    """A script that runs, or has run."""

    process: BaseProcess
    out: Path
    err: Path

    def ended(self, timeout_s: float = 600) -> Ended:
        """Wait for its end; a script that has not ended in time is killed, and its return code is negative."""
        self.process.join(timeout_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return Ended(self.process.exitcode, self.out.read_text(), self.err.read_text())


def started(code: str, folder: Path, *arguments: object, **environment: str) -> Fork:
    """Run a script as `python -c code arguments...` would; folder: where what it prints is kept, under new names."""
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("fork-*.out")))
    out, err = folder / f"fork-{number}.out", folder / f"fork-{number}.err"
    out.touch()
    process = _context.Process(
        target=_script, args=(code, [str(each) for each in arguments], environment, str(out), str(err)), daemon=True
    )
    process.start()
    return Fork(process, out, err)


def run(code: str, folder: Path, *arguments: object, **environment: str) -> Ended:
    """As `started`, to its end."""
    return started(code, folder, *arguments, **environment).ended()


def _script(code: str, arguments: list[str], environment: Mapping[str, str], out: str, err: str) -> None:
    os.environ.update(environment)
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.argv = ["-c", *arguments]
    warnings.simplefilter("ignore")
    gc.freeze()  # what is imported is not looked through again at every collection
    try:
        exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) and isinstance(error.code, int | None) else 1
        if not isinstance(error, SystemExit):
            traceback.print_exc()
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)  # what libraries have begun meanwhile ends with it
