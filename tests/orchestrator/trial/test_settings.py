"""Parameters of a trial become the settings of its method."""

from typing import Any

import pytest

from core.chain.gradient import CheckpointBlocks, CheckpointSteps, FullGraph, GradientPolicy, KeepSteps
from core.errors import UserError
from core.methods import METHODS, jacobian, learned, pca, random, supervised
from orchestrator.search.space import configurations
from orchestrator.spec import Sweep, parse
from orchestrator.trial.settings import settings_of


def sweep_with(**sections: Any) -> Sweep:
    return parse({"name": "a", "model": "b", "search": {}, "budget": {"trials": 1}} | sections)


CASES = [
    ({"method": "random", "directions": 4, "shift_scale": 2.0}, random.Settings(4, 2.0, seed=7)),
    ({"method": "random", "directions": 4, "shift_scale": 2.0, "seed": 1}, random.Settings(4, 2.0, seed=1)),
    (
        {"method": "pca", "directions": 4, "pca.samples": 64, "pca.joint": False, "pca.sigmas": 2.0},
        pca.Settings(directions=4, samples=64, joint=False, sigmas=2.0, seed=7),
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
        {"method": "learned", "directions": 4, "start": "pca"},
        learned.Settings(
            directions=4,
            start="pca",
            iterations=9,
            batch=8,
            micro_batch=4,
            pool=64,
            injection="asymmetric",
            window=(900, 100),
            strength_floor=0.1,
            gradient=FullGraph(),
            seed=7,
        ),
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
