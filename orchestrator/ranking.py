"""The trials of a sweep, best first: read from its study, whoever asks.

With several objectives no order is the right one; the Pareto front says which trials nothing beats. To hand out one set
all the same, completed trials are ordered by the mean of their ranks over the objectives, which needs no exchange rate
between them; the first objective breaks ties.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from core.errors import UserError
from orchestrator.searcher import METRICS, STEP, TUNE_ID, load_study
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
        )
        for trial in trials
    ]
    completed = [row for row in found if row.state == "completed"]
    others = sorted((row for row in found if row.state != "completed"), key=lambda row: (row.state, -row.iteration))
    return [*_by_mean_rank(completed, sweep), *others]


def _by_mean_rank(completed: list[Row], sweep: Sweep) -> list[Row]:
    costs = [[row.metrics[o.metric] * (-1 if o.mode == "max" else 1) for o in sweep.objectives] for row in completed]

    def key(index: int) -> tuple[float, list[float]]:
        better = sum(other[o] < costs[index][o] for other in costs for o in range(len(sweep.objectives)))
        return better, costs[index]

    return [completed[index] for index in sorted(range(len(completed)), key=key)]


def checkpoint_folder(folder: SweepFolder, trial_id: str) -> Path:
    """The last checkpoint of a trial. Raises UserError where there is none."""
    found = sorted((folder.tune / f"trial_{trial_id}").glob("checkpoint_*/directions"))
    if not found:
        raise UserError(f"trial '{trial_id}' of sweep '{folder.name}' has no direction set in {folder.tune}")
    return found[-1].parent
