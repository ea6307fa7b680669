"""A real sweep whose command is asked to end: by its terminal, by `timeout`, by a system that stops its services."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.faults.sweep_under_test import ITERATIONS, SweepUnderTest, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.usefixtures("hangup_counts")
@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGTERM, True), (signal.SIGHUP, False)])
def test_it_ends_within_seconds_and_says_what_is_kept(
    tiny_model: Path, tmp_path: Path, number: int, whole_group: bool
) -> None:
    sweep = SweepUnderTest(tmp_path, tiny_model, ("deepspeed.offload_optimizer=none",), {"pace": 0.5})
    try:
        sweep.start()
        until(lambda: len(sweep.training(1)) == 2, 300, "two trials with checkpoints")
        assert sweep.process is not None
        for _ in range(2):  # `timeout` sends its signal to the command and to its group
            (os.killpg if whole_group else os.kill)(sweep.process.pid, number)
        code, said = sweep.ended(40), sweep.said()
        assert code == 130, said
        kept = "Interrupted: 0 of 4 trials are over, 2 go on from what is saved; go on with: orchestrate sweep "
        assert kept in said and "Traceback" not in said and "terminate called" not in said
        status = json.loads(sweep.run("status", "--json").stdout)["sweeps"][0]
        for trial in status["trials"]:
            newest = max((tmp_path / "runs" / "tiny" / "trials" / trial["trial_id"]).glob("checkpoint_*"))
            assert 0 < trial["iteration"] == int(newest.name.removeprefix("checkpoint_")) < ITERATIONS
        sweep.gone()
    finally:
        sweep.end()
