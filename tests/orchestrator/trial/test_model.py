"""What a bench asks of the metrics and of calibration: on which seeds, at which strength, with what of the sweep."""

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock, create_autospec, sentinel

import pytest

from core.metrics import calibrate, evaluate
from core.metrics.calibration import STRENGTH, with_dials
from core.randomness import SELECT_SEEDS
from core.samples.draw import Sampling
from orchestrator.spec import Sweep, parse
from orchestrator.trial import model as module
from orchestrator.trial.model import TrialModel

SAMPLER = {"steps": 2, "batch": 5, "injection": "asymmetric", "window": [600, 100]}
ASKED = {"sampling": Sampling("asymmetric", (600, 100), 5, sentinel.cache)}


def sweep_with(**evaluated: Any) -> Sweep:
    data = {"name": "a", "model": "toyfaces", "search": {}, "budget": {"trials": 1}, "sampler": SAMPLER}
    return parse(data | {"evaluate": evaluated})


@pytest.fixture
def trial_model() -> TrialModel:
    judges = cast(Any, SimpleNamespace(features=sentinel.features))
    return TrialModel(sentinel.denoiser, sentinel.schedule, sentinel.attributes, sentinel.cache, judges)


def watched(monkeypatch: pytest.MonkeyPatch, function: Any) -> Mock:
    fake: Mock = create_autospec(function, return_value=sentinel.found)
    monkeypatch.setattr(module, function.__name__, fake)
    return fake


def test_a_set_is_measured_on_the_first_seeds_and_against_the_four_times_as_many_after_them(
    trial_model: TrialModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No image is both measured and measured against."""
    fake = watched(monkeypatch, evaluate)
    assert trial_model.measure(sweep_with(seeds=6), sentinel.directions, SELECT_SEEDS) is sentinel.found
    assert fake.call_args.args == (sentinel.denoiser, sentinel.schedule, sentinel.directions, SELECT_SEEDS[:6])
    told = {"reference_seeds": SELECT_SEEDS[6:30], "attributes": sentinel.attributes, "judges": trial_model.judges}
    assert fake.call_args.kwargs == ASKED | told


def test_a_set_is_made_as_strong_as_the_sweep_asks(trial_model: TrialModel, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = watched(monkeypatch, calibrate)
    assert trial_model.scaled(sweep_with(), sentinel.directions) is sentinel.directions, (
        "as it is where nothing is asked"
    )
    assert not fake.called
    assert trial_model.scaled(sweep_with(strength=0.3), sentinel.directions) is sentinel.found
    assert fake.call_args.args == (sentinel.denoiser, sentinel.schedule, sentinel.directions, 0.3)
    assert fake.call_args.kwargs == ASKED | {"extractor": sentinel.features}


@pytest.mark.parametrize(("evaluated", "strength"), [({}, STRENGTH), ({"strength": 0.3}, 0.3)])
def test_dials_have_the_strength_of_the_sweep_or_the_usual_one(
    trial_model: TrialModel, monkeypatch: pytest.MonkeyPatch, evaluated: dict[str, float], strength: float
) -> None:
    fake = watched(monkeypatch, with_dials)
    assert trial_model.with_dials(sweep_with(**evaluated), sentinel.directions) is sentinel.found
    of_the_set = (sentinel.denoiser, sentinel.schedule, sentinel.directions, sentinel.attributes)
    assert fake.call_args.args == (*of_the_set, strength)
    assert fake.call_args.kwargs == ASKED | {"extractor": sentinel.features}
