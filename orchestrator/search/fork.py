"""A changed sweep file as a new sweep that learns from the old one.

What Optuna has seen is carried over where a trial of the new sweep would come to the same; where it would not (another
model, other training), the old sweep's best configurations are tried first.
"""

import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import create_trial

from orchestrator.search.ledger import CARRIED
from orchestrator.search.ranking import ranked
from orchestrator.search.space import suggest, trials
from orchestrator.spec import Sweep
from orchestrator.store.folder import SweepFolder
from orchestrator.store.study import open_study

_TRIED_FIRST = 5


def forked(sweep: Sweep, root: Path) -> tuple[SweepFolder | None, Sweep]:
    """The folder of the sweep to learn from, and the new sweep, named `<name>-2` or by the next number.

    The same file gives the same new sweep again. Where its folder is new, or holds that very sweep, it is no fork.
    """
    new, source, number = sweep, None, 1
    folder = SweepFolder(root, sweep.name)
    while folder.exists() and folder.changed(new) is not None:
        source, number = folder, number + 1
        # In the same experiment, so that MLflow shows both sweeps side by side.
        tracking = sweep.tracking.model_copy(update={"experiment": sweep.experiment})
        new = sweep.model_copy(update={"name": f"{sweep.name}-{number}", "tracking": tracking})
        folder = SweepFolder(root, new.name)
    return source, new


def carry_over(source: SweepFolder, sweep: Sweep, study: optuna.Study, weights: str) -> None:
    """Put what the old sweep has found into the study of the new one, each trial once, where its space holds it."""
    before = source.sweep()
    there = {row.user_attrs[CARRIED] for row in study.get_trials(deepcopy=False) if CARRIED in row.user_attrs}
    best = [row for row in ranked(open_study(before.name, source.book), before) if row.state == "completed"]
    comparable = before.trial_key({}, source.read()["weights"]) == sweep.trial_key({}, weights)
    for row in best if comparable else best[: min(_TRIED_FIRST, trials(sweep))]:
        known = _in_space(row.parameters, sweep)
        values = [row.metrics.get(objective.metric) for objective in sweep.objectives]
        if known is None or row.trial_id in there:
            continue
        if not comparable:
            study.enqueue_trial(known.params, user_attrs={CARRIED: row.trial_id})
        elif all(value is not None for value in values):
            study.add_trial(
                create_trial(
                    params=known.params,
                    distributions=known.distributions,
                    values=[float(value) for value in values if value is not None],
                    user_attrs={CARRIED: row.trial_id},
                )
            )


def _in_space(parameters: dict[str, Any], sweep: Sweep) -> optuna.trial.FixedTrial | None:
    """The parameters as a trial of the new sweep; None where its space holds no such trial."""
    trial = optuna.trial.FixedTrial(parameters)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # FixedTrial's word for a value out of range
            suggest(trial, sweep.space)
    except (ValueError, UserWarning):
        return None
    return trial
