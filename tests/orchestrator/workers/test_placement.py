"""How many trials a cluster holds, and what is said of one that holds none."""

from typing import Any

import pytest
import ray

from core.errors import UserError
from orchestrator.spec import Sweep, parse
from orchestrator.workers import placement
from orchestrator.workers.placement import HEAD, Capacity, of_trial, of_worker, refuse_unfit, trials_on


def sweep_with(trials: int = 100, **resources: Any) -> Sweep:
    base: dict[str, Any] = {"name": "placed", "model": "toyfaces", "train": {"iterations": 100, "batch": 24}}
    search = {"shift_scale": {"float": [0.5, 2.0]}}
    more = {"search": search, "objectives": [{"identifiability": "max"}], "budget": {"trials": trials}}
    return parse(base | more | {"resources": resources})


def machine(cpus: float, gpus: float = 0, name: str = "m", alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {}), "memory": 1e9}
    return {"NodeID": name, "Alive": alive, "Resources": resources}


class Cluster:
    """Machines that Ray tells of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *machines: dict[str, Any]) -> None:
        self.machines, self.away, self.clock = list(machines), set[str](), 100.0
        monkeypatch.setattr(ray, "nodes", lambda: self.machines)
        monkeypatch.setattr(ray, "cluster_resources", self.resources)
        monkeypatch.setattr(placement, "leaving", lambda: self.away)
        monkeypatch.setattr("time.monotonic", lambda: self.clock)

    def resources(self) -> dict[str, float]:
        kinds = {kind for each in self.machines for kind in each["Resources"]}
        return {kind: sum(each["Resources"].get(kind, 0) for each in self.machines) for kind in kinds}


@pytest.mark.parametrize(
    ("asked", "machines", "trials"),
    [
        ({}, [(4, 0)], 4),
        ({"cpus_per_worker": 3}, [(4, 0), (2, 0), (6, 0)], 3),  # 1 + 0 + 2: nothing is put together of two machines
        ({"workers": 2}, [(1, 0), (1, 0)], 1),
        ({"workers": 2}, [(0, 0), (1, 0), (1, 0), (1, 0)], 1),  # a head that runs none
        ({"workers": 3}, [(2, 0), (2, 0), (2, 0)], 2),
        ({"workers": 2, "cpus_per_worker": 2}, [(3, 0), (3, 0), (1, 0)], 1),
        ({"workers": 4}, [(3, 0)], 0),
        ({"gpus_per_trial": 1}, [(8, 4), (8, 0)], 4),
        ({"gpus_per_trial": 0.2}, [(8, 1)], 5),
        ({"gpus_per_trial": 2}, [(8, 1), (8, 1), (8, 1)], 1),  # two processes of one GPU each
        ({"gpus_per_trial": 2, "cpus_per_worker": 6}, [(8, 4), (8, 4)], 1),
    ],
)
def test_trials_fit_where_their_processes_do(
    asked: dict[str, Any], machines: list[tuple[float, float]], trials: int
) -> None:
    there = [machine(cpus, gpus)["Resources"] for cpus, gpus in machines]
    assert trials_on(sweep_with(**asked), there) == trials


def test_a_trial_holds_what_its_process_needs_and_a_shared_one_a_crumb_of_the_head() -> None:
    alone, shared = sweep_with(cpus_per_worker=2, gpus_per_trial=0.5), sweep_with(gpus_per_trial=4, cpus_per_worker=2)
    assert of_worker(alone) == {"CPU": 2.0, "GPU": 0.5} and of_trial(alone).bundles == [{"CPU": 2.0, "GPU": 0.5}]
    assert of_worker(shared) == {"CPU": 2.0, "GPU": 1.0} and of_trial(shared).bundles == [HEAD]


@pytest.mark.parametrize(
    ("asked", "machines", "told"),
    [
        (
            {"cpus_per_worker": 8},
            [machine(4)],
            "resources: a trial asks for 8 CPU; this cluster has 4 CPU, in 1 machine",
        ),
        (
            {"workers": 3, "cpus_per_worker": 2},
            [machine(3), machine(3)],
            "resources: a trial asks for 3 processes of 2 CPU; this cluster has 6 CPU, in 2 machines",
        ),
        (
            {"gpus_per_trial": 2},
            [machine(8, 1), machine(8)],
            "resources: a trial asks for 2 processes of 1 CPU and 1 GPU; "
            "this cluster has 16 CPU and 1 GPU, in 2 machines",
        ),
    ],
)
def test_a_cluster_that_holds_no_trial_is_refused(
    asked: dict[str, Any], machines: list[dict[str, Any]], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cluster(monkeypatch, *machines)
    with pytest.raises(UserError) as refused:
        refuse_unfit(sweep_with(**asked))
    assert str(refused.value) == told


def test_a_cluster_that_holds_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster(monkeypatch, machine(1), machine(1))
    refuse_unfit(sweep_with(workers=2))


def test_room_follows_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, told = Cluster(monkeypatch, machine(1, name="a"), machine(1, name="b")), list[str]()
    room = Capacity(sweep_with(workers=2), told.append)
    assert room() == 1 and not told
    cluster.machines += [machine(1, name="c"), machine(1, name="d")]
    assert room() == 1  # not asked again at once
    cluster.clock += 10
    assert room() == 2 and told == ["The cluster has 4 machines now, with room for 2 trials at a time"]
    cluster.machines[0]["Alive"] = False
    cluster.clock += 10
    assert room() == 1 and told[1:] == ["The cluster has 3 machines now, with room for 1 trial at a time"]
    cluster.away = {"b"}  # drained: nothing new starts there, though three processes would fit
    cluster.machines[0]["Alive"] = True
    cluster.clock += 10
    assert room() == 1
    cluster.away = {"b", "c"}
    cluster.clock += 10
    assert room() == 1
    cluster.away = {"b", "c", "d"}
    cluster.clock += 10
    assert room() == 0


def test_room_is_for_no_more_than_the_trials_of_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster(monkeypatch, machine(64))
    assert Capacity(sweep_with(trials=3), print)() == 3
