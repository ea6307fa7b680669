"""Run Ray for the duration of a sweep: an own Ray on this machine, or a cluster that runs already.

An own Ray accepts connections from this machine alone and asks for a token. Its files are in a folder that only this
user may enter, locked for as long as its driver lives. The folder is removed at the end, or at the next start after a
kill.
"""

import fcntl
import logging
import os
import secrets
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from core.errors import UserError, first_line
from orchestrator.trial.outcome import sentence

T = TypeVar("T")

_PREFIX = "hso-"
_ROOT = Path(tempfile.gettempdir())
_NAME = f"{_PREFIX}{secrets.token_hex(4)}"
_RAYS = "r"  # the folder of Ray's own files in it
# A socket's path has at most 107 bytes; that of Ray's object store is the longest.
_LONGEST_TEMP = 107 - len(f"/{_NAME}/{_RAYS}/session_2026-11-29_23-22-59_388916_1234567/sockets/plasma_store")
_PROCESSES = ("raylet", "gcs_server")


class RayLost(RuntimeError):
    """The error that Ray has ended while the sweep runs."""


# The environment of the processes of trials; Ray passes it on to other machines.
_OF_TRIALS = {
    "PYTHONUTF8": "1",  # other machines may have another locale
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a trial reads ./paths from the folder where the sweep was started
    "RAY_TRAIN_METRICS_ENABLED": "0",  # nothing reads them
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # RecordCallback watches, for all trials
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3600",  # machines may have to be started first, and to import everything
}


def configure(address: str | None) -> None:
    """Set the environment variables that Ray reads when it is imported. Call this before that."""
    wanted = {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # RecordCallback logs
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # trials have to save first: orchestrator.sweep.stopping
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # nothing reads Tune's own record of the sweep
        "TUNE_MAX_PENDING_TRIALS_PG": "100000",  # as many processes may start at once
        "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # messages of raylets on processes that end; RecordCallback reports these
        **_OF_TRIALS,
    }
    if address is None:
        wanted["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # makes Ray listen on the loopback only
        wanted |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(_folder() / "token")}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


class Cluster:
    """Ray during a sweep. It can be started again after it has ended.

    address: of a cluster that runs already; None starts an own Ray on this machine.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.processes: list[psutil.Process] = []
        self.lock: int | None = None  # descriptor of the folder for temporary files, which is locked

    def __enter__(self) -> "Cluster":
        configure(self.address)
        if self.address is None:
            self.lock = _make_folder()
            _use_temporary(_folder())  # so that files of killed trials are removed too
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self.lock is not None:
            _use_temporary(_ROOT)
            shutil.rmtree(_folder(), ignore_errors=True)
            os.close(self.lock)
            self.lock = None

    def start(self) -> None:
        """Start Ray, or connect to the cluster.

        Raises UserError where no Ray answers at the address, RuntimeError where an own Ray does not start.
        """
        import ray

        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # RecordCallback reports each failure in a line
        options = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        options |= {"job_config": _job_config()}
        if self.address is not None:
            try:
                ray.init(address=self.address, runtime_env={"env_vars": _OF_TRIALS}, **options)
            except (ValueError, ConnectionError, RuntimeError) as error:
                raise UserError(f"--address: no Ray answers at {self.address} ({first_line(error)})") from None
            return
        try:
            with _unharmed_by_signals():
                ray.init(address="local", include_dashboard=False, _temp_dir=str(_folder() / _RAYS), **options)
        except Exception as error:  # Ray raises Exception itself where a loaded machine takes too long
            why = first_line(error)
            raise RuntimeError(f"Ray did not start on this machine ({why}); the same command tries again") from error
        children = psutil.Process().children(recursive=True)
        self.processes = [child for child in children if child.name() in _PROCESSES]

    def stop(self) -> None:
        """Disconnect from Ray; an own Ray ends."""
        import ray

        self.processes = []
        ray.shutdown()

    def run(self, resources: Mapping[str, float], work: Callable[..., T], *arguments: Any) -> T:
        """Return `work(*arguments)`, run in this process, or in the cluster at the address with these resources.

        Relative paths start from this process's working folder there, too. An error of `work` is raised as it is, and
        one of Ray as a RuntimeError of one sentence.
        """
        if self.address is None:
            return work(*arguments)
        import ray
        from ray.exceptions import RayError

        remote = ray.remote(num_cpus=resources.get("CPU", 0), num_gpus=resources.get("GPU", 0))(_run_at)
        try:
            result: T = ray.get(remote.remote(Path.cwd(), work, arguments))
        except RayError as error:
            cause = getattr(error, "cause", None)
            raise (cause if isinstance(cause, Exception) else RuntimeError(sentence(error))) from None
        return result

    def check_alive(self) -> None:
        """Raise RayLost where an own Ray has lost one of its processes, since it cannot be relied on any more."""
        for process in self.processes:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise RayLost("one of Ray's own processes has ended")


def _run_at(home: Path, work: Callable[..., T], arguments: Sequence[Any]) -> T:
    from orchestrator.workers.worker import at_home

    at_home(home)
    return work(*arguments)


@contextmanager
def _unharmed_by_signals() -> Iterator[None]:
    """Keep SIGTERM and SIGHUP away from the processes that are started in the block, and keep this one's handlers.

    `timeout`, systemd and Slurm send these signals to every process of a command. Ray's own would end before the trials
    have saved, and this process would wait for them and be aborted. They end with this process.
    """
    ending = {signal.SIGTERM, signal.SIGHUP}
    handlers = {number: signal.getsignal(number) for number in ending}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield
    finally:
        with suppress(ValueError):  # not in the main thread, where Ray sets no handler
            for number, handler in handlers.items():
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _NoFolders(list[str]):
    """A list that stays empty, whatever it is extended by."""

    def extend(self, _folders: object) -> None:
        """Add nothing."""


def _job_config() -> Any:
    """Return a configuration by which workers import what is installed, as the driver does.

    Ray would put the driver's working folder in front of their `sys.path`, where a package `core` or `orchestrator` of
    the user's own takes the place of this product's.
    """
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _NoFolders()
    return config


def _folder() -> Path:
    return (_ROOT if len(os.fsencode(_ROOT)) <= _LONGEST_TEMP else Path("/tmp")) / _NAME


def _use_temporary(folder: Path) -> None:
    """Set the folder for temporary files of this process and of those that it starts from now on."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def _make_folder() -> int:
    """Create and lock the folder that only this user may enter, with the token, and remove those of killed drivers.

    Return the descriptor that holds the lock. A driver in another container has process ids of its own, so the lock
    alone says whether a folder's driver lives: the kernel frees it with that process.
    """
    for left in _folder().parent.glob(_PREFIX + "[0-9a-f]" * 8):
        with suppress(OSError):  # another user's, or removed meanwhile
            _remove_unless_locked(left)
    while True:
        _folder().mkdir(mode=0o700, exist_ok=True)
        try:
            lock = _locked(_folder())
        except (BlockingIOError, FileNotFoundError):  # another start found it without a lock, and removes it
            continue
        if _folder().exists():
            break
        os.close(lock)
    descriptor = os.open(_folder() / "token", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return lock


def _remove_unless_locked(folder: Path) -> None:
    lock = _locked(folder)
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _locked(folder: Path) -> int:
    """Lock a folder and return the descriptor that holds the lock. Raises OSError where another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
