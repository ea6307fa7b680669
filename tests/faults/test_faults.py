"""A short selection of the matrix of `make faults`, so that no change breaks the promise unseen."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import damage, kills, machine, stops, stores, within
from tests.faults.sweep_under_test import Server, SweepUnderTest, check, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TRIALS = 2


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    made = machine.short_folder()
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def model(place: Path) -> Path:
    return machine.tiny_model(place / "model")


@pytest.fixture(scope="module")
def reference(place: Path, model: Path) -> stores.Result:
    """What the sweep comes to that nobody disturbs."""
    sweep = SweepUnderTest(place / "ref", model, trials=TRIALS)
    try:
        sweep.start()
        sweep.finish()
        stores.agree(sweep)
        stores.tidy(sweep)
    finally:
        sweep.end()
    return stores.result(sweep)


def test_a_sweep_under_fire(place: Path, model: Path, reference: stores.Result) -> None:
    server, mix = Server(place / "server"), {"driver": 1, "trial": 2, "raylet": 1, "server": 2}
    try:
        [campaign] = kills.campaigns(place, model, server, mix, sweeps=1, seed=1, trials=TRIALS)
        kills.survived(campaign, reference)
    finally:
        server.kill()
    assert campaign.killed["trial"] >= 1 and campaign.killed.total() >= 4


def test_ctrl_c_a_damaged_checkpoint_and_a_loss_that_is_no_number(
    place: Path, model: Path, reference: stores.Result
) -> None:
    plan = {"pace": 1.0, "faults": {"1": {"kind": "nan", "at": 6}}}
    sweep = SweepUnderTest(place / "stop", model, plan=plan, trials=TRIALS)
    try:
        sweep.start()
        until(lambda: len(sweep.training()) == TRIALS, 200, "two trials with checkpoints")
        first, second = ((sweep.place / "faults" / str(number)).read_text() for number in range(TRIALS))
        stops.interrupt(sweep, signal.SIGINT)
        damage.truncate(damage.newest(sweep.folder.trial(first).path))
        sweep.start()
        sweep.finish()
        damage.told(sweep, sweep.folder.trial(first).path, 1)
        stores.equal(stores.result(sweep), reference, [first])
        within.diverged(stores.outcomes(sweep)[second], within.ends(sweep)[second], at=6)
        stores.tidy(sweep)
    finally:
        sweep.end()
    check(not stores.open_rows(sweep), "rows that are open")
