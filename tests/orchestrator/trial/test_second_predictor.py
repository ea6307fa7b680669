"""The second predictor measures sets; no method, no dial and no name ever asks it."""

from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core import DirectionSet
from core.methods import METHODS
from core.metrics import evaluation
from core.predictors.attributes import Attributes
from core.randomness import SELECT_SEEDS
from orchestrator.spec import BY_ATTRIBUTES, Sweep
from orchestrator.store.checkpoints import TrialFolder
from orchestrator.trial.model import TrialModel
from orchestrator.trial.run import run_trial
from tests.orchestrator.trial.test_run import sweep_with


class Asked(Exception):
    """The second predictor was asked."""


class Measured(Exception):
    """The trial found its set, and went on to measure it."""


def refuse(images: Tensor) -> Tensor:
    raise Asked


def halves(images: Tensor) -> Tensor:
    return torch.stack([images[..., :4].mean(dim=(1, 2, 3)), images[..., 4:].mean(dim=(1, 2, 3))], dim=1)


def with_predictors(sweep: Sweep) -> TrialModel:
    """The model of a sweep, with a predictor, and a second one that refuses to be asked."""
    first, second = Attributes(("left", "right"), halves), Attributes(("left", "right"), refuse)
    return replace(TrialModel.load(sweep), attributes=first, second_attributes=second)


PARAMETERS: dict[str, dict[str, Any]] = {
    "pca": {"directions": 2, "pca.samples": 8},
    "jacobian": {"directions": 2},
    "semantic": {"directions": 2, "semantic.samples": 8},
    "sae": {"directions": 2, "sae.width": 8, "sae.active": 2, "sae.samples": 8, "sae.iterations": 2},
    "supervised": {"supervised.samples": 8, "supervised.extremes": 2},
    "random": {"directions": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", PARAMETERS)
def test_no_method_asks_the_second_predictor(
    method: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise Measured

    monkeypatch.setattr(TrialModel, "measure", stop)
    sweep, parameters = sweep_with(tiny_model, method=method), {"method": method, **PARAMETERS[method]}
    with pytest.raises(Measured):
        list(run_trial(parameters, sweep, TrialFolder(tmp_path), load=lambda sweep, _: with_predictors(sweep)))


def test_only_methods_that_find_attributes_take_a_predictor() -> None:
    assert PARAMETERS.keys() == METHODS.keys() - {"learned", "guided"}
    assert tuple(name for name in METHODS if "attributes" in signature(METHODS[name].find).parameters) == BY_ATTRIBUTES


def a_set(trial_model: TrialModel) -> DirectionSet:
    table = torch.zeros(2, 1, *trial_model.denoiser.h_shape)
    table[0, 0, 0, 0, 0] = table[1, 0, 1, 0, 0] = 1.0
    return DirectionSet(table, torch.ones(2, 1), trial_model.schedule.timesteps)


@pytest.mark.slow
def test_dials_and_names_do_not_ask_it_and_measuring_does(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_with(tiny_model)
    trial_model = with_predictors(sweep)
    directions = a_set(trial_model)
    assert len(trial_model.with_dials(sweep, directions).directions.dials) == 2
    monkeypatch.setattr(evaluation, "_feature_figures", lambda *_: {})
    with pytest.raises(Asked):
        trial_model.measure(sweep, directions, SELECT_SEEDS)


@pytest.mark.slow
def test_faces_have_a_second_predictor_by_default(tiny_model: Path) -> None:
    loaded = TrialModel.load(sweep_with("toyfaces"))
    assert loaded.attributes is not None and loaded.second_attributes is not None
    assert loaded.attributes.names == loaded.second_attributes.names
    assert TrialModel.load(sweep_with(tiny_model)).second_attributes is None
