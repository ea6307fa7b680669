"""What the orchestrator itself costs: sweeps whose trials only sleep, in everything else the real thing.

python -m benchmarks.sweep            writes results/sweep_cpu.md
python -m benchmarks.sweep --quick    a few trials of each kind, printed and not kept

Ray Tune, Optuna's study, the books, the outbox, MLflow's embedded store, ASHA and the processes of trials are real.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import torch

from benchmarks.common import RESULTS, machine
from benchmarks.standin import MARKS, SECONDS, STAGES, TEMPLATE, mark

MIB = 1 << 20
_PART = 50  # iterations between two reports of a stand-in
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Load:
    """A sweep to be driven. machines: Ray's raylets that share the slots; 0 for a Ray of the sweep's own.

    worker: Standin, or Timed for the real one.
    """

    trials: int
    seconds: float
    slots: int
    reports: int = 1
    machines: int = 0
    worker: str = "Standin"

    @property
    def ideal(self) -> float:
        return self.trials * self.seconds / self.slots


def spec(load: Load) -> dict[str, Any]:
    """The sweep file: of the embedded models, with a space that nobody exhausts."""
    iterations = load.reports * (_PART if load.worker == "Standin" else 2)
    return {
        "name": "standin",
        "model": "digits" if load.worker == "Standin" else "toyfaces",
        "sampler": {"steps": 6},
        "train": {"iterations": iterations, "batch": 16, "micro_batch": 16},
        "search": {
            "directions": {"choice": [8, 12, 16]},
            "shift_scale": {"float": [0.15, 0.5], "log": True},
            "discriminator_weight": {"float": [0.01, 1.0], "log": True},
        },
        "objectives": [{"identifiability": "max"}, {"fidelity_kid": "min"}],
        "scheduler": {"asha": {"metric": "identifiability", "grace": iterations // load.reports, "reduction": 3}},
        "evaluate": {"every": iterations // load.reports, "seeds": 8},
        "budget": {"trials": load.trials},
    }


# --- in the process that drives a sweep


@dataclass
class Meter:
    """Seconds and calls of functions, what they call included, by the clock and of the calling thread's own time."""

    seconds: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def watch(self, owner: Any, name: str) -> None:
        call, label = getattr(owner, name), f"{owner.__name__}.{name}"
        self.seconds[label] = self.cpu[label] = self.calls[label] = 0

        def timed(*given: Any, **more: Any) -> Any:
            began, own = time.perf_counter(), time.thread_time()
            try:
                return call(*given, **more)
            finally:
                self.seconds[label] += time.perf_counter() - began
                self.cpu[label] += time.thread_time() - own
                self.calls[label] += 1

        setattr(owner, name, timed)


@dataclass
class Log:
    """When what happened to the trials of a sweep, and how its driver stood."""

    folder: Path
    meter: Meter
    started: list[float] = field(default_factory=list)
    ended: list[dict[str, Any]] = field(default_factory=list)
    processes: set[int] = field(default_factory=set)
    waiting: int = 0  # records in the outbox, at most

    def on_end(self) -> None:
        point = {"at": time.perf_counter(), "cpu": time.process_time(), "rss": psutil.Process().memory_info().rss}
        self.ended.append({**point, "seconds": dict(self.meter.seconds), "own": dict(self.meter.cpu)})
        self.waiting = max(self.waiting, len(os.listdir(self.folder / "outbox")))


def drive(load: Load, root: Path) -> dict[str, Any]:
    """One sweep in this process, which must be new, and what it cost."""
    began = time.perf_counter()
    os.environ[SECONDS] = str(load.seconds)
    with _ray(load) as address:
        from rich.console import Console

        from benchmarks import standin
        from orchestrator import books, export, ledger, outbox, searcher, sweep
        from orchestrator.spec import parse

        os.environ[TEMPLATE] = str(_template(root / "template"))
        sweep.TrialWorker = getattr(standin, load.worker)  # type: ignore[misc]
        meter, folder = Meter(), root / "standin"
        for owner, names in (
            (searcher.LedgerSearch, ["suggest"]),
            (searcher.LedgerAsha, ["on_trial_result"]),
            (ledger.Ledger, ["next", "running", "reported", "end"]),
            (books.Books, ["started", "reported", "ended", "_tidy"]),
            (outbox.Outbox, ["_put", "_deliver", "close"]),
            (sweep, ["_tune"]),
            (export, ["crown"]),
        ):
            for name in names:
                meter.watch(owner, name)
        log = Log(folder, meter)
        _follow(books.Books, log)
        _mark_asked(searcher.LedgerSearch, folder)
        with open(root / "screen.txt", "w") as screen:
            sweep.run(parse(spec(load)), root, address, Console(file=screen))
        return _account(load, log, began, folder)


@contextmanager
def _ray(load: Load) -> Iterator[str | None]:
    """The address of a cluster of raylets; None, with a Ray of the sweep's own that has so many slots."""
    from orchestrator.cluster import configure

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    configure("a cluster" if load.machines else None)
    import ray

    if not load.machines:
        start = ray.init
        ray.init = lambda *given, **more: start(*given, num_cpus=load.slots, **more)
        yield None
        return
    from ray.cluster_utils import Cluster

    cluster = Cluster(True, head_node_args={"num_cpus": load.slots // load.machines, "include_dashboard": False})
    try:
        for _ in range(load.machines - 1):
            cluster.add_node(num_cpus=load.slots // load.machines)
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def _template(folder: Path) -> Path:
    """What a trial's checkpoint holds of its result: a direction set of the model's own size, and its picture."""
    from core import Denoiser, DirectionSet, Schedule
    from core.pictures import traversal, traversal_grid

    denoiser = Denoiser.from_pretrained("digits")
    schedule = Schedule.ddim(denoiser, 6)
    table = torch.randn(12, len(schedule), *denoiser.h_shape, generator=torch.Generator().manual_seed(0))
    table /= table.flatten(2).norm(dim=2)[..., None, None, None]
    found = DirectionSet(table, torch.ones(12, len(schedule)), tuple(schedule.timesteps))
    (folder / "directions").mkdir(parents=True)
    found.write(folder / "directions")
    traversal_grid(traversal(denoiser, schedule, found), found).save(folder / "traversal.png")
    return folder


def _follow(books: Any, log: Log) -> None:
    """Keep what happens to trials, as the books are told of it."""
    started, reported, ended = books.started, books.reported, books.ended

    def on_start(*given: Any, **more: Any) -> None:
        log.started.append(time.perf_counter())
        started(*given, **more)

    def on_report(self: Any, trial_id: str, report: dict[str, Any], stopped: bool = False) -> bool:
        log.processes.add(report["pid"])
        return bool(reported(self, trial_id, report, stopped))

    def on_end(*given: Any, **more: Any) -> Any:
        again = ended(*given, **more)
        log.on_end()
        return again

    books.started, books.reported, books.ended = on_start, on_report, on_end


def _mark_asked(search: Any, folder: Path) -> None:
    """Put down when Tune asked for each trial, beside what its process puts down."""
    suggest = search.suggest

    def asked(*given: Any) -> Any:
        at, found = time.time(), suggest(*given)
        if isinstance(found, dict):
            mark(folder, "asked", found["trial_id"], at)
        return found

    search.suggest = asked


def _account(load: Load, log: Log, began: float, folder: Path) -> dict[str, Any]:
    meter, first = log.meter, log.started[0]
    paths = {name: folder / name for name in ("study.db", "trials", "tune", "outbox")}
    paths |= {"mlflow.db": folder.parent / "mlflow.db", "mlartifacts": folder.parent / "mlartifacts"}
    return {
        "load": asdict(load),
        "whole": time.perf_counter() - began,
        "tune": meter.seconds["orchestrator.sweep._tune"],
        "crown": meter.seconds["orchestrator.export.crown"],
        "flush": meter.seconds["Outbox.close"],
        "trials": log.ended[-1]["at"] - first,
        "processes": len(log.processes),
        "waiting": log.waiting,
        "ended": [{**point, "at": point["at"] - first} for point in log.ended],
        "seconds": meter.seconds,
        "cpu": meter.cpu,
        "calls": meter.calls,
        "bytes": {name: _size(path) for name, path in paths.items()},
        "marks": [json.loads(line) for line in _lines(folder / MARKS)],
        "cached": [path.stat().st_mtime for path in (folder.parent / "cache").glob("*.safetensors")],
        "average": os.getloadavg()[0],
    }


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _in_this_process(load: str, out: str) -> None:
    """What `driven` starts a process for."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        found = drive(Load(**json.loads(load)), Path(folder) / "runs")
    Path(out).write_text(json.dumps(found))


# --- in the process that measures


def driven(load: Load) -> dict[str, Any]:
    """What `drive` gives, from a process of its own, and what else this machine was busy with."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        call = f"from benchmarks.sweep import _in_this_process as f; f({json.dumps(asdict(load))!r}, {str(out)!r})"
        before = os.getloadavg()[0]
        done = subprocess.run([sys.executable, "-c", call], env=_environment(), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        found: dict[str, Any] = json.loads(out.read_text())
    return {**found, "load_before": before}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
