"""What the ui verb refuses, where it listens, and that it leaves no server behind."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from core.errors import UserError
from orchestrator.tracking import Tracking
from orchestrator.ui import serve


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port: {port} is taken; choose another one"):
            serve(tmp_path, port, Console())


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def started(tmp_path: Path, free_port: int) -> Iterator[psutil.Process]:
    """`orchestrate ui` on an embedded store, serving."""
    Tracking(None, tmp_path).check()
    command = [sys.executable, "-m", "orchestrator.cli", "ui", "--root", str(tmp_path), "--port", str(free_port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        family = psutil.Process(process.pid)
        _wait(lambda: _listens(free_port), "the server answers")
        yield family
        for left in [*family.children(recursive=True), family] if process.poll() is None else []:
            left.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(happened: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, f"a minute has passed before {what}"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no kernel tells a process that its parent has ended")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_no_server_outlives_the_verb(started: psutil.Process, free_port: int, ending: signal.Signals) -> None:
    servers = started.children(recursive=True)
    try:
        places = {c.laddr.ip for p in servers for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert places == {"127.0.0.1"}
        started.send_signal(ending)
        _wait(lambda: not any(map(psutil.Process.is_running, servers)), "the servers have ended")
        assert not _listens(free_port)
    finally:
        for left in filter(psutil.Process.is_running, servers):
            left.kill()
