"""Compute the resources of a trial, and how many trials fit a cluster: all processes of a trial run, or none."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.tune import PlacementGroupFactory
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core.errors import UserError
from orchestrator.interruption import check
from orchestrator.search.space import trials
from orchestrator.spec import Sweep
from orchestrator.text import counted

_LOOK_S = 2.0
_ANSWER_S = 90.0  # how long a machine may take to answer; Ray notices sooner that one is gone
HELD = "held"  # file in a trial's folder: the id of the placement group that its processes hold together
HEAD = {"node:__internal_head__": 0.0001}  # a resource that only the head of a Ray cluster has


def of_worker(sweep: Sweep) -> dict[str, float]:
    """Return the resources that one process of a trial holds, by Ray's names."""
    gpus = sweep.resources.gpus_per_trial / sweep.resources.workers
    return {"CPU": float(sweep.resources.cpus_per_worker), **({"GPU": gpus} if gpus else {})}


def of_trial(sweep: Sweep) -> PlacementGroupFactory:
    """Return the resources that Ray Tune reserves for a trial.

    Where several processes share the trial, these are only the resources of the process that starts them
    (orchestrator.workers.worker_group). It runs on the head of the cluster and takes nothing that workers wait for.
    """
    return PlacementGroupFactory([HEAD if sweep.resources.workers > 1 else of_worker(sweep)])


def fitting(sweep: Sweep) -> int:
    """Return how many trials the machines present now hold at a time."""
    return trials_on(sweep, _machines())


def expected(sweep: Sweep) -> int:
    """Return how many trials `cluster.nodes` machines like the largest one present would hold.

    An autoscaler may add machines up to that number.
    """
    largest = max(_machines(), key=lambda machine: _places(sweep, machine), default={})
    return trials_on(sweep, [largest] * (sweep.cluster.nodes or 0))


def _machines() -> list[Mapping[str, float]]:
    away = leaving()
    return [node["Resources"] for node in alive() if node["NodeID"] not in away]


def trials_on(sweep: Sweep, machines: Iterable[Mapping[str, float]]) -> int:
    """Return how many trials fit on machines with these resources; the processes of one may be on several."""
    return sum(_places(sweep, machine) for machine in machines) // sweep.resources.workers


def hosts(sweep: Sweep, nodes: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the nodes of a cluster that have room for a process of a trial."""
    return [node for node in nodes if _places(sweep, node["Resources"])]


def _places(sweep: Sweep, machine: Mapping[str, float]) -> int:
    """Return how many processes of trials a machine holds."""
    return min(_times(machine.get(kind, 0), amount) for kind, amount in of_worker(sweep).items())


class Capacity:
    """The number of trials that may be under way: as many as fit at the moment, because machines come and go.

    scales: machines that are not there yet are added when a trial waits for them.
    """

    def __init__(self, sweep: Sweep, tell: Callable[[str], object], scales: bool = False) -> None:
        self.sweep, self.tell, self.scales = sweep, tell, scales
        self.now, self.looked = -1, 0.0

    def __call__(self) -> int:
        if time.monotonic() - self.looked > _LOOK_S:
            fits = max(fitting(self.sweep), expected(self.sweep) if self.scales else 0)
            before, self.now = self.now, min(fits, trials(self.sweep))
            self.looked = time.monotonic()
            if before >= 0 and self.now != before:
                room = counted(self.now, "trial")
                self.tell(f"The cluster has {counted(len(alive()), 'machine')} now, with room for {room} at a time")
        return self.now


def refuse_unfit(sweep: Sweep) -> None:
    """Raise UserError where the cluster cannot hold one trial."""
    if fitting(sweep):
        return
    workers, have, each = sweep.resources.workers, ray.cluster_resources(), of_worker(sweep)
    wanted = " and ".join(f"{amount:g} {kind}" for kind, amount in each.items())
    request = wanted if workers == 1 else f"{counted(workers, 'process', 'processes')} of {wanted}"
    there = " and ".join(f"{have.get(kind, 0):g} {kind}" for kind in each)
    raise UserError(
        f"resources: a trial asks for {request}; this cluster has {there}, in {counted(len(alive()), 'machine')}"
    )


def free_resources(folder: Path) -> None:
    """Free the resources that an ended attempt still holds, and so end its remaining processes.

    Ray frees them by itself only where the process that asked for them ends by itself, or at the end of the sweep.
    """
    with suppress(OSError):
        name = (folder / HELD).read_text()
        with suppress(Exception):  # already freed, or of another cluster
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))
        (folder / HELD).unlink()


def alive() -> list[dict[str, Any]]:
    """Return the machines of the cluster, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def leaving() -> set[str]:
    """Return the ids of machines about to go: a spot instance that is reclaimed, a node that is drained."""
    # Ray Train uses the same private call; Ray has no public one.
    draining: Mapping[str, int] = ray._private.state.state.get_draining_nodes()
    return set(draining)


def answers(node: str) -> bool:
    """Return whether a machine answers. The only machine of a cluster counts as answering."""
    return len(alive()) == 1 and alive()[0]["NodeID"] == node or all_answer([node])


def all_answer(nodes: Iterable[str]) -> bool:
    """Return whether all these machines answer. Each is asked, because Ray is slow to notice that one is gone.

    Raises KeyboardInterrupt where the user asks for an end meanwhile.
    """
    remote = ray.remote(num_cpus=0, max_retries=0)(_nothing)
    probes = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in nodes
    ]
    asked, answered, silent = time.monotonic(), [], probes
    while silent and time.monotonic() - asked < _ANSWER_S:
        check()
        answered, silent = ray.wait(probes, num_returns=len(probes), timeout=_LOOK_S)
    try:
        ray.get(answered)
    except RayError:
        return False
    return not silent


def _nothing() -> None:
    pass


def _times(there: float, amount: float) -> int:
    """Return how often an amount fits; 0.2 fits five times into 1."""
    return int(there / amount + 1e-9)
