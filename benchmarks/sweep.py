"""What the orchestrator itself costs: sweeps whose trials only sleep, in everything else the real thing.

python -m benchmarks.sweep            writes results/sweep_cpu.md
python -m benchmarks.sweep --quick    a few trials of each kind, printed and not kept

With --records an interrupted benchmark goes on where it stopped: what was measured is kept in that folder.

Ray Tune, Optuna's study, the books, the outbox, MLflow's embedded store, ASHA and the processes of trials are real.
"""

import argparse
import heapq
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from random import Random
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import psutil
import torch

from benchmarks.common import RESULTS, machine
from benchmarks.standin import MARKS, SECONDS, STAGES, TEMPLATE, mark
from core.files import write_json

MIB = 1 << 20
_STEPS = 6
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


def spec(load: Load, model: str = "toyfaces") -> dict[str, Any]:
    """The sweep file, with a space that nobody exhausts."""
    iterations = load.reports * (_PART if load.worker == "Standin" else 2)
    return {
        "name": "standin",
        "model": model,
        "sampler": {"steps": _STEPS},
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
        call, label = getattr(owner, name), f"{owner.__name__.rpartition('.')[2]}.{name}"
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
        from orchestrator.search import ledger
        from orchestrator.spec import parse
        from orchestrator.sweep import champion, sweep, tune_callback, tune_search
        from orchestrator.tracking import outbox, record

        model = str(_model(root / "model")) if load.worker == "Standin" else "toyfaces"
        os.environ[TEMPLATE] = str(_template(root / "template", model))
        setattr(sweep, "TrialWorker", getattr(standin, load.worker))  # noqa: B010 - a class named at run time
        meter, folder = Meter(), root / "standin"
        for owner, names in (
            (tune_search.LedgerSearch, ["suggest"]),
            (tune_search.LedgerAsha, ["on_trial_result"]),
            (ledger.Ledger, ["next_attempt", "running", "reported", "end"]),
            (record.SweepRecord, ["started", "reported", "ended", "tidy"]),
            (outbox.Outbox, ["_put", "_deliver", "close"]),
            (sweep, ["_tune"]),
            (champion, ["choose_champion"]),
        ):
            for name in names:
                meter.watch(owner, name)
        log = Log(folder, meter)
        _follow(record.SweepRecord, log)
        _follow_results(tune_callback.RecordCallback, log)
        _mark_asked(tune_search.LedgerSearch, folder)
        with open(root / "screen.txt", "w") as screen:
            sweep.run(parse(spec(load, model)), root, address, Console(file=screen))
        return _account(load, log, began, folder)


@contextmanager
def _ray(load: Load) -> Iterator[str | None]:
    """The address of a cluster of raylets; None, with a Ray of the sweep's own that has so many slots."""
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


def _model(folder: Path) -> Path:
    """A model of 8x8 images and random weights, on which the champion of stand-ins is measured in no time."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(8, 3, 3, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, **blocks)
    DDIMPipeline(unet, DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    return folder


def _template(folder: Path, model: str) -> Path:
    """What a trial's checkpoint holds of its result: a direction set of the model's own size, and its picture."""
    from core import Denoiser, DirectionSet, Schedule
    from core.pictures.traversal_grid import traversal, traversal_grid

    denoiser = Denoiser.from_pretrained(model)
    schedule = Schedule.ddim(denoiser, _STEPS)
    table = torch.randn(12, len(schedule), *denoiser.h_shape, generator=torch.Generator().manual_seed(0))
    table /= table.flatten(2).norm(dim=2)[..., None, None, None]
    found = DirectionSet(table, torch.ones(12, len(schedule)), tuple(schedule.timesteps))
    (folder / "directions").mkdir(parents=True)
    found.write(folder / "directions")
    traversal_grid(traversal(denoiser, schedule, found), found).save(folder / "traversal.png")
    return folder


def _follow(record: Any, log: Log) -> None:
    """Keep what happens to trials, as the sweep's record is told of it."""
    started, ended = record.started, record.ended

    def on_start(*given: Any, **more: Any) -> None:
        log.started.append(time.perf_counter())
        started(*given, **more)

    def on_end(*given: Any, **more: Any) -> Any:
        again = ended(*given, **more)
        log.on_end()
        return again

    record.started, record.ended = on_start, on_end


def _follow_results(callback: Any, log: Log) -> None:
    """Keep which processes report, as Ray Tune knows them."""
    on_trial_result = callback.on_trial_result

    def on_result(
        self: Any, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        log.processes.add(result["pid"])
        on_trial_result(self, iteration, trials, trial, result, **info)

    callback.on_trial_result = on_result


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
        "tune": meter.seconds["sweep._tune"],
        "crown": meter.seconds["champion.choose_champion"],
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
        "average": os.getloadavg()[0],
    }


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def record(load: str, out: str) -> None:
    """What `driven` starts a process for."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        found = drive(Load(**json.loads(load)), Path(folder) / "runs")
    Path(out).write_text(json.dumps(found))


# --- in the process that measures


def driven(load: Load, records: Path | None = None) -> dict[str, Any]:
    """What `drive` gives, from a process of its own, and what else this machine was busy with."""
    name = "_".join(f"{value:g}" if isinstance(value, float) else str(value) for value in asdict(load).values())
    if records is not None and (records / f"{name}.json").is_file():
        return dict(json.loads((records / f"{name}.json").read_text()))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        address = "a cluster" if load.machines else None
        call = (  # Ray reads its environment when it is imported
            f"from orchestrator.sweep.cluster import configure; configure({address!r})\n"
            f"from benchmarks.sweep import record; record({json.dumps(asdict(load))!r}, {str(out)!r})"
        )
        before = os.getloadavg()[0]
        done = subprocess.run([sys.executable, "-c", call], env=_environment(), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        found: dict[str, Any] = json.loads(out.read_text()) | {"load_before": before}
    if records is not None:
        records.mkdir(parents=True, exist_ok=True)
        write_json(records / f"{name}.json", found)
    return found


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}


def resident(model: str | Path, leaner: bool, workers: int) -> dict[str, float]:
    """Private bytes (USS) of the processes that hold a model, at each stage: the mean."""
    call = f"from benchmarks.standin import hold; hold({str(model)!r}, {leaner})"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": _environment()}
    held = [subprocess.Popen([sys.executable, "-c", call], **pipes) for _ in range(workers)]  # type: ignore[call-overload]  # pipes as a dict
    found = {}
    for stage in STAGES:
        for process in held:
            assert process.stdout.readline() == "ready\n", "a process that holds the model has ended"
        found[stage] = fmean(psutil.Process(process.pid).memory_full_info().uss for process in held)
        for process in held:
            process.stdin.write("\n")
            process.stdin.flush()
    for process in held:
        process.communicate()
    return found


def larger(folder: Path) -> Path:
    """A model of the published 256x256 ones' shape at half the width, with random weights."""
    from benchmarks.sides import celeba

    denoiser = celeba(2, 64, "cpu")
    denoiser.network.save_pretrained(folder / "unet")
    denoiser.scheduler.save_pretrained(folder / "scheduler")
    return folder


@dataclass(frozen=True)
class Race:
    """Trials with learning curves made up, `slots` at a time, under ASHA."""

    trials: int
    slots: int
    iterations: int
    every: int
    grace: int
    reduction: int

    @property
    def least(self) -> float:
        """Steps with / without, where exactly one of `reduction` goes on from each rung."""
        rungs: int = round(math.log(self.iterations / self.grace, self.reduction))
        steps = [self.grace * self.reduction**k for k in range(rungs)] + [self.iterations]
        parts = [(b - a) / self.reduction**k for k, (a, b) in enumerate(zip([0, *steps], steps, strict=False))]
        return float(sum(parts) / self.iterations)


def raced(race: Race, seed: int) -> tuple[float, float]:
    """Training steps with ASHA / without it; and the place of the best trial that was not stopped, 0 for the best."""
    from orchestrator.spec import parse
    from orchestrator.sweep.tune_search import LedgerAsha

    content = spec(Load(race.trials, 1, race.slots)) | {
        "train": {"iterations": race.iterations, "batch": 16, "micro_batch": 16},
        "scheduler": {"asha": {"metric": "identifiability", "grace": race.grace, "reduction": race.reduction}},
    }
    asha: Any = LedgerAsha(parse(content), SimpleNamespace(history=lambda *_: {}))  # type: ignore[arg-type]  # all it reads of a ledger
    chance, steps, whole = Random(seed), 0, []
    ends = [chance.betavariate(2, 3) for _ in range(race.trials)]
    paces = [race.iterations * chance.uniform(0.1, 0.5) for _ in range(race.trials)]
    waiting = [(chance.random(), number, 0) for number in range(race.slots)]
    following = iter(range(race.slots, race.trials))
    while waiting:
        now, number, step = heapq.heappop(waiting)
        step, name = step + race.every, str(number)
        trial = SimpleNamespace(trial_id=name, config={"trial_id": name, "parameters": {"method": "learned"}})
        if step == race.every:
            asha.on_trial_add(None, trial)
        value = ends[number] * (1 - math.exp(-step / paces[number])) + chance.gauss(0, 0.01)
        steps += race.every
        go_on = asha.on_trial_result(None, trial, {"global_step": step, "identifiability": value}) == "CONTINUE"
        if step >= race.iterations:
            whole.append(number)
        elif go_on:
            heapq.heappush(waiting, (now + chance.uniform(0.9, 1.1), number, step))
            continue
        if (fresh := next(following, None)) is not None:
            heapq.heappush(waiting, (now + chance.uniform(0.9, 1.1), fresh, 0))
    order = sorted(range(race.trials), key=lambda number: -ends[number])
    return steps / (race.trials * race.iterations), min(map(order.index, whole))


# --- the page


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    overhead: Load = Load(64, 5.0, 2, reports=3)
    scale: Load = Load(1000, 0.1, 4)
    points: Sequence[int] = (100, 250, 500, 1000)
    clusters: Sequence[Load] = (Load(64, 1.0, 16, machines=8), Load(64, 1.0, 16, machines=1))
    start: Load = Load(4, 0.0, 1, worker="Timed")
    workers: Sequence[int] = (1, 2, 4)
    large: bool = True
    races: Sequence[Race] = (
        Race(64, 8, 150, 50, 50, 3),
        Race(64, 8, 405, 15, 15, 3),
        Race(64, 8, 1215, 15, 15, 3),
        Race(256, 8, 1215, 15, 15, 3),
    )


QUICK = Plan(
    overhead=Load(4, 0.2, 2),
    points=(),
    clusters=(),
    start=Load(2, 0.0, 1, worker="Timed"),
    workers=(1,),
    large=False,
    races=(Race(32, 4, 150, 50, 50, 3),),
)


def overhead_rows(found: dict[str, Any]) -> list[str]:
    """A sweep beside its ideal, its processes' start and its end counted or not."""
    load = Load(**found["load"])
    spans = [
        ("first trial's start to last one's end", found["trials"], "<= 10 %"),
        ("Ray Tune alone, with the start and end of its processes", found["tune"], ""),
        ("the whole command: with imports, Ray, MLflow, the champion on the reporting seeds", found["whole"], ""),
    ]
    rows = [
        f"| {what} | {seconds:.1f} | {load.ideal:.1f} | {100 * (seconds / load.ideal - 1):.1f} % | {goal} |"
        for what, seconds, goal in spans
    ]
    return ["| from, to | seconds | ideal | overhead | goal |", "|---" * 5 + "|", *rows]


_OF_THE_DRIVER = {
    "LedgerSearch.suggest": "asked for a trial (each step of Tune asks; Optuna's proposal included)",
    "Ledger.next_attempt": "of that, the proposal and its row",
    "SweepRecord.started": "a start, put down",
    "SweepRecord.reported": "a report, put down: outbox and ledger",
    "SweepRecord.ended": "an end, put down: outbox, ledger, tidying up",
    "SweepRecord.tidy": "of that, tidying up",
    "Ledger.running": "reading the ledger, in all of the above",
    "Outbox._put": "writing records of the outbox, in all of the above",
    "Outbox._deliver": "sending them to MLflow, in a thread beside",
}


def driver_rows(found: dict[str, Any], points: Sequence[int]) -> list[str]:
    """Milliseconds of a trial in each part of the driver: the whole sweep's mean, and the thread's own by windows."""
    count, ends = len(found["ended"]), [*points]
    heads = [f"own, {a}-{b}" for a, b in zip([1, *ends], ends, strict=False)]
    rows = [f"| in the driver, ms a trial | {' | '.join(['by the clock', 'own time', *heads])} |"]
    rows.append("|---" * (3 + len(ends)) + "|")
    for name, what in _OF_THE_DRIVER.items():
        cells = [1000 * found[kind][name] / count for kind in ("seconds", "cpu")]
        cells += [1000 * (b["own"][name] - a["own"][name]) / n for a, b, n in _windows(found, points)]
        rows.append(f"| {what} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    return rows


def _windows(found: dict[str, Any], points: Sequence[int]) -> list[tuple[dict[str, Any], dict[str, Any], int]]:
    ended, starts = found["ended"], [1, *points][: len(points)]
    return [(ended[a - 1], ended[b - 1], b - a) for a, b in zip(starts, points, strict=True)]


def scale_rows(found: dict[str, Any], points: Sequence[int]) -> list[str]:
    rows = ["| trials | seconds so far | seconds a trial, since the row before | driver's CPU a trial | driver's RSS |"]
    rows.append("|---" * 5 + "|")
    for (a, b, n), count in zip(_windows(found, points), points, strict=True):
        each, own = (b["at"] - a["at"]) / n, (b["cpu"] - a["cpu"]) / n
        rows.append(f"| {count} | {b['at']:.1f} | {each:.3f} | {own:.3f} s | {b['rss'] / MIB:.0f} MiB |")
    return rows


def sizes(found: dict[str, Any]) -> str:
    each = ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in found["bytes"].items())
    return f"On disk at the end: {each}. Records that waited in the outbox at most: {found['waiting']}."


def cluster_rows(found: Sequence[dict[str, Any]]) -> list[str]:
    rows = ["| raylets | slots | trials | seconds | ideal | processes | ms a trial | driver's CPU a trial | load |"]
    rows.append("|---" * 9 + "|")
    for each in found:
        load, ended = Load(**each["load"]), each["ended"]
        own = (ended[-1]["cpu"] - ended[0]["cpu"]) / (len(ended) - 1)
        extra = 1000 * (each["trials"] - load.ideal) / load.trials
        rows.append(
            f"| {load.machines} | {load.slots} | {load.trials} | {each['trials']:.1f} | {load.ideal:.1f} "
            f"| {each['processes']} | {extra:.0f} | {1000 * own:.0f} ms | {_busy(each)} |"
        )
    return rows


def start_rows(found: dict[str, Any]) -> list[str]:
    """Seconds from when Tune asked for a trial, for each trial in the order of asking."""
    trials: dict[str, dict[str, float]] = {}
    for told in found["marks"]:
        trials.setdefault(told["trial"], {}).setdefault(told["what"], told["time"])
    stages = ["begins", "imported", "loaded", "called", "trains"]
    names = ["its process is there", "imports", "model", "first network call", "first iteration"]
    rows = [f"| trial | {' | '.join(names)} | to the first call / first trial's |", "|---" * 7 + "|"]
    order = sorted(trials.values(), key=lambda marks: marks["asked"])
    for number, marks in enumerate(order, start=1):
        since = [marks[stage] - marks["asked"] for stage in stages]
        share = since[3] / (order[0]["called"] - order[0]["asked"])
        rows.append(f"| {number} | {' | '.join(f'{seconds:.2f}' for seconds in since)} | {share:.3f} |")
    return rows


def memory_rows(name: str, model: str | Path, workers: Sequence[int]) -> list[str]:
    from core import Denoiser

    size = Denoiser.from_pretrained(model).weight_bytes()
    rows = []
    for count in workers:
        plain, leaner = resident(model, False, count), resident(model, True, count)
        extra = (plain["loaded"] - plain["imported"]) / size
        merged = (leaner["loaded"] - leaner["imported"]) / size
        rows.append(
            f"| {name}, {size / MIB:.1f} MiB | {count} | {plain['imported'] / MIB:.0f} MiB "
            f"| {plain['loaded'] / MIB:.0f} MiB | {extra:.2f} | {merged:.2f} | {plain['drawn'] / MIB:.0f} MiB |"
        )
    return rows


def race_rows(races: Sequence[Race], seeds: int = 10) -> list[str]:
    rows = ["| trials | iterations | grace | reduction | steps with / without | at least | place |"]
    rows.append("|---" * 7 + "|")
    for race in races:
        found = [raced(race, seed) for seed in range(seeds)]
        share, place = fmean(share for share, _ in found), fmean(place for _, place in found)
        cells = f"{race.trials} | {race.iterations} | {race.grace} | {race.reduction}"
        rows.append(f"| {cells} | {share:.3f} | {race.least:.3f} | {place:.1f} |")
    return rows


def _busy(found: dict[str, Any]) -> str:
    return f"{found['load_before']:.1f} to {found['average']:.1f}"


def document(plan: Plan, records: Path | None = None) -> str:
    """The page."""
    parts = ["# What the orchestrator costs", _HEAD, _overhead(driven(plan.overhead, records))]
    if plan.points:
        parts.append(_scale(driven(plan.scale, records), plan.points))
    if plan.clusters:
        parts.append(_clusters([driven(load, records) for load in plan.clusters]))
    parts += [_start(driven(plan.start, records)), _memory(plan), _races(plan), _conditions()]
    return "\n\n".join(parts) + "\n"


_HEAD = """Trials are stood in for by processes that sleep, keep checkpoints of a real size and report plausible
numbers; Ray Tune, Optuna's study on SQLite, the books, the outbox, MLflow's embedded store, ASHA and the trials'
processes are the real ones. No trial is stopped, so that an ideal is trials * seconds / slots. "Load" is the machine's
load average before and after: what else ran on it counts against every figure here."""


def _overhead(found: dict[str, Any]) -> str:
    load = Load(**found["load"])
    what = f"{load.trials} trials of {load.seconds:g} s, {load.reports} reports each, in {load.slots} slots"
    return f"""## Overhead: {what}

{chr(10).join(overhead_rows(found))}

Processes that ran them: {found["processes"]}. Load: {_busy(found)}.

{chr(10).join(driver_rows(found, ()))}"""


def _scale(found: dict[str, Any], points: Sequence[int]) -> str:
    load = Load(**found["load"])
    return f"""## Scale: {load.trials} trials of {load.seconds:g} s in {load.slots} slots

{chr(10).join(scale_rows(found, points))}

{chr(10).join(driver_rows(found, points))}

{sizes(found)} Processes: {found["processes"]}. Load: {_busy(found)}."""


def _clusters(found: Sequence[dict[str, Any]]) -> str:
    return f"""## A cluster of fake machines

All raylets on this machine, a slot for each fake CPU; from the first trial's start to the last one's end, so the start
of the processes, which this machine's cores do one after the other, is most of it.

{chr(10).join(cluster_rows(found))}"""


def _start(found: dict[str, Any]) -> str:
    return f"""## Start of a trial

Real trials of toyfaces, method learned, one after the other in one process; seconds since Tune asked for the trial.
Goal: the second's first call of the network after <= 0.2 of the first's.

{chr(10).join(start_rows(found))}

Processes: {found["processes"]}. Load: {_busy(found)}."""


def _memory(plan: Plan) -> str:
    rows = memory_rows("toyfaces", "toyfaces", plan.workers)
    if plan.large:
        with tempfile.TemporaryDirectory() as folder:
            rows += memory_rows("celebahq's shape at half the width", larger(Path(folder)), plan.workers)
    heads = ["model", "processes", "private, imports alone", "with the model", "more / model", "more / model, lean"]
    return f"""## Memory of a model in several processes

Private memory (USS) of a process, the mean of all. Goal: more / model <= 0.2 for two processes and beyond. Of a single
process everything is private, the pages of the file included.

{chr(10).join([f"| {' | '.join([*heads, 'after a call'])} |", "|---" * 7 + "|", *rows])}"""


def _races(plan: Plan) -> str:
    return f"""## Steps that ASHA saves

Learning curves made up (a * (1 - exp(-t / pace)), a of Beta(2, 3), noise of 0.01), {plan.races[0].slots} at a time,
means of 10 draws. Goal: <= 0.30 with reduction 3 and enough rungs. Place: of the best trial that was trained to the
end, 0 being the best of all.

{chr(10).join(race_rows(plan.races))}"""


def _conditions() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "optuna", "mlflow", "diffusers"))
    hardware = f"{os.cpu_count()} cores of {machine(torch.device('cpu'))}"
    return f"""Measured on {datetime.now(UTC):%Y-%m-%d} on {hardware}, {packages}.
Command: `python -m benchmarks.sweep`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--records", type=Path)
    given = parser.parse_args()
    page = document(QUICK if given.quick else Plan(), given.records)
    if not given.quick:
        (RESULTS / "sweep_cpu.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
