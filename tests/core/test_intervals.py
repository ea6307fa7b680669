"""Intervals in tables of figures, what they say of two, and those of means over runs."""

import math
import subprocess
import sys
from typing import Literal

import pytest
import scipy.stats

from core.intervals import interval_of, of_difference, of_runs, t_95, verdict, without_intervals

TABLE = {"coverage": 0.5, "coverage/low": 0.4, "coverage/high": 0.6, "fid": 3.0}


def test_a_table_is_read_with_and_without_its_intervals() -> None:
    assert interval_of(TABLE, "coverage") == (0.4, 0.6) and interval_of(TABLE, "fid") is None
    assert interval_of({"fid": 3.0, "fid/low": 2.0}, "fid") is None, "half of an interval is none"
    assert without_intervals(TABLE) == {"coverage": 0.5, "fid": 3.0}


@pytest.mark.parametrize(
    ("interval", "more", "less"),
    [
        ((0.1, 0.3), "ahead", "behind"),
        ((-0.3, -0.1), "behind", "ahead"),
        ((-0.1, 0.3), "not told apart", "not told apart"),
        ((0.0, 0.3), "not told apart", "not told apart"),  # 0 itself is not excluded
        ((-0.3, 0.0), "not told apart", "not told apart"),
        ((0.0, 0.0), "not told apart", "not told apart"),
    ],
)
def test_a_verdict_takes_an_interval_wholly_on_one_side_of_0(
    interval: tuple[float, float], more: str, less: str
) -> None:
    modes: tuple[Literal["max", "min"], ...] = ("max", "min")
    assert [verdict(interval, mode) for mode in modes] == [more, less]


def test_the_mean_of_runs_has_the_interval_of_student() -> None:
    """Of 1, 2, 3: standard error 1 / sqrt 3, t of 2 degrees of freedom 4.303."""
    half = 4.303 / math.sqrt(3)
    assert of_runs("fid", [1, 2, 3]) == pytest.approx({"fid": 2, "fid/low": 2 - half, "fid/high": 2 + half}, rel=1e-3)
    assert of_runs("fid", [3.0]) == {"fid": 3.0}, "of one run there is none"


@pytest.mark.parametrize(
    ("first", "second"), [([1, 2, 3], [8, 10, 12]), ([0, 1, 2, 3], [0, 1, 2, 3]), ([0.3, 0.1], [2, 2.5, 2, 9, 4])]
)
def test_the_difference_of_two_means_has_the_interval_of_welch(first: list[float], second: list[float]) -> None:
    expected = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert of_difference(first, second) == pytest.approx((expected.low, expected.high))


def test_the_difference_of_runs_without_a_deviation() -> None:
    assert of_difference([1, 2, 3], [5]) is None and of_difference([5], [1, 2, 3]) is None
    assert of_difference([1, 1], [0.5, 0.5]) == (0.5, 0.5), "runs that agree to the last bit"


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (15, 2.131), (63, 1.998), (10**6, 1.960)]
)
def test_quantiles_of_student(freedom: int, quantile: float) -> None:
    assert t_95(freedom) == pytest.approx(quantile, rel=1e-3)
    assert t_95(0) == math.inf


@pytest.mark.slow
def test_intervals_are_read_without_torch() -> None:
    code = "import sys, core.intervals, orchestrator.report.findings; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
