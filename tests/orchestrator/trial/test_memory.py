"""Which way to train fits a device: the rules of `auto`, and what memory is counted."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch

from core.chain.gradient import CheckpointBlocks, CheckpointSteps, FullGraph, KeepSteps
from core.predictors.memory import scoring_bytes
from orchestrator.plan.memory_table import case_of
from orchestrator.spec import Sweep, parse
from orchestrator.trial import memory as module
from orchestrator.trial.memory import (
    Case,
    Footprint,
    _optimiser_bytes,
    choose,
    device_bytes,
    footprint,
    heaviest,
    looks_of,
    next_fitting,
    share_of,
    usable,
    without_weights,
)
from orchestrator.trial.settings import DeepSpeedSteps, method_of

HUGE = 1 << 40
BASE: dict[str, Any] = {
    "name": "a",
    "model": "toyfaces",
    "search": {},
    "budget": {"trials": 1},
    "sampler": {"steps": 20, "batch": 2},
    "train": {"batch": 16, "pool": 32},
}


def sweep_with(**sections: Any) -> Sweep:
    return parse(BASE | sections)


@pytest.fixture(scope="module")
def case() -> Case:
    return case_of(sweep_with())


@pytest.fixture(scope="module")
def case_with(case: Case) -> Callable[..., Case]:
    """The case with other sections, on the same denoiser, so that its steps are counted once for all tests."""
    return lambda **sections: replace(case, sweep=(sweep := sweep_with(**sections)), settings=heaviest(sweep))


def just_enough(way: Footprint) -> int:
    """The least device that it fits."""
    return int(way.peak / (1 - module.RESERVE)) + 2


def summary(way: Footprint) -> tuple[str, int, int, bool]:
    return way.policy, way.micro_batch, way.again, way.fits


@pytest.mark.slow
def test_with_room_for_everything_nothing_is_cut_or_run_again(case: Case) -> None:
    way = choose(case, HUGE)
    assert summary(way) == ("keep_steps", 16, 0, True) and way.draw_batch == 2
    assert way.chain.kept == way.steps == 20


@pytest.mark.slow
def test_weights_that_are_elsewhere_are_not_counted_here() -> None:
    def held(weights: str, workers: int = 1) -> int:
        gradient, resources = {"weights": weights, "lean": False}, {"workers": workers}
        return without_weights(sweep_with(gradient=gradient, resources=resources)).weight_bytes()

    whole, rest = held("device"), held("cpu")
    blocks = whole - rest
    assert blocks > 0.9 * whole
    for workers in (2, 4):
        assert held("partitioned", workers) - rest == pytest.approx(blocks / workers, rel=0.01)


@pytest.mark.slow
def test_a_smaller_micro_batch_comes_before_running_steps_again(case: Case) -> None:
    for size in (8, 4):
        whole = footprint(case, "keep_steps", size, HUGE)
        assert summary(choose(case, just_enough(whole))) == ("keep_steps", size, 0, True)


@pytest.mark.slow
def test_but_none_below_four(case: Case) -> None:
    """Then it is the largest again, with as many steps kept as fit."""
    way = choose(case, just_enough(footprint(case, "keep_steps", 4, HUGE)) - 5_000_000)
    assert (way.policy, way.micro_batch, way.fits) == ("keep_steps", 16, True)
    assert 1 <= way.chain.kept < 20 and way.again == 20 - way.chain.kept
    assert way.gradient == KeepSteps(way.chain.graphs)


@pytest.mark.slow
def test_more_memory_keeps_more_steps(case: Case) -> None:
    least = just_enough(footprint(case, "checkpoint_steps", 16, HUGE))
    kept = [footprint(case, "keep_steps", 16, least + extra).chain.kept for extra in range(0, 480_000_000, 48_000_000)]
    assert kept == sorted(kept) and kept[0] == 1 and kept[-1] == 20


@pytest.mark.slow
def test_blocks_come_last_and_then_nothing_fits(case: Case) -> None:
    steps, blocks = (footprint(case, policy, 2, HUGE) for policy in ("checkpoint_steps", "checkpoint_blocks"))
    assert blocks.peak < steps.peak
    way = choose(case, just_enough(steps) - 100_000)
    assert (way.policy, way.gradient, way.fits) == ("checkpoint_blocks", CheckpointBlocks(), True)
    assert summary(choose(case, 1_000_000)) == ("checkpoint_blocks", 2, 20, False)


@pytest.mark.slow
def test_what_the_file_says_stays(case_with: Callable[..., Case]) -> None:
    train = {"batch": 16, "pool": 32, "micro_batch": 2}
    assert summary(choose(case_with(train=train), HUGE)) == ("keep_steps", 2, 0, True)
    for policy, gradient in (("full_graph", FullGraph()), ("checkpoint_steps", CheckpointSteps())):
        way = choose(case_with(gradient={"policy": policy}), HUGE)
        assert (way.policy, way.gradient, way.micro_batch) == (policy, gradient, 16)
        assert not choose(case_with(gradient={"policy": policy}, train=train), 1_000_000).fits


@pytest.mark.slow
def test_memory_bounds_what_is_kept(case_with: Callable[..., Case], case: Case) -> None:
    one = choose(case, HUGE).chain.graphs / 20
    limit = {"memory": f"{3.5 * one / 1e6:.3f}MB"}
    assert choose(case_with(gradient=limit), HUGE).chain.kept == 3
    exact = choose(case_with(gradient={"policy": "keep_steps"} | limit), HUGE)
    assert (exact.policy, exact.micro_batch, exact.chain.kept) == ("keep_steps", 16, 3)
    # What the file says is not cut down to what fits; under auto it is.
    wide, train = {"memory": "1GB"}, BASE["train"] | {"micro_batch": 16}
    assert not choose(case_with(gradient={"policy": "keep_steps"} | wide, train=train), just_enough(exact)).fits
    assert choose(case_with(gradient=wide, train=train), just_enough(exact)).fits


@pytest.mark.slow
def test_the_nearest_that_fits_is_no_larger_than_what_was_asked_for(case_with: Callable[..., Case], case: Case) -> None:
    train = {"batch": 16, "pool": 32, "micro_batch": 8}
    asked = case_with(train=train, gradient={"policy": "full_graph"})
    room = just_enough(footprint(case, "checkpoint_steps", 4, HUGE))
    assert not choose(asked, room).fits
    assert summary(next_fitting(asked, room)) == ("checkpoint_steps", 4, 19, True)
    assert str(next_fitting(asked, room)).startswith("checkpoint_steps with micro_batch 4 takes 0.")


@pytest.mark.slow
def test_samples_are_drawn_as_many_at_a_time_as_fit(case_with: Callable[..., Case]) -> None:
    many = case_with(sampler={"steps": 20, "batch": 1024})
    way = choose(many, HUGE)
    assert way.draw_batch == 1024 and way.drawing > way.training
    small = choose(many, just_enough(way) - 10_000)
    assert (small.draw_batch, small.fits) == (512, True) and small.drawing < way.drawing


def test_parts_add_up(case: Case) -> None:
    way = choose(case, HUGE)
    chain = way.chain
    assert way.training == chain.network + chain.states + chain.graphs + chain.work + way.trained + way.pool
    assert way.fits and usable(HUGE) == int(0.9 * HUGE)


@pytest.mark.slow
def test_an_optimiser_on_the_cpu_is_not_on_the_gpu(case_with: Callable[..., Case]) -> None:
    gpu, offload = {"gpus_per_trial": 1}, {"zero": 2, "offload_optimizer": "cpu"}
    trained = [
        footprint(case_with(resources=resources, deepspeed=deepspeed), "checkpoint_steps", 4, HUGE).trained
        for resources, deepspeed in ((gpu, offload), (gpu, {"zero": 2}), ({}, offload))
    ]
    assert trained[0] < trained[1] == trained[2]


@pytest.mark.slow
def test_what_is_partitioned_takes_less_with_every_worker(case_with: Callable[..., Case]) -> None:
    def trained(gpus: int, **deepspeed: object) -> int:
        case = case_with(resources={"gpus_per_trial": gpus}, deepspeed=deepspeed)
        return footprint(case, "checkpoint_steps", 4, HUGE).trained

    assert trained(1, zero=2) > trained(2, zero=2) > trained(4, zero=2) > trained(4, zero=2, offload_optimizer="cpu")
    assert trained(4, zero=2) == trained(4, zero=3) - count(case_with) > trained(4, zero=3, offload_optimizer="cpu")
    whole = {"zero": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}
    assert trained(1, **whole) == trained(4, **whole) == trained(1, zero=2, offload_optimizer="cpu")


@pytest.mark.parametrize(
    ("gpus", "workers", "deepspeed", "nbytes"),
    [
        (1, 1, {"zero": 0}, 8),
        (1, 1, {"zero": 0, "precision": "bf16"}, 16),
        (1, 1, {"zero": 1}, 8 + 12),
        (2, 2, {"zero": 2}, 8 + 6),
        (5, 5, {"zero": 2}, 8 + 3),  # the largest part of 12
        (1, 1, {"zero": 3}, 8 + 16),
        (5, 5, {"zero": 3}, 8 + 4),
        (1, 1, {"zero": 3, "offload_param": "cpu"}, 8 + 12),
        (1, 1, {"zero": 3, "offload_optimizer": "cpu"}, 8 + 4),
        (1, 1, {"zero": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}, 8),
        (0, 1, {"zero": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}, 8 + 16),  # that is where it is
    ],
)
def test_what_an_optimiser_holds_for_each_parameter(
    gpus: int, workers: int, deepspeed: dict[str, object], nbytes: int
) -> None:
    train = BASE["train"] | {"batch": 16 * workers}
    resources = {"gpus_per_trial": gpus, "workers": workers}
    assert _optimiser_bytes(sweep_with(train=train, resources=resources, deepspeed=deepspeed)) == nbytes


def count(case_with: Callable[..., Case]) -> int:
    """Parameters that are trained, from what two optimisers take for each."""
    four, eight = (
        footprint(case_with(deepspeed={"zero": 0, "precision": kind}), "checkpoint_steps", 4, HUGE).trained
        for kind in ("fp32", "bf16")
    )
    return (eight - four) // 8


@pytest.mark.slow
def test_deepspeeds_checkpointing_is_planned_as_step_by_step(case_with: Callable[..., Case]) -> None:
    theirs, ours = (choose(case_with(gradient={"policy": name}), HUGE) for name in ("deepspeed", "checkpoint_steps"))
    assert (theirs.policy, theirs.gradient) == ("deepspeed", DeepSpeedSteps())
    assert theirs.chain == ours.chain


def test_a_sweep_is_planned_for_the_heaviest_of_its_trials(case_with: Callable[..., Case]) -> None:
    search = {
        "directions": {"choice": [4, 24, 8]},
        "parametrisation": {"choice": ["shared", "time"]},
        "discriminator_weight": {"float": [0.01, 1.0]},
        "consistency_weight": 0,
    }
    settings = heaviest(sweep_with(search=search))
    assert (settings.directions, settings.parametrisation, settings.consistency_weight) == (24, "time", 0.0)
    assert settings.discriminator_weight > 0
    assert heaviest(sweep_with(search={"discriminator_weight": 0})).discriminator_weight == 0
    assert heaviest(sweep_with(search={"purity_weight": {"choice": [0, 2]}})).purity_weight > 0
    assert heaviest(sweep_with(search={"purity_weight": 0})).purity_weight == 0


@pytest.mark.parametrize(
    ("method", "values", "heavy"),
    [
        ("learned", {"choice": ["random", "slopes", "pca"]}, "slopes"),
        ("learned", {"choice": ["random", "pca"]}, "pca"),
        ("learned", "random", "random"),
        ("guided", {"choice": ["supervised", "slopes"]}, "slopes"),
        ("guided", "supervised", "supervised"),
    ],
)
def test_the_heaviest_start_looks_at_the_most(method: str, values: object, heavy: str) -> None:
    """Maps are counted for a start from slopes alone, and not where no trial starts so."""
    name = "start" if method == "learned" else "guided.start"
    assert heaviest(sweep_with(method=method, search={name: values}), method).start == heavy


def test_a_sweep_is_planned_for_the_look_that_takes_the_most_memory() -> None:
    """Which depends on the model: here pixels, whose reconstructor is the largest. The slowest is what is timed."""
    looks = ["denoiser", "a/dino", "b/clip", "pixels"]
    sweep = sweep_with(search={"learned.look": {"choice": looks}}, budget={"trials": 2})
    assert looks_of(sweep, "learned") == ("a/dino", "denoiser", "pixels") and looks_of(sweep, "guided") == ("pixels",)
    assert heaviest(sweep).look == "a/dino"
    planned = case_of(sweep)
    others = (replace(planned, settings=heaviest(sweep, look=look)) for look in looks)
    assert planned.trained(2) == max(each.trained(2) for each in others)


def test_the_network_that_the_gradient_goes_through_is_counted(case_with: Callable[..., Case]) -> None:
    case = case_with(search={"learned.look": "a/dino"})
    through = replace(case, through=lambda images: images.square().mean(dim=(2, 3)))
    assert through.trained(8) - case.trained(8) == scoring_bytes(through.through, case.denoiser.image_shape, 8) > 0


def test_the_heaviest_of_guided_pursues_the_most_attributes() -> None:
    def asked(values: object) -> tuple[str, ...]:
        search = {"guided.attributes": values, "parametrisation": {"choice": ["shared", "per_step"]}}
        settings = heaviest(sweep_with(method="guided", search=search, budget={"trials": 2}), "guided")
        assert settings.parametrisation == "per_step" and settings.discriminator_weight > 0
        return settings.attributes

    assert asked({"choice": ["smile", "skin; yaw; smile", "yaw; smile"]}) == ("skin", "yaw", "smile")
    assert asked({"choice": ["smile; skin", "all"]}) == ()


def test_the_memory_of_a_sweep_is_that_of_its_heavier_method() -> None:
    """Few directions and no reconstructor weigh less; of a model of its own all attributes are known by name."""
    both, alone = {"choice": ["learned", "guided"]}, "guided"
    learned_case, guided_case = case_of(sweep_with(method=both)), case_of(sweep_with(method=alone))
    assert method_of(learned_case.settings) == "learned" and method_of(guided_case.settings) == "guided"
    assert guided_case.settings.attributes[:2] == ("skin", "hair_colour")
    blind = replace(guided_case, through=None)
    more = [each.trained(16) - each.trained(8) for each in (guided_case, blind)]
    assert more[0] > 1.5 * more[1], "the predictor's activations"
    assert learned_case.through is None, "of learned nothing is scored"


def test_where_a_condition_does_not_hold_the_default_counts() -> None:
    when = {"when": {"parametrisation": "time"}}
    search = {
        "parametrisation": {"choice": ["shared", "time"]},
        "directions": {"choice": [4], **when},
        "discriminator_weight": {"choice": [0], **when},
        "consistency_weight": {"choice": [0], **when},
    }
    settings = heaviest(sweep_with(search=search))
    assert settings.directions == 16
    assert settings.discriminator_weight > 0 and settings.consistency_weight > 0
    pca = sweep_with(
        method={"choice": ["learned", "pca"]}, search={"directions": {"choice": [64], "when": {"method": "pca"}}}
    )
    assert heaviest(pca).directions == 16


def test_a_trial_takes_its_share_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_memory", lambda device: 60)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 100))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for gpus, bytes_there in ((1, 60), (2, 60), (0.5, 50), (0.25, 25)):
        assert device_bytes(sweep_with(resources={"gpus_per_trial": gpus}), gpu) == bytes_there
    assert device_bytes(sweep_with(resources={"gpus_per_trial": 1}), gpu, held=10) == 70
    assert device_bytes(sweep_with(resources={"gpus_per_trial": 0.5}), gpu, held=10) == 50
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 13)
    assert device_bytes(sweep_with(resources={"gpus_per_trial": 0.5}), gpu, held=10) == 47, "3 by other networks"
    assert device_bytes(sweep_with(), cpu, held=20) == 20
    assert [share_of(sweep_with(resources={"gpus_per_trial": gpus}), 100) for gpus in (0, 0.25, 1, 2)] == [
        *(100, 25),
        *(100, 100),
    ]
    for cpus, bytes_there in ((1, 15), (4, 60), (8, 60)):
        assert device_bytes(sweep_with(resources={"cpus_per_worker": cpus}), cpu) == bytes_there
