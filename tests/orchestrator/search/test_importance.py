"""Which parameters mattered: asked in each objective's own direction, and said in words where nobody can know."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report.findings import read
from orchestrator.search.importance import Importance
from orchestrator.spec import METRICS
from tests.orchestrator.fabricated import completed, fabricated, mixed


def importance(root: Path, trials: int, **sections: Any) -> dict[str, Importance]:
    return read(fabricated(root, trials, steps=(), **sections)).importance


@pytest.mark.slow
def test_what_decides_comes_first_for_more_and_for_less(tmp_path: Path) -> None:
    for metric, found in importance(tmp_path, 50).items():
        assert next(iter(found.shares)) == "shift_scale" and found.shares["shift_scale"] > 0.5, metric
        assert sum(found.shares.values()) == pytest.approx(1) and found.note == ""


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "first"), [("globality", "directions"), ("strength_error", "shift_scale")])
def test_the_best_are_those_with_the_most_where_more_is_better(objective: str, first: str, tmp_path: Path) -> None:
    """The largest values are due to one parameter, the smallest to another."""

    def measured(parameters: Mapping[str, Any]) -> dict[str, float]:
        value = 10.0 if parameters["directions"] == 8 else -float(parameters["shift_scale"])
        return {"identifiability": 0.5, objective: value}

    search = {"directions": {"choice": list(range(8, 20))}, "shift_scale": {"float": [0.1, 1.0]}}
    sections = {"search": search, "objectives": [{objective: METRICS[objective]}], "measured": measured}
    found = importance(tmp_path, 40, **sections)[objective]
    assert next(iter(found.shares)) == first


@pytest.mark.slow
def test_few_trials_are_a_hint_or_nothing(tmp_path: Path) -> None:
    few = importance(tmp_path, 9)["identifiability"]
    assert few == Importance(note="This takes 10 completed trials at least; there are 9.")
    some = importance(tmp_path, 12, name="some")["identifiability"]
    assert some.shares and some.note.startswith("A hint only: the best tenth of 12 completed trials is 2.")
    assert read(fabricated(tmp_path, 9, mixed, name="mixed")).importance["fidelity_kid"].note.endswith("there are 5.")


@pytest.mark.slow
def test_values_that_do_not_differ_say_nothing(tmp_path: Path) -> None:
    search = {"seed": {"choice": list(range(12))}, "directions": 8}
    same = importance(tmp_path, 12, search=search, objectives=[{"globality": "max"}])["globality"]
    assert same == Importance(note="Every completed trial came to the same value.")


@pytest.mark.slow
def test_a_parameter_that_some_trials_do_not_have(tmp_path: Path) -> None:
    search = {"directions": {"choice": [8, 12]}, "pca.sigmas": {"float": [1.0, 5.0]}, "seed": {"choice": [0, 1, 2]}}
    sections = {"method": {"choice": ["pca", "random"]}, "search": search}
    found = read(fabricated(tmp_path, 20, completed, steps=(), **sections)).importance["identifiability"]
    assert set(found.shares) == {"method", "directions", "pca.sigmas", "seed"}
    assert next(iter(found.shares)) == "seed"
