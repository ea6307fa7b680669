"""The memory of the guided method: the directions of its attributes, and the images that its predictor looks at."""

import math
from pathlib import Path
from typing import Any

import pytest

from core import Denoiser, Schedule
from core.methods import guided, learned
from core.methods.training_memory import MANY_ATTRIBUTES, directions_of, trained_bytes
from tests import families


def counted(denoiser: Denoiser, optimiser: int = 8, micro_batch: int = 4, **settings: Any) -> int:
    schedule = Schedule.ddim(denoiser, 3)
    return trained_bytes(denoiser.blueprint(), schedule, guided.Settings(**settings), micro_batch, optimiser)


def test_parameters_are_those_of_its_learner(single_denoiser: Denoiser) -> None:
    """With a direction for each attribute; the optimiser's bytes are asked for each parameter."""
    size = math.prod(single_denoiser.h_shape)
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_latents_are_decoded_for_the_predictor_and_once_where_judges_get_images_too(tmp_path: Path) -> None:
    """At least an image of 3 numbers a pixel and its gradient are held; a model of pixels decodes nothing."""
    families.saved("latent", tmp_path)
    latents, pixels = (Denoiser.from_pretrained(tmp_path, space=space) for space in ("latents", "pixels"))
    schedule = Schedule.ddim(latents, 2)

    def beside_learned(denoiser: Denoiser) -> int:
        one = {"batch": 8, "consistency_weight": 0.0, "purity_weight": 0.0, "directions": 2}
        other = trained_bytes(denoiser.blueprint(), schedule, learned.Settings(**one), 8)
        own = guided.Settings(batch=8, attributes=("a", "b"))
        return trained_bytes(denoiser.blueprint(), schedule, own, 8) - other

    assert beside_learned(latents) > 2 * 8 * 4 * math.prod(latents.image_shape) > 0
    assert beside_learned(pixels) <= 0, "no reconstructor, and no second decoding"
