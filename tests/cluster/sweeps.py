"""A real sweep on a real cluster: what is under way in it, where, and how far it is."""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.text import counted
from orchestrator.workers.process_record import ProcessRecord
from tests.cluster.machines import Cluster
from tests.faults import stores
from tests.faults.sweep_under_test import SweepUnderTest, check, until

INJECT = Path(__file__).parent / "inject"
_START_S = 240.0  # for a gang, on a machine that has much else to do


def environment(watch: Path, pace: float) -> dict[str, str]:
    """What the processes of a cluster get, so that its trials are watched."""
    watch.mkdir(parents=True, exist_ok=True)
    (watch / "pace").write_text(str(pace))
    own = {"PYTHONPATH": str(INJECT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "WATCH": str(watch)}
    return {**os.environ, **own}


@dataclass(frozen=True)
class Iteration:
    """One that a process has begun."""

    rank: int
    pid: int
    number: int
    time: float


@dataclass
class ClusterSweep(SweepUnderTest):
    """The sweep of tests.faults, on a cluster; its driver is on the cluster's head."""

    cluster: Cluster | None = None

    @property
    def watch(self) -> Path:
        return Path(self.on.environment["WATCH"])

    @property
    def on(self) -> Cluster:
        assert self.cluster is not None
        return self.cluster

    @property
    def environment(self) -> dict[str, str]:
        token = {name: value for name, value in self.on.environment.items() if name.startswith("RAY_")}
        return {**super().environment, **token}

    def _sweep(self) -> list[str]:
        return [*self.on.head.prefix, *super()._sweep(), "--address", self.on.address]

    def iterations(self, trial: str) -> list[Iteration]:
        """All that the trial's processes have begun, in order."""
        try:
            lines = [line.split() for line in (self.watch / trial).read_text().splitlines()]
        except OSError:
            return []
        return [Iteration(int(rank), int(pid), int(n), float(at)) for rank, pid, n, at in lines if at]

    def ranks(self, folder: Path) -> dict[int, tuple[ProcessRecord, psutil.Process]]:
        """The processes that work at a trial, by rank, on whichever machine."""
        found, begun = {}, {each.pid for each in self.iterations(folder.name)}
        for told in ProcessRecord.all_of(folder):
            with suppress(psutil.Error):
                process = psutil.Process(told.pid)
                if process.status() != psutil.STATUS_ZOMBIE and told.pid in begun:
                    found[told.rank] = told, process
        newest = max((told.attempt for told, _ in found.values()), default=0)
        return {rank: each for rank, each in found.items() if each[0].attempt == newest}

    def at_work(self, workers: int, iterations: int = 3) -> Path | None:
        """A trial whose newest attempt has begun so many iterations, on all of its processes."""
        for folder in self.trial_folders():
            ranks = self.ranks(folder)
            begun = Counter(each.pid for each in self.iterations(folder.name))
            if len(ranks) == workers and all(begun[process.pid] >= iterations for _, process in ranks.values()):
                return folder
        return None

    def working(self, workers: int, seconds: float = _START_S) -> Path:
        """Wait for a trial to be under way."""

        def found() -> Path | None:
            check(self.running(), f"the sweep has ended: {self.said()[-300:]}")
            return self.at_work(workers)

        folder: Path = until(found, seconds, f"a trial at work; {self.said()[-200:]}")
        return folder

    def ended(self, seconds: float = 500) -> int:
        return super().ended(seconds)

    def tells(self, trial: str, what: str) -> int:
        """How often the sweep has told this of a trial, in one line."""
        return len(re.findall(rf"trial {trial} +{what}", self.said()))

    def machines_of(self, folder: Path) -> dict[int, str]:
        """By rank, Ray's name for the machine that a process of a trial is on."""
        return {rank: told.node or "" for rank, (told, _) in self.ranks(folder).items()}


@dataclass(frozen=True)
class Blow:
    """What a fault did to a trial."""

    trial: str
    told_s: float  # until the sweep said that the attempt had ended
    resumed_s: float  # until an iteration of the next attempt began
    lost: int  # iterations that were made again

    def __str__(self) -> str:
        lost = counted(self.lost, "iteration")
        return f"told after {self.told_s:.0f} s, at work again after {self.resumed_s:.0f} s, {lost} lost"


def strike(
    sweep: ClusterSweep,
    workers: int,
    blow: Callable[[Path], object],
    outcome: str,
    then: Callable[[], object] = lambda: None,
) -> Blow:
    """Do something to a trial at work, and see it told and gone on with. then: what is done when it has been told."""
    folder = sweep.working(workers)
    trial, before, began = folder.name, sweep.tells(folder.name, outcome), time.time()
    pids = {process.pid for _, process in sweep.ranks(folder).values()}
    blow(folder)

    def told() -> bool:
        check(sweep.running(), f"the sweep has ended: {sweep.said()[-300:]}")
        return sweep.tells(trial, outcome) > before

    until(told, 150, f"'{outcome}' of trial {trial}; {sweep.said()[-300:]}")
    told_s = time.time() - began
    then()
    found = sweep.iterations(trial)
    until(lambda: again(sweep, trial, began, pids), _START_S, f"trial {trial} at work again; {sweep.said()[-300:]}")
    first = again(sweep, trial, began, pids)
    assert first is not None
    reached = max((each.number for each in found if each.pid in pids), default=-1)
    return Blow(trial, told_s, first.time - began, max(0, reached + 1 - first.number))


def again(sweep: ClusterSweep, trial: str, began: float, before: set[int]) -> Iteration | None:
    """The first iteration of an attempt that followed."""
    return next((each for each in sweep.iterations(trial) if each.time > began and each.pid not in before), None)


def one_at_a_time(sweep: ClusterSweep) -> None:
    """No process goes on with a trial that another has taken over."""
    for folder in sweep.trial_folders():
        for rank in {each.rank for each in sweep.iterations(folder.name)}:
            order = [each.pid for each in sweep.iterations(folder.name) if each.rank == rank]
            changes = [pid for number, pid in enumerate(order) if number == 0 or order[number - 1] != pid]
            check(len(changes) == len(set(changes)), f"two at once at trial {folder.name}, rank {rank}: {changes}")


def accounted(sweep: ClusterSweep) -> None:
    """Every trial is over, every store says so, `status` does too."""
    stores.agree(sweep)
    stores.closed(sweep)
    one_at_a_time(sweep)
    done = sweep.run("status", sweep.name)
    check(done.returncode == 0 and "complete" in done.stdout, f"status: {done.returncode} {done.stdout}{done.stderr}")


def freed(sweep: ClusterSweep, seconds: float = 30) -> float:
    """Wait until nothing of the cluster is held; how long that took."""
    began = time.monotonic()
    sweep.on.wait(lambda told: _same(told["there"], told["free"]), "the cluster free again", seconds)
    return time.monotonic() - began


def _same(there: dict[str, float], free: dict[str, float]) -> bool:
    return all(abs(free.get(kind, 0) - there[kind]) < 1e-6 for kind in there if kind in ("CPU", "GPU"))


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
