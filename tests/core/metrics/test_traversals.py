"""The images of a traversal: each is the one drawn alone, and a set that cannot be drawn is refused."""

import pytest
import torch
from torch import Tensor

from core.chain.sampling import sample
from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.errors import DirectionSetError, UserError
from core.metrics import draw_traversals
from core.metrics.traversals import SCALES
from core.model.denoiser import Denoiser
from core.randomness import generator, noise, step_noise
from core.samples.draw import Sampling

STEPS = 3
SEEDS = (5, 6, 7)


def normal(*shape: int, purpose: str = "test") -> Tensor:
    return torch.randn(shape, generator=generator(purpose), dtype=torch.float64)


def unit_rows(table: Tensor) -> Tensor:
    length: Tensor = table.flatten(2).norm(dim=2)
    return table / length[:, :, None, None, None]


def direction_set(denoiser: Denoiser, directions: int = 2, steps: int = 1, sigma: float = 3.0) -> DirectionSet:
    table = unit_rows(normal(directions, steps, *denoiser.h_shape, purpose="table"))
    timesteps = Schedule.ddim(denoiser, STEPS).timesteps
    return DirectionSet(table, torch.full((directions, steps), sigma, dtype=torch.float64), timesteps)


def set_of_rows(rows: Tensor, sigma: Tensor | None = None) -> DirectionSet:
    """rows: [K, S, D] as the table of a set whose h is D x 1 x 1."""
    lengths = torch.ones(rows.shape[:2]) if sigma is None else sigma
    return DirectionSet(rows[..., None, None], lengths, tuple(range(rows.shape[1])))


@pytest.mark.parametrize(("eta", "injection"), [(0.0, "symmetric"), (1.0, "asymmetric")])
def test_each_image_of_a_traversal_is_the_one_drawn_alone(tiny_denoiser: Denoiser, eta: float, injection: str) -> None:
    schedule = Schedule.ddim(tiny_denoiser, STEPS, eta)
    directions = direction_set(tiny_denoiser, steps=STEPS)
    window = (schedule.timesteps[0], schedule.timesteps[1])
    drawn = draw_traversals(tiny_denoiser, schedule, directions, SEEDS, sampling=Sampling(injection, window, 5))  # type: ignore[arg-type]

    assert drawn.scales == SCALES
    assert drawn.plain.shape == (3, 3, 8, 8)
    assert drawn.shifted.shape == (3, 2, 4, 3, 8, 8)
    m, k, a = 2, 1, 3
    x_T = noise([SEEDS[m]], tiny_denoiser.sample_shape, torch.float64)
    z = step_noise([SEEDS[m]], tiny_denoiser.sample_shape, STEPS, torch.float64) if eta else None
    plain = sample(tiny_denoiser, schedule, x_T, step_noise=z)
    alone = sample(tiny_denoiser, schedule, x_T, directions.shift(k, SCALES[a]), injection, None, window, z)  # type: ignore[arg-type]
    assert (alone - plain).abs().max() > 1e-3
    torch.testing.assert_close(drawn.plain[m], plain[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(drawn.shifted[m, k, a], alone[0], rtol=1e-9, atol=1e-9)
    assert torch.equal(drawn.positive, drawn.shifted[:, :, 3])
    assert torch.equal(drawn.negative, drawn.shifted[:, :, 0])


@pytest.mark.slow
def test_traversals_do_not_depend_on_the_batch(tiny_denoiser: Denoiser) -> None:
    schedule, directions = Schedule.ddim(tiny_denoiser, STEPS, eta=1.0), direction_set(tiny_denoiser)
    one, many = (
        draw_traversals(tiny_denoiser, schedule, directions, SEEDS, sampling=Sampling(batch=batch)) for batch in (1, 64)
    )
    torch.testing.assert_close(one.plain, many.plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.shifted, many.shifted, rtol=1e-9, atol=1e-9)
    assert not one.shifted.requires_grad


@pytest.mark.parametrize("scales", [(), (-1.0, 0.0, 1.0), (1.0, -1.0), (-1.0, 2.0), (-1.0, -1.0, 1.0, 1.0)])
def test_scales_that_cannot_be_compared_are_refused(tiny_denoiser: Denoiser, scales: tuple[float, ...]) -> None:
    with pytest.raises(UserError) as caught:
        draw_traversals(tiny_denoiser, Schedule.ddim(tiny_denoiser, STEPS), direction_set(tiny_denoiser), SEEDS, scales)
    assert str(caught.value) == (
        f"scales: got {list(scales)}; allowed: ascending, symmetric about 0, without 0, such as [-1.0, -0.5, 0.5, 1.0]"
    )


def test_a_set_that_does_not_fit_is_refused(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, STEPS)
    foreign = set_of_rows(torch.ones(1, 1, 4))
    with pytest.raises(DirectionSetError) as caught:
        draw_traversals(tiny_denoiser, schedule, foreign, SEEDS)
    assert str(caught.value) == "the set is for h of [4, 1, 1]; model 'tiny' has [8, 2, 2]"

    longer = Schedule.ddim(tiny_denoiser, STEPS + 1)
    with pytest.raises(DirectionSetError) as caught:
        draw_traversals(tiny_denoiser, longer, direction_set(tiny_denoiser, steps=STEPS), SEEDS)
    assert str(caught.value) == (
        f"the set has one direction for each of the timesteps {list(schedule.timesteps)}; "
        f"this chain has {list(longer.timesteps)}"
    )
    draw_traversals(tiny_denoiser, longer, direction_set(tiny_denoiser, steps=1), SEEDS)  # shared by all steps: fits
