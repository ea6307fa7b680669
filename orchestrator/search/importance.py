"""Compute how much each parameter mattered for an objective, by Optuna's PED-ANOVA, where there are enough trials.

PED-ANOVA compares the best tenth of the completed trials with all of them: a parameter matters where its values differ.
Each objective gets a study of its own, with its direction of improvement. In a study with several objectives Optuna
takes the lowest values of each as the best.
"""

import math
import warnings
from dataclasses import dataclass, field

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.search.ledger import newest_rows
from orchestrator.spec import Objective, Sweep

_LEAST, _STEADY = 10, 50  # completed trials for one, and for five, in the best tenth; Optuna asks for five


@dataclass(frozen=True)
class Importance:
    """Shares that add up to 1, the largest first, with a caution; or the reason why there are none."""

    shares: dict[str, float] = field(default_factory=dict)
    note: str = ""


def importances(study: optuna.Study, sweep: Sweep) -> dict[str, Importance]:
    """Return the importance of the parameters for each objective."""
    completed = [row for row in newest_rows(study).values() if row.state == TrialState.COMPLETE]
    return {objective.metric: _importance(completed, objective, i) for i, objective in enumerate(sweep.objectives)}


def _importance(completed: list[FrozenTrial], objective: Objective, index: int) -> Importance:
    varied = _varied(completed)
    if len(completed) < _LEAST:
        return Importance(note=f"This takes {_LEAST} completed trials at least; there are {len(completed)}.")
    if not varied:
        return Importance(note="Every completed trial had the same parameters.")
    if len({row.values[index] for row in completed}) == 1:
        return Importance(note="Every completed trial came to the same value.")
    shares = _shares(_view(completed, objective, index), varied)
    if not shares:
        return Importance(note="The best trials have the same parameters as the others: none stands out.")
    best = math.ceil(len(completed) / 10)
    hint = f"A hint only: the best tenth of {len(completed)} completed trials is {best}. Five are enough to be steady."
    return Importance(shares, hint if len(completed) < _STEADY else "")


def _varied(completed: list[FrozenTrial]) -> list[str]:
    """Return the parameters that do not have the same value in every trial."""
    names = dict.fromkeys(name for row in completed for name in row.params)
    return [name for name in names if len({row.params.get(name) for row in completed}) > 1]


def _view(completed: list[FrozenTrial], objective: Objective, index: int) -> optuna.Study:
    """Return a study in memory with one objective."""
    kinds = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
    study = optuna.create_study(direction=kinds[objective.mode], sampler=optuna.samplers.RandomSampler(0))
    study.add_trials(
        create_trial(params=row.params, distributions=row.distributions, value=row.values[index]) for row in completed
    )
    return study


def _shares(study: optuna.Study, names: list[str]) -> dict[str, float]:
    """Return the shares; empty where no parameter matters, for which Optuna itself would give equal shares."""
    from optuna.importance import get_param_importances  # imports scikit-learn, which takes a while

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on experimental features, and on too few trials, which the note covers
        amounts = get_param_importances(study, params=names, normalize=False)
    total = sum(amounts.values())
    return {name: float(share / total) for name, share in amounts.items()} if total > 0 else {}
