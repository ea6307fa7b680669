"""Attributes by a second predictor: the same figures, under names of their own, and nothing else."""

from typing import Any

import pytest
import torch

from core.metrics import Traversals, evaluation, measure
from core.metrics.attributes import attribute_figures, effects_by_sample
from core.metrics.factors import Factors
from core.metrics.identifiability import Identified
from core.metrics.traversals import SCALES
from core.model.denoiser import Denoiser
from core.predictors.attributes import Attributes
from tests.core.metrics.test_attributes import LEFT_RIGHT
from tests.core.metrics.test_traversals import normal

RIGHT = Attributes(("right",), lambda images: LEFT_RIGHT.score(images)[:, 1:2])
FIRST = {"disentanglement", "coverage"}
SECOND = {f"second_{name}" for name in FIRST}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what trains or asks other networks."""
    identified = Identified(torch.zeros(3, 2), torch.zeros(3, 2))
    monkeypatch.setattr(evaluation, "identifiability", lambda *_, **__: identified)
    monkeypatch.setattr(evaluation, "_feature_figures", lambda *_: {})


def measured(denoiser: Denoiser, **predictors: Any) -> evaluation.Evaluation:
    plain = normal(3, 3, 8, 8)
    amount = torch.tensor(SCALES, dtype=torch.float64)[:, None, None, None]
    shifted = plain[:, None, None] + amount * normal(2, 3, 8, 8)[:, None]
    factors = Factors(torch.empty(0, 0), torch.empty(0, 0))  # nothing reads them here
    return measure(denoiser, Traversals(plain, shifted, SCALES), normal(4, 3, 8, 8), factors, **predictors)


def test_the_second_predictor_has_figures_of_its_own(tiny_denoiser: Denoiser) -> None:
    found = measured(tiny_denoiser, attributes=LEFT_RIGHT, second=RIGHT)
    by_sample = effects_by_sample(found.traversals, RIGHT, normal(4, 3, 8, 8))
    for name, figure in attribute_figures(by_sample).items():
        assert found.metrics[f"second_{name}"] == figure.value
        assert torch.equal(found.figures[f"second_{name}"].replicates, figure.replicates)
    alone = measured(tiny_denoiser, attributes=LEFT_RIGHT)
    assert found.figures.keys() - alone.figures.keys() == SECOND
    assert alone.metrics.items() <= found.metrics.items(), "what the first one says does not change"
    assert found.effects is not None and alone.effects is not None and torch.equal(found.effects, alone.effects)


def test_a_second_predictor_without_a_first_names_no_effect(tiny_denoiser: Denoiser) -> None:
    found = measured(tiny_denoiser, second=RIGHT)
    assert found.figures.keys() >= SECOND and not FIRST & found.figures.keys()
    assert found.effects is None
