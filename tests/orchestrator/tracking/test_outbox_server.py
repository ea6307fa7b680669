"""What a sweep tells an MLflow server arrives once and in order, whatever happens to the server or to the sweep."""

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.errors import UserError
from orchestrator.store.spool import refused
from orchestrator.tracking.client import Tracking
from orchestrator.tracking.outbox import Outbox
from tests.orchestrator.tracking.test_outbox import STEPS, _arrived_once, _outbox, _tell_everything, _until

pytestmark = pytest.mark.slow  # making an MLflow database takes seconds


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def test_secrets_reach_no_file_and_no_message(tmp_path: Path, impatient: None) -> None:
    uri = "http://anna:geheim99@127.0.0.1:9?token=t0k3n-of-mine"
    tracking, said = Tracking(uri, tmp_path), []
    with pytest.raises(UserError) as told:
        tracking.check()
    said.append(str(told.value))
    with pytest.raises(UserError) as told:
        tracking.experiment("faces")
    assert told.value.__cause__ is None and told.value.__context__ is None
    outbox = Outbox(tmp_path / "outbox", tracking, "1", "2", said.append)
    outbox.start("t1", {"uri": uri}, {"reason": f"no answer from {uri}"})
    outbox.metrics("t1", [{"step": 1, "loss": 1.0}])
    outbox.open()
    _until(lambda: len(said) > 1, 60)
    assert not outbox.close(0)
    assert said[1].startswith("tracking: the MLflow store http://***@127.0.0.1:9?token=*** does not answer (")
    assert said[1].endswith(f"; 2 records wait in {tmp_path / 'outbox'}, training goes on")
    written = [path.read_text() for path in (tmp_path / "outbox").rglob("*") if path.is_file()]
    assert len(written) == 2
    for text in [*said, str(told.value), *written]:
        assert "geheim99" not in text and "t0k3n" not in text


class Server:
    """An MLflow server with a store of its own, which can be killed, stopped and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.address = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        log = open(self.folder / "server.log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        log.close()
        _until(self._answers, 120)

    def _answers(self) -> bool:
        """Whether it is past its first request, which takes it longest: it makes its tables and imports."""
        try:
            first = f"{self.address}/api/2.0/mlflow/experiments/get?experiment_id=0"
            with urllib.request.urlopen(first, timeout=60) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)  # the group that this test has started

    def room(self, size: int) -> None:
        """No file of the server may grow beyond this."""
        assert self.process is not None
        main = psutil.Process(self.process.pid)
        for process in [main, *main.children(recursive=True)]:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait(30)
        self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


def test_a_server_that_is_killed_in_the_middle(server: Server, tmp_path: Path, impatient: None) -> None:
    outbox = _outbox(Tracking(server.address, tmp_path), tmp_path / "outbox")
    with outbox.sending(120):
        _tell_everything(outbox, tmp_path)
        _until(lambda: outbox.pending() < STEPS)
        server.kill()
        left = outbox.pending()
        assert left > 0
        _until(lambda: len(outbox.said) > 0)  # type: ignore[attr-defined]
        assert left - outbox.pending() <= 1
        server.start()
    _arrived_once(outbox, tmp_path)
    away, back = outbox.said  # type: ignore[attr-defined]
    assert "does not answer" in away and f"the MLflow store {server.address} is back" in back


def test_a_server_that_hangs_delays_nobody(server: Server, tmp_path: Path, impatient: None) -> None:
    outbox = _outbox(Tracking(server.address, tmp_path), tmp_path / "outbox")
    server.signal(signal.SIGSTOP)
    outbox.open()
    began = time.monotonic()
    _tell_everything(outbox, tmp_path, 12)
    assert time.monotonic() - began < 5, "the trial waits for its store"
    time.sleep(6)  # requests pile up at the server
    began = time.monotonic()
    assert not outbox.close(2) and time.monotonic() - began < 4
    server.signal(signal.SIGCONT)
    with outbox.sending(120):
        pass
    _arrived_once(outbox, tmp_path, 12)


def test_a_server_whose_disk_is_full(server: Server, tmp_path: Path, impatient: None) -> None:
    outbox = _outbox(Tracking(server.address, tmp_path), tmp_path / "outbox")
    server.room(4096)
    with outbox.sending(120):
        _tell_everything(outbox, tmp_path, 12)
        _until(lambda: len(outbox.said) > 0)  # type: ignore[attr-defined]
        assert outbox.pending() > 12 and refused(outbox.path) == 0
        server.room(resource.RLIM_INFINITY)
    _arrived_once(outbox, tmp_path, 12)


DRIVER = """
import sys
from pathlib import Path
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.client import Tracking
from tests.orchestrator.tracking.test_outbox import _tell_everything

path, uri, experiment, parent = sys.argv[1:]
outbox = Outbox(Path(path) / "outbox", Tracking(uri, Path(path)), experiment, parent)
print("ready", flush=True)
with outbox.sending(120):
    _tell_everything(outbox, Path(path))
sys.exit(outbox.pending() > 0)
"""


def test_a_driver_that_is_killed_at_any_moment(server: Server, tmp_path: Path) -> None:
    chance = random.Random(0)
    outbox = _outbox(Tracking(server.address, tmp_path), tmp_path / "outbox")
    command = [sys.executable, "-c", DRIVER, str(tmp_path), server.address]
    command += [outbox.experiment_id, outbox.parent_run]
    killed, ended = 0, False
    while not ended:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            ended = process.wait(chance.uniform(0.0, 0.2 * (killed + 1)) if killed < 8 else 120) == 0
            assert ended
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        process.stdout.close()
    assert killed >= 3
    _arrived_once(Outbox(outbox.path, outbox.tracking, outbox.experiment_id, outbox.parent_run), tmp_path)
    assert json.loads((outbox.path / "steps" / "t1.json").read_text())["loss"] == STEPS - 1
