"""One trial of each method that does not train: found once, measured once, reported once."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from core import DirectionSet, unshifted
from core.cache import SampleCache
from core.lean import LeanDenoiser
from core.methods import random
from core.metrics import evaluate, moved
from orchestrator import trial
from orchestrator.spec import Sweep, parse
from orchestrator.trial import Bench, random_like, run_trial


def sweep_with(model: object, **sections: Any) -> Sweep:
    base = {"name": "a", "model": str(model), "sampler": {"steps": 2}, "search": {}, "budget": {"trials": 1}}
    return parse(base | {"evaluate": {"seeds": 6}, "train": {"iterations": 7}} | sections)


class Listener:
    """Keeps what a trial reports."""

    def __init__(self) -> None:
        self.reports: list[tuple[Mapping[str, Any], DirectionSet, list[str]]] = []

    def report(self, metrics: Mapping[str, Any], folder: Path) -> None:
        files = sorted(file.name for file in folder.iterdir())
        self.reports.append((metrics, DirectionSet.load(folder / "directions"), files))

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        yield None


PARAMETERS = [
    {"method": "random", "directions": 3, "shift_scale": 2.0, "seed": 1},
    {"method": "pca", "directions": 3, "pca.samples": 32, "seed": 1},
    {"method": "jacobian", "directions": 3, "jacobian.step": "every", "jacobian.box": "0,0,4,8", "seed": 1},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda given: given["method"])
def test_a_method_that_does_not_train_reports_once(tiny_model: Path, parameters: dict[str, Any]) -> None:
    listener = Listener()
    run_trial(parameters, sweep_with(tiny_model, method=parameters["method"]), listener)
    [(told, directions, files)] = listener.reports
    assert files == ["directions", "seconds.json", "traversal.png"]
    assert told["global_step"] == 7 and told["curve"] == [] and told["find_seconds"] > 0
    assert told["metrics"].items() <= told.items() and directions.metrics == told["metrics"]
    assert len(directions) == 3 and directions.provenance["method"] == parameters["method"]
    assert directions.provenance["settings"]["seed"] == 1


def test_memory_that_runs_out_halves_what_is_drawn_at_a_time(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, find, measure = Listener(), random.find, cast(Any, evaluate)
    tried: list[int] = []

    def tight_find(denoiser: Any, schedule: Any, settings: Any, batch: int, cache: Any) -> DirectionSet:
        tried.append(batch)
        if batch > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return find(denoiser, schedule, settings, batch, cache)

    def tight_evaluate(*given: Any, batch: int, **more: Any) -> Any:
        tried.append(batch)
        if batch > 8:
            raise RuntimeError("CUDA error: out of memory")
        return measure(*given, batch=batch, **more)

    monkeypatch.setattr(random, "find", tight_find)
    monkeypatch.setattr(trial, "evaluate", tight_evaluate)
    run_trial(PARAMETERS[0], sweep_with(tiny_model, method="random"), listener)
    [(told, _, _)] = listener.reports
    assert tried == [64, 32, 16, 16, 8]
    assert told["memory"] == {"sampler_batch": 8, "out_of_memory_retries": 3}


@pytest.mark.slow
def test_the_supervised_method_asks_the_models_predictor() -> None:
    listener = Listener()
    parameters = {"method": "supervised", "supervised.attribute": "smile", "supervised.samples": 16}
    run_trial({**parameters, "supervised.extremes": 4}, sweep_with("toyfaces", method="supervised"), listener)
    [(told, directions, _)] = listener.reports
    assert directions.names == ("smile",) and "disentanglement" in told["metrics"]


def test_every_trial_runs_lean_unless_told_otherwise(tiny_model: Path) -> None:
    lean, plain = (Bench.load(sweep_with(tiny_model, gradient={"lean": wanted})) for wanted in (True, False))
    assert isinstance(lean.denoiser, LeanDenoiser) and not isinstance(plain.denoiser, LeanDenoiser)
    assert lean.denoiser.digest == plain.denoiser.digest


def test_a_set_is_scaled_before_it_is_measured(tiny_model: Path) -> None:
    listener, sweep = Listener(), sweep_with(tiny_model, method="random", evaluate={"seeds": 6, "strength": 0.05})
    run_trial(PARAMETERS[0], sweep, listener)
    bench, [(told, directions, _)] = Bench.load(sweep), listener.reports
    unscaled = DirectionSet(directions.table, torch.ones_like(directions.sigma), directions.timesteps)
    assert torch.equal(bench.scaled(sweep_with(tiny_model), unscaled).sigma, unscaled.sigma)
    assert directions.metrics == told["metrics"]
    strength = moved(bench.denoiser, bench.schedule, directions)
    assert torch.allclose(strength, torch.full_like(strength, 0.05), rtol=0.1)


def test_the_second_trial_of_a_node_draws_no_unshifted_sample(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    run = unshifted._chain
    monkeypatch.setattr(unshifted, "_chain", lambda *given: (drawn.append(len(given[2])), run(*given))[1])
    sweep = sweep_with(tiny_model, method="random", evaluate={"seeds": 6, "strength": 0.05})
    alone, first, second = Listener(), Listener(), Listener()
    run_trial(PARAMETERS[0], sweep, alone)
    drawn.clear()
    run_trial(PARAMETERS[0], sweep, first, SampleCache(tmp_path))
    assert 256 + 72 + 6 + 24 == sum(drawn)  # spread, calibration, evaluation, reference
    drawn.clear()
    run_trial(PARAMETERS[0], sweep, second, SampleCache(tmp_path))
    assert not drawn
    assert alone.reports[0][0]["metrics"] == first.reports[0][0]["metrics"] == second.reports[0][0]["metrics"]


def test_the_baseline_has_as_many_directions_of_the_same_mean_length(tiny_model: Path) -> None:
    sweep = sweep_with(tiny_model)
    bench = Bench.load(sweep)
    table = torch.nn.functional.normalize(torch.ones(1, 1, 8, 2, 2).flatten(2), dim=2).reshape(1, 1, 8, 2, 2)
    for sigma in (torch.tensor([[3.0]]), torch.tensor([[1.0], [2.0]])):
        directions = DirectionSet(
            table.expand(len(sigma), -1, -1, -1, -1), sigma, bench.schedule.timesteps, tuple("ab"[: len(sigma)])
        )
        like = random_like(bench, directions, sweep)
        assert len(like) == len(sigma) and float(like.sigma.mean()) == pytest.approx(float(sigma.mean()))
        norms = like.table.flatten(2).norm(dim=2)
        assert torch.allclose(norms, torch.ones_like(norms))
