"""Parameters of a trial become the settings of its method."""

from typing import Any

import pytest
from torch import Tensor

from core.chain.gradient import CheckpointBlocks, CheckpointSteps, FullGraph, GradientPolicy, KeepSteps
from core.errors import UserError
from core.methods import METHODS, guided, jacobian, learned, pca, random, sae, semantic, supervised
from core.predictors.attributes import Attributes
from orchestrator.search.space import configurations
from orchestrator.spec import Sweep, parse
from orchestrator.trial.settings import method_of, settings_of, with_names


def sweep_with(**sections: Any) -> Sweep:
    return parse({"name": "a", "model": "b", "search": {}, "budget": {"trials": 1}} | sections)


TRAINING: dict[str, Any] = {  # of the sweep, for every method that trains
    "iterations": 9,
    "batch": 8,
    "micro_batch": 4,
    "pool": 64,
    "injection": "asymmetric",
    "window": (900, 100),
    "strength_floor": 0.1,
    "gradient": FullGraph(),
    "seed": 7,
}
CASES = [
    ({"method": "random", "directions": 4, "shift_scale": 2.0}, random.Settings(4, 2.0, seed=7)),
    ({"method": "random", "directions": 4, "shift_scale": 2.0, "seed": 1}, random.Settings(4, 2.0, seed=1)),
    (
        {"method": "pca", "directions": 4, "pca.samples": 64, "pca.joint": False, "pca.sigmas": 2.0},
        pca.Settings(directions=4, samples=64, joint=False, sigmas=2.0, seed=7),
    ),
    (
        {"method": "semantic", "directions": 4, "semantic.look": "a/dino", "semantic.sources": "components"},
        semantic.Settings(directions=4, look="a/dino", sources="components", seed=7),
    ),
    (
        {"method": "sae", "directions": 4, "sae.width": 64, "sae.seen": "places", "sae.steps": "late"},
        sae.Settings(directions=4, width=64, seen="places", steps="late", seed=7),
    ),
    (
        {"method": "jacobian", "jacobian.step": "every", "jacobian.mask": "none", "jacobian.box": "0,4,8,16"},
        jacobian.Settings(step=None, mask=None, box=(0, 4, 8, 16), seed=7),
    ),
    (
        {
            "method": "jacobian",
            "jacobian.step": 3,
            "jacobian.image": 2,
            "jacobian.mask": "a.png",
            "jacobian.box": "none",
        },
        jacobian.Settings(step=3, image=2, mask="a.png", box=None, seed=7),
    ),
    ({"method": "jacobian", "jacobian.step": "middle"}, jacobian.Settings(step="middle", seed=7)),
    (
        {
            "method": "supervised",
            "supervised.attribute": "all",
            "supervised.balance": "none",
            "supervised.pairs": "none",
        },
        supervised.Settings(attributes=(), balance=None, pairs=None, predictor="p", seed=7),
    ),
    (
        {"method": "supervised", "supervised.attribute": "smile", "supervised.balance": "hair"},
        supervised.Settings(attributes=("smile",), balance="hair", predictor="p", seed=7),
    ),
    (
        {"method": "supervised", "supervised.pairs": "faces/", "supervised.project": True},
        supervised.Settings(pairs="faces/", project=True, seed=7),
    ),
    (
        {
            "method": "guided",
            "guided.attributes": "smile; blond hair",
            "guided.start": "random",
            "guided.effect_weight": 0.5,
            "guided.target": 2.0,
            "orthonormal": False,
        },
        guided.Settings(
            attributes=("smile", "blond hair"),
            start="random",
            effect_weight=0.5,
            target=2.0,
            orthonormal=False,
            predictor="p",
            **TRAINING,
        ),
    ),
    ({"method": "guided", "guided.attributes": "all"}, guided.Settings(attributes=(), predictor="p", **TRAINING)),
    (
        {"method": "learned", "directions": 4, "start": "pca"},
        learned.Settings(directions=4, start="pca", **TRAINING),
    ),
]


@pytest.mark.parametrize(("parameters", "settings"), CASES, ids=[str(given) for given, _ in CASES])
def test_parameters_become_settings(parameters: dict[str, Any], settings: Any) -> None:
    sweep = sweep_with(
        seed=7,
        predictor="p",
        sampler={"injection": "asymmetric", "window": [900, 100]},
        train={"iterations": 9, "batch": 8, "micro_batch": 4, "pool": 64, "strength_floor": 0.1},
        gradient={"policy": "full_graph"},
    )
    assert settings_of(parameters, sweep) == settings


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_of_a_method_is_a_field_of_its_settings(method: str) -> None:
    """And the defaults of a sweep file are those of the method."""
    sweep = sweep_with(method=method)
    [parameters] = configurations(sweep.space)
    defaults = settings_of({"method": method}, sweep)
    assert settings_of(parameters, sweep) == defaults


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({"policy": "checkpoint_steps"}, CheckpointSteps()),
        ({"policy": "checkpoint_blocks"}, CheckpointBlocks()),
        ({"policy": "keep_steps"}, KeepSteps("auto")),
        ({"memory": "2MB"}, KeepSteps(2_000_000)),
    ],
)
def test_a_policy_by_name(given: dict[str, str], policy: GradientPolicy) -> None:
    assert settings_of({"method": "learned"}, sweep_with(gradient=given)).gradient == policy


def test_what_a_method_refuses_is_told_in_its_words() -> None:
    with pytest.raises(UserError, match="^extremes: got 33; two groups of them are taken from 64 samples"):
        settings_of({"method": "supervised", "supervised.samples": 64, "supervised.extremes": 33}, sweep_with())


def test_a_word_means_nothing_elsewhere() -> None:
    """A mask called "every" is a file, and so is a folder of pairs."""
    mask = settings_of({"method": "jacobian", "jacobian.mask": "every"}, sweep_with(method="jacobian")).mask
    pairs = settings_of({"method": "supervised", "supervised.pairs": "every"}, sweep_with(method="supervised")).pairs
    assert (mask, pairs) == ("every", "every")


def test_all_attributes_of_a_predictor_get_their_names_and_named_ones_keep_theirs() -> None:
    knows = Attributes.of(("a", "b"), Tensor.double)
    named = guided.Settings(attributes=("b",))
    assert with_names(guided.Settings(), knows) == guided.Settings(attributes=("a", "b"))
    assert with_names(named, knows) is named and with_names(guided.Settings(), None) == guided.Settings()
    assert with_names(supervised.Settings(), knows) == supervised.Settings()


@pytest.mark.parametrize("method", METHODS)
def test_settings_tell_their_method(method: str) -> None:
    assert method_of(METHODS[method].Settings()) == method
