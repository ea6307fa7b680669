"""How fast a sweep's books go into PostgreSQL and an MLflow server, and that nothing is lost or there twice on the way.

    python -m benchmarks.stores

needs PostgreSQL's binaries and the extra `dev`, takes some minutes, and writes benchmarks/results/stores_postgresql.md.
Reports come as fast as the books take them: no trial trains. Everything else is what drives a sweep: the ledger in
Optuna's study, the outbox, a server of MLflow on PostgreSQL that keeps files in an S3 (moto).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from mlflow import MlflowClient
from PIL import Image
from rich.console import Console

from benchmarks.common import RESULTS, machine
from benchmarks.servers import Postgresql, mlflow_server, postgresql, postgresql_binaries, s3_secrets, s3_server
from orchestrator.search.ledger import Ledger
from orchestrator.spec import Sweep, parse
from orchestrator.store.folder import SweepFolder
from orchestrator.store.spool import pending, refused
from orchestrator.sweep.sweep import _outbox, _prepare
from orchestrator.tracking.client import Tracking
from orchestrator.tracking.record import SweepRecord
from orchestrator.trial.outcome import TrialOutcome
from orchestrator.trial.state import Report

_LOSSES, _MEASURED = ("reconstruction", "diversity"), ("identifiability", "fidelity_kid", "globality")
_FLUSH_S = 1800.0


@dataclass(frozen=True)
class Load:
    """What a sweep's trials report, all of them side by side."""

    streams: int = 8
    reports: int = 50
    curve: int = 98  # iterations between two reports
    files: bool = False  # whether each report brings a set and a picture

    @property
    def points(self) -> int:
        """Of one stream."""
        return self.reports * (self.curve * len(_LOSSES) + len(_MEASURED) + 1)

    @property
    def iterations(self) -> int:
        return self.reports * self.curve


@dataclass(frozen=True)
class SweepRun:
    """How long it took to put everything down, and until the store had it."""

    booked_s: float
    sent_s: float
    unsent: int


def sweep_of(name: str, load: Load, tracking: str | None, study: str | None) -> Sweep:
    return parse(
        {
            "name": name,
            "model": "toyfaces",
            "train": {"iterations": load.iterations},
            "search": {"shift_scale": {"float": [0.5, 2.0]}},
            "objectives": [{_MEASURED[0]: "max"}],
            "budget": {"trials": load.streams},
            "tracking": {"uri": tracking, "experiment": "stores"},
            "study": {"uri": study},
        }
    )


def drive(sweep: Sweep, root: Path, load: Load) -> SweepRun:
    """All of a sweep's life, as its driver writes it down."""
    folder, tracking = SweepFolder(root, sweep.name), Tracking(sweep.tracking.uri, root)
    tracking.check()
    _prepare(sweep, folder, tracking, "weights", None)
    outbox = _outbox(folder, tracking, Console(quiet=True))
    record = SweepRecord(sweep, folder, Ledger(sweep, folder.study_place, "weights", load.streams), outbox)
    began = time.monotonic()
    outbox.open()
    outbox.start(None)
    given = [assignment for _ in range(load.streams) if (assignment := record.ledger.next_attempt())]
    for each in given:
        record.started(each.trial_id, each.parameters, 1)
    for number in range(1, load.reports + 1):
        for each in given:
            if load.files:
                _checkpoint(folder, each.trial_id, number)
            record.reported(each.trial_id, report(number, load))
    for each in given:
        record.ended(each.trial_id, TrialOutcome.COMPLETED, "", report(load.reports, load))
    outbox.end(None, "FINISHED")
    booked = time.monotonic() - began
    outbox.close(_FLUSH_S)
    return SweepRun(booked, time.monotonic() - began, pending(folder.outbox) + refused(folder.outbox))


def report(number: int, load: Load) -> Report:
    """What a trial reports the n-th time."""
    last = number * load.curve
    curve = [
        {"step": step, **{name: 1 / (step + place) for place, name in enumerate(_LOSSES)}}
        for step in range(last - load.curve + 1, last + 1)
    ]
    metrics = {name: 1 - 1 / (last + place) for place, name in enumerate(_MEASURED, start=2)}
    return Report(last, last / 10, metrics, curve, milliseconds=1_700_000_000_000 + last)


def _checkpoint(folder: SweepFolder, trial_id: str, number: int) -> None:
    def write(to: Path) -> None:
        (to / "state.json").write_text(json.dumps({"iteration": number, "report": None, "parts": None}))
        (to / "directions").mkdir()
        (to / "directions" / "directions.json").write_text(json.dumps({"number": number}))
        Image.new("RGB", (320, 320), (number % 256, 0, 0)).save(to / "traversal.png")

    folder.trial(trial_id).save(number, write)


def wrong(sweep: Sweep, root: Path, load: Load) -> list[str]:
    """What MLflow has not, or has twice, of a sweep; every point is fetched and looked at."""
    state, client = SweepFolder(root, sweep.name).read(), MlflowClient(sweep.tracking.uri, sweep.tracking.uri)
    rule = f"tags.`mlflow.parentRunId` = '{state['parent_run']}'"
    runs = client.search_runs([state["experiment_id"]], rule)
    found = [] if len(runs) == load.streams else [f"{len(runs)} runs instead of {load.streams}"]
    for run in runs:
        if run.info.status != "FINISHED":
            found.append(f"run {run.info.run_id} is {run.info.status}")
        for name, points in expected(load).items():
            there = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            if sorted(there) != points:
                found.append(f"run {run.info.run_id}: {len(there)} points of {name} instead of these {len(points)}")
    return found


def expected(load: Load) -> Mapping[str, list[tuple[float, float]]]:
    """Every point of a stream."""
    points: dict[str, list[tuple[float, float]]] = {}
    for number in range(1, load.reports + 1):
        told = report(number, load)
        for point in told.curve:
            for name in _LOSSES:
                points.setdefault(f"training/{name}", []).append((point["step"], point[name]))
        for name, value in (told.metrics | {"find_seconds": told.find_seconds}).items():
            points.setdefault(name, []).append((told.global_step, value))
    return points


def side_by_side(drivers: int, root: Path, load: Load, tracking: str, study: str) -> tuple[float, list[SweepRun]]:
    """Sweeps at the same time, each driven by a process; seconds until the last has ended."""
    began = time.monotonic()
    given = json.dumps({"root": str(root), "load": asdict(load), "tracking": tracking, "study": study})
    command = [sys.executable, "-m", "benchmarks.stores", "--drive", given, "--name"]
    started = [subprocess.Popen([*command, f"sweep-{n}"], stdout=subprocess.PIPE, text=True) for n in range(drivers)]
    try:
        told = [process.communicate(timeout=_FLUSH_S)[0] for process in started]
        assert not any(process.returncode for process in started), "a driver has failed"
    finally:
        for process in started:
            process.kill()
            process.wait()
    return time.monotonic() - began, [SweepRun(**json.loads(text.splitlines()[-1])) for text in told]


def _driven(given: str, name: str) -> None:
    """One of them."""
    told = json.loads(given)
    load = Load(**told["load"])
    print(json.dumps(asdict(drive(sweep_of(name, load, told["tracking"], told["study"]), Path(told["root"]), load))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--reports", type=int, default=50, help="of each trial, 200 points each")
    given = parser.parse_args()
    if given.drive:
        _driven(given.drive, given.name)
        return
    binaries = postgresql_binaries()
    if binaries is None:
        parser.error("there is no PostgreSQL on this machine (initdb, postgres)")
    with tempfile.TemporaryDirectory() as folder, postgresql(binaries) as server, s3_server("stores") as s3:
        backend = server.database("mlflow").replace("postgresql", "postgresql+psycopg", 1)
        with mlflow_server(backend, "s3://stores/artifacts", **s3_secrets(s3)) as tracking:
            lines = _measured(Path(folder), given.reports, server, tracking, server.database("studies"))
    page = _PAGE.format(machine=machine(torch.device("cpu")), versions=_versions(binaries), rows="\n".join(lines))
    (RESULTS / "stores_postgresql.md").write_text(page)
    print(page)


def _measured(root: Path, reports: int, server: Postgresql, tracking: str, study: str) -> list[str]:
    """The rows of the table."""
    lines = []
    embedded = Load(reports=reports)
    for name, where, book in (("embedded", None, None), ("servers", tracking, study)):
        sweep = sweep_of(name, embedded, where, book)
        course = drive(sweep, root / name, embedded)
        lost = wrong(sweep, root / name, embedded) if where else []
        what = "SQLite for both, for comparison" if where is None else "PostgreSQL, MLflow server on PostgreSQL"
        lines.append(_row(f"{what}: 1 sweep of 8 trials", embedded, 1, course.booked_s, course.sent_s, course, lost))
        print(lines[-1], flush=True)
    for what, load in (
        ("the same, 4 sweeps of 8 trials side by side", Load(reports=reports)),
        ("the same 4, each report with a set and a picture", Load(reports=max(1, reports // 5), files=True)),
    ):
        folder = root / ("files" if load.files else "side")
        seconds, courses = side_by_side(4, folder, load, tracking, study)
        sweeps = [sweep_of(f"sweep-{n}", load, tracking, study) for n in range(4)]
        lost = [each for sweep in sweeps for each in wrong(sweep, folder, load)]
        slowest = max(courses, key=lambda course: course.sent_s)
        lines.append(_row(what, load, 4, slowest.booked_s, slowest.sent_s, slowest, lost))
        print(lines[-1], f"{seconds:.0f} s in all", flush=True)
    sizes = ", ".join(f"{name} {server.size(name) / 2**20:.0f} MiB" for name in ("mlflow", "studies"))
    return [*lines, "", f"Databases in the end: {sizes}."]


def _row(what: str, load: Load, sweeps: int, booked: float, sent: float, course: SweepRun, lost: list[str]) -> str:
    points = load.points * load.streams * sweeps
    verdict = "; ".join(lost[:3]) or ("none" if not course.unsent else f"{course.unsent} records not sent")
    return f"| {what} | {points:,} | {booked:.0f} s | {sent:.0f} s | {points / sent:,.0f} | {verdict} |"


def _versions(binaries: Path) -> str:
    said = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    packages = ("mlflow", "optuna", "sqlalchemy", "psycopg", "moto")
    return ", ".join([said.split(" (")[0].strip(), *(f"{name} {version(name)}" for name in packages)])


_PAGE = """# Studies in PostgreSQL, runs on an MLflow server

Written by `python -m benchmarks.stores`. Trials report as fast as the books take it, 200 points of 5 metrics at a time;
every point is then fetched from the server and compared. "Booked" is when the driver had put everything down (study and
outbox), "sent" when the store had it all; points per second count until then.

Machine: {machine}; servers, drivers and whatever else ran shared it. {versions}.

| what | points | booked | sent | points/s | lost or twice |
|---|---|---|---|---|---|
{rows}
"""

if __name__ == "__main__":
    main()
