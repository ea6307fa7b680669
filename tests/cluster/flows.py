"""What is done to sweeps on a cluster, in which order, and what is checked of each."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.search.ledger import ENDS
from tests.cluster.machines import Cluster, Hosts
from tests.cluster.sweeps import Blow, ClusterSweep, accounted, again, freed, kill, strike
from tests.faults import rows, stores
from tests.faults.sweep_under_test import SweepUnderTest, check, until

GANGS, ALONE = ("resources.workers=2",), ()
TRIALS = 3
_LOST = "preempted +lost a machine"
_SAVED = "preempted +(lost a machine|was asked to end)"
_KILLED = "failed +(one of its processes|its process) ended without a word"
_DEADLINE_S = 60


@dataclass
class Row(rows.Row):
    """One fault, and what was measured of it."""

    measured: str = ""


UNDISTURBED = {
    "gangs": Row(
        "trials of 2 processes, on 2 machines of one CPU each, beside a head without any",
        "both machines share each trial; champion, every run closed, `status` 0",
    ),
}
STRUCK = {
    "process": Row("a process of a trial killed", "one crash counted; goes on, result equal"),
    "drain": Row("a machine drained (`ray drain-node`)", "saves and goes on elsewhere, no crash, no iteration lost"),
    "cut": Row("a machine cut off from the network, and back later", "a preemption; who was cut off writes nothing"),
    "lost": Row("a machine killed in mid-trial, another one comes", "a preemption; waits until there is room again"),
    "late": Row("... which has never been there before", "told; the trial goes on there"),
    "gang": Row("the process that looks after a trial killed", "one crash counted; what the trial held is free again"),
    "driver": Row("the driver killed, the same command again", "goes on from the last checkpoint"),
    "all": Row("after all of these", "every trial done once, all stores agree, results equal to the last digit"),
}
SINGLE = {
    "alone": Row("trials of one process over the machines", "equal to those on one machine without a cluster"),
    "alone_lost": Row("... a machine killed in mid-trial", "a preemption; goes on, result equal"),
    "alone_drain": Row("... a machine drained", "saves and goes on elsewhere, no crash, no iteration lost"),
    "alone_cut": Row("... a machine cut off, its trial goes on there", "the next attempt takes it over"),
}
STOPPED = {
    "asha": Row("trials of 2 processes stopped by ASHA", "their CPUs are free in seconds; the sweep comes to its end"),
    "interrupt": Row("Ctrl-C", "every trial saves; nothing is held or left; the same command goes on"),
}


@dataclass
class Stage:
    """A cluster, and sweeps on it."""

    place: Path
    model: Path
    cluster: Cluster

    def sweep(self, name: str, settings: tuple[str, ...], trials: int = TRIALS) -> ClusterSweep:
        return ClusterSweep(self.place / name, self.model, settings, trials=trials, cluster=self.cluster)


def undisturbed(scenario: rows.Scenario, stage: Stage, trials: int = TRIALS) -> stores.Result:
    """The sweep that the others are compared with."""
    sweep = stage.sweep("ref", GANGS, trials)
    try:
        with scenario.row("gangs"):
            sweep.start()
            folder = sweep.working(2)
            machines = sweep.machines_of(folder)
            sweep.finish()
            check(len(set(machines.values())) == 2, f"one machine had all of a trial: {machines}")
            accounted(sweep)
            measured(scenario, "gangs", f"free again after {freed(sweep):.0f} s; {_gaps(sweep)}")
            quiet(sweep)
        row = scenario.rows["gangs"]
        check(row.held, row.why)
        return stores.result(sweep)
    finally:
        sweep.end()


def struck(
    scenario: rows.Scenario,
    stage: Stage,
    reference: Callable[[], stores.Result],
    only: set[str],
    trials: int = TRIALS,
) -> None:
    """One sweep of shared trials under one fault after the other."""
    sweep, cluster = stage.sweep("struck", GANGS, trials), stage.cluster
    flows: dict[str, Callable[[], object]] = {
        "process": lambda: strike(sweep, 2, lambda folder: kill(sweep.ranks(folder)[1][1]), _KILLED),
        "drain": lambda: _drained(sweep, 2),
        "cut": lambda: _cut(sweep, 2),
        "lost": lambda: _lost(sweep, 2, (lambda: _late(scenario, sweep)) if "late" in only else None),
        "gang": lambda: _gang_driver(sweep),
        "driver": lambda: _driver(sweep),
    }
    try:
        sweep.start()
        for name in [name for name in flows if name in only]:
            with scenario.row(name):
                measured(scenario, name, str(flows[name]()))
        with scenario.row("all", len(only)):
            sweep.finish()
            accounted(sweep)
            stores.equal(stores.result(sweep), reference())
            measured(scenario, "all", f"free again after {freed(sweep):.0f} s; {_ends(sweep)}")
            _counted(sweep, only)
    finally:
        sweep.end()
    check(cluster.head.process is not None, "the head is gone")


def single(scenario: rows.Scenario, stage: Stage) -> None:
    """Trials of one process each."""
    trials = 3 * TRIALS  # two run at a time, and are still there when the last row begins
    alone = SweepUnderTest(stage.place / "local", stage.model, ALONE, trials=trials)
    sweep = stage.sweep("one", ALONE, trials)
    try:
        alone.start()
        alone.finish()
        reference = stores.result(alone)
        sweep.start()
        with scenario.row("alone_lost"):
            measured(scenario, "alone_lost", str(_lost(sweep, 1)))
        with scenario.row("alone_drain"):
            measured(scenario, "alone_drain", str(_drained(sweep, 1)))
        if isinstance(stage.cluster, Hosts):
            with scenario.row("alone_cut"):
                measured(scenario, "alone_cut", str(_cut(sweep, 1)))
        with scenario.row("alone"):
            sweep.finish()
            accounted(sweep)
            stores.equal(stores.result(sweep), reference)
            measured(scenario, "alone", f"free again after {freed(sweep):.0f} s; {_ends(sweep)}")
    finally:
        alone.end()
        sweep.end()


def stopped(scenario: rows.Scenario, stage: Stage) -> None:
    """Trials that are ended though nothing has happened to them."""
    sweep = stage.sweep("asha", (*GANGS, "scheduler.asha.grace=2", "scheduler.asha.reduction=2"), 4)
    try:
        with scenario.row("interrupt"):
            sweep.start()
            folder = sweep.working(2)
            began = time.monotonic()
            sweep.send(signal.SIGINT)
            check(sweep.ended(120) == 130, f"it ended with {sweep.ended(1)}: {sweep.said()[-300:]}")
            ended_s = time.monotonic() - began
            told = f"ended after {ended_s:.0f} s, free after {freed(sweep):.0f} s more"
            measured(scenario, "interrupt", f"{told}; trial {folder.name} saved")
            sweep.start()
        with scenario.row("asha"):
            sweep.finish()
            check(sweep.said().count(" pruned") >= 1, f"nothing was stopped: {sweep.said()[-300:]}")
            accounted(sweep)
            measured(scenario, "asha", f"free again after {freed(sweep):.0f} s; {_gaps(sweep)}")
    finally:
        sweep.end()


def measured(scenario: rows.Scenario, name: str, what: str) -> None:
    row = scenario.rows[name]
    assert isinstance(row, Row)
    row.measured = what


def quiet(sweep: ClusterSweep) -> None:
    """Ray says nothing on the user's screen."""
    noise = [word for word in ("WARNING", "ERROR", "(pid=", "PlacementGroup", "Traceback") if word in sweep.said()]
    check(not noise, f"on the screen: {noise}: {sweep.said()[-600:]}")


# --- one fault each --------------------------------------------------------------------------------------------------


def _machine(sweep: ClusterSweep, folder: Path, rank: int = -1) -> str:
    """The name of the machine that the last process of a trial is on."""
    machines = sweep.machines_of(folder)
    return sweep.on.names[machines[max(machines) if rank < 0 else rank]]


def _back(sweep: ClusterSweep, name: str) -> None:
    sweep.on.join(name)
    sweep.on.came(name)


def _lost(sweep: ClusterSweep, workers: int, then: Callable[[], object] | None = None) -> Blow:
    struck: list[str] = []

    def blow(folder: Path) -> None:
        struck.append(_machine(sweep, folder))
        sweep.on.machines[struck[0]].kill()

    return strike(sweep, workers, blow, _LOST, then or (lambda: _back(sweep, struck[0])))


def _cut(sweep: ClusterSweep, workers: int) -> Blow:
    cluster, struck = sweep.on, []
    assert isinstance(cluster, Hosts)

    def blow(folder: Path) -> None:
        struck.append(_machine(sweep, folder))
        cluster.cut(struck[0])

    def back() -> None:
        cluster.mend(struck[0])
        time.sleep(10)  # what was cut off finds that it is not wanted any more
        cluster.machines[struck[0]].kill()
        _back(sweep, struck[0])

    return strike(sweep, workers, blow, _LOST, back)


def _drained(sweep: ClusterSweep, workers: int) -> Blow:
    drained: list[str] = []

    def blow(folder: Path) -> None:
        drained.append(_machine(sweep, folder))
        sweep.on.drain(drained[0], _DEADLINE_S)

    def another() -> None:
        sweep.on.machines[drained[0]].kill()
        _back(sweep, drained[0])

    done = strike(sweep, workers, blow, _SAVED, another)
    check(done.lost == 0, f"{done.lost} iterations were lost")
    return done


def _late(scenario: rows.Scenario, sweep: ClusterSweep) -> None:
    """A machine that was never there comes while a trial waits for one."""
    with scenario.row("late"):
        began, before = time.monotonic(), sweep.said().count("with room for 1 trial")
        sweep.on.join("n3")
        until(lambda: sweep.said().count("with room for 1 trial") > before, 90, "the new machine is told of")
        measured(scenario, "late", f"told after {time.monotonic() - began:.0f} s")
        sweep.on.came("n3")


def _gang_driver(sweep: ClusterSweep) -> Blow:
    def blow(folder: Path) -> None:
        found = [each for each in sweep.on.head.processes() if "ray::ResourceTrainable" in _title(each)]
        check(len(found) == 1, f"processes that look after trials: {[_title(each) for each in found]}")
        kill(found[0])

    return strike(sweep, 2, blow, _KILLED)


def _title(process: object) -> str:
    try:
        return " ".join(process.cmdline())  # type: ignore[attr-defined]
    except Exception:
        return ""


def _driver(sweep: ClusterSweep) -> str:
    folder = sweep.working(2)
    pids = {process.pid for _, process in sweep.ranks(folder).values()}
    began = time.time()
    sweep.send(signal.SIGKILL)
    sweep.ended()
    free_s = freed(sweep, 90)
    sweep.start()
    until(lambda: again(sweep, folder.name, began, pids), 240, f"trial {folder.name} at work again")
    first = again(sweep, folder.name, began, pids)
    assert first is not None
    return f"free after {free_s:.0f} s, at work again after {first.time - began:.0f} s"


# --- what they come to -----------------------------------------------------------------------------------------------


def _ends(sweep: ClusterSweep) -> str:
    total: dict[str, int] = {}
    for row in stores.newest(sweep).values():
        for kind, count in row.user_attrs.get(ENDS, {}).items():
            total[kind] = total.get(kind, 0) + count
    return ", ".join(f"{count} {kind}" for kind, count in total.items())


def _counted(sweep: ClusterSweep, only: set[str]) -> None:
    """Each fault was counted once, as what it was."""
    crashes, lost = len(only & {"process", "gang"}), len(only & {"drain", "cut", "lost", "driver"})
    wanted = f"{crashes} crashes, 0 out_of_memory, {lost} preemptions"
    check(_ends(sweep) == wanted, f"counted {_ends(sweep)}, done {wanted}")


def _gaps(sweep: ClusterSweep) -> str:
    """How long a trial took from the end of the one before to its first iteration."""
    times = sorted([each.time for each in sweep.iterations(folder.name)] for folder in sweep.trial_folders())
    gaps = [after[0] - before[-1] for before, after in zip(times, times[1:], strict=False)]
    return f"{max(gaps, default=0):.0f} s at most between two trials" if gaps else "one trial"
