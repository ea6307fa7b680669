"""What a bench asks of the metrics and of calibration: on which seeds, at which strength, with what of the sweep."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock, create_autospec, sentinel

import pytest
import torch

from core.methods import METHODS, random
from core.metrics import calibrate, evaluate, moved
from core.metrics.calibration import STRENGTH, with_dials
from core.metrics.strength import STRENGTH_TOLERANCE
from core.predictors.attributes import Attributes
from core.predictors.vision import Extractor
from core.randomness import SELECT_SEEDS
from core.samples.draw import Sampling
from orchestrator.spec import Sweep, parse
from orchestrator.trial import model as module
from orchestrator.trial.model import TrialModel, random_like

SAMPLER = {"steps": 2, "batch": 5, "injection": "asymmetric", "window": [600, 100]}
ASKED = {"sampling": Sampling("asymmetric", (600, 100), 5, sentinel.cache)}


def sweep_with(**evaluated: Any) -> Sweep:
    data = {"name": "a", "model": "toyfaces", "search": {}, "budget": {"trials": 1}, "sampler": SAMPLER}
    return parse(data | {"evaluate": evaluated})


@pytest.fixture
def trial_model() -> TrialModel:
    judges = cast(Any, SimpleNamespace(features=sentinel.features))
    used = sentinel.denoiser, sentinel.schedule, sentinel.attributes, sentinel.cache
    return TrialModel(*used, judges, sentinel.second)


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
    assert fake.call_args.kwargs == ASKED | told | {"second": sentinel.second}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gets_the_networks_that_it_looks_through(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the gradient goes through those alone; a vision model is opened once for all trials of a process."""
    knows = Attributes.of(("a", "b"), torch.Tensor.double)
    sees = Extractor("Sees", torch.Tensor.cpu, torch.Tensor.double)
    opened = create_autospec(module.open_look, return_value=sees)
    monkeypatch.setattr(module, "open_look", opened)
    module._opened.cache_clear()
    of = TrialModel(cast(Any, SimpleNamespace(device="cpu")), sentinel.schedule, knows)
    asked = {"guided": {"attributes": knows}, "supervised": {"attributes": knows}}
    settings = METHODS[method].Settings()
    assert of.networks_for(settings) == asked.get(method, {})
    assert of.through(settings) is (knows.score_through if method in asked else None)
    if method == "learned":
        for look, networks in (("denoiser", {}), ("a/dino", {"vision": sees}), ("a/dino", {"vision": sees})):
            assert of.networks_for(replace(settings, look=look)) == networks
        assert of.through(replace(settings, look="a/dino")) is sees.embed_through
        opened.assert_called_once_with("a/dino", "cpu")
    module._opened.cache_clear()


def test_a_set_is_made_as_strong_as_the_sweep_asks(trial_model: TrialModel, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = watched(monkeypatch, calibrate)
    assert trial_model.scaled(sweep_with(strength=None), sentinel.directions) is sentinel.directions
    assert not fake.called, "with null a set stays as it is"
    for asked, strength in (({}, STRENGTH), ({"strength": 0.3}, 0.3)):
        assert trial_model.scaled(sweep_with(**asked), sentinel.directions) is sentinel.found
        assert fake.call_args.args == (sentinel.denoiser, sentinel.schedule, sentinel.directions, strength)
        assert fake.call_args.kwargs == ASKED | {"close": STRENGTH_TOLERANCE, "extractor": sentinel.features}
    assert trial_model.at_strength(sweep_with(), sentinel.directions, 0.7, 0.1) is sentinel.found
    assert fake.call_args.args[3] == 0.7 and fake.call_args.kwargs["close"] == 0.1


def test_the_strength_of_a_set_is_that_of_the_sweep_or_its_own(
    trial_model: TrialModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = watched(monkeypatch, moved)
    assert trial_model.strength_of(sweep_with(strength=0.3), sentinel.directions) == 0.3 and not fake.called
    fake.return_value = torch.tensor([0.25, 0.75])
    assert trial_model.strength_of(sweep_with(strength=None), sentinel.directions) == 0.5
    assert fake.call_args.args == (sentinel.denoiser, sentinel.schedule, sentinel.directions)
    assert fake.call_args.kwargs == ASKED | {"extractor": sentinel.features}
    fake.return_value = torch.zeros(2)
    assert 0 < trial_model.strength_of(sweep_with(strength=None), sentinel.directions) < 0.01


def test_draws_of_the_baseline_are_other_sets_of_as_many_directions(
    trial_model: TrialModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them shaped as samples differ, the same samples for all draws."""
    fake = create_autospec(random.find, return_value=sentinel.found)
    monkeypatch.setattr(random, "find", fake)
    sweep = sweep_with().model_copy(update={"seed": 2**32 - 1})
    directions = cast(Any, range(6))  # of which only the number counts
    assert all(random_like(trial_model, directions, sweep, draw) is sentinel.found for draw in range(3))
    asked = [random.Settings(6, seed=2**32 - 1, shaped=0.5, draw=draw) for draw in range(3)]
    rest = (sentinel.denoiser, sentinel.schedule)
    assert [call.args for call in fake.call_args_list] == [(*rest, each, 5, sentinel.cache) for each in asked]


@pytest.mark.parametrize(
    ("evaluated", "strength"), [({}, STRENGTH), ({"strength": 0.3}, 0.3), ({"strength": None}, STRENGTH)]
)
def test_dials_have_the_strength_of_the_sweep_or_the_usual_one(
    trial_model: TrialModel, monkeypatch: pytest.MonkeyPatch, evaluated: dict[str, Any], strength: float
) -> None:
    fake = watched(monkeypatch, with_dials)
    assert trial_model.with_dials(sweep_with(**evaluated), sentinel.directions) is sentinel.found
    of_the_set = (sentinel.denoiser, sentinel.schedule, sentinel.directions, sentinel.attributes)
    assert fake.call_args.args == (*of_the_set, strength)
    assert fake.call_args.kwargs == ASKED | {"extractor": sentinel.features}
