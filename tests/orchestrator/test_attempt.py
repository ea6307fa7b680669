"""When memory runs out, what was going on is done in smaller parts, until there are none."""

from dataclasses import replace
from typing import Any

import pytest

from core.gradient import CheckpointBlocks, CheckpointSteps, FullGraph, GradientPolicy, KeepSteps
from core.methods.learned import Settings
from orchestrator.attempt import Attempt
from orchestrator.spec import parse

SIZES = (12, 6, 4, 2)


def attempt(policy: str, gradient: GradientPolicy, micro_batch: int = 12) -> Attempt:
    return Attempt(Settings(batch=24, micro_batch=micro_batch, gradient=gradient), policy, 64)


@pytest.mark.parametrize(("size", "half"), [(12, 6), (6, 2), (4, 2)])
def test_half_a_micro_batch_or_the_next_that_divides_a_workers_share(size: int, half: int) -> None:
    first = attempt("full_graph", FullGraph(), size)
    second = first.smaller(SIZES, training=True)
    assert second == replace(first, settings=replace(first.settings, micro_batch=half), retries=1)


def test_kept_steps_stay_as_many() -> None:
    """Of half the size, in half the memory."""
    second = attempt("keep_steps", KeepSteps(1000)).smaller(SIZES, training=True)
    assert (second.settings.micro_batch, second.settings.gradient) == (6, KeepSteps(500))


@pytest.mark.parametrize("gradient", [FullGraph(), KeepSteps(1000), CheckpointSteps()])
def test_the_smallest_goes_on_block_by_block(gradient: GradientPolicy) -> None:
    last = attempt("any", gradient, 2).smaller(SIZES, training=True)
    assert (last.policy, last.settings.gradient, last.settings.micro_batch) == (
        "checkpoint_blocks",
        CheckpointBlocks(),
        2,
    )
    with pytest.raises(MemoryError, match="^not even micro_batch 2 with policy checkpoint_blocks fits: use a device "):
        last.smaller(SIZES, training=True)


def test_drawing_and_training_give_way_apart() -> None:
    first = attempt("full_graph", FullGraph())
    second = first.smaller(SIZES, training=False)
    assert (second.draw_batch, second.settings, second.retries) == (32, first.settings, 1)
    data: dict[str, Any] = {"name": "a", "model": "b", "search": {}, "budget": {"trials": 1}}
    sweep = parse(data | {"sampler": {"steps": 3}})
    assert second.applied(sweep).sampler == sweep.sampler.model_copy(update={"batch": 32})
    with pytest.raises(MemoryError, match="^not even one sample fits: use a device with more memory, or lower train.p"):
        replace(first, draw_batch=1).smaller(SIZES, training=False)


def test_it_tells_how_it_trains() -> None:
    second = attempt("checkpoint_steps", CheckpointSteps()).smaller(SIZES, training=True)
    assert second.told() == {
        "gradient": "checkpoint_steps",
        "micro_batch": 6,
        "sampler_batch": 64,
        "out_of_memory_retries": 1,
    }
