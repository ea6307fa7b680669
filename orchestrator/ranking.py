"""The trials of a sweep, best first: read from its study, whoever asks.

With several objectives no order is the right one; the Pareto front says which trials nothing beats. To hand out one set
all the same, completed trials are ordered by the mean of their ranks over the objectives, which needs no exchange rate
between them; the first objective breaks ties.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import optuna
from optuna.trial import TrialState

from core.errors import UserError
from orchestrator.searcher import MEMORY, METRICS, SECONDS, STEP, TUNE_ID, load_study
from orchestrator.spec import Sweep
from orchestrator.store import SweepFolder

_STATES = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


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
    memory: dict[str, Any] = field(default_factory=dict)  # how it trained in the end (orchestrator.attempt)


@dataclass(frozen=True)
class MethodRow:
    """The trials of one method, taken together."""

    method: str
    trials: int
    metrics: dict[str, tuple[float, float | None]]  # mean and standard deviation over the completed trials
    seconds: float | None  # mean over the completed trials
    completed: int


def rows(folder: SweepFolder, sweep: Sweep) -> list[Row]:
    """Completed trials, best first, then the others."""
    if not Path(folder.study).is_file():
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = load_study(sweep.name, folder.study)
    trials = study.get_trials(deepcopy=False)
    front = (
        {trial.number for trial in study.best_trials} if any(t.state == TrialState.COMPLETE for t in trials) else set()
    )
    found = [
        Row(
            trial.user_attrs.get(TUNE_ID, str(trial.number)),
            _STATES[trial.state],
            trial.params,
            trial.user_attrs.get(METRICS, {}),
            int(trial.user_attrs.get(STEP, 0)),
            trial.number in front,
            trial.user_attrs.get(SECONDS),
            trial.user_attrs.get(MEMORY, {}),
        )
        for trial in trials
    ]
    completed = [row for row in found if row.state == "completed"]
    others = sorted((row for row in found if row.state != "completed"), key=lambda row: (row.state, -row.iteration))
    return [*_by_mean_rank(completed, sweep), *others]


def _by_mean_rank(completed: list[Row], sweep: Sweep) -> list[Row]:
    costs = [_costs(row, sweep) for row in completed]
    return sorted(completed, key=lambda row: (_ahead(_costs(row, sweep), costs), _costs(row, sweep)))


def _costs(row: Row, sweep: Sweep) -> list[float]:
    """The objectives of a completed trial, turned so that less is better."""
    return [row.metrics[objective.metric] * (-1 if objective.mode == "max" else 1) for objective in sweep.objectives]


def _ahead(costs: list[float], others: list[list[float]]) -> int:
    """In how many objectives of how many others these costs are beaten: the sum of the ranks, from 0."""
    return sum(theirs < ours for other in others for ours, theirs in zip(costs, other, strict=True))


def by_method(ranked: list[Row], sweep: Sweep) -> list[MethodRow]:
    """One row for each method of the sweep, ordered by the mean rank of its completed trials; then those with none."""
    costs = [_costs(row, sweep) for row in ranked if row.state == "completed"]
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


def checkpoint_folder(folder: SweepFolder, trial_id: str) -> Path:
    """The last checkpoint of a trial. Raises UserError where there is none."""
    found = sorted((folder.tune / f"trial_{trial_id}").glob("checkpoint_*/directions"))
    if not found:
        raise UserError(f"trial '{trial_id}' of sweep '{folder.name}' has no direction set in {folder.tune}")
    return found[-1].parent
