"""Read the trials of a sweep from its study, best first.

With several objectives there is no single right order; the Pareto front holds the trials that no other beats. To choose
one set nevertheless, the first objective decides as far as it can be known: the trials whose value lies within the 95 %
interval of the best one's are contenders, and of those the other objectives decide, by the mean of the ranks. This
needs no exchange rate between objectives, and no difference by chance decides. Breiman et al. (1984) choose a tree
within one standard error of the best in the same way.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import le
from statistics import mean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from core.intervals import interval_of, of_runs
from orchestrator.search.ledger import (
    ENDS,
    MEMORY,
    METRICS,
    REASON,
    REPORTS,
    SECONDS,
    newest_rows,
    parameters_of,
    state_of,
)
from orchestrator.search.retries import Ends
from orchestrator.spec import METRICS as METRIC_NAMES
from orchestrator.spec import Sweep
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driver
from orchestrator.store.study import open_study
from orchestrator.trial.state import STEP

_SEED = "seed"
_STATES = {TrialState.COMPLETE: "completed", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class Row:
    """One trial, with its state, parameters, metrics and reports."""

    trial_id: str
    state: str
    parameters: dict[str, Any]
    metrics: dict[str, float]  # with the ends of their intervals (core.intervals)
    iteration: int
    on_front: bool  # no completed trial is as good in every objective and better in one
    seconds: float | None = None  # spent on finding the set, without its evaluation
    memory: dict[str, Any] = field(default_factory=dict)  # the final memory settings (orchestrator.trial.attempt)
    over: bool = True  # no further attempt will be made
    attempts: int = 1
    reason: str = ""
    began: int = 0  # the trial's place in the order in which trials began, from 1
    reports: dict[int, float] = field(default_factory=dict)  # iteration -> the value it was compared by


@dataclass(frozen=True)
class Repeated:
    """One configuration that was tried with several seeds."""

    parameters: dict[str, Any]  # without the seed
    seeds: list[int]
    metrics: dict[str, float]  # means over the seeds, with their intervals (core.intervals.of_runs)


@dataclass(frozen=True)
class MethodRow:
    """The trials of one method, taken together."""

    method: str
    trials: int
    metrics: dict[str, float]  # means over the completed trials, with their intervals (core.intervals.of_runs)
    seconds: float | None  # mean over the completed trials
    completed: int


def rows(folder: SweepFolder, sweep: Sweep) -> list[Row]:
    """Return completed trials, best first, then the others. Raises UserError where the study is missing or damaged."""
    if "study" not in folder.read():
        return []
    study = open_study(sweep.name, folder.study_place)
    return ranked(study, sweep, driven=driver(folder.lock) is not None)


def ranked(study: optuna.Study, sweep: Sweep, driven: bool = True) -> list[Row]:
    """Return the trials in a study, ordered as by `rows`.

    driven: whether a process is running the trials that the study holds as RUNNING; else they count as interrupted.
    """
    return ranked_rows(newest_rows(study), sweep, driven)


def ranked_rows(trials: Mapping[str, FrozenTrial], sweep: Sweep, driven: bool) -> list[Row]:
    """Return trials, by their id in the order in which they began, ordered as by `rows`."""
    completed = [trial for trial in trials.values() if trial.state == TrialState.COMPLETE]
    front = _front(completed, sweep)
    rows = [
        _row(trial_id, trial, trial.number in front, driven, began)
        for began, (trial_id, trial) in enumerate(trials.items(), start=1)
    ]
    done = [row for row in rows if row.state == "completed"]
    others = [row for row in rows if row.state != "completed"]
    return [*_best_first(done, sweep), *sorted(others, key=lambda row: _by_best_report(row, sweep))]


def _by_best_report(row: Row, sweep: Sweep) -> tuple[str, float, int]:
    """Return the key that orders trials by state, then by their best report, then by the iteration they reached."""
    sign = -1 if sweep.checkpoint_metric[1] == "max" else 1
    return row.state, min((sign * value for value in row.reports.values()), default=math.inf), -row.iteration


def _row(trial_id: str, trial: FrozenTrial, on_front: bool, driven: bool, began: int) -> Row:
    attributes = trial.user_attrs
    reports = {int(step): report["value"] for step, report in attributes.get(REPORTS, {}).items()}
    ends = Ends(**attributes.get(ENDS, {}))
    return Row(
        trial_id=trial_id,
        state=state_of(trial, driven),
        parameters=trial.params or parameters_of(trial),
        metrics=attributes.get(METRICS, {}),
        iteration=int(attributes.get(STEP, 0)) or max(reports, default=0),
        on_front=on_front,
        seconds=attributes.get(SECONDS),
        memory=attributes.get(MEMORY, {}),
        over=trial.state.is_finished(),
        attempts=ends.attempt,
        reason=attributes.get(REASON, ""),
        began=began,
        reports={step: value for step, value in sorted(reports.items()) if value is not None},
    )


def _front(completed: list[FrozenTrial], sweep: Sweep) -> set[int]:
    """Return the numbers of the trials on the front: no other is as good in every objective and better in one."""
    costs = {trial.number: _turned(trial.values, sweep) for trial in completed}
    front: list[int] = []
    for number in sorted(costs, key=costs.__getitem__):  # a trial that beats another comes before it
        own = costs[number]
        if not any(costs[best] != own and all(map(le, costs[best], own)) for best in front):
            front.append(number)
    return set(front)


def _best_first(completed: list[Row], sweep: Sweep) -> list[Row]:
    """Order completed trials: contenders by their ranks in the other objectives, then the rest by all in order."""
    by_value = sorted(completed, key=lambda row: _costs(row, sweep))
    count = len(contenders(by_value, sweep))
    costs = _columns([_costs(row, sweep)[1:] for row in by_value[:count]])
    first = sorted(by_value[:count], key=lambda row: (_rank_sum(_costs(row, sweep)[1:], costs), _costs(row, sweep)))
    return [*first, *by_value[count:]]


def contenders(rows: Sequence[Row], sweep: Sweep) -> list[Row]:
    """Return the completed trials among which the objectives after the first decide.

    Their first objective lies within the 95 % interval of the best one's, or equals it where it has no interval.
    """
    completed = [row for row in rows if row.state == "completed"]
    if not completed:
        return []
    best, objective = best_row(completed, sweep), sweep.objectives[0]
    own = best.metrics[objective.metric]
    low, high = interval_of(best.metrics, objective.metric) or (own, own)
    if len(sweep.objectives) == 1:
        low = high = own
    values = [(row, row.metrics[objective.metric]) for row in completed]
    return [row for row, value in values if (value >= low if objective.mode == "max" else value <= high)]


def best_row(rows: Sequence[Row], sweep: Sweep) -> Row:
    """Return the completed trial with the best first objective; the others break ties."""
    return min((row for row in rows if row.state == "completed"), key=lambda row: _costs(row, sweep))


def _columns(costs: list[list[float]]) -> list[list[float]]:
    """Return the costs of many trials as one sorted list for each objective."""
    return [sorted(column) for column in zip(*costs, strict=True)]


def _costs(row: Row, sweep: Sweep) -> list[float]:
    """Return the objectives of a completed trial, with signs such that less is better."""
    return _turned([row.metrics[name] for name in sweep.objective_names], sweep)


def _turned(values: Sequence[float], sweep: Sweep) -> list[float]:
    """Return the values of the objectives, with signs such that less is better."""
    return [-v if objective.mode == "max" else v for v, objective in zip(values, sweep.objectives, strict=True)]


def _rank_sum(costs: list[float], columns: list[list[float]]) -> int:
    """Return the sum of the ranks, from 0: over all objectives, how many trials beat these costs."""
    return sum(bisect_left(column, cost) for cost, column in zip(costs, columns, strict=True))


def by_method(ranked: list[Row], sweep: Sweep) -> list[MethodRow]:
    """Return one row for each method, by the mean rank of its completed trials; then methods without any."""
    costs = _columns([_costs(row, sweep) for row in ranked if row.state == "completed"])
    keyed: list[tuple[float, MethodRow]] = []
    for method in sweep.methods:
        its_own = [row for row in ranked if row.parameters.get("method", method) == method]
        completed = [row for row in its_own if row.state == "completed"]
        ranks = [_rank_sum(_costs(row, sweep), costs) for row in completed]
        keyed.append((mean(ranks) if ranks else math.inf, _method_row(method, len(its_own), completed)))
    return [row for _, row in sorted(keyed, key=lambda pair: pair[0])]


def _method_row(method: str, trials: int, completed: list[Row]) -> MethodRow:
    names = [name for name in METRIC_NAMES if any(name in row.metrics for row in completed)]
    seconds = [row.seconds for row in completed if row.seconds is not None]
    return MethodRow(
        method,
        trials,
        _means(completed, names),
        mean(seconds) if seconds else None,
        len(completed),
    )


def repeated(ranked: list[Row], sweep: Sweep) -> list[Repeated]:
    """Return the configurations that were completed with more than one seed, by the mean rank of their trials."""
    completed = [row for row in ranked if row.state == "completed"]
    costs = _columns([_costs(row, sweep) for row in completed])
    groups: dict[frozenset[tuple[str, Any]], list[Row]] = {}
    for row in completed:
        key = frozenset((name, value) for name, value in row.parameters.items() if name != _SEED)
        groups.setdefault(key, []).append(row)
    several = [rows for rows in groups.values() if len(rows) > 1 and all(_SEED in row.parameters for row in rows)]
    several.sort(key=lambda rows: mean(_rank_sum(_costs(row, sweep), costs) for row in rows))
    return [_repeated(rows) for rows in several]


def _repeated(rows: list[Row]) -> Repeated:
    names = [name for name in METRIC_NAMES if all(name in row.metrics for row in rows)]
    return Repeated(
        {name: value for name, value in rows[0].parameters.items() if name != _SEED},
        sorted(row.parameters[_SEED] for row in rows),
        _means(rows, names),
    )


def _means(rows: Sequence[Row], names: Sequence[str]) -> dict[str, float]:
    """Return the mean of each metric over the trials that have it, with the interval of the mean."""
    means: dict[str, float] = {}
    for name in names:
        means |= of_runs(name, [row.metrics[name] for row in rows if name in row.metrics])
    return means
