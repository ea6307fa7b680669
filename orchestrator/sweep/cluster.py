"""Ray for the duration of a sweep: on this machine alone, to be reached from this machine alone; or a cluster's.

A Ray of our own listens on the loopback, asks for a token, and keeps its files in a folder that nobody else may enter
and that is gone with it, or with the next start where it was killed.
"""

import logging
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil

from core.errors import UserError, first_line

T = TypeVar("T")

_LONGEST_TEMP = 40  # characters; what Ray adds has to fit into the path of a socket, 107 in all
_PREFIX = "hso-"
_ROOT = Path(tempfile.gettempdir())
_PROCESSES = ("raylet", "gcs_server")


class RayLost(RuntimeError):
    """Ray has ended under the sweep."""


# For the processes of trials; those on other machines get it by way of Ray.
_OF_TRIALS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a trial reads ./paths where the user wrote them
    "RAY_TRAIN_METRICS_ENABLED": "0",  # nothing asks for them
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the recorder watches, for trials of any kind
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3600",  # until machines are there, and have imported everything
}


def configure(address: str | None) -> None:
    """What Ray reads from its environment when it is imported; to be called before that."""
    wanted = {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our recorder is the log
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # trials shall save first: orchestrator.sweep.stopping
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # nothing reads Tune's own record of the sweep
        "TUNE_MAX_PENDING_TRIALS_PG": "100000",  # processes that start side by side
        "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what raylets tell of processes that end: the recorder does
        **_OF_TRIALS,
    }
    if address is None:
        wanted["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # with which Ray stays on the loopback
        wanted |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(_folder() / "token")}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


class Cluster:
    """Ray, to be started again where it ends. address: of a cluster that runs already; None for one of our own."""

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.processes: list[psutil.Process] = []

    def __enter__(self) -> "Cluster":
        configure(self.address)
        if self.address is None:
            _make_folder()
            _use_temporary(_folder())  # what trials leave there when they are killed goes with the rest
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self.address is None:
            _use_temporary(_ROOT)
            shutil.rmtree(_folder(), ignore_errors=True)

    def start(self) -> None:
        import ray

        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the recorder tells what failed, in a line
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        if self.address is not None:
            try:
                ray.init(address=self.address, runtime_env={"env_vars": _OF_TRIALS}, **quiet)
            except (ValueError, ConnectionError, RuntimeError) as error:
                raise UserError(f"--address: no Ray answers at {self.address} ({first_line(error)})") from None
            return
        ray.init(address="local", include_dashboard=False, _temp_dir=str(_folder() / "ray"), **quiet)
        children = psutil.Process().children(recursive=True)
        self.processes = [child for child in children if child.name() in _PROCESSES]

    def stop(self) -> None:
        import ray

        self.processes = []
        ray.shutdown()

    def run(self, resources: Mapping[str, float], work: Callable[..., T], *given: Any) -> T:
        """What `work` gives where there is a device for it: in this process, or with these resources of a cluster."""
        if self.address is None:
            return work(*given)
        import ray

        remote = ray.remote(num_cpus=resources.get("CPU", 0), num_gpus=resources.get("GPU", 0))(work)
        result: T = ray.get(remote.remote(*given))
        return result

    def look(self) -> None:
        """Raise RayLost where a Ray of our own has lost a process: nothing that it runs can be relied on any more."""
        for process in self.processes:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise RayLost("one of Ray's own processes has ended")


def _folder() -> Path:
    return (_ROOT if len(str(_ROOT)) <= _LONGEST_TEMP else Path("/tmp")) / f"{_PREFIX}{os.getpid()}"


def _use_temporary(folder: Path) -> None:
    """Where this process, and those that it starts from now on, put temporary files."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def _make_folder() -> None:
    """A folder that only this user may enter, with the token; those of drivers that were killed go."""
    for left in _folder().parent.glob(f"{_PREFIX}*"):
        number = left.name.removeprefix(_PREFIX)
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(_folder(), ignore_errors=True)
    _folder().mkdir(mode=0o700)
    descriptor = os.open(_folder() / "token", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
