"""FID and KID against formulas written another way, in float64, and on cases worked out by hand."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from core.errors import UserError
from core.metrics import fidelity
from core.metrics.bootstrap import REPLICATES, weights
from core.metrics.fidelity import FID_REPLICATES, enough_for_fid, fid, fid_by_sample, kid
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


def kernel(p: Tensor, q: Tensor) -> float:
    return float((p.double() @ q.double() / len(p) + 1) ** 3)


def mmd_by_pairs(x: Tensor, y: Tensor) -> float:
    """The unbiased estimator, one pair after the other. x: [M, R, F], of which pairs of one sample are left out."""
    samples, images, others = len(x), x.shape[1], len(y)
    own = [
        kernel(x[m, r], x[n, s])
        for m in range(samples)
        for n in range(samples)
        for r in range(images)
        for s in range(images)
        if m != n
    ]
    reference = [kernel(y[i], y[j]) for i in range(others) for j in range(others) if i != j]
    across = [kernel(p, q) for p in x.flatten(0, 1) for q in y]
    return float(np.mean(own) + np.mean(reference) - 2 * np.mean(across))


def kid_by_pairs(shifted: Tensor, plain: Tensor, reference: Tensor) -> float:
    return mmd_by_pairs(shifted, reference) - mmd_by_pairs(plain[:, None], reference)


@pytest.mark.parametrize(("count", "width"), [(200, 24), (25, 24), (400, 3)])
def test_fid_is_the_formula_with_the_root_of_a_matrix(count: int, width: int) -> None:
    a, b = features(count, width, "a"), 1.5 * features(count + 30, width, "b")
    assert fid(a, b) == pytest.approx(fid_by_root(a, b), rel=1e-6)


def test_fid_of_normal_sets_by_hand() -> None:
    """Of sets on a cross, whose features do not go together: variances 2/3 and 8/3 of four images."""
    a = torch.tensor([[-1.0, 0], [1, 0], [0, -1], [0, 1]])
    assert fid(a, 2 * a) == pytest.approx(2 * (math.sqrt(8 / 3) - math.sqrt(2 / 3)) ** 2, rel=1e-9)
    assert fid(a, a + 0.5) == pytest.approx(2 * 0.25, rel=1e-9)
    assert fid(a, a * torch.tensor([1.0, 3.0])) == pytest.approx(4 * 2 / 3, rel=1e-9)


def test_fid_of_a_set_with_itself_is_nothing_in_any_order() -> None:
    a, b = features(300, 20, "a"), features(305, 20, "b")
    assert fid(a, a.flip(0)) == pytest.approx(0, abs=1e-9 * float(a.square().sum()))
    assert fid(a, b) == pytest.approx(fid(b, a), rel=1e-12)


def test_fid_grows_with_the_shift() -> None:
    a, b = features(100, 4, "a"), features(100, 4, "b")
    weak, strong = (fid(a + add, b) for add in (0.01, 1.0))
    assert strong == pytest.approx(weak + 4 * 0.99 * (1.01 + 2 * float((a.mean(0) - b.mean(0)).mean())), rel=1e-4)


def test_sets_that_do_not_fit_are_told() -> None:
    a = features(10, 4, "a")
    assert enough_for_fid(5, 4) and not enough_for_fid(4, 4)
    fid(a[:5], a)
    for few in ((a[:4], a), (a, a[:4])):
        with pytest.raises(UserError) as told:
            fid(*few)
        assert str(told.value) == (
            f"fid needs more than 4 images in each set, one for each feature; got {len(few[0])} and {len(few[1])}; "
            "kid is unbiased for any number"
        )
    with pytest.raises(UserError) as told:
        fid(a, a[:, :3])
    assert str(told.value) == "fid needs features of one network; got 4 and 3 of an image"


def test_fid_of_samples_is_that_of_all_their_images() -> None:
    shifted, reference = features(24, 3, "a").reshape(8, 3, 3), features(20, 3, "b")
    found = fid_by_sample(shifted, reference)
    assert found.value == fid(shifted.flatten(0, 1), reference)
    assert found.samples == 8 and found.replicates.shape == (REPLICATES,)
    assert torch.equal(found.replicates[:FID_REPLICATES], found.replicates[-FID_REPLICATES:])


def test_fid_on_a_resample_is_that_of_the_images_drawn() -> None:
    shifted, reference = features(24, 3, "a").reshape(8, 3, 3), features(20, 3, "b")
    found = fid_by_sample(shifted, reference).replicates
    for b in (0, 7):
        own, others = (weights(*which)[b].long() for which in ((8,), (20, "reference")))
        drawn = shifted.repeat_interleave(own, dim=0).flatten(0, 1)
        assert float(found[b]) == pytest.approx(fid(drawn, reference.repeat_interleave(others, dim=0)), rel=1e-9)


def test_kid_of_three_points_by_hand() -> None:
    # k(x, y) = (x.y / 2 + 1)^3 = (v w + 1)^3 for x = (v, v), y = (w, w); here v = 0, 1, 2 and w = 0, 1, 3:
    # within v: 1, 1, 27; within w: 1, 1, 64; across: 1, 1, 1, 1, 8, 64, 1, 27, 343.
    x, y, nothing = (torch.tensor(v)[:, None].expand(3, 2) for v in ((0.0, 1.0, 2.0), (0.0, 1.0, 3.0), (0.0, 0.0, 0.0)))
    moved = 29 / 3 + 66 / 3 - 2 * 447 / 9
    plain = 1 + 66 / 3 - 2  # all kernels of 0 are 1
    assert kid(x[:, None], nothing, y).value == pytest.approx(moved - plain, rel=1e-12)


def test_kid_is_the_difference_of_two_unbiased_estimators() -> None:
    shifted, plain, reference = normal(4, 3, 2), normal(4, 2, purpose="plain"), 0.3 + normal(5, 2, purpose="reference")
    found = kid(shifted, plain, reference)
    assert found.value == pytest.approx(kid_by_pairs(shifted, plain, reference), rel=1e-10)
    assert found.samples == 4


def test_kid_on_a_resample_is_that_of_the_images_drawn() -> None:
    """A sample that is drawn twice is not compared with itself; the reference against itself is in both distances."""
    shifted, plain, reference = normal(4, 3, 2), normal(4, 2, purpose="plain"), 0.3 + normal(5, 2, purpose="reference")
    found = kid(shifted, plain, reference).replicates

    def part(x: Tensor, own: list[int], others: list[int]) -> float:
        within = [kernel(p, q) for m in own for n in own if m != n for p in x[m] for q in x[n]]
        across = [kernel(p, reference[j]) for m in own for p in x[m] for j in others]
        return float(np.mean(within) - 2 * np.mean(across))

    for b in (0, 1):
        own, others = (
            torch.arange(len(times)).repeat_interleave(times).tolist()
            for times in (weights(4)[b].long(), weights(5, "reference")[b].long())
        )
        expected = part(shifted, own, others) - part(plain[:, None], own, others)
        assert float(found[b]) == pytest.approx(expected, rel=1e-9)


def test_kid_of_three_samples_has_an_interval_though_some_resamples_have_no_pair() -> None:
    found = kid(normal(3, 2, 4), normal(3, 4, purpose="plain"), normal(9, 4, purpose="reference"))
    assert torch.isfinite(found.replicates).all() and 0 < found.error


def test_kid_of_nothing_shifted_is_nothing() -> None:
    plain, reference = normal(6, 3), normal(8, 3, purpose="reference")
    for images in (1, 4, 64):
        found = kid(plain[:, None].expand(6, images, 3), plain, reference)
        assert found.value == pytest.approx(0, abs=1e-12) and found.error < 1e-12


def test_kid_of_a_shift_of_all_features_grows_with_it() -> None:
    plain, reference = normal(6, 3), normal(8, 3, purpose="reference")
    strong, weak = (kid(plain[:, None] + add, plain, reference) for add in (2.0, 0.02))
    assert strong.value > 3 and abs(weak.value) < strong.value / 20


@pytest.mark.parametrize("directions", [2, 8, 32])
def test_kid_of_other_images_of_the_model_is_zero_on_average_for_any_number_of_directions(directions: int) -> None:
    """At both ends of each direction, all from one distribution; some are below zero, and hardly any is far from it."""
    stream = generator("images of the model")
    found = []
    for _ in range(150):
        shifted, plain, reference = (
            torch.randn(shape, generator=stream, dtype=torch.float64)
            for shape in ((6, 2 * directions, 3), (6, 3), (12, 3))
        )
        found.append(kid(shifted, plain, reference))
    values = torch.tensor([figure.value for figure in found])
    assert values.min() < 0 < values.max()
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(150)
    assert sum(abs(figure.value) < 2 * figure.error for figure in found) > 0.9 * 150


def test_equal_images_of_a_sample_count_once() -> None:
    shifted, plain, reference = normal(6, 1, 3), normal(6, 3, purpose="plain"), normal(8, 3, purpose="reference")
    one, many = (kid(shifted.expand(6, images, 3), plain, reference) for images in (1, 16))
    assert many.value == pytest.approx(one.value, rel=1e-9)
    assert many.interval == pytest.approx(one.interval, rel=1e-9)


def test_half_precision_is_no_excuse() -> None:
    a, b = features(60, 8, "a").bfloat16(), features(60, 8, "b").bfloat16()
    assert fid(a, b) == fid(a.double(), b.double())
    assert kid(a[:, None], b, b).value == kid(a[:, None].double(), b.double(), b.double()).value


def test_kid_of_more_images_than_fit_in_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    shifted, plain, reference = normal(5, 3, 2), normal(5, 2, purpose="plain"), normal(7, 2, purpose="reference")
    whole = kid(shifted, plain, reference)
    monkeypatch.setattr(fidelity, "_ROWS", 4)
    assert kid(shifted, plain, reference).value == pytest.approx(whole.value, rel=1e-12)
