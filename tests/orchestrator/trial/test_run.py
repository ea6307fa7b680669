"""One trial of each method that does not train: found once, measured once, reported once."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from core import DirectionSet
from core.execution.lean import LeanUNet
from core.methods import random
from core.metrics import evaluate, moved
from core.samples import draw as unshifted
from core.samples.cache import SampleCache
from core.samples.draw import Sampling
from orchestrator.edit.request import ModelOptions
from orchestrator.edit.session import EditSession
from orchestrator.spec import Sweep, parse
from orchestrator.store.checkpoints import CheckpointError, TrialFolder
from orchestrator.trial import model as model_module
from orchestrator.trial.model import TrialModel, random_like
from orchestrator.trial.outcome import Preempted
from orchestrator.trial.run import TrialContext, run_trial


def sweep_with(model: object, **sections: Any) -> Sweep:
    base = {"name": "a", "model": str(model), "sampler": {"steps": 2}, "search": {}, "budget": {"trials": 1}}
    return parse(base | {"evaluate": {"seeds": 6}, "train": {"iterations": 7}} | sections)


def reports_of(folder: Path, parameters: dict[str, Any], sweep: Sweep, **more: Any) -> list[dict[str, Any]]:
    """What a trial in that folder reports, to its end."""
    return list(run_trial(parameters, sweep, TrialFolder(folder), **more))


def set_of(folder: Path) -> DirectionSet:
    return DirectionSet.load(TrialFolder(folder).result() / "directions")


PARAMETERS = [
    {"method": "random", "directions": 3, "shift_scale": 2.0, "seed": 1},
    {"method": "pca", "directions": 3, "pca.samples": 32, "seed": 1},
    {"method": "semantic", "directions": 3, "semantic.samples": 32, "seed": 1},
    {
        "method": "sae",
        "directions": 3,
        "sae.width": 24,
        "sae.active": 2,
        "sae.samples": 32,
        "sae.iterations": 5,
        "seed": 1,
    },
    {"method": "jacobian", "directions": 3, "jacobian.step": "every", "jacobian.box": "0,0,4,8", "seed": 1},
]


@pytest.mark.slow
@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda given: given["method"])
def test_a_method_that_does_not_train_reports_once(
    tiny_model: Path, tmp_path: Path, parameters: dict[str, Any]
) -> None:
    heard: set[str] = set()
    context = TrialContext(advanced=lambda what, done, total: heard.add(what))
    [told] = reports_of(tmp_path, parameters, sweep_with(tiny_model, method=parameters["method"]), context=context)
    assert heard == {"samples", "images"} | ({"steps"} if parameters["method"] == "jacobian" else set())
    files, directions = sorted(file.name for file in TrialFolder(tmp_path).result().iterdir()), set_of(tmp_path)
    assert files == ["directions", "manifest.json", "state.json", "traversal.png"]
    assert told.global_step == 7 and told.curve == told.notes == [] and told.find_seconds > 0
    assert directions.metrics == told.metrics
    assert len(directions) == 3 and directions.provenance["method"] == parameters["method"]
    assert directions.provenance["settings"]["seed"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)], ids=["fp32", "bf16"]
)
def test_a_set_is_opened_in_the_precision_that_its_trial_ran_in(
    tiny_model: Path, tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    sweep = sweep_with(tiny_model, method="random", train={"iterations": 7, "precision": precision})
    reports_of(tmp_path, PARAMETERS[0], sweep)
    assert set_of(tmp_path).provenance["precision"] == precision
    session = EditSession.open(TrialFolder(tmp_path).result() / "directions", ModelOptions(device="cpu"))
    assert (session.precision, session.denoiser.dtype) == (precision, dtype)


@pytest.mark.slow
def test_memory_that_runs_out_halves_what_is_drawn_at_a_time(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, measure = random.find, cast(Any, evaluate)
    tried: list[int] = []

    def tight_find(denoiser: Any, schedule: Any, settings: Any, batch: int, cache: Any) -> DirectionSet:
        tried.append(batch)
        if batch > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return find(denoiser, schedule, settings, batch, cache)

    def tight_evaluate(*given: Any, sampling: Sampling, **more: Any) -> Any:
        tried.append(sampling.batch)
        if sampling.batch > 8:
            raise RuntimeError("CUDA error: out of memory")
        return measure(*given, sampling=sampling, **more)

    monkeypatch.setattr(random, "find", tight_find)
    monkeypatch.setattr(model_module, "evaluate", tight_evaluate)
    [told] = reports_of(tmp_path, PARAMETERS[0], sweep_with(tiny_model, method="random"))
    assert tried == [64, 32, 16, 16, 8]
    assert told.memory == {"sampler_batch": 8, "out_of_memory_retries": 3}


@pytest.mark.slow
def test_the_supervised_method_asks_the_models_predictor(tmp_path: Path) -> None:
    parameters = {"method": "supervised", "supervised.attribute": "smile", "supervised.samples": 16}
    sweep = sweep_with("toyfaces", method="supervised")
    [told] = reports_of(tmp_path, {**parameters, "supervised.extremes": 4}, sweep)
    assert set_of(tmp_path).names == ("smile",) and "disentanglement" in told.metrics


@pytest.mark.slow
def test_every_trial_runs_lean_unless_told_otherwise(tiny_model: Path) -> None:
    lean, plain = (TrialModel.load(sweep_with(tiny_model, gradient={"lean": wanted})) for wanted in (True, False))
    assert isinstance(lean.denoiser.cut, LeanUNet) and not isinstance(plain.denoiser.cut, LeanUNet)
    assert lean.denoiser.digest == plain.denoiser.digest


@pytest.mark.slow
def test_a_set_is_scaled_before_it_is_measured(tiny_model: Path, tmp_path: Path) -> None:
    sweep = sweep_with(tiny_model, method="random", evaluate={"seeds": 6, "strength": 0.05})
    [told] = reports_of(tmp_path, PARAMETERS[0], sweep)
    trial_model, directions = TrialModel.load(sweep), set_of(tmp_path)
    unscaled = DirectionSet(directions.table, torch.ones_like(directions.sigma), directions.timesteps)
    as_found = sweep_with(tiny_model, evaluate={"strength": None})
    assert torch.equal(trial_model.scaled(as_found, unscaled).sigma, unscaled.sigma)
    assert directions.metrics == told.metrics
    strength = moved(trial_model.denoiser, trial_model.schedule, directions)
    assert torch.allclose(strength, torch.full_like(strength, 0.05), rtol=0.1)


@pytest.mark.slow
def test_the_second_trial_of_a_node_draws_no_unshifted_sample(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    run = unshifted._chain
    monkeypatch.setattr(unshifted, "_chain", lambda *given: (drawn.append(len(given[2])), run(*given))[1])
    sweep = sweep_with(tiny_model, method="random", evaluate={"seeds": 6, "strength": 0.05})
    [alone] = reports_of(tmp_path / "alone", PARAMETERS[0], sweep)
    drawn.clear()
    [first] = reports_of(tmp_path / "first", PARAMETERS[0], sweep, cache=SampleCache(tmp_path / "cache"))
    assert 256 + 72 + 6 + 24 + 256 == sum(drawn)  # spread, calibration, evaluation, reference, factors
    drawn.clear()
    [second] = reports_of(tmp_path / "second", PARAMETERS[0], sweep, cache=SampleCache(tmp_path / "cache"))
    assert not drawn
    assert alone.metrics == first.metrics == second.metrics


@pytest.mark.slow
def test_a_finished_trial_repeats_its_report_and_loads_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That report may never have arrived."""
    sweep = sweep_with(tiny_model, method="random")
    [first] = reports_of(tmp_path, PARAMETERS[0], sweep)
    monkeypatch.setattr(TrialModel, "load", lambda *_: pytest.fail("the model was loaded"))
    assert reports_of(tmp_path, PARAMETERS[0], sweep) == [first]


def test_a_trial_asked_to_end_while_it_measures_ends_there(tiny_model: Path, tmp_path: Path) -> None:
    calls: list[int] = []
    context = TrialContext(lambda: len(calls) > 5, lambda: calls.append(1))
    with pytest.raises(Preempted):
        reports_of(tmp_path, PARAMETERS[0], sweep_with(tiny_model, method="random"), context=context)
    assert len(calls) == 6 and TrialFolder(tmp_path).latest().path is None


@pytest.mark.slow
def test_where_no_checkpoint_is_sound_it_does_not_start_over(tiny_model: Path, tmp_path: Path) -> None:
    sweep = sweep_with(tiny_model, method="random")
    reports_of(tmp_path, PARAMETERS[0], sweep)
    (TrialFolder(tmp_path).result() / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is sound .checkpoint_00000007: state.json has 2 bytes instead of "):
        reports_of(tmp_path, PARAMETERS[0], sweep)


@pytest.mark.slow
def test_the_baseline_reaches_the_strength_of_the_set(tiny_model: Path) -> None:
    sweep = sweep_with(tiny_model)
    trial_model = TrialModel.load(sweep)
    found = random.find(trial_model.denoiser, trial_model.schedule, random.Settings(4, 0.1))
    for strength in (0.02, 0.05):  # at 0.1 this model's images change too little for the largest stretch
        like = trial_model.at_strength(sweep, random_like(trial_model, found, sweep), strength, close=0.1)
        assert len(like) == 4
        measured = moved(trial_model.denoiser, trial_model.schedule, like)
        assert torch.allclose(measured, torch.full_like(measured, strength), rtol=0.15)
    assert trial_model.strength_of(sweep_with(tiny_model, evaluate={"strength": None}), like) == pytest.approx(
        float(measured.mean())
    )
