"""The time of a sweep from what was measured: the arithmetic, on numbers whose result is known."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from core.chain.schedule import Schedule
from orchestrator.plan.duration import asha_ends, cost, expected_to_go_on, predict
from orchestrator.plan.probe import Timings
from orchestrator.spec import Sweep, parse
from orchestrator.trial.memory import without_weights

# Passes for each shifted step before the first iteration of method learned: 32 samples calibrate the reconstructor, and
# 32 give the slopes of 32 numbers, with a backward pass for each number that takes two forward ones.
BEFORE = 32 + 32 * (1 + 2 * 32)

NOTHING = Timings(load=0.0, forward=0.0, score=0.0, judge=0.0, start=0.0, iteration=0.0, sources=0.0)


def sweep_with(**sections: Any) -> Sweep:
    """Of sets that are not scaled, unless `evaluate` says so."""
    base = {"name": "a", "model": "toyfaces", "search": {"directions": 8}, "budget": {"trials": 1}}
    evaluate = {"strength": None} | sections.get("evaluate", {})
    return parse(base | {"sampler": {"steps": 5}} | sections | {"evaluate": evaluate})


def schedule_of(sweep: Sweep) -> Schedule:
    return Schedule.ddim(without_weights(sweep), sweep.sampler.steps, sweep.sampler.eta)


def predicted(sweep: Sweep, slots: int = 1, **measured: float) -> Any:
    return predict(sweep, schedule_of(sweep), Timings(**{**vars(NOTHING), **measured}), slots)


@pytest.mark.slow
def test_a_trial_is_the_sum_of_its_parts() -> None:
    sweep = sweep_with(train={"iterations": 100}, evaluate={"every": 40, "seeds": 6})
    assert predicted(sweep, start=7.0).trial == {"learned": 7.0}
    assert predicted(sweep, iteration=2.0).trial == {"learned": 200.0}
    assert predicted(sweep, judge=1.0).trial == {"learned": 3.0}, "at 40, 80 and 100"
    images, shifted = 5 * 6 + 6 * 8 * 4, 6 * 8 * 4
    assert predicted(sweep, score=1.0).trial == {"learned": 3.0 * images}
    passes = (shifted + 7 * 8) * 5 + images / 2
    assert predicted(sweep, forward=1.0).trial == {"learned": 3 * passes + BEFORE * 5}
    scaled = sweep_with(train={"iterations": 100}, evaluate={"every": 40, "seeds": 6, "strength": 0.25})
    assert predicted(scaled, forward=1.0).trial == {"learned": 3 * (passes + 6 * 16 * 8 * 5.5) + BEFORE * 5}


@pytest.mark.parametrize(
    ("search", "start", "slopes"),
    [
        ({"start": "slopes"}, 7.0, True),
        ({"start": "slopes", "purity_weight": 0}, 7.0, True),
        ({"start": "pca", "purity_weight": 0}, 7.0, False),
        ({"start": "random"}, 7.0, False),
        ({"start": "random", "purity_weight": 0}, 0.0, False),
    ],
)
def test_a_start_takes_what_is_looked_for(search: dict[str, Any], start: float, slopes: bool) -> None:
    """Components or sources; and the slopes of the sources only where directions start from them."""
    sweep = sweep_with(train={"iterations": 100}, search={"directions": 8, **search})
    assert predicted(sweep, start=7.0).trial == {"learned": start}
    forward = predicted(sweep, forward=1.0).trial["learned"]
    without = predicted(sweep_with(train={"iterations": 100}), forward=1.0).trial["learned"] - BEFORE * 5
    assert forward - without == (BEFORE if slopes else 32) * 5


@pytest.mark.slow
def test_a_trial_of_guided_scores_the_pool_and_trains_a_direction_for_each_attribute() -> None:
    """All four of the predictor, or as many as are named."""
    sections: dict[str, Any] = {"method": "guided", "train": {"iterations": 100, "pool": 64}, "evaluate": {"seeds": 6}}
    for search, k in (({}, 4), ({"guided.attributes": "smile; skin"}, 2)):
        sweep = sweep_with(**sections, search=search)
        images = 5 * 6 + 6 * k * 4
        assert predicted(sweep, iteration=2.0, labels=4).trial == {"guided": 200.0}
        assert predicted(sweep, score=1.0, labels=4).trial == {"guided": 64.0 + images}
        passes = (6 * k * 4 + 7 * k) * 5 + images / 2 + 32 * (1 + 2 * 4) * 5
        assert predicted(sweep, forward=1.0, labels=4).trial == {"guided": passes}, "slopes of all four scores"
        other = sweep_with(**sections, search={**search, "guided.start": "supervised"})
        assert predicted(other, forward=1.0, labels=4).trial == {"guided": passes - 32 * 9 * 5}
        assert predicted(sweep, decode=1.0, labels=4).trial == {"guided": 64.0 + 6 + 6 * k * 4 + 7 * k + images}


def test_trials_of_all_methods_that_train_stand_in_one_competition() -> None:
    """Six of nine are stopped as six of one method would be, and the rungs are shared by their numbers."""
    search = {"seed": {"choice": [0, 1, 2]}, "directions": 8}
    methods = {"choice": ["learned", "guided", "random"]}
    train, asha = {"iterations": 150}, {"asha": {"grace": 50, "reduction": 3}}
    sweep = sweep_with(method=methods, search=search, budget={"trials": 9}, train=train, scheduler=asha)
    found = predicted(sweep, iteration=1.0, labels=4)
    assert found.ends == ((50, pytest.approx(2.85)), (150, pytest.approx(3.15)))
    assert found.trial == {"learned": 150.0, "guided": 150.0, "random": 0.0}
    assert found.busy == pytest.approx(2.85 * 50 + 3.15 * 150)


@pytest.mark.slow
def test_more_directions_are_judged_for_longer() -> None:
    """The networks that tell them apart are trained for as much longer as there are more than 16."""
    times = [predicted(sweep_with(search={"directions": k}), judge=1.0).trial["learned"] for k in (16, 17, 33)]
    assert times == [1.0, 2.0, 3.0]


@pytest.mark.slow
def test_latents_are_decoded_to_be_judged_and_again_to_be_scored() -> None:
    sweep = sweep_with(evaluate={"seeds": 6})
    judged, scored = 6 + 6 * 8 * 4 + 7 * 8, 5 * 6 + 6 * 8 * 4
    assert predicted(sweep, decode=1.0).trial == {"learned": judged}
    assert predicted(sweep, decode=1.0, labels=4).trial == {"learned": judged + scored}


@pytest.mark.slow
def test_windows_and_injection_make_chains_longer_and_shorter() -> None:
    plain = predicted(sweep_with(), forward=1.0).trial["learned"]
    late = sweep_with(sampler={"steps": 5, "window": [500, 0]})
    steps = 5 - schedule_of(late).steps_in_window((500, 0)).index(True)
    assert predicted(late, forward=1.0).trial["learned"] == plain - BEFORE * (5 - steps)
    twice = sweep_with(sampler={"steps": 5, "injection": "asymmetric"})
    shifted = 24 * 8 * 4 + 7 * 8
    assert predicted(twice, forward=1.0).trial["learned"] == plain + BEFORE * 2.5 + shifted * 2.5


@pytest.mark.slow
def test_a_sweep_is_its_trials_side_by_side_and_a_wait_for_the_last() -> None:
    sweep = sweep_with(search={"shift_scale": {"float": [0.1, 1]}}, budget={"trials": 6}, train={"iterations": 10})
    assert predicted(sweep, iteration=1.0).sweep == pytest.approx(60)
    assert predicted(sweep, slots=2, iteration=1.0).sweep == pytest.approx(30 + 10 / 4)
    assert predicted(sweep, slots=2, iteration=1.0, load=9.0).sweep == pytest.approx(9 + 30 + 10 / 4)
    few = sweep_with(search={"shift_scale": {"float": [0.1, 1]}}, budget={"trials": 6, "hours": 0.01})
    found = predicted(few, iteration=1.0)
    assert found.sweep == 36 and found.limited


@pytest.mark.slow
def test_unshifted_samples_are_drawn_once_for_each_seed() -> None:
    search = {"seed": {"choice": [0, 1, 2]}, "directions": 8}
    train = {"iterations": 1, "pool": 100}
    one, three = (
        predicted(sweep_with(train=train, search=given, budget={"trials": count}), forward=1.0)
        for given, count in (({"directions": 8}, 1), (search, 3))
    )
    trial = one.trial["learned"]
    scaled = trial - BEFORE * 5 + 6 * 16 * 8 * 5.5
    end = 6 * scaled + 60 * 8 * 5 + 256 * 5  # six sets, the champion's dials, and the h of random directions
    # The pool, the measured samples and references, and the samples whose factors are taken.
    assert one.busy == pytest.approx(trial + end + (100 + 240 + 256) * 5)
    assert three.busy == pytest.approx(3 * trial + end + (300 + 240 + 256) * 5)


@pytest.mark.slow
def test_methods_that_do_not_train() -> None:
    search = {"seed": {"choice": [0, 1]}, "directions": 8, "supervised.samples": 50, "supervised.extremes": 10}
    methods = {"choice": ["pca", "random", "semantic", "supervised"]}
    sweep = sweep_with(method=methods, search=search, budget={"trials": 8}, evaluate={"seeds": 6})
    found = predicted(sweep, judge=10.0, labels=4)
    times = {"pca": 10.0, "random": 10.0, "semantic": 10.0, "supervised": 5.0}
    assert found.trial == times, "half as long for half as many pairs, which are few"
    assert found.sweep == 2 * 35.0 + 6 * 35.0 / 4
    assert predicted(sweep, sources=3.0).trial == {"pca": 0.0, "random": 0.0, "semantic": 3.0, "supervised": 0.0}
    found = predicted(sweep, forward=1.0, labels=4)
    shifted = [6 * k * 4 for k in (8, 4)]
    many, few = ((n + 7 * k) * 5 + (30 + n) / 2 for n, k in zip(shifted, (8, 4), strict=True))
    assert found.trial == {"pca": many, "random": many, "semantic": many, "supervised": few + 20 * 5}


@pytest.mark.parametrize(
    ("method", "search", "why"),
    [
        ("jacobian", {"directions": 8}, "how many products it takes depends on how fast it converges"),
        ("sae", {}, "how long its autoencoder learns is not measured"),
        ("semantic", {"semantic.look": "a/dino"}, "how long its vision model looks at an image is not measured"),
        ("supervised", {"supervised.pairs": "folder"}, "it depends on how many images the pairs have"),
    ],
)
def test_what_cannot_be_predicted_is_said(method: str, search: dict[str, Any], why: str) -> None:
    methods = {"choice": ["random", method]}
    sweep = sweep_with(method=methods, search={"seed": {"choice": [0, 1]}, **search}, budget={"trials": 4})
    found = predicted(sweep, judge=1.0)
    assert found.trial == {"random": 1.0, method: None} and found.unknown == {method: why}
    assert found.sweep is None and cost(sweep, found, 1.0) is None


@pytest.mark.slow
def test_cost_is_of_gpus_or_of_machines() -> None:
    search = {"shift_scale": {"float": [0.1, 1]}}
    sections = {"search": search, "budget": {"trials": 6}, "train": {"iterations": 600, "batch": 16}}
    cpu = sweep_with(**sections)
    found = predicted(cpu, slots=2, iteration=1.0)
    assert found.sweep is not None
    assert cost(cpu, found, 3.0) == (found.sweep / 3600, found.sweep / 1200, "machine")
    gpu = sweep_with(**sections, resources={"gpus_per_trial": 4})
    assert cost(gpu, predicted(gpu, slots=2, iteration=1.0), 2.5) == (pytest.approx(4.0), pytest.approx(10.0), "GPU")


def test_where_asha_ends_trials() -> None:
    def ends(**sections: Any) -> Any:
        sections = {"search": {"shift_scale": {"float": [0.1, 1]}}, "budget": {"trials": 6}} | sections
        return asha_ends(sweep_with(**sections), 6.0)

    assert ends() == ((400, 6.0),)
    train, asha = {"iterations": 150}, {"asha": {"grace": 50, "reduction": 3}}
    assert ends(train=train, scheduler=asha) == ((50, pytest.approx(2.85)), (150, pytest.approx(3.15)))
    late = ends(train={"iterations": 450}, scheduler=asha, evaluate={"every": 40})
    assert [step for step, _ in late] == [80, 160, 450], "a trial is looked at when it reports"
    assert sum(number for _, number in late) == pytest.approx(6)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", [2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_as_many_are_expected_to_go_on_as_do(count: int, reduction: int) -> None:
    """Against the rule of Ray Tune's ASHA itself, on many orders of random scores."""
    from ray.tune.schedulers.async_hyperband import _Bracket

    chance, rounds, went_on = random.Random(0), 1500, 0
    for _ in range(rounds):
        bracket = _Bracket(1, reduction + 1, reduction, 0)
        for trial in range(count):
            action = bracket.on_result(SimpleNamespace(trial_id=trial), 1, chance.random())
            went_on += action != "STOP"
    assert expected_to_go_on(count, reduction) == pytest.approx(went_on / rounds, rel=0.06)
    assert expected_to_go_on(count + 0.5, reduction) == pytest.approx(
        np.mean([expected_to_go_on(count, reduction), expected_to_go_on(count + 1, reduction)])
    )
