"""Read tables of figures with their 95 % intervals, and compare by them. Nothing here loads torch.

Such a table has each metric under its name, and the ends of its interval, where one is known, under `name/low` and
`name/high` (`core.metrics.intervals.flat`).
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

    Source: Welch 1947, with his degrees of freedom rounded down.
    """
    if len(first) < 2 or len(second) < 2:
        return None
    difference = fmean(first) - fmean(second)
    parts = [(variance(values) / len(values), len(values) - 1) for values in (first, second)]
    error = math.sqrt(sum(part for part, _ in parts))
    if error == 0:
        return difference, difference
    freedom = error**4 / sum(part**2 / count for part, count in parts)
    half = t_95(math.floor(freedom + 1e-9)) * error
    return difference - half, difference + half


def t_95(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, to 0.1 %; infinite below 1 degree of freedom.

    Source: Hill's expansion about the normal quantile, CACM algorithm 396; up to 3 degrees, where it is too coarse, the
    quantiles themselves.
    """
    if freedom < 4:
        return {1: 12.706, 2: 4.303, 3: 3.182}.get(freedom, math.inf)
    z, n = 1.959964, float(freedom)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / n + second / n**2 + third / n**3 + fourth / n**4
