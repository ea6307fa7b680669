"""When memory runs out, what was going on is done in smaller parts, until there are none."""

import json
from dataclasses import replace
from typing import Any

import pytest

from core.chain.gradient import CheckpointBlocks, CheckpointSteps, FullGraph, GradientPolicy, KeepSteps
from core.methods.learned.training import Settings
from orchestrator.plan.memory_table import case_of
from orchestrator.spec import parse
from orchestrator.trial.attempt import Attempt, DrawBatch
from orchestrator.trial.memory import choose
from orchestrator.trial.settings import DeepSpeedSteps

SIZES = (12, 6, 4, 2)


def attempt(policy: str, gradient: GradientPolicy, micro_batch: int = 12) -> Attempt:
    return Attempt(Settings(batch=24, micro_batch=micro_batch, gradient=gradient), policy, 64)


@pytest.mark.parametrize(("size", "half"), [(12, 6), (6, 2), (4, 2)])
def test_half_a_micro_batch_or_the_next_that_divides_a_workers_share(size: int, half: int) -> None:
    first = attempt("full_graph", FullGraph(), size)
    second = first.smaller(SIZES, training=True)
    assert second == replace(first, settings=replace(first.settings, micro_batch=half), retries=1)


def test_kept_steps_stay_as_many() -> None:
    """Each takes as much less memory as the micro-batch is smaller."""
    second = attempt("keep_steps", KeepSteps(1000)).smaller(SIZES, training=True)
    assert (second.settings.micro_batch, second.settings.gradient) == (6, KeepSteps(500))
    third = second.smaller(SIZES, training=True)
    assert (third.settings.micro_batch, third.settings.gradient) == (2, KeepSteps(166))
    unbounded = attempt("keep_steps", KeepSteps()).smaller(SIZES, training=True)
    assert (unbounded.settings.micro_batch, unbounded.settings.gradient) == (6, KeepSteps())


@pytest.mark.parametrize(("policy", "gradient"), [("full_graph", FullGraph()), ("keep_steps", KeepSteps(1000))])
def test_the_smallest_goes_on_step_by_step_then_block_by_block(policy: str, gradient: GradientPolicy) -> None:
    steps = attempt(policy, gradient, 2).smaller(SIZES, training=True)
    last = steps.smaller(SIZES, training=True)
    assert [(each.policy, each.settings.gradient, each.settings.micro_batch) for each in (steps, last)] == [
        ("checkpoint_steps", CheckpointSteps(), 2),
        ("checkpoint_blocks", CheckpointBlocks(), 2),
    ]
    assert last.retries == 2
    with pytest.raises(MemoryError, match="^not even micro_batch 2 with policy checkpoint_blocks fits: use a device "):
        last.smaller(SIZES, training=True)


def test_from_deepspeeds_checkpointing_it_goes_on_block_by_block() -> None:
    last = attempt("deepspeed", DeepSpeedSteps(), 2).smaller(SIZES, training=True)
    assert (last.policy, last.settings.gradient) == ("checkpoint_blocks", CheckpointBlocks())


def test_drawing_and_training_give_way_apart() -> None:
    first = attempt("full_graph", FullGraph())
    second = first.smaller(SIZES, training=False)
    assert (second.draw_batch, second.settings, second.retries) == (32, first.settings, 1)
    data: dict[str, Any] = {"name": "a", "model": "b", "search": {}, "budget": {"trials": 1}}
    sweep = parse(data | {"sampler": {"steps": 3}})
    assert second.applied(sweep).sampler == sweep.sampler.model_copy(update={"batch": 32})
    with pytest.raises(MemoryError, match="^not even one sample fits: use a device with more memory, or lower train.p"):
        replace(first, draw_batch=1).smaller(SIZES, training=False)


def test_without_a_micro_batch_it_is_the_batch_that_is_halved() -> None:
    first = Attempt(Settings(batch=24, gradient=FullGraph()), "full_graph", 64)
    assert first.as_tags()["micro_batch"] == 24
    assert first.smaller(SIZES, training=True).settings.micro_batch == 12


def test_what_was_learned_while_measuring_is_kept() -> None:
    first = replace(attempt("full_graph", FullGraph()), retries=1)
    sweep = parse({"name": "a", "model": "b", "search": {}, "budget": {"trials": 1}, "sampler": {"batch": 8}})
    assert first.after(DrawBatch(sweep, retries=3)) == replace(first, draw_batch=8, retries=4)


@pytest.mark.slow
def test_it_starts_with_what_the_plan_says() -> None:
    """Also where the file gives both the policy and the micro-batch: samples are drawn as many at a time as fit."""
    sections: dict[str, Any] = {
        "sampler": {"steps": 3, "batch": 1024},
        "train": {"batch": 4, "micro_batch": 4, "pool": 32},
        "gradient": {"policy": "checkpoint_steps"},
    }
    case = case_of(parse({"name": "a", "model": "toyfaces", "search": {}, "budget": {"trials": 1}} | sections))
    device = int(choose(case, 1 << 40).drawing)  # and a tenth is kept in reserve
    first = Attempt.first(case, device)
    assert (first.policy, first.settings) == ("checkpoint_steps", case.settings)
    assert first.draw_batch == choose(case, device).draw_batch == 512


def test_it_tells_how_it_trains() -> None:
    second = attempt("checkpoint_steps", CheckpointSteps()).smaller(SIZES, training=True)
    assert second.as_tags() == {
        "gradient": "checkpoint_steps",
        "micro_batch": 6,
        "sampler_batch": 64,
        "out_of_memory_retries": 1,
    }


@pytest.mark.parametrize(
    ("policy", "gradient"),
    [
        ("full_graph", FullGraph()),
        ("keep_steps", KeepSteps(1000)),
        ("keep_steps", KeepSteps()),
        ("checkpoint_steps", CheckpointSteps()),
        ("checkpoint_blocks", CheckpointBlocks()),
        ("deepspeed", DeepSpeedSteps()),
    ],
)
def test_it_goes_on_from_a_checkpoint_as_it_was(policy: str, gradient: GradientPolicy) -> None:
    """A checkpoint is JSON, and the settings of a trial that starts again say nothing of parts."""
    before = replace(attempt(policy, gradient, 6), draw_batch=16, retries=3)
    plain = replace(before.settings, micro_batch=None, gradient=FullGraph())
    assert Attempt.resumed(plain, json.loads(json.dumps(before.kept()))) == before
