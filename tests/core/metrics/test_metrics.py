"""Each metric on a case whose answer is known by hand or by construction."""

import math
from dataclasses import replace
from unittest.mock import create_autospec

import pytest
import torch
from torch import Tensor

from core.chain.sampling import sample
from core.chain.schedule import Schedule
from core.directions.direction_set import DirectionSet
from core.errors import DirectionSetError, NonFiniteError, UserError
from core.metrics import METRICS, Evaluation, Traversals, draw_traversals, evaluate, evaluation
from core.metrics import identifiability as judge
from core.metrics.attributes import coverage, disentanglement, effects
from core.metrics.consistency import diversity, globality, monotonicity, spearman
from core.metrics.distances import fid
from core.metrics.features import denoiser_features, features_of, standardise
from core.metrics.fidelity import kid_by_sample
from core.metrics.identifiability import identifiability
from core.metrics.judges import Judges
from core.metrics.networks import Extractor, Lpips
from core.metrics.traversals import SCALES, draw_plain
from core.model.codec import Codec
from core.model.denoiser import Denoiser
from core.model.use import Use
from core.predictors.attributes import Attributes
from core.randomness import generator, noise, step_noise
from core.samples.draw import Sampling

STEPS = 3
SEEDS = (5, 6, 7)
REFERENCE_SEEDS = (10, 11, 12, 13)
JUDGED = {"fid", "inception_kid", "lpips", "identity"}  # of networks that are asked beside the denoiser


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


# --- traversals -------------------------------------------------------------------------------------------------------


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


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_are_grid_means_of_h_and_of_the_deepest_skips(tiny_denoiser: Denoiser) -> None:
    images = normal(3, *tiny_denoiser.sample_shape)
    t = 50
    encoded = tiny_denoiser.encode(math.sqrt(float(tiny_denoiser.scheduler.alphas_cumprod[t])) * images, t)
    # At 2x2 the grid is the feature map itself; two of the skips are that small.
    expected = torch.cat([encoded.h, encoded.skips[-2], encoded.skips[-1]], dim=1).flatten(1)

    found = denoiser_features(tiny_denoiser, images, batch=2)
    assert found.shape == (3, 24 * 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_standardised_features_are_in_deviations_of_the_reference() -> None:
    reference = torch.tensor([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]])  # means 2 and 5, deviations 2 and 0
    found = standardise(torch.tensor([[4.0, 5.0], [0.0, 5.02]]), reference)
    # The feature that does not vary is divided by 1 % of the average deviation, (2 + 0) / 2.
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [-1.0, 2.0]]), rtol=1e-4, atol=1e-4)


# --- identifiability --------------------------------------------------------------------------------------------------


def painted(per_direction: bool = True, per_scale: bool = True, unit: float = 1.0) -> Traversals:
    """Noise images on which direction k paints quadrant k (or all paint the first), as brightly as the scale says."""
    plain = 0.3 * normal(12, 1, 8, 8)
    quadrants = torch.zeros(4, 1, 8, 8, dtype=torch.float64)
    for k in range(4):
        row, column = divmod(k if per_direction else 0, 2)
        quadrants[k, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.5
    brightness = torch.tensor(SCALES if per_scale else (1.0,) * 4, dtype=torch.float64)
    shift = brightness[:, None, None, None] * quadrants[:, None]  # [K, A, 1, 8, 8]
    return Traversals(plain, plain[:, None, None] + shift, tuple(unit * scale for scale in SCALES))


def test_directions_that_paint_their_own_quadrant_are_identified_with_their_strength() -> None:
    recognised, error = identifiability(painted())
    assert recognised > 0.99
    assert error < 0.12


def test_directions_that_all_do_the_same_are_at_chance() -> None:
    recognised, error = identifiability(painted(per_direction=False))
    # Whatever the network answers for four equal images, it is right for one of them.
    assert recognised == pytest.approx(0.0, abs=1e-12)
    assert error < 0.12


@pytest.mark.slow
def test_strength_that_does_not_show_is_guessed() -> None:
    recognised, error = identifiability(painted(per_scale=False))
    assert recognised > 0.99
    # Any constant guess in [-1/2, 1/2] is wrong by 3/4 on average over -1, -1/2, 1/2, 1.
    assert error == pytest.approx(0.75, abs=0.02)


@pytest.mark.slow
def test_strength_error_is_in_units_of_the_largest_scale() -> None:
    assert identifiability(painted(unit=7.0), iterations=20)[1] == pytest.approx(
        identifiability(painted(), iterations=20)[1], rel=1e-5
    )


@pytest.mark.slow
def test_identifiability_is_judged_on_samples_not_trained_on() -> None:
    """Directions recognisable only by a pattern that each sample has for itself can be learned by heart, not found."""
    plain = 0.3 * normal(6, 1, 8, 8)
    own = 0.5 * normal(6, 4, 1, 8, 8, purpose="own")
    scales = torch.tensor(SCALES, dtype=torch.float64)[:, None, None, None]
    memorised = Traversals(plain, plain[:, None, None] + scales * own[:, :, None], SCALES)
    recognised, _ = identifiability(memorised)
    assert abs(recognised) < 0.4


def test_the_judge_is_tested_on_the_last_third_alone() -> None:
    """What is not a number shows where it is looked at: untrained, the judge sees the test and nothing else."""
    images = painted()  # of twelve samples
    for m in range(12):
        plain = images.plain.clone()
        plain[m] = math.nan
        error = identifiability(replace(images, plain=plain), iterations=0)[1]
        assert math.isnan(error) == (m >= 8)


def test_the_judge_is_trained_on_the_first_two_thirds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every sample there, every direction at every scale, as even as chance is."""
    images, looked_at = painted(), []
    look_up = create_autospec(
        judge._look_up, side_effect=lambda t, pairs, d: looked_at.append(pairs) or real(t, pairs, d)
    )
    real = judge._look_up
    monkeypatch.setattr(judge, "_look_up", look_up)
    identifiability(images, iterations=20)
    trained, tested = torch.cat(looked_at[:20]), torch.cat(looked_at[20:])
    assert trained[:, 0].unique().tolist() == list(range(8)) and tested[:, 0].unique().tolist() == [8, 9, 10, 11]
    assert len(tested) == 4 * 4 * 4 == len(tested.unique(dim=0))
    assert len(trained) == 20 * 64 and len(trained.unique(dim=0)) == 8 * 4 * 4


@pytest.mark.slow
def test_one_direction_is_at_chance_and_still_has_a_strength() -> None:
    four = painted()
    recognised, error = identifiability(replace(four, shifted=four.shifted[:, :1]))
    assert recognised == 0.0
    assert error < 0.12


def test_identifiability_depends_on_its_seed_alone_and_leaves_the_global_generator() -> None:
    images = painted()
    before = torch.random.get_rng_state()
    first = identifiability(images, seed=1, iterations=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    with torch.no_grad():
        assert identifiability(images, seed=1, iterations=5) == first
    assert identifiability(images, seed=2, iterations=5) != first
    untrained = [identifiability(images, seed, iterations=0) for seed in (1, 2)]  # only the first weights differ
    assert untrained[0] != untrained[1]


# --- fidelity ---------------------------------------------------------------------------------------------------------


def test_kid_of_three_points_by_hand() -> None:
    # k(x, y) = (x.y / 2 + 1)^3 = (v w + 1)^3 for x = (v, v), y = (w, w); here v = 0, 1, 2 and w = 0, 1, 3:
    # within v: 1, 1, 27; within w: 1, 1, 64; across: 1, 1, 1, 1, 8, 64, 1, 27, 343.
    x, y = (torch.tensor(values)[:, None].expand(3, 2) for values in ((0.0, 1.0, 2.0), (0.0, 1.0, 3.0)))
    assert kid_by_sample(x[:, None], y) == pytest.approx(29 / 3 + 66 / 3 - 2 * 447 / 9, rel=1e-12)


def test_kid_of_one_distribution_is_zero_on_average_however_many_images_a_sample_has() -> None:
    x = normal(400, 6, 1, 3, purpose="kid x").expand(400, 6, 5, 3)  # five equal images of each of six samples
    y = normal(400, 8, 3, purpose="kid y")
    values = torch.tensor([kid_by_sample(a, b) for a, b in zip(x, y, strict=True)])
    assert values.min() < 0 < values.max()
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(400)
    moved = torch.tensor([kid_by_sample(a + 1.5, b) for a, b in zip(x, y, strict=True)])
    assert moved.mean() > 10 * values.std() / math.sqrt(400)


def test_kid_of_more_images_than_fit_in_a_block() -> None:
    x, y = normal(1100, 1, 2, purpose="kid x"), normal(30, 2, purpose="kid y")
    kernel = ((x[:, 0] @ x[:, 0].T / 2) + 1) ** 3
    own = ((y @ y.T / 2) + 1) ** 3
    across = ((x[:, 0] @ y.T / 2) + 1) ** 3
    by_definition = (
        (kernel.sum() - kernel.trace()) / (1100 * 1099) + (own.sum() - own.trace()) / (30 * 29) - 2 * across.mean()
    )
    assert kid_by_sample(x, y) == pytest.approx(float(by_definition), rel=1e-9)


# --- globality, monotonicity, diversity -------------------------------------------------------------------------------


def test_globality_of_equal_orthogonal_opposite_and_no_changes() -> None:
    plain = normal(4, 4)
    equal = plain[:, None] + torch.tensor([[1.0, 2, 0, 0], [0, 0, 0, 5.0]])
    orthogonal = plain[:, None] + torch.eye(4)[:, None]
    assert globality(plain, equal) == pytest.approx(1.0)
    assert globality(plain, orthogonal) == pytest.approx(0.0, abs=1e-12)
    assert globality(plain, torch.cat([equal, orthogonal], dim=1)) == pytest.approx(2 / 3)
    assert globality(plain, plain[:, None]) == 0.0
    opposite = plain[:2, None] + torch.tensor([1.0, -1.0])[:, None, None]
    assert globality(plain[:2], opposite) == pytest.approx(-1.0)


def responding(values: list[float], axes: Tensor) -> tuple[Tensor, Tensor]:
    """Features of samples that one direction moves along their axes [M, F] by `values` at SCALES."""
    plain = normal(len(axes), axes.shape[1])
    amount = torch.tensor(values, dtype=torch.float64)[:, None]
    return plain, (plain[:, None] + amount * axes[:, None])[:, None]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1, -0.5, 0.5, 1], 1.0),
        ([-9, -0.1, 0.1, 0.2], 1.0),  # ranks only
        ([1, 0.5, -0.5, -1], 1.0),  # which way along the axis is no matter
        ([-1, 0.5, -0.5, 1], 0.6),  # ranks 1, 4, 3 (the plain image), 2, 5: 1 - 6 * 8 / 120
        ([0, 0, 0, 0], 0.0),
    ],
)
def test_monotonicity_of_known_responses(values: list[float], expected: float) -> None:
    assert monotonicity(*responding(values, torch.ones(3, 2)), SCALES) == pytest.approx(expected)


def test_monotonicity_does_not_take_a_samples_own_change_for_a_response() -> None:
    assert monotonicity(*responding([-1, -0.5, 0.5, 1], torch.eye(4)), SCALES) == 0.0


def test_spearman_of_known_ranks() -> None:
    order = torch.tensor([10.0, 20, 30, 40])
    others = torch.tensor([[1.0, 3, 2, 4], [4.0, 3, 2, 1], [1.0, 1, 2, 3], [7.0, 7, 7, 7]])
    # The third by hand: ranks 1.5, 1.5, 3, 4.
    expected = torch.tensor([0.8, -1.0, 4.5 / math.sqrt(5 * 4.5), 0.0], dtype=torch.float64)
    torch.testing.assert_close(spearman(order, others), expected)


def test_diversity_of_orthogonal_equal_and_mixed_rows() -> None:
    assert diversity(set_of_rows(torch.eye(5)[:4, None])) == pytest.approx(1.0)
    assert diversity(set_of_rows(torch.ones(4, 1, 5))) == pytest.approx(0.25, rel=1e-4)
    assert diversity(set_of_rows(torch.ones(1, 1, 5))) == pytest.approx(1.0)
    # Two equal rows and one orthogonal: singular values sqrt(2), 1, 0, whose shares have a known entropy.
    first, second = math.sqrt(2) / (1 + math.sqrt(2)), 1 / (1 + math.sqrt(2))
    entropy = -(first * math.log(first) + second * math.log(second))
    mixed = diversity(set_of_rows(torch.eye(2)[[0, 0, 1], None]))
    assert mixed == pytest.approx(math.exp(entropy) / 3, rel=1e-4)


def test_diversity_weighs_steps_by_their_length_and_directions_alike() -> None:
    rows = torch.tensor([[[1.0, 0], [1.0, 0]], [[1.0, 0], [0.0, 1]]])  # equal at step 0, orthogonal at step 1
    assert diversity(set_of_rows(rows, torch.tensor([[0.0, 1], [0.0, 1]]))) == pytest.approx(1.0)
    assert diversity(set_of_rows(rows, torch.tensor([[1.0, 0], [1.0, 0]]))) == pytest.approx(0.5, rel=1e-4)
    assert diversity(set_of_rows(torch.eye(2)[:, None], torch.tensor([[1.0], [100.0]]))) == pytest.approx(1.0)


# --- attributes -------------------------------------------------------------------------------------------------------


def left_right_constant(images: Tensor) -> Tensor:
    """A linear predictor: mean of the left half, of the right half, and something that never varies."""
    left, right = images[..., :4].mean(dim=(1, 2, 3)), images[..., 4:].mean(dim=(1, 2, 3))
    return torch.stack([left, right, torch.full_like(left, 7.0)], dim=1)


LEFT_RIGHT = Attributes(("left", "right", "constant"), left_right_constant)


def test_effects_of_a_linear_predictor_are_in_deviations_of_the_reference() -> None:
    plain = normal(3, 1, 8, 8)
    change = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    change[0, :, :, :4] = 0.6  # at scale 1, direction 0 brightens the left by 0.6,
    change[1, :, :, 4:] = -0.2  # and direction 1 darkens the right by 0.2
    amount = torch.tensor(SCALES, dtype=torch.float64)[:, None, None, None]
    images = Traversals(plain, plain[:, None, None] + amount * change[:, None], SCALES)
    levels = torch.tensor([[1.0, 2], [2.0, 4], [3.0, 6]], dtype=torch.float64)  # deviations 1 (left) and 2 (right)
    reference = levels.repeat_interleave(4, dim=1)[:, None, None].expand(3, 1, 8, 8)

    expected = torch.tensor([[0.6, 0.0, 0.0], [0.0, -0.1, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(effects(images, LEFT_RIGHT, reference, batch=4), expected)


def test_disentanglement_is_the_share_of_the_largest_effect() -> None:
    assert disentanglement(torch.tensor([[-3.0, 1.0], [0.0, 2.0]])) == pytest.approx((0.75 + 1) / 2)
    assert disentanglement(torch.ones(3, 4)) == pytest.approx(0.25)
    assert disentanglement(torch.zeros(3, 4)) == 0.0


def test_coverage_counts_attributes_that_are_controlled() -> None:
    controlled = torch.tensor([[-2.0, 0.1, 0.0], [3.0, 0.0, 0.0], [0.0, 0.6, 0.0]])  # two for the first, one the second
    weak = torch.tensor([[0.0, 0.0, 0.49]])
    entangled = torch.tensor([[1.0, 1.0, 1.05]])  # a share of 0.34
    everything = torch.cat([controlled, weak, entangled])
    assert coverage(everything) == 2.0
    assert coverage(everything, min_effect=0.4) == 3.0
    assert coverage(everything, min_share=0.3) == 3.0
    assert coverage(everything, min_effect=1.0) == 1.0
    assert coverage(torch.tensor([[-2.0, 0.1]])) == 1.0
    assert coverage(torch.tensor([[0.9, 0.6, -0.6]])) == 1.0, "a share of 0.43"
    at_least = torch.tensor([[0.5, 0.0, 0.0], [0.0, 2.0, 3.0]], dtype=torch.float64)
    assert coverage(at_least, min_effect=0.5, min_share=0.6) == 2.0, "both limits are themselves enough"


# --- judges -----------------------------------------------------------------------------------------------------------


def pixels(purpose: str) -> Extractor:
    """A network whose features are some pixels."""
    return Extractor(purpose, lambda images: images.flatten(1)[:, :6].float())


class Brightness(torch.nn.Module):
    """A distance of images [N, C, H, W]: of their means."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.mean(dim=(1, 2, 3)) - b.mean(dim=(1, 2, 3))).abs()


def judges() -> Judges:
    return Judges(None, pixels("inception"), Lpips("lpips", 1, Brightness(), "cpu"), pixels("identity"))


def test_judges_say_what_their_networks_see() -> None:
    """Samples of one brightness each, which every direction adds as much to."""
    plain = normal(3, 1, 2, 3).float()
    shifted = torch.stack([plain + add for add in (-2.0, 2.0)], dim=1)[:, None].expand(-1, 2, -1, -1, -1, -1)
    found = judges().measure(Traversals(plain, shifted, (-1.0, 1.0)), plain, 2)
    assert found["lpips"] == pytest.approx(2.0, abs=1e-5)
    alike = torch.cosine_similarity((plain + 2).flatten(1), plain.flatten(1)).mean()
    assert found["identity"] == pytest.approx(float(alike), abs=1e-5)
    ends = torch.cat([plain - 2, plain - 2, plain + 2, plain + 2]).flatten(1)
    assert found["fid"] == pytest.approx(fid(ends, plain.flatten(1)), rel=1e-4)
    assert judges().names == {"inception": "inception", "lpips": "lpips", "identity": "identity"}


@pytest.mark.slow
def test_evaluate_asks_the_judges_that_there_are(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, STEPS)
    given = (tiny_denoiser, schedule, direction_set(tiny_denoiser), SEEDS, REFERENCE_SEEDS)
    found = evaluate(*given, judges=judges())
    assert found.metrics.keys() == METRICS.keys() - {"disentanglement", "coverage"}
    other = evaluate(*given, judges=Judges(features=pixels("other")))
    assert other.judged_by == {"features": "other"}
    assert other.metrics["globality"] != found.metrics["globality"]
    assert other.metrics["identifiability"] == found.metrics["identifiability"]


# --- evaluate ---------------------------------------------------------------------------------------------------------


def evaluated(denoiser: Denoiser, attributes: Attributes | None = None, batch: int = 64) -> Evaluation:
    schedule = Schedule.ddim(denoiser, STEPS)
    return evaluate(
        denoiser, schedule, direction_set(denoiser), SEEDS, REFERENCE_SEEDS, attributes, Sampling(batch=batch)
    )


@pytest.mark.slow
def test_evaluate_measures_everything_once_and_the_same_again(tiny_denoiser: Denoiser) -> None:
    before = torch.random.get_rng_state()
    first, second = (evaluated(tiny_denoiser, LEFT_RIGHT) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.metrics.keys() == METRICS.keys() - JUDGED and not first.judged_by
    assert first.metrics == second.metrics
    assert all(type(value) is float and math.isfinite(value) for value in first.metrics.values())

    reference = draw_plain(tiny_denoiser, Schedule.ddim(tiny_denoiser, STEPS), REFERENCE_SEEDS)
    expected = effects(first.traversals, LEFT_RIGHT, reference)
    assert first.effects is not None and torch.equal(first.effects, expected)
    assert first.metrics["disentanglement"] == disentanglement(expected)
    assert first.metrics["coverage"] == coverage(expected)
    assert (first.metrics["identifiability"], first.metrics["strength_error"]) == identifiability(first.traversals)
    assert first.metrics["diversity"] == diversity(direction_set(tiny_denoiser))


@pytest.mark.slow
def test_evaluate_measures_features_in_deviations_of_the_reference(tiny_denoiser: Denoiser) -> None:
    found = evaluated(tiny_denoiser)
    images = found.traversals
    unshifted = denoiser_features(
        tiny_denoiser, draw_plain(tiny_denoiser, Schedule.ddim(tiny_denoiser, STEPS), REFERENCE_SEEDS)
    )
    plain, low, high, own = (
        standardise(denoiser_features(tiny_denoiser, x), unshifted)
        for x in (
            images.plain,
            images.negative.flatten(0, 1),
            images.positive.flatten(0, 1),
            images.shifted.flatten(0, 2),
        )
    )
    ends = torch.cat([low.reshape(3, 2, -1), high.reshape(3, 2, -1)], dim=1)  # [M, 2 K, F]
    expected = {
        "fidelity_kid": kid_by_sample(ends, standardise(unshifted, unshifted)),
        "globality": globality(plain, high.reshape(3, 2, -1)),
        "monotonicity": monotonicity(plain, own.reshape(3, 2, 4, -1), SCALES),
    }
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_evaluate_draws_and_judges_as_it_is_told(tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, directions = Schedule.ddim(tiny_denoiser, STEPS), direction_set(tiny_denoiser)
    drawing = create_autospec(draw_traversals, side_effect=draw_traversals)
    judging = create_autospec(identifiability, return_value=(0.25, math.inf))
    looking = create_autospec(features_of, side_effect=features_of)
    monkeypatch.setattr(evaluation, "features_of", looking)
    monkeypatch.setattr(evaluation, "draw_traversals", drawing)
    monkeypatch.setattr(evaluation, "identifiability", judging)
    window = (schedule.timesteps[1],) * 2
    given = (tiny_denoiser, schedule, directions, SEEDS)
    found = evaluate(*given, REFERENCE_SEEDS, LEFT_RIGHT, Sampling("asymmetric", window, 5), 3)
    drawing.assert_called_once_with(*given, sampling=Sampling("asymmetric", window, 5))
    assert torch.equal(
        found.traversals.shifted, draw_traversals(*given, SCALES, Sampling("asymmetric", window, 5)).shifted
    )
    judging.assert_called_once_with(found.traversals, 3, device=tiny_denoiser.device)
    assert {call.kwargs["batch"] for call in looking.call_args_list} == {5}
    assert found.metrics["identifiability"] == 0.25
    assert found.metrics.keys() == METRICS.keys() - JUDGED - {"strength_error"}, "what is not finite is not measured"


@pytest.mark.parametrize("broken", ["traversals", "reference"])
def test_a_model_that_breaks_by_itself_is_told(
    tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    plain = normal(3, 3, 8, 8)
    images, reference = Traversals(plain, plain[:, None, None].expand(3, 2, 4, 3, 8, 8), SCALES), normal(4, 3, 8, 8)
    (plain if broken == "traversals" else reference)[1, 2, 3, 4] = math.nan
    images = replace(images, shifted=torch.zeros(3, 2, 4, 3, 8, 8))
    monkeypatch.setattr(evaluation, "draw_traversals", create_autospec(draw_traversals, return_value=images))
    monkeypatch.setattr(evaluation, "draw_plain", create_autospec(draw_plain, return_value=reference))
    with pytest.raises(
        NonFiniteError, match="^the model draws images with NaN or infinite values even without a shift"
    ):
        evaluated(tiny_denoiser)


def latent(denoiser: Denoiser, space: str) -> Denoiser:
    """The same model, whose samples are latents: an image has twice their side, and shows them up to 1 and no more."""
    codec = create_autospec(Codec, instance=True)
    codec.sample_shape, codec.image_shape = (3, 8, 8), (3, 16, 16)
    codec.images.side_effect = lambda x: x.clamp(-1, 1).repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    codec.x_0.side_effect = lambda images: images[..., ::2, ::2]
    return Denoiser(denoiser.network, denoiser.scheduler, "latent", codec=codec, use=Use(space=space))  # type: ignore[arg-type]


@pytest.mark.parametrize("space", ["latents", "pixels"])
def test_what_is_judged_is_what_the_settings_look_at(
    tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    """Latents or the images of them; what an image does not show is a feature of latents alone."""
    denoiser, samples = latent(tiny_denoiser, space), 3 * normal(3, 3, 8, 8)
    shown = samples.clamp(-1, 1) if space == "pixels" else samples
    found = denoiser_features(denoiser, samples, batch=2)
    assert torch.equal(found, denoiser_features(tiny_denoiser, shown, batch=2))

    judging = create_autospec(identifiability, return_value=(0.25, 0.5))
    monkeypatch.setattr(evaluation, "identifiability", judging)
    schedule = Schedule.ddim(denoiser, STEPS)
    made = evaluate(
        denoiser, schedule, direction_set(denoiser), SEEDS, REFERENCE_SEEDS, sampling=Sampling(batch=5)
    ).traversals
    judged = judging.call_args.args[0]
    assert made.plain.shape == (3, 3, 8, 8) and made.shifted.shape == (3, 2, 4, 3, 8, 8)
    for seen, drawn in ((judged.plain, made.plain), (judged.shifted, made.shifted)):
        assert torch.equal(seen, denoiser.images(drawn) if space == "pixels" else drawn)
    assert torch.equal(made.images(made.plain), denoiser.images(made.plain))


def test_another_network_is_asked_of_the_images_of_latents(tiny_denoiser: Denoiser) -> None:
    denoiser, samples = latent(tiny_denoiser, "latents"), normal(5, 3, 8, 8)
    whole = Extractor("whole", lambda images: images.flatten(1).float())
    found = features_of(denoiser, samples, batch=2, extractor=whole)
    assert torch.equal(found, denoiser.images(samples).flatten(1).float())
    assert torch.equal(features_of(denoiser, samples, batch=5), denoiser_features(tiny_denoiser, samples, batch=5))


@pytest.mark.slow
def test_evaluate_reports_no_attribute_metric_without_a_predictor(tiny_denoiser: Denoiser) -> None:
    found = evaluated(tiny_denoiser)
    assert found.metrics.keys() == METRICS.keys() - JUDGED - {"disentanglement", "coverage"}
    assert found.effects is None


@pytest.mark.slow
def test_evaluate_does_not_depend_on_the_batch(tiny_denoiser: Denoiser) -> None:
    small, large = (evaluated(tiny_denoiser, LEFT_RIGHT, batch).metrics for batch in (2, 64))
    # Rounding in the last bit of the images reaches the judge's weights over 150 steps of training.
    assert small == pytest.approx(large, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("seeds", "reference_seeds", "message"),
    [
        (
            [1, 2],
            [3, 4],
            "evaluate needs 3 or more different seeds and 2 or more different reference seeds; "
            "got 2 different of 2 and 2 of 2",
        ),
        (
            [1, 2, 3],
            [4, 4],
            "evaluate needs 3 or more different seeds and 2 or more different reference seeds; "
            "got 3 different of 3 and 1 of 2",
        ),
        (
            [1, 2, 3, 3],
            [4, 5],
            "evaluate needs 3 or more different seeds and 2 or more different reference seeds; "
            "got 3 different of 4 and 2 of 2",
        ),
        (
            [1, 2, 3],
            [4, 5, 5],
            "evaluate needs 3 or more different seeds and 2 or more different reference seeds; "
            "got 3 different of 3 and 2 of 3",
        ),
        ([1, 2, 3], [4, 3], "seed 3 is both in seeds and in reference_seeds; they must be disjoint"),
    ],
)
def test_seeds_that_prove_nothing_are_refused(
    tiny_denoiser: Denoiser, seeds: list[int], reference_seeds: list[int], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        schedule = Schedule.ddim(tiny_denoiser, STEPS)
        evaluate(tiny_denoiser, schedule, direction_set(tiny_denoiser), seeds, reference_seeds)
    assert str(caught.value) == message


def test_a_direction_that_breaks_the_model_is_named(tiny_denoiser: Denoiser) -> None:
    directions = direction_set(tiny_denoiser)
    sigma = directions.sigma.clone()
    sigma[1] = 1e200
    broken = replace(directions, sigma=sigma, names=("good", "bad"))
    with pytest.raises(NonFiniteError) as caught:
        evaluate(tiny_denoiser, Schedule.ddim(tiny_denoiser, STEPS), broken, SEEDS, REFERENCE_SEEDS)
    assert str(caught.value) == "direction 'bad' draws images with NaN or infinite values at scale -1.0"
