"""The short measurement behind `orchestrate plan --probe`."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import UserError
from orchestrator.cli.main import main
from orchestrator.plan import probe
from orchestrator.plan.probe import Timings
from orchestrator.spec import Sweep, load, parse
from orchestrator.trial.memory import heaviest
from orchestrator.trial.model import TrialModel
from tests.orchestrator.conftest import Orchestrate


def sweep_with(**sections: Any) -> Sweep:
    return parse({"name": "a", "model": "toyfaces", "search": {"directions": {"choice": [8, 16]}}} | sections)


def test_how_many_trials_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert probe.trials_at_a_time(sweep_with(resources={"cpus_per_worker": 3})) == 2
    assert probe.trials_at_a_time(sweep_with(resources={"cpus_per_worker": 2, "workers": 2})) == 2
    assert [probe.trials_at_a_time(sweep_with(resources={"gpus_per_trial": n})) for n in (0.2, 1, 2, 4)] == [
        10,
        2,
        1,
        0,
    ]


def test_a_machine_that_could_not_run_the_sweep_does_not_measure_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(
        UserError, match=r"^--probe: a trial asks for 0\.5 GPU \(resources\.gpus_per_trial\) and this mac"
    ):
        probe.refuse_elsewhere(sweep_with(resources={"gpus_per_trial": 0.5}))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(
        UserError, match="^--probe: a trial asks for 3 CPU and this machine has 2; measure on a machine"
    ):
        probe.refuse_elsewhere(sweep_with(resources={"cpus_per_worker": 3}))
    probe.refuse_elsewhere(sweep_with(resources={"cpus_per_worker": 2}))
    spec = str(Path(__file__).parents[3] / "sweeps" / "cat.yaml")
    assert main(["plan", spec, "--probe", "--json"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("--probe: a trial asks for 1 GPU ")


def test_processes_that_measure_side_by_side_are_averaged() -> None:
    one, two = Timings(1.0, 2.0, 0.0, 4.0, 5.0, None), Timings(3.0, 4.0, 0.0, 6.0, 7.0, None)
    assert probe._mean([one, two]) == Timings(2.0, 3.0, 0.0, 5.0, 6.0, None)


@pytest.mark.slow
def test_what_is_measured_is_what_a_trial_does(sweep_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long iteration, measured on a shorter chain, comes to what it takes on the whole one: in passes."""
    plain = "deepspeed={zero: 0}"  # what DeepSpeed imports for the others warns
    sweep = load(sweep_file, ["sampler.steps=12", "train.batch=8", "gradient.policy=checkpoint_steps", plain])
    trial_model, passes = TrialModel.load(sweep), [0]
    trial_model.denoiser.listeners.append(lambda: passes.__setitem__(0, passes[0] + 1))

    def counted(work: Callable[[], object]) -> float:
        before = passes[0]
        work()
        return float(passes[0] - before)

    monkeypatch.setattr(probe, "_timed", counted)
    settings = heaviest(sweep)
    whole = probe._iteration_s(trial_model, sweep, settings, 1e-9)
    before = passes[0]
    short = probe._iteration_s(trial_model, sweep, settings, 1.0)  # as if a pass took a second
    assert short == pytest.approx(whole, rel=0.05)
    assert passes[0] - before < 2 * whole  # on a shorter chain


@pytest.mark.slow
def test_the_command_measures_and_predicts(sweep_file: Path, orchestrate: Orchestrate) -> None:
    """Nothing but JSON on its output, whatever DeepSpeed says meanwhile."""
    asked = ("--probe", "--price-per-hour", "3", "--json", "--set", "resources.cpus_per_worker=1")
    done = orchestrate("plan", sweep_file, *asked)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    time, cost = found["time"], found["cost"]
    measured = time["measured_seconds"]
    assert set(measured) == set(asdict(Timings(0, 0, 0, 0))) - {"labels"}
    assert all(measured[name] > 0 for name in ("load", "forward", "judge", "start", "iteration"))
    assert time["trials_at_a_time"] == min(3, os.cpu_count() or 1) and time["not_predicted"] == {}
    least = 4 * measured["iteration"] + 2 * 0.375 * measured["judge"]  # 36 pairs of the 96 that take all of its time
    assert least < time["trial_seconds"]["learned"] <= time["busy_seconds"]
    assert [end["iteration"] for end in time["expected_ends"]] == [2, 4]
    assert time["sweep_seconds"] > time["busy_seconds"] / time["trials_at_a_time"]
    assert cost == {"price_per_hour": 3.0, "of_one": "machine", "hours": cost["hours"], "total": 3 * cost["hours"]}
    assert cost["hours"] == time["sweep_seconds"] / 3600
    assert not (sweep_file.parent / "runs").exists()


def test_the_most_that_semantic_looks_at_is_measured_without_going_through_a_range() -> None:
    search = {"directions": {"choice": [8, 24, 12]}, "semantic.samples": {"int": [64, 2**31 - 1]}}
    sweep = parse({"name": "a", "model": "toyfaces", "method": "semantic", "search": search, "budget": {"trials": 2}})
    assert probe._most_of_semantic(sweep) == (2**31 - 1, 24)
