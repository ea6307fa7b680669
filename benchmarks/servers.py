"""Real servers for tests and benchmarks, each in a folder of its own, on a free port, ended with what started it.

PostgreSQL refuses to be run by root, so root runs it as the user `nobody`.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from orchestrator.cli.ui import _end_with

PASSWORD = "geheim/w@rd {99}"
_QUOTED = "geheim%2Fw%40rd%20%7B99%7D"
_PATIENCE_S = 120.0
# What a shell may have set that would lead a client or a server elsewhere.
_ELSEWHERE = ("PG", "AWS_", "MLFLOW_")


def postgresql_binaries() -> Path | None:
    """The folder with initdb and postgres; None where there is none."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


def environment(**more: str) -> dict[str, str]:
    """This process's, without what leads to other servers."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_ELSEWHERE)} | more


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(happened: Callable[[], bool], what: str, seconds: float = _PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"{seconds:.0f} seconds have passed before {what}"
        time.sleep(0.1)


class Server:
    """A process that listens on a port, with all that it starts. The kernel ends it with the thread that starts it."""

    def __init__(self, command: list[str], port: int, log: Path, **options: Any) -> None:
        self.command, self.port, self.log, self.options = command, port, log, options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, preexec_fn=_end_with(os.getpid()), **self.options
            )
        wait(self._answers, f"{self.command[0]} listens; see {self.log}")

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text(errors="replace")[-2000:]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it; whatever of it is left after half a minute is killed."""
        if self.process is None or self.process.poll() is not None:
            return
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        for left in psutil.wait_procs(family, 5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        self.process.wait(10)


class Postgresql:
    """A PostgreSQL server with databases of its own."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder, self.binaries, self.port = folder, binaries, free_port()
        self.rights: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self.rights = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        (folder / "password").write_text(PASSWORD + "\n")
        self._run(
            "initdb",
            "-D",
            folder / "data",
            "-U",
            "anna",
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
            "--locale=C",
            "--pwfile",
            folder / "password",
        )
        command = [str(binaries / "postgres"), "-D", str(folder / "data"), "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-k", str(folder)]
        options = {"env": environment(), "cwd": folder, **self.rights}
        self.server = Server(command, self.port, folder / "log", **options)

    def _run(self, program: str, *arguments: object, **more: str) -> str:
        command = [str(self.binaries / program), *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(**more),
            capture_output=True,
            text=True,
            timeout=120,
            **self.rights,
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def query(self, database: str, sql: str) -> str:
        return self._run(
            "psql", "-h", "127.0.0.1", "-p", self.port, "-U", "anna", "-Atc", sql, database, PGPASSWORD=PASSWORD
        ).strip()

    def database(self, name: str) -> str:
        """A new database; its address."""
        self.query("postgres", f'CREATE DATABASE "{name}"')
        return self.uri(name)

    def uri(self, name: str, user: str = f"anna:{_QUOTED}@") -> str:
        return f"postgresql://{user}127.0.0.1:{self.port}/{name}"

    def size(self, name: str) -> int:
        return int(self.query("postgres", f"SELECT pg_database_size('{name}')"))

    def start(self) -> None:
        self.server.start()
        wait(self._ready, "the database takes queries")

    def _ready(self) -> bool:
        with contextlib.suppress(AssertionError):
            return self.query("postgres", "SELECT 1") == "1"
        return False

    def stop(self) -> None:
        self.server.stop(signal.SIGINT)  # without waiting for those that are connected


@contextmanager
def postgresql(binaries: Path) -> Iterator[Postgresql]:
    with _folder() as folder:
        made = Postgresql(folder, binaries)
        try:
            made.start()
            yield made
        finally:
            made.stop()


@contextmanager
def mlflow_server(backend: str, artifacts: str, *more: str, **secrets: str) -> Iterator[str]:
    """An MLflow server that hands on what is stored; its address. secrets: what only the server knows."""
    with _folder() as folder:
        port = free_port()
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--serve-artifacts"]
        command += ["--artifacts-destination", artifacts, "--host", "127.0.0.1", "--port", str(port), *more]
        known = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", **secrets)
        server = Server([*command, "--workers", "1"], port, folder / "log", env=known, cwd=folder)
        try:
            server.start()
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop()


S3_KEYS = {"AWS_ACCESS_KEY_ID": "moto-key", "AWS_SECRET_ACCESS_KEY": "moto-secret", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server(bucket: str) -> Iterator[str]:
    """An S3 of our own with one bucket; its address."""
    with _folder() as folder:
        port = free_port()
        command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
        server = Server(command, port, folder / "log", env=environment(**S3_KEYS), cwd=folder)
        try:
            server.start()
            address = f"http://127.0.0.1:{port}"
            s3_client(address).create_bucket(Bucket=bucket)
            yield address
        finally:
            server.stop()


def s3_client(address: str) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=address,
        region_name=S3_KEYS["AWS_DEFAULT_REGION"],
        aws_access_key_id=S3_KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=S3_KEYS["AWS_SECRET_ACCESS_KEY"],
    )


def s3_secrets(address: str) -> Mapping[str, str]:
    """What a server needs to store in it."""
    return {**S3_KEYS, "MLFLOW_S3_ENDPOINT_URL": address}


@contextmanager
def _folder() -> Iterator[Path]:
    """Not pytest's own, which other users cannot enter."""
    with tempfile.TemporaryDirectory(prefix="stores-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
