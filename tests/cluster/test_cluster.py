"""A short selection of the matrix of `make cluster-test`: raylets on one host, one trial of two processes."""

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.cluster import flows
from tests.cluster.flows import Stage
from tests.cluster.machines import Cluster
from tests.cluster.sweeps import environment
from tests.faults import machine
from tests.faults.rows import Scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A head and two machines of one CPU each; a folder whose path is short enough for Ray's sockets."""
    place = machine.short_folder()
    cluster = Cluster(place / "c", environment(place / "watch", 0.3))
    with cluster.up("n1", "n2"):
        yield Stage(place, machine.tiny_model(place / "model"), cluster)
    shutil.rmtree(place)


def test_a_shared_trial_outlives_a_process_and_a_machine(stage: Stage) -> None:
    struck = {name: replace(flows.STRUCK[name]) for name in ("process", "lost", "all")}
    scenario = Scenario(lambda _: None, {**flows.UNDISTURBED, **struck})
    reference = flows.undisturbed(scenario, stage, trials=1)
    flows.struck(scenario, stage, lambda: reference, {"process", "lost"}, trials=1)
    assert {name: row.why for name, row in scenario.rows.items() if not row.held} == {}
