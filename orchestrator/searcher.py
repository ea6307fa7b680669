"""Optuna behind Ray Tune, telling Optuna the truth about how each trial ended.

Tune's own OptunaSearch tells COMPLETE whatever a trial last reported, so that a trial stopped after a tenth of its
iterations competes with full ones, and leaves a row RUNNING for ever where a value is missing. Here a trial is

    COMPLETE   when it reached its last iteration and every objective is a finite number
    PRUNED     when it was stopped before
    FAIL       when it raised, or reported something that is not a number

Where the budget holds a trial for every configuration, nothing has to be searched: each is run once, in order.
"""

import functools
import math
import warnings
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from orchestrator.space import configurations, fits, suggest
from orchestrator.spec import Fixed, Sweep, Value

METRICS, STEP, SECONDS, TUNE_ID, MEMORY = "metrics", "global_step", "find_seconds", "tune_id", "memory"


def open_storage(path: str) -> optuna.storages.RDBStorage:
    """The study's SQLite file. The Tune driver is its only writer."""
    return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 30}})


def load_study(name: str, path: str) -> optuna.Study:
    """The study of a sweep, for reading."""
    return optuna.load_study(study_name=name, storage=open_storage(path))


class DirectionSearch(OptunaSearch):  # type: ignore[misc]  # Ray ships no types
    """The search over a sweep's space, for its objectives."""

    def __init__(self, sweep: Sweep, study_path: str, parallel: int) -> None:
        self.iterations = sweep.train.iterations
        self.listed = _searched_values(sweep) if fits(sweep) else []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=sweep.seed,
                multivariate=True,
                group=True,  # conditional parameters
                constant_liar=True,  # trials run side by side
                n_startup_trials=max(5, 2 * parallel),
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        super().__init__(
            space=functools.partial(suggest, space=sweep.space),
            metric=[objective.metric for objective in sweep.objectives],
            mode=[objective.mode for objective in sweep.objectives],
            sampler=sampler,
            study_name=sweep.name,
            storage=open_storage(study_path),
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if self.listed and trial_id not in self._ot_trials:
            self._enqueue_next()
        parameters: dict[str, Any] | None = super().suggest(trial_id)
        self._ot_trials[trial_id].set_user_attr(TUNE_ID, trial_id)
        return parameters

    def _enqueue_next(self) -> None:
        """Make the next trial the first configuration that none has yet; a restored search knows those it had."""
        waiting = self._ot_study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        taken = {frozenset(trial.params.items()) for trial in self._ot_trials.values()}
        left = (values for values in self.listed if frozenset(values.items()) not in taken)
        values = next(left, None)
        if values is not None and not waiting:  # one waits where a search was killed before it could ask for it
            self._ot_study.enqueue_trial(values)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id in self._completed_trials:
            return
        self._completed_trials.add(trial_id)
        trial = self._ot_trials[trial_id]
        state, values = self.verdict(result, error)
        if result:
            trial.set_user_attr(STEP, int(result.get(STEP, 0)))
            trial.set_user_attr(SECONDS, result.get(SECONDS))
            for group in (METRICS, MEMORY):
                start = f"{group}/"
                own = {name.removeprefix(start): v for name, v in result.items() if name.startswith(start)}
                trial.set_user_attr(group, own)
        self._ot_study.tell(trial, values, state=state)

    def verdict(self, result: dict[str, Any] | None, error: bool) -> tuple[TrialState, list[float] | None]:
        """How a trial ended, and the values that Optuna may learn from."""
        if error or not result:
            return TrialState.FAIL, None
        values = [result.get(metric) for metric in self.metric]
        finite = [float(value) for value in values if value is not None and math.isfinite(value)]
        if len(finite) != len(values):
            return TrialState.FAIL, None
        if int(result[STEP]) < self.iterations:
            return TrialState.PRUNED, None
        return TrialState.COMPLETE, finite


def _searched_values(sweep: Sweep) -> list[dict[str, Value]]:
    """Every configuration without its constants, as a study knows it."""
    searched = {name for name, values in sweep.space.items() if not isinstance(values, Fixed)}
    return [
        {name: value for name, value in configuration.items() if name in searched}
        for configuration in configurations(sweep.space)
    ]
