"""Compare the champion with random directions, and methods with each other, by the intervals of their differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.intervals import Verdict, interval_of, of_difference, verdict
from orchestrator.search.ranking import Row
from orchestrator.spec import METRICS, Sweep
from orchestrator.spec.tables import Mode

Interval = tuple[float, float]


@dataclass(frozen=True)
class Compared:
    """One metric of the champion beside that of random directions, on the reporting seeds.

    low, high: of the 95 % interval of the difference, champion minus random; None where it was not measured.
    """

    metric: str
    mode: Mode
    champion: float | None
    random: float | None
    champion_interval: Interval | None = None
    random_interval: Interval | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> Interval | None:
        """The interval of the difference."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def verdict(self) -> Verdict | None:
        """Whether the champion is ahead of random directions, behind, or not told apart; None without an interval."""
        return None if self.interval is None else verdict(self.interval, self.mode)


def compared(
    champion: Mapping[str, float], random: Mapping[str, float], differences: Mapping[str, float]
) -> list[Compared]:
    """Return every metric of the champion beside that of random directions, given the tables of a result.json.

    differences: champion minus random; empty in a result of a version that did not measure them.
    """
    return [
        _compared(name, mode, champion, random, differences)
        for name, mode in METRICS.items()
        if name in champion or name in random
    ]


def _compared(
    name: str, mode: Mode, champion: Mapping[str, float], random: Mapping[str, float], differences: Mapping[str, float]
) -> Compared:
    own, other = champion.get(name), random.get(name)
    low, high = interval_of(differences, name) or (None, None)
    return Compared(
        name,
        mode,
        own,
        other,
        interval_of(champion, name),
        interval_of(random, name),
        differences.get(name, _difference(own, other)),
        low,
        high,
    )


def _difference(own: float | None, other: float | None) -> float | None:
    """Return the first value minus the second; 0 where they differ by rounding alone, None if one is missing."""
    if own is None or other is None:
        return None
    return 0.0 if math.isclose(own, other, rel_tol=1e-9, abs_tol=1e-12) else own - other


def method_verdicts(ranked: Sequence[Row], sweep: Sweep, best: str, other: str) -> dict[str, Verdict]:
    """Return for each objective whether method `best` is ahead of `other`, by the means over their completed trials.

    Empty where one of the two has fewer than two completed trials: no interval is known then.
    """
    verdicts: dict[str, Verdict] = {}
    for objective in sweep.objectives:
        own, others = (_values(ranked, sweep, method, objective.metric) for method in (best, other))
        interval = of_difference(own, others)
        if interval is not None:
            verdicts[objective.metric] = verdict(interval, objective.mode)
    return verdicts


def _values(ranked: Sequence[Row], sweep: Sweep, method: str, metric: str) -> list[float]:
    """Return a metric of the completed trials of a method; a sweep of one method does not name it in its trials."""
    return [
        row.metrics[metric]
        for row in ranked
        if row.state == "completed" and row.parameters.get("method", sweep.methods[0]) == method
    ]
