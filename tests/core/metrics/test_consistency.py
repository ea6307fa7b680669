"""Globality, diversity, monotonicity, evenness and locality, each on cases known by hand or by construction."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from core.metrics.bootstrap import Figure, weights
from core.metrics.consistency import (
    Alikeness,
    agreement,
    distinctness,
    diversity,
    evenness,
    globality,
    locality,
    monotonicity,
    spearman,
)
from core.metrics.traversals import SCALES
from core.randomness import generator
from tests.core.metrics.test_traversals import normal

COUNTS = (2, 8, 32)  # of directions


def mean_cosines(change: Tensor, samples: list[int]) -> Tensor:
    """The definition, one pair after the other: [K, K], of samples that may repeat, no pair of one with itself."""
    directions = range(change.shape[1])
    pairs = [(m, n) for m in samples for n in samples if m != n]
    cosine = torch.nn.functional.cosine_similarity
    rows = [
        [sum(float(cosine(change[m, k], change[n, j], dim=0)) for m, n in pairs) for j in directions]
        for k in directions
    ]
    return torch.tensor(rows, dtype=torch.float64) / len(pairs)


def test_alikeness_is_the_mean_cosine_of_pairs_of_different_samples() -> None:
    change = 0.5 + normal(5, 3, 4)
    found = Alikeness.of(change)
    torch.testing.assert_close(found.value, mean_cosines(change, list(range(5))))
    assert found.samples == 5


def test_alikeness_on_a_resample_is_that_of_the_samples_drawn() -> None:
    """A sample that is drawn twice is not compared with itself."""
    change = 0.5 + normal(5, 3, 4)
    found = Alikeness.of(change).replicates
    for b in (0, 17):
        drawn = [m for m, times in enumerate(weights(5)[b].int().tolist()) for _ in range(times)]
        assert len(set(drawn)) < len(drawn) == 5
        torch.testing.assert_close(found[b], mean_cosines(change, drawn))


def test_a_resample_of_one_sample_only_leaves_the_interval_finite() -> None:
    drawn = weights(3)
    alone = drawn.max(dim=1).values == 3
    assert alone.any() and not alone.all()
    found = Alikeness.of(0.5 + normal(3, 2, 4))
    assert torch.equal(found.replicates[alone], found.value.expand(int(alone.sum()), 2, 2))
    assert 0 < globality(found).error < 1


def test_globality_of_equal_orthogonal_opposite_and_no_changes() -> None:
    equal = torch.tensor([[1.0, 2, 0, 0], [0, 0, 0, 5.0]]).expand(4, 2, 4)
    orthogonal = torch.eye(4)[:, None]
    assert globality(Alikeness.of(equal)).value == pytest.approx(1.0)
    assert globality(Alikeness.of(orthogonal)).value == pytest.approx(0.0, abs=1e-12)
    assert globality(Alikeness.of(torch.cat([equal, orthogonal], dim=1))).value == pytest.approx(2 / 3)
    assert globality(Alikeness.of(torch.zeros(4, 2, 3))).interval == (0.0, 0.0)
    assert globality(Alikeness.of(torch.tensor([[[1.0]], [[-1.0]]]))).value == pytest.approx(-1.0)


def test_diversity_of_orthogonal_equal_opposite_and_mixed_changes() -> None:
    def of(*directions: list[float]) -> float:
        return diversity(Alikeness.of(torch.tensor(directions).expand(3, -1, -1))).value

    assert of([1, 0, 0], [0, 2, 0], [0, 0, 3]) == pytest.approx(1.0)
    assert of([1, 0], [2, 0]) == pytest.approx(0.0, abs=1e-12)
    assert of([1, 0], [-1, 0]) == pytest.approx(0.0, abs=1e-12), "the same direction, turned round"
    assert of([1, 0], [1, 0], [0, 1]) == pytest.approx(1 / 3), "two equals and one of its own"
    assert of([3, 4], [1, 0]) == pytest.approx(0.4)
    assert of([1, 0]) == pytest.approx(1.0), "one direction has no other to resemble"
    assert of([0, 0], [0, 0]) == 0.0


def test_diversity_is_of_images_and_not_of_rows() -> None:
    """Two directions that do the same to one sample and something else to the other."""
    change = torch.tensor([[[1.0, 0], [1.0, 0]], [[1.0, 0], [0.0, 1]]])
    # Of the first with itself 1; of the second with itself 0; across the samples 1 * 0 and 1 * 1, half on average.
    assert diversity(Alikeness.of(change)).value == pytest.approx(((1 - 0.5) + (0 - 0.5)) / 2)


@pytest.mark.parametrize("directions", COUNTS)
def test_directions_of_one_kind_are_as_alike_however_many_there_are(directions: int) -> None:
    """Each turns away from its own axis by the same angle, on every sample to another side."""
    turned = 0.5 * torch.eye(4, dtype=torch.float64)[:, None].expand(4, directions, 4)
    own = torch.eye(directions, dtype=torch.float64).expand(4, directions, directions)
    alike = Alikeness.of(torch.cat([own, turned], dim=2))
    assert globality(alike).value == pytest.approx(1 / 1.25)
    assert diversity(alike).value == pytest.approx(1 / 1.25)


@pytest.mark.parametrize("directions", COUNTS)
def test_changes_with_nothing_in_common_are_no_more_alike_than_chance(directions: int) -> None:
    stream = generator("nothing in common")
    alike = [
        Alikeness.of(torch.randn(6, directions, 12, generator=stream, dtype=torch.float64))
        for _ in range(640 // directions**2 + 8)
    ]
    values = torch.tensor([globality(each).value for each in alike])
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(len(values))
    for each in alike[:8]:
        found = globality(each)
        assert abs(found.value) < 2 * found.error
        assert diversity(each).value < found.value < 0.1, "the nearest of the others is nearer than chance"


def test_agreement_and_distinctness_are_of_the_same_changes() -> None:
    change = 0.5 + normal(5, 3, 4)
    torch.testing.assert_close(agreement(change), Alikeness.of(change).value.diagonal())
    means = torch.tensor([[[1.0, 0], [3.0, 4.0]], [[1.0, 0], [3.0, 4.0]]])
    torch.testing.assert_close(distinctness(means), torch.tensor([0.4, 0.4]))


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
    assert monotonicity(*responding(values, torch.ones(3, 2)), SCALES).value == pytest.approx(expected)


def test_monotonicity_does_not_take_a_samples_own_change_for_a_response() -> None:
    assert monotonicity(*responding([-1, -0.5, 0.5, 1], torch.eye(4)), SCALES).interval == (0.0, 0.0)


def test_monotonicity_of_unrelated_images_is_zero_on_average() -> None:
    stream, values = generator("unrelated"), []
    for _ in range(100):
        plain, shifted = (torch.randn(shape, generator=stream) for shape in ((6, 5), (6, 2, 4, 5)))
        values.append(monotonicity(plain, shifted, SCALES).value)
    deviation = float(torch.tensor(values).std())
    assert abs(sum(values) / 100) < 3 * deviation / 10


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1, -0.5, 0.5, 1], 1.0),
        ([4, 2, -2, -4], 1.0),
        ([-1, 0, 0, 1], 0.0),  # steps 1, 0, 0, 1: their deviation is their mean
        ([0, 0, 0.5, 1], 0.0),  # nothing in the first half of the dial
        ([-1, -1, 1, 1], 0.0),  # saturated
        ([0, 0, 0, 1], 1 - math.sqrt(3)),  # all in one of four steps
        ([-1, 0.5, -0.5, 1], 0.5),  # back and forth: steps 3, 1, 1, 3
        ([0, 0, 0, 0], 0.0),
    ],
)
def test_evenness_of_known_steps(values: list[float], expected: float) -> None:
    assert evenness(*responding(values, torch.ones(3, 2)), SCALES).value == pytest.approx(expected, abs=1e-9)


def test_a_step_is_for_each_unit_of_scale() -> None:
    plain, shifted = responding([-4, -1, 1, 4], torch.ones(3, 2))
    assert evenness(plain, shifted, (-4.0, -1.0, 1.0, 4.0)).value == pytest.approx(1.0)
    assert evenness(plain, shifted, SCALES).value == pytest.approx(0.5)  # steps 3, 1, 1, 3 over a half each


def test_evenness_is_the_mean_of_samples_and_directions() -> None:
    plain, even = responding([-1, -0.5, 0.5, 1], torch.ones(2, 2))
    half = plain[:, None, None] + torch.tensor([0.0, 0, 0.5, 1], dtype=torch.float64)[:, None]
    both = torch.cat([even, half], dim=1)
    both[1, 1] = both[1, 0]
    assert evenness(plain, both, SCALES).value == pytest.approx(3 / 4)


def local(energy: list[float]) -> float:
    """The locality of one change whose pixels, 2 x 2 of two channels, have these energies."""
    plain = normal(1, 2, 2, 2)
    change = torch.tensor(energy, dtype=torch.float64).sqrt().reshape(1, 1, 2, 2)
    share = torch.tensor([0.6, -0.8], dtype=torch.float64)[:, None, None]  # of the two channels
    return locality(plain, plain[:, None] + change[:, :, None] * share).value


@pytest.mark.parametrize(
    ("energy", "expected"),
    [
        ([1, 0, 0, 0], 3 / 4),
        ([1, 1, 0, 0], 1 / 2),
        ([2, 2, 2, 2], 0.0),
        ([3, 1, 0, 0], 1 - 16 / (4 * 10)),
        ([0, 0, 0, 0], 0.0),
    ],
)
def test_locality_is_one_less_the_share_of_pixels_that_take_part(energy: list[float], expected: float) -> None:
    assert local(energy) == pytest.approx(expected, abs=1e-12)


def test_locality_is_the_mean_of_samples_and_directions() -> None:
    plain = torch.zeros(2, 1, 2, 2)
    change = torch.zeros(2, 2, 1, 2, 2)
    change[0, :, 0, 0, 0] = change[1, 0] = 1.0
    assert locality(plain, change).value == pytest.approx((3 / 4 + 3 / 4 + 0 + 0) / 4)


def of_dial(measure: Callable[..., Figure], factor: float, directions: int = 2) -> float:
    """A dial with a step of its own kind for each sample, `factor` times as strong, for each direction alike."""
    plain, kind = normal(4, 3), normal(4, 1, 4, 3, purpose="dial") + torch.tensor(SCALES)[:, None]
    shifted = plain[:, None, None] + factor * kind.expand(4, directions, 4, 3)
    return measure(plain, shifted, SCALES).value


@pytest.mark.parametrize("measure", [monotonicity, evenness])
def test_a_dial_is_judged_by_its_course_and_not_by_its_strength_or_company(measure: Callable[..., Figure]) -> None:
    expected = of_dial(measure, 1.0)
    assert 0.1 < expected < 0.9
    assert of_dial(measure, 0.01) == pytest.approx(expected)
    for directions in COUNTS:
        assert of_dial(measure, 1.0, directions) == pytest.approx(expected)


def test_locality_does_not_depend_on_strength_or_company() -> None:
    plain, change = normal(4, 1, 5, 5), normal(4, 1, 1, 5, 5, purpose="change")
    expected = locality(plain, plain[:, None] + change).value
    assert 0.3 < expected < 0.9
    for factor, directions in ((0.01, 1), (1.0, 2), (1.0, 8), (1.0, 32)):
        shifted = plain[:, None] + factor * change.expand(4, directions, 1, 5, 5)
        assert locality(plain, shifted).value == pytest.approx(expected)


def test_spearman_of_known_ranks() -> None:
    order = torch.tensor([10.0, 20, 30, 40])
    others = torch.tensor([[1.0, 3, 2, 4], [4.0, 3, 2, 1], [1.0, 1, 2, 3], [7.0, 7, 7, 7]])
    # The third by hand: ranks 1.5, 1.5, 3, 4.
    expected = torch.tensor([0.8, -1.0, 4.5 / math.sqrt(5 * 4.5), 0.0], dtype=torch.float64)
    torch.testing.assert_close(spearman(order, others), expected)
