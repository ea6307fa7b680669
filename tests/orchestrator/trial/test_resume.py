"""A trial that goes on comes to the very numbers that it would have come to, to the last bit."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import forks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# DeepSpeed is kept out of the process that runs the tests. `stop_in` is the iteration in which a trial is asked to end,
# `stop_measuring` the one whose measurement is under way then. Every start is a new generator over the same folder.
SCRIPT = """
import json, pathlib, sys
from dataclasses import replace
import torch
from core import DirectionSet
from core.methods.trained.chain_learner import ChainLearner
from core.predictors.attributes import Attributes
from orchestrator.trial import model as trial_model
from orchestrator.store.checkpoints import TrialFolder
from orchestrator.trial.outcome import Preempted
from orchestrator.spec import parse
from orchestrator.trial.run import TrialContext, run_trial

model, root, cases = sys.argv[1], pathlib.Path(sys.argv[2]), json.loads(sys.argv[3])
sweep = parse({"name": "a", "model": model, "sampler": {"steps": 2}, "search": {}, "budget": {"trials": 1},
               "train": {"iterations": 4, "batch": 4, "micro_batch": 2, "pool": 32},
               "evaluate": {"every": 2, "seeds": 6, "strength": None}, "gradient": {"policy": "full_graph"}})
iterate, evaluate = ChainLearner.iterate, trial_model.evaluate

def halves(images):
    return torch.stack([images[..., :4].mean(dim=(1, 2, 3)), images[..., 4:].mean(dim=(1, 2, 3))], dim=1)

def load(sweep, cache):
    return replace(trial_model.TrialModel.load(sweep, cache), attributes=Attributes.of(("left", "right"), halves))

def start(folder, parameters, stop_in=None, stop_measuring=None):
    asked, reached, ran, reports = [], [0], [], []
    def iterated(self, n):
        ran.append(n + 1)
        reached[0] = n + 1
        asked.extend([1] if n + 1 == stop_in else [])
        return iterate(self, n)
    def measured(*given, **more):
        asked.extend([1] if reached[0] == stop_measuring else [])
        return evaluate(*given, **more)
    ChainLearner.iterate, trial_model.evaluate = iterated, measured
    ended = "whole"
    try:
        for report in run_trial(parameters, sweep, folder, context=TrialContext(lambda: bool(asked)), load=load):
            reports.append({name: getattr(report, name) for name in ("global_step", "curve", "metrics", "notes")})
    except Preempted:
        ended = "preempted"
    return {"ended": ended, "ran": ran, "reports": reports, "step": folder.latest().step}

def case(name, starts, damage=None, parameters={"method": "learned", "directions": 3, "start": "random"}):
    folder = TrialFolder(root / name)
    told = []
    for given in starts:
        told.append(start(folder, parameters, **given))
        if damage and len(told) == 1:
            (folder.path / damage).write_bytes(b"damaged")
    try:
        found = DirectionSet.load(folder.result() / "directions")
        table = [found.table.numpy().tobytes().hex(), found.sigma.numpy().tobytes().hex()]
    except Exception as error:
        table = repr(error)
    return {"starts": told, "table": table}

print("RESULT", json.dumps({name: case(name, **given) for name, given in cases.items()}))
"""
GUIDED = {"method": "guided", "guided.start": "random", "parametrisation": "per_step"}
CASES: dict[str, Any] = {
    "plain": {"starts": [{}]},
    "between": {"starts": [{"stop_in": 1}, {"stop_in": 3}, {}]},
    "measuring": {"starts": [{"stop_measuring": 2}, {}]},
    "at_the_end": {"starts": [{"stop_measuring": 4}, {}]},
    "guided": {"starts": [{}], "parameters": GUIDED},
    "guided, stopped": {"starts": [{"stop_in": 1}, {"stop_measuring": 2}, {}], "parameters": GUIDED},
    "damaged": {"starts": [{}, {}], "damage": "checkpoint_00000004/state.json"},
}


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trials")
    done = forks.run(forks.HARDLY_MEASURED + SCRIPT, folder / "forks", tiny_model, folder, json.dumps(CASES))
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    found: dict[str, dict[str, Any]] = json.loads(line.removeprefix("RESULT "))
    return found


def reports_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    """What all starts of a trial reported, a report that was repeated once."""
    found = {report["global_step"]: report for start in run["starts"] for report in start["reports"]}
    return [{**report, "notes": []} for report in found.values()]


def test_a_trial_reports_and_checkpoints(runs: dict[str, dict[str, Any]]) -> None:
    [plain] = runs["plain"]["starts"]
    assert (plain["ended"], plain["ran"], plain["step"]) == ("whole", [1, 2, 3, 4], 4)
    curves = [[point["step"] for point in report["curve"]] for report in plain["reports"]]
    assert curves == [[1, 2], [3, 4]]


def test_one_stopped_between_two_reports(runs: dict[str, dict[str, Any]]) -> None:
    """It saves at the end of the iteration, and runs none twice."""
    run = runs["between"]
    ended = [(start["ended"], start["ran"], start["step"]) for start in run["starts"]]
    assert ended == [("preempted", [1], 1), ("preempted", [2, 3], 3), ("whole", [4], 4)]
    assert reports_of(run) == reports_of(runs["plain"]) and run["table"] == runs["plain"]["table"]


@pytest.mark.parametrize("case", ["measuring", "at_the_end"])
def test_one_stopped_while_it_measures(runs: dict[str, dict[str, Any]], case: str) -> None:
    run = runs[case]
    assert [start["ended"] for start in run["starts"]] == ["preempted", "whole"]
    assert [n for start in run["starts"] for n in start["ran"]] == [1, 2, 3, 4], "what it has trained is kept"
    assert reports_of(run) == reports_of(runs["plain"]) and run["table"] == runs["plain"]["table"]


def test_one_of_guided_stopped_between_two_reports_and_while_it_measures(runs: dict[str, dict[str, Any]]) -> None:
    run = runs["guided, stopped"]
    ended = [(start["ended"], start["ran"]) for start in run["starts"]]
    assert ended == [("preempted", [1]), ("preempted", [2]), ("whole", [3, 4])]
    assert reports_of(run) == reports_of(runs["guided"]) and run["table"] == runs["guided"]["table"]
    assert {"share_loss", "effect_loss", "fidelity_loss"} <= reports_of(run)[0]["curve"][0].keys()


def test_a_damaged_checkpoint_costs_the_way_from_the_one_before(runs: dict[str, dict[str, Any]]) -> None:
    run = runs["damaged"]
    second = run["starts"][1]
    assert second["ran"] == [3, 4] and [report["global_step"] for report in second["reports"]] == [2, 4]
    [note] = [note for report in second["reports"] for note in report["notes"]]  # told once
    assert note.startswith("checkpoint_00000004 is damaged (state.json ") and "the one before it is taken" in note
    assert reports_of(run) == reports_of(runs["plain"]) and run["table"] == runs["plain"]["table"]
