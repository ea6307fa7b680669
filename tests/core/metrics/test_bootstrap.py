"""The interval of a figure: its width is the closed form's, and it holds the truth as often as it says."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import scipy.stats
import torch
from torch import Tensor

from core.intervals import interval_of, t_95, without_intervals
from core.metrics.bootstrap import (
    REPLICATES,
    Figure,
    flat,
    of_directions,
    of_mean,
    pooled,
    weights,
)
from core.metrics.consistency import Alikeness, diversity, globality
from core.metrics.fidelity import kid
from core.metrics.identifiability import Identified
from core.randomness import generator
from tests.core.metrics.test_traversals import normal


def draws(purpose: str) -> Callable[..., Tensor]:
    """A function of a shape that gives other normal numbers each time."""
    stream = generator(purpose)
    return lambda *shape: torch.randn(shape, generator=stream, dtype=torch.float64)


def share_inside(figures: Iterator[Figure], truth: float) -> float:
    inside = [low <= truth <= high for low, high in (figure.interval for figure in figures)]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("count", [3, 12, 100])
def test_the_error_of_a_mean_is_its_deviation_by_the_root_of_the_count(count: int) -> None:
    values = 2 + 3 * normal(count)
    found = of_mean(values)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.error == pytest.approx(float(values.std()) / math.sqrt(count), rel=0.12)  # of 300 resamples
    half = scipy.stats.t.ppf(0.975, count - 1) * found.error
    assert found.interval == pytest.approx((found.value - half, found.value + half), rel=0.01)


@pytest.mark.parametrize("directions", [2, 4, 32])
def test_directions_add_their_own_deviation_by_the_root_of_their_count(directions: int) -> None:
    by_direction, by_sample = normal(directions, purpose="directions"), normal(20, purpose="samples")
    found = of_mean(by_sample[:, None] + by_direction)
    expected = math.sqrt(float(by_sample.var()) / 20 + float(by_direction.var()) / directions)
    assert found.error == pytest.approx(expected, rel=0.15)
    by_sample = torch.zeros(20, dtype=torch.float64)
    alone = of_mean(by_sample[:, None] + by_direction)
    assert alone.error == pytest.approx(float(by_direction.std()) / math.sqrt(directions), rel=0.15)


def test_one_direction_has_no_deviation_between_directions() -> None:
    values = normal(20)
    assert of_mean(values[:, None]).error == pytest.approx(of_mean(values).error)


def test_a_mean_over_directions_keeps_what_samples_contribute() -> None:
    replicates = normal(REPLICATES, 3)
    same = of_directions(torch.full((3,), 0.5), replicates, 9)
    assert (same.value, same.samples) == (0.5, 9)
    assert torch.allclose(same.replicates, replicates.mean(dim=1)), "directions of equal value add nothing"


def of_sets(count: int) -> Iterator[Figure]:
    """Sets whose values deviate by 1, each measured on 16 samples that deviate by 0.3."""
    draw = draws("sets")
    for _ in range(200):
        yield pooled([of_mean(own + 0.3 * draw(16)) for own in draw(count)])


def of_means() -> Iterator[Figure]:
    draw = draws("means")
    return (of_mean(draw(12)) for _ in range(200))


def of_information(directions: int) -> Iterator[Figure]:
    """Bits whose mean is 1.5, by samples and by directions."""
    draw, error = draws("information"), torch.zeros(16, directions)
    for _ in range(200):
        bits = 1.5 + 0.3 * draw(16, 1) + 0.3 * draw(1, directions) + 0.3 * draw(16, directions)
        yield Identified(bits, error).information


def of_kid() -> Iterator[Figure]:
    """Samples moved by 1 in each of 4 features: the kernel has a closed form."""
    draw = draws("kid")
    for _ in range(200):
        plain = draw(24, 4)
        yield kid(plain[:, None] + 1, plain, draw(96, 4))


def kid_moved_by_one() -> float:
    """By moments: the mean of ((x + a).(y + b) / 4 + 1)^3 of normal x, y in 4 features, a, b all ones or zeros.

    With s = (x + a).(y + b) / 4, of mean m = a.b / 4 and of central moments v and w: (m + 1)^3 + 3 (m + 1) v + w.
    """

    def kernel(a: int, b: int) -> float:
        mean, variance, third = a * b, (1 + a + b) / 4, 6 * a * b / 16
        return (mean + 1) ** 3 + 3 * (mean + 1) * variance + third

    return kernel(1, 1) + kernel(0, 0) - 2 * kernel(1, 0)


def two_planes() -> Iterator[Alikeness]:
    """Two directions, whose changes lie with a sample's own signs along axes at 60 degrees."""
    draw = draws("planes")
    axes = torch.tensor([[1.0, 0, 0], [0.5, math.sqrt(0.75), 0]], dtype=torch.float64)
    for _ in range(200):
        angle = 0.8 * draw(16, 2, 1)  # out of the plane: a cosine of two samples has the mean exp(-0.64) on the axis
        yield Alikeness.of(axes * angle.cos() + torch.tensor([0, 0, 1.0], dtype=torch.float64) * angle.sin())


@pytest.mark.parametrize(
    ("figures", "truth"),
    [
        (of_means, 0.0),
        (partial(of_sets, 3), 0.0),
        (partial(of_sets, 5), 0.0),
        (partial(of_sets, 10), 0.0),
        (partial(of_information, 2), 1.5),
        (partial(of_information, 8), 1.5),
        (of_kid, kid_moved_by_one()),
        (lambda: map(globality, two_planes()), math.exp(-0.64)),
        (lambda: map(diversity, two_planes()), 0.5 * math.exp(-0.64)),
    ],
    ids=["mean", "sets 3", "sets 5", "sets 10", "directions 2", "directions 8", "kid", "globality", "diversity"],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(
    figures: Callable[[], Iterator[Figure]], truth: float
) -> None:
    assert 0.90 <= share_inside(figures(), truth) <= 0.99


def test_sets_that_differ_alike_on_every_sample_have_a_sure_difference() -> None:
    values, by_direction = 5 * normal(10), 5 * normal(10, 4)
    for one in (values, by_direction):
        apart = of_mean(one + 0.25).minus(of_mean(one))
        assert apart.interval == pytest.approx((0.25, 0.25))
        assert of_mean(one).error > 0.5, "neither is sure by itself"


def test_a_difference_has_the_error_of_the_differences() -> None:
    shared, own = 5 * normal(30), 0.1 * normal(30, purpose="own")
    apart = of_mean(shared + own).minus(of_mean(shared))
    assert apart.value == pytest.approx(float(own.mean()))
    assert apart.error == pytest.approx(of_mean(own).error, rel=1e-9)
    assert apart.samples == 30


def test_sets_that_differ_widen_what_is_pooled() -> None:
    values = normal(16)
    one = of_mean(values)
    alike, unlike = pooled([one] * 5), pooled([of_mean(values + 3 * add) for add in (-2.0, -1.0, 0.0, 1.0, 2.0)])
    assert alike.interval == pytest.approx(one.interval)
    assert unlike.value == pytest.approx(one.value)
    assert unlike.error == pytest.approx(math.hypot(one.error, 3 * math.sqrt(2.5 / 5)), rel=0.15)
    assert pooled([one]).interval == pytest.approx(one.interval)
    assert pooled([of_mean(normal(9)), one]).samples == 9


def test_few_directions_or_sets_decide_the_degrees_of_freedom() -> None:
    samples = normal(24)
    alike, apart = of_mean(samples[:, None] + torch.zeros(3)), of_mean(samples[:, None] + 100 * normal(3))
    assert (of_mean(samples).freedom, alike.freedom, apart.freedom) == (23, 23, 2)
    assert apart.interval[1] - apart.value == pytest.approx(4.303 * apart.error, rel=1e-3)
    between = of_mean(samples[:, None] + 0.3 * normal(3)).freedom
    assert 2 < between < 23
    of_six = pooled([of_mean(samples + 100 * own) for own in normal(6)])
    assert of_six.freedom == 5 == of_six.minus(of_mean(samples)).freedom
    assert apart.minus(of_six).others == 3


def test_weights_are_counts_of_a_resample() -> None:
    drawn = weights(7)
    assert drawn.shape == (REPLICATES, 7) and drawn.dtype == torch.float64
    assert torch.equal(drawn, drawn.round()) and drawn.min() == 0
    assert torch.equal(drawn.sum(dim=1), torch.full((REPLICATES,), 7.0, dtype=torch.float64))
    assert float(drawn.mean(dim=0).std()) < 0.2, "no sample is preferred"
    assert float(drawn.var()) == pytest.approx(6 / 7, rel=0.1), "as in 7 draws of one in 7"
    assert not torch.equal(drawn, weights(7, "reference"))
    assert torch.equal(weights(1), torch.ones(REPLICATES, 1, dtype=torch.float64))


def test_weights_depend_on_name_and_count_alone() -> None:
    first, state = weights(5, "sets"), torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(weights(5, "sets"), first)
    torch.random.set_rng_state(state)
    weights(5, "sets")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.slow
def test_weights_are_the_same_in_another_process() -> None:
    code = "from core.metrics.bootstrap import weights; print(weights(6)[:20].tolist())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(weights(6)[:20].tolist())


def test_one_sample_says_nothing_of_an_interval() -> None:
    assert t_95(0) == math.inf
    alone = of_mean(torch.tensor([0.5]))
    assert (alone.error, alone.interval) == (math.inf, (-math.inf, math.inf))
    assert flat({"coverage": alone}) == {"coverage": 0.5}


def test_a_figure_that_no_resample_changes_is_its_own_interval() -> None:
    sure = of_mean(torch.full((4,), 2.0))
    assert (sure.error, sure.interval) == (0.0, (2.0, 2.0))


def test_a_table_holds_the_values_and_the_ends_of_the_intervals() -> None:
    coverage, broken = of_mean(normal(8)), of_mean(torch.tensor([1.0, math.nan]))
    endless = Figure(1.0, torch.full((REPLICATES,), math.inf), 8)
    table = flat({"coverage": coverage, "fid": broken, "lpips": endless})
    assert list(table) == ["coverage", "coverage/low", "coverage/high", "lpips"]
    assert table["coverage"] == coverage.value and interval_of(table, "coverage") == coverage.interval
    assert interval_of(table, "lpips") is None and interval_of(table, "fid") is None
    assert without_intervals(table) == {"coverage": coverage.value, "lpips": 1.0}
    assert interval_of({"coverage/low": 1.0}, "coverage") is None
