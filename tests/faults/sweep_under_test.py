"""A real small sweep in processes of its own, and a real MLflow server: started, looked at, struck, started again.

Every process that a sweep starts inherits a mark in its environment, by which what it leaves behind is found.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from orchestrator.store.folder import SweepFolder
from orchestrator.workers.process_record import ProcessRecord

NAME, TRIALS, ITERATIONS, EVERY = "tiny", 4, 8, 2
SPEC = f"""\
name: {NAME}
model: {{model}}
sampler: {{{{steps: 2}}}}
train: {{{{iterations: {ITERATIONS}, batch: 4, micro_batch: 2, pool: 32}}}}
search:
  directions: {{{{choice: [3, 4]}}}}
  start: random
  shift_scale: {{{{float: [0.5, 2.0], log: true}}}}
objectives: [{{{{identifiability: max}}}}, {{{{fidelity_kid: min}}}}]
evaluate: {{{{every: {EVERY}, seeds: 6}}}}
budget: {{{{trials: {{trials}}}}}}
deepspeed: {{{{zero: 2, offload_optimizer: cpu}}}}
gradient: {{{{policy: full_graph}}}}
recovery: {{{{crashes: 1000, checkpoint_every: 1}}}}
"""
_MARK = "FAULTS_SWEEP"
_INJECT = Path(__file__).parent / "inject"


class Broken(AssertionError):
    """A promise did not hold; the text says how."""


def check(true: object, why: str) -> None:
    """Raise Broken, for that reason, where something is not as it should be."""
    if not true:
        raise Broken(why)


def until(done: Callable[[], Any], seconds: float, what: str) -> Any:
    """What `done` gives as soon as that is something. Raises Broken after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := done()):
        check(time.monotonic() < end, f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)
    return found


@dataclass
class SweepUnderTest:
    """The sweep `tiny` under a root of its own.

    place: what it writes goes in there; settings: `--set` what; plan: the faults inside its trials (inject/).
    """

    place: Path
    model: Path
    settings: tuple[str, ...] = ()
    plan: dict[str, Any] = field(default_factory=dict)
    name: str = NAME
    trials: int = TRIALS
    root: Path = field(init=False)
    process: "subprocess.Popen[bytes] | None" = None
    took: float = 0.0  # seconds of its first start, where that was measured

    def __post_init__(self) -> None:
        self.root = self.place / "runs"
        for folder in (self.place / "faults", self.place / "tmp", self.root):
            folder.mkdir(parents=True, exist_ok=True)
        self.spec, self.log = self.place / f"{self.name}.yaml", self.place / f"{self.name}.log"
        self.spec.write_text(
            SPEC.format(model=self.model, trials=self.trials).replace(f"name: {NAME}", f"name: {self.name}")
        )
        self.replan(self.plan)

    def replan(self, plan: dict[str, Any]) -> None:
        """Other faults inside the trials, before the first start."""
        self.plan = plan
        (self.place / "faults" / "plan.json").write_text(json.dumps(plan))

    @property
    def folder(self) -> SweepFolder:
        return SweepFolder(self.root, self.name)

    @property
    def environment(self) -> dict[str, str]:
        paths = f"{_INJECT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        own = {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        own |= {_MARK: str(self.place), "TMPDIR": str(self.place / "tmp")}
        own |= {"FAULTS": str(self.place / "faults")} if self.plan else {}
        return {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | own

    def _command(self, verb: str, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "orchestrator.cli", verb, *map(str, arguments), "--root", str(self.root)]

    def _sweep(self) -> list[str]:
        return self._command("sweep", self.spec, *(part for each in self.settings for part in ("--set", each)))

    def start(self) -> None:
        """The command, in the background; what it says goes into the log."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self._sweep(), cwd=self.place, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def run(self, verb: str = "sweep", *arguments: object) -> "subprocess.CompletedProcess[str]":
        """A command to its end; without arguments the sweep's own."""
        command = self._sweep() if verb == "sweep" else self._command(verb, *arguments)
        return subprocess.run(
            command, cwd=self.place, env=self.environment, capture_output=True, text=True, timeout=400
        )

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self, seconds: float = 400) -> int:
        """The exit code of the command, when it has ended."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Broken(f"the driver was still there after {seconds:.0f} s") from None

    def finish(self, seconds: float = 400) -> None:
        """To its end, which is to be a good one."""
        code = self.ended(seconds)
        check(code == 0, f"the sweep ended with {code}: {self.said()[-300:]}")

    def said(self) -> str:
        """All that its starts have said, without line ends: where a line is too long for the screen, one is put in."""
        return " ".join(self.log.read_text(errors="replace").split()) if self.log.exists() else ""

    def says(self, text: str, seconds: float = 150, times: int = 1) -> None:
        """Wait until the log holds a text so many times."""
        until(lambda: self.said().count(text) >= times or self._over(), seconds, f"'{text}' in the log")
        check(self.said().count(text) >= times, f"the sweep ended and never said '{text}': {self.said()[-300:]}")

    def _over(self) -> bool:
        return not self.running()

    def trial_folders(self) -> list[Path]:
        return sorted(self.folder.path.glob("trials/*"))

    def alive(self) -> dict[Path, psutil.Process]:
        """The trials that a process works at."""
        told = {folder: ProcessRecord.of(folder) for folder in self.trial_folders()}
        found = {folder: process.find() for folder, process in told.items() if process}
        return {folder: process for folder, process in found.items() if process and process.status() != "zombie"}

    def training(self, checkpoints: int = 2) -> list[Path]:
        """The trials that a process works at and that have that many checkpoints."""
        return [folder for folder in self.alive() if len(list(folder.glob("checkpoint_*"))) >= checkpoints]

    def raylet(self) -> psutil.Process | None:
        if not self.running() or self.process is None:
            return None
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
            return next((child for child in children if child.name() == "raylet"), None)
        except psutil.Error:
            return None

    def left_processes(self) -> list[str]:
        """What still runs of all that this sweep has started."""
        return [f"{pid} {command}" for pid, command in marked(self.place)]

    def gone(self, seconds: float = 60) -> None:
        """Wait until no process of it is left."""
        try:
            until(lambda: not self.left_processes(), seconds, "its processes gone")
        except Broken:
            raise Broken(f"orphans {seconds:.0f} s later: {self.left_processes()}") from None

    def end(self) -> None:
        """Leave nothing running, however it went."""
        for pid, _ in marked(self.place):
            os.kill(pid, signal.SIGKILL)


def marked(place: Path) -> list[tuple[int, str]]:
    """Number and command of the processes that carry a mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == str(place) and process.status() != "zombie":
                found.append((process.pid, " ".join(process.cmdline())[:200]))
        except psutil.Error:
            continue
    return found


class Server:
    """`mlflow server` on the loopback, with a database and artifacts that outlive it."""

    def __init__(self, place: Path) -> None:
        place.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.place, self.uri = place, f"http://127.0.0.1:{self.port}"
        self.start()
        until(self.up, 120, "the MLflow server")

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.place}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.place / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.place / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def send(self, number: int) -> None:
        """To all its processes."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.send(number)
        self.process.wait(30)
