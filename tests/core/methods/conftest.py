"""What tests of trained methods train on, unless they say otherwise."""

import pytest

from core import Denoiser, Schedule


@pytest.fixture(scope="module")
def denoiser(single_denoiser: Denoiser) -> Denoiser:
    return single_denoiser


@pytest.fixture(scope="module")
def schedule(denoiser: Denoiser) -> Schedule:
    return Schedule.ddim(denoiser, 3)
