"""Start a new sweep from a changed sweep file, learning from the old sweep.

The old trials are carried over where a trial of the new sweep would give the same result. Where it would not (another
model, other training, an earlier version's metrics), the old sweep's best configurations are tried first.
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
    """Return the folder of the sweep to learn from, and the new sweep, named `<name>-2` or by the next number.

    The same file gives the same new sweep again. No folder is returned where `<name>` is new, or holds this very sweep.
    """
    new, source, number = sweep, None, 1
    folder = SweepFolder(root, sweep.name)
    while folder.exists() and folder.changed(new) is not None:
        source, number = folder, number + 1
        # The experiment stays the same, so that MLflow shows both sweeps side by side.
        tracking = sweep.tracking.model_copy(update={"experiment": sweep.experiment})
        new = sweep.model_copy(update={"name": f"{sweep.name}-{number}", "tracking": tracking})
        folder = SweepFolder(root, new.name)
    return source, new


def carry_over(source: SweepFolder, sweep: Sweep, study: optuna.Study, weights: str) -> None:
    """Copy the old sweep's results into the new sweep's study, each trial once, where the new space holds it."""
    before = source.sweep()
    there = {row.user_attrs[CARRIED] for row in study.get_trials(deepcopy=False) if CARRIED in row.user_attrs}
    best = [row for row in ranked(open_study(before.name, source.study_place), before) if row.state == "completed"]
    same_key = before.trial_key({}, source.read()["weights"]) == sweep.trial_key({}, weights)
    comparable = same_key and not source.of_earlier_version
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
    """Return the parameters as a trial of the new sweep, or None where its space holds no such trial."""
    trial = optuna.trial.FixedTrial(parameters)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # FixedTrial only warns of a value out of range
            suggest(trial, sweep.space)
    except (ValueError, UserWarning):
        return None
    return trial
