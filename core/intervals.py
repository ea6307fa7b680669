"""Read tables of figures with their 95 % intervals, and compare by them. Nothing here loads torch.

Such a table has each metric under its name, and the ends of its interval, where one is known, under `name/low` and
`name/high` (`core.metrics.bootstrap.flat`).
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, variance
from typing import Literal

Verdict = Literal["ahead", "behind", "not told apart"]


def interval_of(table: Mapping[str, float], name: str) -> tuple[float, float] | None:
    """Return the interval of a metric in a table; None where it has none."""
    low, high = table.get(f"{name}/low"), table.get(f"{name}/high")
    return None if low is None or high is None else (low, high)


def without_intervals(table: Mapping[str, float]) -> dict[str, float]:
    """Return a table without the ends of the intervals."""
    return {name: value for name, value in table.items() if not name.endswith(("/low", "/high"))}


def verdict(interval: tuple[float, float], mode: Literal["max", "min"]) -> Verdict:
    """Return what the interval of a difference says of the first of two: `ahead` or `behind` where it excludes 0."""
    low, high = interval
    if low <= 0 <= high:
        return "not told apart"
    return "ahead" if (low > 0) == (mode == "max") else "behind"


def of_runs(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the mean of a metric over runs as a table, with the interval of the mean where there are several runs.

    The interval is Student's, of n - 1 degrees of freedom, over independent runs such as seeds.
    """
    mean = fmean(values)
    if len(values) < 2:
        return {name: mean}
    half = t_95(len(values) - 1) * math.sqrt(variance(values) / len(values))
    return {name: mean, f"{name}/low": mean - half, f"{name}/high": mean + half}


def of_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """Return the interval of the difference of two means over independent runs; None where one has a single run.

    Source: Welch 1947.
    """
    if len(first) < 2 or len(second) < 2:
        return None
    difference = fmean(first) - fmean(second)
    parts = [(variance(values) / len(values), len(values) - 1) for values in (first, second)]
    error = math.sqrt(sum(part for part, _ in parts))
    if error == 0:
        return difference, difference
    freedom = error**4 / sum(part**2 / count for part, count in parts)
    half = t_95(freedom) * error
    return difference - half, difference + half


def t_95(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t; infinite without a degree of freedom."""
    from scipy.special import stdtrit  # here, for it takes as long to load as a table takes to be read and printed

    return float(stdtrit(freedom, 0.975)) if freedom > 0 else math.inf
