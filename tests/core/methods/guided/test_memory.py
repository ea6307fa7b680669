"""The memory of the guided method: the directions of its attributes, and the images that its predictor looks at."""

from typing import Any

from core import Denoiser, Schedule
from core.methods import guided, learned
from core.methods.learned.memory import MANY_ATTRIBUTES, directions_of, trained_bytes
from tests.contracts.conftest import Load


def counted(denoiser: Denoiser, optimiser: int = 8, micro_batch: int = 4, **settings: Any) -> int:
    schedule = Schedule.ddim(denoiser, 3)
    return trained_bytes(denoiser.blueprint(), schedule, guided.Settings(**settings), micro_batch, optimiser)


def test_parameters_are_those_of_its_learner(single_denoiser: Denoiser) -> None:
    """With a direction for each attribute; the optimiser's bytes are asked for each parameter."""
    size = single_denoiser.h_shape[0] * single_denoiser.h_shape[1] * single_denoiser.h_shape[2]
    none, two, three = (
        counted(single_denoiser, 1, attributes=names) - counted(single_denoiser, 0, attributes=names)
        for names in (("a",), ("a", "b"), ("a", "b", "c"))
    )
    assert two - none == three - two == size
    alone = counted(single_denoiser, 1, discriminator_weight=0, attributes=("a",))
    assert alone - counted(single_denoiser, 0, discriminator_weight=0, attributes=("a",)) == size


def test_all_attributes_count_as_many_where_their_number_is_not_known() -> None:
    assert directions_of(guided.Settings()) == MANY_ATTRIBUTES
    assert directions_of(guided.Settings(attributes=("a", "b"))) == 2
    assert directions_of(learned.Settings(directions=5)) == 5
