"""The trials of a sweep, best first: read from its study, whoever asks.

With several objectives no order is the right one; the Pareto front says which trials nothing beats. To hand out one set
all the same, completed trials are ordered by the mean of their ranks over the objectives, which needs no exchange rate
between them; the first objective breaks ties.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import le
from statistics import mean, stdev
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from orchestrator.search.ledger import (
    ENDS,
    MEMORY,
    METRICS,
    OUTCOME,
    REASON,
    REPORTS,
    SECONDS,
    Ends,
    newest_rows,
    parameters_of,
)
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
    """One trial."""

    trial_id: str
    state: str
    parameters: dict[str, Any]
    metrics: dict[str, float]
    iteration: int
    on_front: bool  # no completed trial is better in every objective
    seconds: float | None = None  # of finding the set, without its evaluation
    memory: dict[str, Any] = field(default_factory=dict)  # how it trained in the end (orchestrator.trial.attempt)
    over: bool = True  # no further attempt will be made
    attempts: int = 1
    reason: str = ""
    began: int = 0  # its place among the trials in the order in which they began, from 1
    reports: dict[int, float] = field(default_factory=dict)  # iteration -> what it was compared by there


@dataclass(frozen=True)
class Repeated:
    """One configuration that was tried with several seeds."""

    parameters: dict[str, Any]  # without the seed
    seeds: list[int]
    metrics: dict[str, tuple[float, float]]  # mean and standard deviation over the seeds


@dataclass(frozen=True)
class MethodRow:
    """The trials of one method, taken together."""

    method: str
    trials: int
    metrics: dict[str, tuple[float, float | None]]  # mean and standard deviation over the completed trials
    seconds: float | None  # mean over the completed trials
    completed: int


def rows(folder: SweepFolder, sweep: Sweep) -> list[Row]:
    """Completed trials, best first, then the others. Raises UserError where the study is missing or damaged."""
    if "study" not in folder.read():
        return []
    study = open_study(sweep.name, folder.book)
    return ranked(study, sweep, driven=driver(folder.lock) is not None)


def ranked(study: optuna.Study, sweep: Sweep, driven: bool = True) -> list[Row]:
    """The trials in a study, as `rows`; driven: whether a process runs those that the study holds running."""
    trials = newest_rows(study)
    completed = [trial for trial in trials.values() if trial.state == TrialState.COMPLETE]
    front = _front(completed, sweep)
    found = [
        _row(trial_id, trial, trial.number in front, driven, began)
        for began, (trial_id, trial) in enumerate(trials.items(), start=1)
    ]
    done = [row for row in found if row.state == "completed"]
    others = sorted((row for row in found if row.state != "completed"), key=lambda row: (row.state, -row.iteration))
    return [*_by_mean_rank(done, sweep), *others]


def _row(trial_id: str, trial: FrozenTrial, on_front: bool, driven: bool, began: int) -> Row:
    told = trial.user_attrs
    reports = {int(step): report["value"] for step, report in told.get(REPORTS, {}).items()}
    ends = Ends(**told.get(ENDS, {}))
    if trial.state.is_finished():
        state = told.get(OUTCOME, _STATES[trial.state])
    elif not driven:
        state = "interrupted"
    else:
        state = "running" if trial.state == TrialState.RUNNING else "waiting"
    return Row(
        trial_id,
        state,
        trial.params or parameters_of(trial),
        told.get(METRICS, {}),
        int(told.get(STEP, 0)) or max(reports, default=0),
        on_front,
        told.get(SECONDS),
        told.get(MEMORY, {}),
        trial.state.is_finished(),
        ends.attempt,
        told.get(REASON, ""),
        began,
        {step: value for step, value in sorted(reports.items()) if value is not None},
    )


def _front(completed: list[FrozenTrial], sweep: Sweep) -> set[int]:
    """The numbers of the trials that no other beats: at least as good in every objective, and better in one."""
    costs = {trial.number: _turned(trial.values, sweep) for trial in completed}
    front: list[int] = []
    for number in sorted(costs, key=costs.__getitem__):  # whatever beats a trial comes before it
        own = costs[number]
        if not any(costs[best] != own and all(map(le, costs[best], own)) for best in front):
            front.append(number)
    return set(front)


def _by_mean_rank(completed: list[Row], sweep: Sweep) -> list[Row]:
    costs = _columns([_costs(row, sweep) for row in completed])
    return sorted(completed, key=lambda row: (_ahead(_costs(row, sweep), costs), _costs(row, sweep)))


def _columns(costs: list[list[float]]) -> list[list[float]]:
    """The costs of many trials, sorted for each objective."""
    return [sorted(column) for column in zip(*costs, strict=True)]


def _costs(row: Row, sweep: Sweep) -> list[float]:
    """The objectives of a completed trial, turned so that less is better."""
    return _turned([row.metrics[name] for name in sweep.objective_names], sweep)


def _turned(values: Sequence[float], sweep: Sweep) -> list[float]:
    return [-v if objective.mode == "max" else v for v, objective in zip(values, sweep.objectives, strict=True)]


def _ahead(costs: list[float], columns: list[list[float]]) -> int:
    """In how many objectives of how many others these costs are beaten: the sum of the ranks, from 0."""
    return sum(bisect_left(column, cost) for cost, column in zip(costs, columns, strict=True))


def by_method(ranked: list[Row], sweep: Sweep) -> list[MethodRow]:
    """One row for each method of the sweep, ordered by the mean rank of its completed trials; then those with none."""
    costs = _columns([_costs(row, sweep) for row in ranked if row.state == "completed"])
    keyed: list[tuple[float, MethodRow]] = []
    for method in sweep.methods:
        its_own = [row for row in ranked if row.parameters.get("method", method) == method]
        completed = [row for row in its_own if row.state == "completed"]
        ranks = [_ahead(_costs(row, sweep), costs) for row in completed]
        keyed.append((mean(ranks) if ranks else math.inf, _method_row(method, len(its_own), completed)))
    return [row for _, row in sorted(keyed, key=lambda pair: pair[0])]


def _method_row(method: str, trials: int, completed: list[Row]) -> MethodRow:
    names = dict.fromkeys(name for row in completed for name in row.metrics)
    values = {name: [row.metrics[name] for row in completed if name in row.metrics] for name in names}
    seconds = [row.seconds for row in completed if row.seconds is not None]
    return MethodRow(
        method,
        trials,
        {name: (mean(each), stdev(each) if len(each) > 1 else None) for name, each in values.items()},
        mean(seconds) if seconds else None,
        len(completed),
    )


def repeated(ranked: list[Row], sweep: Sweep) -> list[Repeated]:
    """The configurations that were completed with more than one seed, by the mean rank of their trials."""
    completed = [row for row in ranked if row.state == "completed"]
    costs = _columns([_costs(row, sweep) for row in completed])
    groups: dict[frozenset[tuple[str, Any]], list[Row]] = {}
    for row in completed:
        key = frozenset((name, value) for name, value in row.parameters.items() if name != _SEED)
        groups.setdefault(key, []).append(row)
    several = [rows for rows in groups.values() if len(rows) > 1 and all(_SEED in row.parameters for row in rows)]
    several.sort(key=lambda rows: mean(_ahead(_costs(row, sweep), costs) for row in rows))
    return [_repeated(rows) for rows in several]


def _repeated(rows: list[Row]) -> Repeated:
    names = [name for name in METRIC_NAMES if all(name in row.metrics for row in rows)]
    values = {name: [row.metrics[name] for row in rows] for name in names}
    return Repeated(
        {name: value for name, value in rows[0].parameters.items() if name != _SEED},
        sorted(row.parameters[_SEED] for row in rows),
        {name: (mean(each), stdev(each)) for name, each in values.items()},
    )
