"""A trial that several processes share comes to what one process comes to, and goes on with another number of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from core import Denoiser, DirectionSet
from core.execution.streaming import partitioned
from orchestrator.store.checkpoints import TrialFolder
from tests import forks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ITERATIONS = 4
PLAIN, PARTITIONED = {"lean": False}, {"weights": "partitioned"}
LEARNED = {"method": "learned", "start": "random"}
PCA = {"method": "pca", "pca.samples": 32}
# One process of a trial, as orchestrator.workers.worker_group starts it, without Ray. `stop_in` is the iteration in
# which the last rank alone is asked to end.
SCRIPT = """
import json, pathlib, sys
import torch
from torch import distributed
from core.methods import learned
from orchestrator.trial.model import TrialModel
from orchestrator.store.checkpoints import TrialFolder
from orchestrator.trial.ranks import Ranks
from orchestrator.trial.outcome import Preempted
from orchestrator.spec import parse
from orchestrator.trial.run import TrialContext, run_trial

rank, model, place, starts = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]), json.loads(sys.argv[4])
iterate = learned.Learner.iterate
for number, given in enumerate(starts):
    world = given["world"]
    if rank >= world:
        continue
    distributed.init_process_group("gloo", init_method=f"file://{place}/store-{number}", rank=rank, world_size=world)
    sweep = parse({
        "name": "a", "model": model, "method": {"choice": ["learned", "pca"]}, "sampler": {"steps": 2},
        "search": {}, "budget": {"trials": 2},
        "train": {"iterations": ITERATIONS, "batch": 8, "micro_batch": 2, "pool": 32},
        "evaluate": {"every": 2, "seeds": 6}, "gradient": {"policy": "full_graph", **given.get("gradient", {})},
        "resources": {"workers": world}, "deepspeed": {"zero": given["zero"]},
    })
    asked = []
    def iterated(self, n):
        asked.extend([1] if n + 1 == given.get("stop_in") and rank == world - 1 else [])
        return iterate(self, n)
    learned.Learner.iterate = iterated
    ranks = Ranks.join() if world > 1 else Ranks()
    told = {"ended": "whole", "reports": []}
    def load(*asked):
        bench = TrialModel.load(*asked, ranks)
        told["held"] = bench.denoiser.weight_bytes()
        return bench
    parameters = {"directions": 3, **given.get("parameters", {"method": "learned"})}
    try:
        for report in run_trial(parameters, sweep, TrialFolder(place / "trial"),
                                context=TrialContext(lambda: bool(asked), ranks=ranks), load=load):
            told["reports"].append({name: getattr(report, name) for name in ("global_step", "curve", "metrics")})
    except Preempted:
        told["ended"] = "preempted"
    (place / f"told-{number}-{rank}.json").write_text(json.dumps(told))
    distributed.destroy_process_group()
""".replace("ITERATIONS", str(ITERATIONS))


def run(model: Path, place: Path, *starts: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What every rank was told, start by start. All starts are of one trial."""
    place.mkdir()
    worlds = [start["world"] for start in starts]
    given = [str(model), str(place), json.dumps([{"zero": 1, **start} for start in starts])]
    processes = [
        forks.started(
            forks.HARDLY_MEASURED + SCRIPT, place / "forks", rank, *given, RANK=str(rank), LOCAL_RANK=str(rank)
        )
        for rank in range(max(worlds))
    ]
    for done in [process.ended() for process in processes]:
        assert done.returncode == 0, done.stderr
    return [
        [json.loads((place / f"told-{number}-{rank}.json").read_text()) for rank in range(world)]
        for number, world in enumerate(worlds)
    ]


def numbers(told: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    """Every loss and every metric that a trial came to, in order; a report that is repeated counts once."""
    for ranks in told:
        assert all(each == ranks[0] for each in ranks)  # all ranks say the same
    reports = {report["global_step"]: report for ranks in told for report in ranks[0]["reports"]}
    found = []
    for report in reports.values():
        found += [*report["curve"], report["metrics"]]
    return found


def differs(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    assert [list(each) for each in one] == [list(each) for each in other]
    pairs = [(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a]
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs)


def set_in(place: Path) -> DirectionSet:
    return DirectionSet.load(TrialFolder(place / "trial").result() / "directions")


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, float]], DirectionSet]:
    place = tmp_path_factory.mktemp("shared") / "alone"
    return numbers(run(tiny_model, place, {"world": 1})), set_in(place)


@pytest.mark.parametrize(
    "starts",
    [
        [{"world": 2}],
        [{"world": 2, "zero": 2, "stop_in": 3}, {"world": 1}],
        [{"world": 1, "stop_in": 1}, {"world": 4, "zero": 3}],
    ],
    ids=["two", "two then one", "one then four"],
)
def test_losses_metrics_and_set_do_not_depend_on_how_many_share(
    tiny_model: Path, tmp_path: Path, alone: tuple[list[dict[str, float]], DirectionSet], starts: list[dict[str, Any]]
) -> None:
    told = run(tiny_model, tmp_path / "trial", *starts)
    assert [ranks[0]["ended"] for ranks in told] == ["preempted"] * (len(starts) - 1) + ["whole"]
    (expected, directions), got = alone, numbers(told)
    found = set_in(tmp_path / "trial")
    losses = [[each for each in found_in if "step" in each] for found_in in (expected, got)]
    metrics = [[each for each in found_in if "step" not in each] for found_in in (expected, got)]
    assert differs(*losses) < 1e-3  # rounding, as Adam magnifies it
    assert differs(*metrics) < 2e-2  # and as a network does that is trained to tell directions apart
    assert (found.table - directions.table).norm() / directions.table.norm() < 1e-3
    assert found.sigma.allclose(directions.sigma, rtol=1e-3)


def test_a_shared_trial_that_goes_on_comes_to_the_same_to_the_last_bit(tiny_model: Path, tmp_path: Path) -> None:
    given = {"world": 2, "parameters": LEARNED}
    whole = run(tiny_model, tmp_path / "whole", given)
    parts = run(tiny_model, tmp_path / "parts", {**given, "stop_in": 3}, given)
    assert [ranks[-1]["ended"] for ranks in parts] == ["preempted", "whole"]
    assert numbers(parts) == numbers(whole)
    assert set_in(tmp_path / "parts").table.equal(set_in(tmp_path / "whole").table)


def test_what_does_not_train_is_found_by_one_for_all(tiny_model: Path, tmp_path: Path) -> None:
    alone = run(tiny_model, tmp_path / "alone", {"world": 1, "parameters": PCA})
    shared = run(tiny_model, tmp_path / "shared", {"world": 2, "parameters": PCA})
    assert numbers(shared) == numbers(alone)


@pytest.mark.parametrize("parameters", [LEARNED, PCA], ids=["learned", "pca"])
def test_partitioned_weights_come_to_the_same_to_the_last_bit(
    tiny_model: Path, tmp_path: Path, parameters: dict[str, Any]
) -> None:
    """Where all train, and where one draws and measures and the others only give their parts of the weights."""
    given = {"world": 2, "parameters": parameters}
    whole = run(tiny_model, tmp_path / "whole", {**given, "gradient": PLAIN})
    parts = run(tiny_model, tmp_path / "parts", {**given, "gradient": PARTITIONED})
    half = partitioned(Denoiser.without_weights(tiny_model), "meta", 0, 2).weight_bytes()
    assert {ranks["held"] for ranks in parts[0]} == {half} and half < whole[0][0]["held"]
    assert numbers(parts) == numbers(whole)
    assert set_in(tmp_path / "parts").table.equal(set_in(tmp_path / "whole").table)
