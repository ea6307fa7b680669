"""FID and KID against formulas written another way, in float64, and on cases worked out by hand."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from core.errors import UserError
from core.metrics.fidelity import fid, kid_by_sample, kid_over_subsets
from core.randomness import generator
from tests.core.metrics.test_traversals import normal


def features(count: int, width: int, name: str) -> Tensor:
    """Correlated, and not centred."""
    drawing = generator("features", name)
    mixed = torch.randn(count, width, generator=drawing) @ torch.randn(width, width, generator=drawing)
    return mixed / math.sqrt(width) + 0.3


def fid_by_root(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 sqrtm(S_a S_b)), as it is written."""
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(cov_x @ cov_y)
    means = x.mean(axis=0) - y.mean(axis=0)
    return float(means @ means + np.trace(cov_x) + np.trace(cov_y) - 2 * np.trace(root).real)


def mmd_by_pairs(a: Tensor, b: Tensor) -> float:
    """The unbiased estimator, one pair after the other."""
    x, y = a.double().numpy(), b.double().numpy()
    n, m, width = len(x), len(y), x.shape[1]

    def kernel(p: np.ndarray, q: np.ndarray) -> float:
        return float((p @ q / width + 1) ** 3)

    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(p, q) for p in x for q in y) / (n * m)


@pytest.mark.parametrize(("count", "width"), [(200, 24), (24, 24), (400, 3)])
def test_fid_is_the_formula_with_the_root_of_a_matrix(count: int, width: int) -> None:
    a, b = features(count, width, "a"), 1.5 * features(count + 30, width, "b")
    assert fid(a, b) == pytest.approx(fid_by_root(a, b), rel=1e-6)  # the root's own error, where a has no full rank


def test_fid_is_exact_where_there_are_fewer_images_than_features() -> None:
    """Of two sets of two images on perpendicular lines, by hand: variances 2 and 8, nothing shared."""
    a = torch.zeros(2, 50)
    b = torch.zeros(2, 50)
    a[:, 0], b[:, 1] = torch.tensor([-1.0, 1.0]), torch.tensor([-2.0, 2.0])
    assert fid(a, b) == pytest.approx(2 + 8, rel=1e-12)
    assert fid(a, 2 * a) == pytest.approx((math.sqrt(2) - math.sqrt(8)) ** 2, rel=1e-12)
    assert fid(a, a + 0.5) == pytest.approx(50 * 0.25, rel=1e-12)


@pytest.mark.parametrize(("count", "width"), [(300, 20), (20, 300)])
def test_fid_of_a_set_with_itself_is_nothing_in_any_order(count: int, width: int) -> None:
    a = features(count, width, "a")
    assert fid(a, a.flip(0)) == pytest.approx(0, abs=1e-9 * float(a.square().sum()))
    b = features(count + 5, width, "b")
    assert fid(a, b) == pytest.approx(fid(b, a), rel=1e-12)


def test_kid_is_the_unbiased_estimator_of_each_subset() -> None:
    """Subsets are drawn as torchmetrics draws them: a permutation of the first set, then one of the second."""
    a, b, drawing, expected = features(30, 8, "a"), features(40, 8, "b") + 0.2, generator("kid", 3), []
    for _ in range(4):
        first, second = (torch.randperm(len(x), generator=drawing)[:12] for x in (a, b))
        expected.append(mmd_by_pairs(a[first], b[second]))
    mean, deviation = kid_over_subsets(a, b, subsets=4, subset_size=12, seed=3)
    assert mean == pytest.approx(np.mean(expected), rel=1e-10)
    assert deviation == pytest.approx(np.std(expected), rel=1e-10)


def test_kid_depends_on_its_seed_and_on_nothing_else() -> None:
    a, b = features(30, 8, "a"), features(30, 8, "b")
    torch.manual_seed(1)
    first = kid_over_subsets(a, b, subsets=3, subset_size=10)
    torch.manual_seed(2)
    assert (
        kid_over_subsets(a, b, subsets=3, subset_size=10)
        == first
        != kid_over_subsets(a, b, subsets=3, subset_size=10, seed=1)
    )
    assert kid_over_subsets(a, b, subsets=3, subset_size=2)[1] > 0, "two are enough"
    assert kid_over_subsets(a, b, subsets=5, subset_size=30)[1] == pytest.approx(0, abs=1e-12), (
        "all subsets are the whole set"
    )


def test_half_precision_is_no_excuse() -> None:
    a, b = features(60, 8, "a").bfloat16(), features(60, 8, "b").bfloat16()
    assert fid(a, b) == fid(a.double(), b.double())
    assert kid_over_subsets(a, b, 2, 30) == kid_over_subsets(a.double(), b.double(), 2, 30)


def test_sets_that_do_not_fit_are_told() -> None:
    a = features(10, 4, "a")
    for name, measure in (("fid", fid), ("kid", kid_over_subsets)):
        with pytest.raises(UserError) as told:
            measure(a[:1], a)
        assert str(told.value) == f"{name} needs 2 or more images in each set; got 1 and 10"
        with pytest.raises(UserError) as told:
            measure(a, a[:, :3])
        assert str(told.value) == f"{name} needs features of one network; got 4 and 3 of an image"
    for size in (1, 11):
        with pytest.raises(UserError) as told:
            kid_over_subsets(a, features(20, 4, "b"), subset_size=size)
        assert str(told.value) == f"kid: subset_size is {size}; allowed: 2 to 10, the smaller set"
    with pytest.raises(UserError) as told:
        kid_over_subsets(a, a, subsets=0, subset_size=5)
    assert str(told.value) == "kid: subsets is 0; allowed: 1 and more"


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
