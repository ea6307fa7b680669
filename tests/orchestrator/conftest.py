"""A model small enough that a whole sweep of real parts takes a minute, and a sweep file for it."""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import create_autospec, patch

import pytest

from orchestrator import interruption
from orchestrator.trial.state import Report
from tests.faults import machine

if TYPE_CHECKING:
    from orchestrator.store.checkpoints import TrialFolder

os.environ.setdefault("DS_ACCELERATOR", "cpu")

SWEEP = """\
name: tiny
model: {model}
sampler: {{steps: 2}}
train: {{iterations: 4, batch: 4, micro_batch: 2, pool: 32}}
search:
  directions: {{choice: [3, 4]}}
  start: random
  shift_scale: {{float: [0.5, 2.0], log: true}}
  discriminator_weight: {{float: [0.01, 1.0], log: true}}
objectives: [{{identifiability: max}}, {{fidelity_kid: min}}]
scheduler: {{asha: {{metric: identifiability, grace: 2, reduction: 2}}}}
evaluate: {{every: 2, seeds: 6}}
budget: {{trials: 3}}
deepspeed: {{zero: 2, offload_optimizer: cpu}}
gradient: {{policy: full_graph}}
export: {{register: tiny-directions}}
"""


@pytest.fixture
def hangup_counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGHUP is not ignored, as it is in tests that run under `nohup`, and leaves the terminal of the tests open."""
    monkeypatch.setattr(interruption, "_leave_terminal", lambda: None)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with random weights: 8x8 images, h of 8x2x2."""
    # A space: paths are quoted where they must be.
    return machine.tiny_model(tmp_path_factory.mktemp("models") / "tiny model")


@pytest.fixture
def hardly_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """For trials in this process whose figures are no matter, as tests.forks.HARDLY_MEASURED."""
    from core.metrics import evaluation, identifiability
    from core.statistics import projection_pursuit

    monkeypatch.setattr(identifiability, "ITERATIONS", 2)
    monkeypatch.setattr(projection_pursuit, "_ITERATIONS", 2)
    monkeypatch.setattr(evaluation, "FACTOR_SEEDS", evaluation.FACTOR_SEEDS[:8])


@pytest.fixture
def sweep_file(tiny_model: Path, tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(SWEEP.format(model=tiny_model))
    return file


Orchestrate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def orchestrate(tmp_path: Path) -> Orchestrate:
    """The command line in a process of its own, with `tmp_path` as working folder."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)

    return run


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True, scope="session")
def _revisions_read_once() -> Iterator[None]:
    """Keep the modules of all revisions of a database's tables, which Optuna and MLflow import anew at each opening."""
    import alembic.util

    read = alembic.util.load_python_file
    kept = functools.cache(read)

    def load(folder: str, filename: str) -> ModuleType:
        return (read if filename == "env.py" else kept)(folder, filename)  # env.py is the script that makes the tables

    with patch.object(alembic.util, "load_python_file", load):
        yield


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process, in the folder `tmp_path` or `at`, and put the environment back."""
    from orchestrator.cli import main as cli

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a store that is not there is not there

    def run(*arguments: object, at: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(at)
        with patch.dict(os.environ):
            code = cli.main([str(each) for each in arguments])
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return run


class RecordedOutbox:
    """An outbox that keeps what it is told, in order: (what, trial, ...).

    A method, an argument or a keyword that Outbox does not have is refused as Outbox itself would refuse it.
    """

    def __init__(self) -> None:
        from orchestrator.tracking.outbox import Outbox  # imports MLflow, which most tests do without

        self.calls: list[tuple[Any, ...]] = []
        self._outbox = create_autospec(Outbox, instance=True)

    def tell(self, text: str) -> None:
        self.calls.append(("tell", text))

    def __getattr__(self, name: str) -> Callable[..., None]:
        method = getattr(self._outbox, name)

        def kept(*given: Any, **more: Any) -> None:
            method(*given, **more)
            self.calls.append((name, *given, *more.values()))

        return kept

    def kinds(self, trial_id: str | None) -> list[str]:
        return [call[0] for call in self.calls if call[1] == trial_id]


def report_at(step: int, identifiability: float = 0.5, kid: float = 0.1) -> Report:
    """What a trial reports at an iteration."""
    metrics = {"identifiability": identifiability, "fidelity_kid": kid}
    curve = [{"step": step, "loss": 1.0}]
    return Report(step, 2.0, metrics, curve, {"micro_batch": 2}, 1000 + step)


def keep(trial: "TrialFolder", step: int, report: Report | None) -> Path:
    """A checkpoint as a trial leaves it: with a set where it has reported, and what only going on needs."""

    def write(folder: Path) -> None:
        state = {"iteration": step, "seconds": 2.0, "curve": [], "report": report and report.to_json(), "parts": None}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "engines").mkdir()
        (folder / "engines" / "weights").write_text("w")
        if report is not None:
            (folder / "directions").mkdir()
            (folder / "directions" / "directions.json").write_text("{}")
            (folder / "traversal.png").write_text("picture")

    return trial.save(step, write)
