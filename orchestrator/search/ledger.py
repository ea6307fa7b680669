"""Keep the record of a sweep: its trials, the state of each, and which attempt comes next.

The record is Optuna's study, which alone decides: Ray Tune only runs trials, and MLflow only receives copies. The id of
a trial follows from its configuration, so that none is run twice. A row of the study is one attempt at a trial:

    WAITING    the attempt will go on with a trial that was interrupted
    RUNNING    the attempt is being made, or was when its sweep was killed
    COMPLETE   the trial reached its last iteration, and every objective is a finite number
    PRUNED     the trial was stopped early: others were ahead, or the time was up
    FAIL       the attempt ended otherwise; the trial did too, unless another attempt follows

Optuna's proposals depend on the seed, on the number of trials and on their results, not on how often the sweep was
interrupted. Where trials run side by side, proposals depend on the order in which these end, too.
"""

import hashlib
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from orchestrator.search.retries import Ends
from orchestrator.search.space import configurations, fits, searched, suggest, trials
from orchestrator.spec import Sweep, Value
from orchestrator.store.database import StudyPlace
from orchestrator.store.study import Tell, open_study
from orchestrator.trial.outcome import ADVICE, TrialOutcome
from orchestrator.trial.state import STEP, Report

# Attributes of a row with values of the trial's last report, under the report's own names.
METRICS, SECONDS, MEMORY = "metrics", "find_seconds", "memory"
TRIAL, ENDS, OUTCOME, REASON, REPORTS, SAME_AS = "trial_id", "ends", "outcome", "reason", "reports", "same_as"
CARRIED = "carried_from"  # the trial of another sweep that a row comes from (orchestrator.search.fork)

_SPENT, _COUNT_S = "seconds", 60.0
_ID_LENGTH = 10
_ASKED, _DRAWN = 10, 40  # times that Optuna, and then random choice, may propose an existing trial


_STATES = {TrialOutcome.COMPLETED: TrialState.COMPLETE, TrialOutcome.PRUNED: TrialState.PRUNED}
_ENDED = {state: outcome for outcome, state in _STATES.items()}

_NOTHING = Report(0, 0.0, {})  # the report of an attempt that ended before its first report


@dataclass(frozen=True)
class Assignment:
    """An attempt at a trial that has to be run, with how its earlier attempts ended."""

    trial_id: str
    parameters: dict[str, Value]
    ends: Ends


class Ledger:
    """The record of one sweep, open for writing by the one process that holds the sweep's lock.

    where: the place of its study; weights: the digest of the model's weights; parallel: how many trials run at a time;
    tell: called with a message when the study has to be waited for.
    """

    def __init__(
        self, sweep: Sweep, where: StudyPlace, weights: str, parallel: int = 1, tell: Tell | None = None
    ) -> None:
        self.sweep, self.weights, self.parallel = sweep, weights, parallel
        self.listed = _searched_values(sweep) if fits(sweep) else []
        self.study = open_study(sweep.name, where, tell)
        self._counted = time.monotonic()
        self._begun: dict[str, FrozenTrial] | None = None  # cache of `begun`; None after a change
        self.exhausted = False  # only existing trials are proposed any more

    def next_attempt(self) -> Assignment | None:
        """Return the next attempt, now RUNNING, or None where every trial has ended or is running."""
        count = len(self.begun())
        self.study.sampler = self._sampler(count, 0)
        while self._rows(TrialState.WAITING):
            if waiting := self._take():
                return waiting
        if count >= trials(self.sweep):
            return None
        if self.listed:
            self._enqueue_next()
            return self._take()
        for proposals in range(_ASKED + _DRAWN):
            self.study.sampler = self._sampler(count, proposals)
            assignment = self._take()
            if assignment is not None:
                return assignment
        self.exhausted = True
        return None

    def take_waiting(self) -> None:
        """Make every waiting attempt a running one, so that it can be closed at the end of the sweep."""
        while self._rows(TrialState.WAITING):
            self._take()

    def has_work(self) -> bool:
        """Return whether a trial has to be run or continued."""
        if self.running() or self._rows(TrialState.WAITING):
            return True
        return not self.exhausted and len(self.begun()) < trials(self.sweep)

    def progress(self) -> int:
        """Return a number that grows with every report and every end of a trial."""
        rows = self.begun().values()
        return sum(len(row.user_attrs.get(REPORTS, {})) + row.state.is_finished() for row in rows)

    def spent(self) -> float:
        """Return the seconds that the sweep has been under way, over all its starts, and restart the count from now."""
        self._counted = time.monotonic()
        return spent_s(self.study)

    def count_time(self, at_least: float = _COUNT_S) -> None:
        """Store how long the sweep has been under way, once `at_least` seconds have passed."""
        passed = time.monotonic() - self._counted
        if passed >= at_least:
            self.study.set_user_attr(_SPENT, self.spent() + passed)

    def _take(self) -> Assignment | None:
        """Return the attempt that the study proposes; None, with a row that says so, where the trial exists already."""
        with self._changing():
            return self._proposed()

    def _proposed(self) -> Assignment | None:
        trial = self.study.ask()
        parameters = suggest(trial, self.sweep.space)
        ends = Ends(**trial.user_attrs.get(ENDS, {}))
        if TRIAL not in trial.user_attrs:
            trial_id = self.sweep.trial_key(parameters, self.weights)[:_ID_LENGTH]
            if trial_id in self.begun():
                trial.set_user_attr(SAME_AS, trial_id)
                self.study.tell(trial, state=TrialState.FAIL)
                return None
            trial.set_user_attr(TRIAL, trial_id)
        return Assignment(trial.user_attrs[TRIAL], parameters, ends)

    def _sampler(self, count: int, proposals: int) -> optuna.samplers.BaseSampler:
        text = f"{self.sweep.seed}/{count}/{proposals}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
        if proposals >= _ASKED:
            return optuna.samplers.RandomSampler(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=seed,
                multivariate=True,
                group=True,  # conditional parameters
                constant_liar=True,  # trials run side by side
                n_startup_trials=max(5, 2 * self.parallel),
            )

    def _enqueue_next(self) -> None:
        """Make the first listed configuration without a trial the next proposal."""
        taken = {frozenset(parameters_of(row).items()) for row in self.begun().values()}
        values = next(values for values in self.listed if frozenset(values.items()) not in taken)
        self.study.enqueue_trial(values)

    def reported(self, trial_id: str, step: int, value: float | None, stopped: bool) -> None:
        """Store the value that a running trial was compared by at a step, and whether it was stopped for that value."""
        report = {"value": value, "stopped": stopped}
        self._note(self.running()[trial_id], {REPORTS: {**self.reports(trial_id), str(step): report}})

    def reports(self, trial_id: str) -> dict[str, Any]:
        """Return what `reported` stored for a running trial: step -> {value, stopped}."""
        return dict(self.running()[trial_id].user_attrs.get(REPORTS, {}))

    def history(self, *methods: str) -> dict[str, list[tuple[int, float]]]:
        """Return the reported (step, value) pairs of every trial of these methods, in the order of their steps."""
        return {
            trial_id: [
                (int(step), report["value"])
                for step, report in sorted(row.user_attrs.get(REPORTS, {}).items(), key=lambda item: int(item[0]))
                if report["value"] is not None
            ]
            for trial_id, row in self.begun().items()
            if parameters_of(row).get("method", self.sweep.methods[0]) in methods
        }

    def ends_for_retry(self, trial_id: str, outcome: TrialOutcome) -> Ends | None:
        """Return the counts of ends for the next attempt at a running trial; None where no attempt may follow."""
        ends = Ends(**self.running()[trial_id].user_attrs.get(ENDS, {}))
        return ends.after(outcome, self.sweep.recovery)

    def end(
        self,
        trial_id: str,
        outcome: TrialOutcome,
        reason: str,
        report: Report | None = None,
        again: Ends | None = None,
    ) -> None:
        """Close the row of a running trial. again: the counts for its next attempt, which then waits."""
        row, last = self.running()[trial_id], report or _NOTHING
        values = {OUTCOME: str(outcome), REASON: reason, STEP: last.global_step, METRICS: last.metrics}
        self._note(row, values | {MEMORY: last.memory, SECONDS: last.find_seconds if report else None})
        with self._changing():
            if again is not None:
                # Written before its predecessor is closed: if a kill leaves both, `close_strays` closes the older.
                kept = {TRIAL: trial_id, ENDS: asdict(again), REPORTS: row.user_attrs.get(REPORTS, {})}
                self.study.enqueue_trial(parameters_of(row), user_attrs=kept)
            self.study.tell(row.number, self._values(outcome, last), state=_STATES.get(outcome, TrialState.FAIL))

    def judge(self, report: Report) -> tuple[TrialOutcome, str]:
        """Return the outcome and the reason of a trial that ended by itself or was stopped, from its last report."""
        for objective in self.sweep.objectives:
            value = report.metrics.get(objective.metric)
            if value is None or not math.isfinite(value):
                return TrialOutcome.DIVERGED, f"{objective.metric} is {value} at iteration {report.global_step}"
        at_last_iteration = report.global_step >= self.sweep.train.iterations
        outcome = TrialOutcome.COMPLETED if at_last_iteration else TrialOutcome.PRUNED
        return outcome, ADVICE[outcome]

    def _values(self, outcome: TrialOutcome, report: Report) -> list[float] | None:
        """Return the values that Optuna may learn from: only those of completed trials."""
        if outcome != TrialOutcome.COMPLETED:
            return None
        return [float(report.metrics[objective.metric]) for objective in self.sweep.objectives]

    def close_strays(self) -> None:
        """Close rows of trials that were killed before they had an id, and of attempts that another one follows."""
        known = {row.number for row in self.running().values()}
        for row in self._rows(TrialState.RUNNING):
            if row.number not in known:
                if TRIAL not in row.user_attrs and CARRIED in row.user_attrs:  # only this proposes it again
                    self.study.enqueue_trial(row.system_attrs["fixed_params"], user_attrs=row.user_attrs)
                with self._changing():
                    self.study.tell(row.number, state=TrialState.FAIL)

    def running(self) -> dict[str, FrozenTrial]:
        """Return the rows of attempts being made, or being made when the sweep was killed, by trial id."""
        return {trial_id: row for trial_id, row in self.begun().items() if row.state == TrialState.RUNNING}

    def begun(self) -> dict[str, FrozenTrial]:
        """Return every trial's newest row, by trial id."""
        if self._begun is None:
            self._begun = newest_rows(self.study)
        return self._begun

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Drop the cached rows after a change. They need reading again only then, as no other process writes them."""
        try:
            yield
        finally:
            self._begun = None

    def _note(self, row: FrozenTrial, values: Mapping[str, Any]) -> None:
        with self._changing():
            for name, value in values.items():
                self.study._storage.set_trial_user_attr(row._trial_id, name, value)

    def _rows(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)


def state_of(row: FrozenTrial, driven: bool) -> str:
    """Return the state of a trial from its newest row: its outcome, or "running", "waiting" or "interrupted".

    driven: whether a process drives the sweep.
    """
    if row.state.is_finished():
        return str(row.user_attrs.get(OUTCOME, _ENDED.get(row.state, TrialOutcome.FAILED)))
    if not driven:
        return "interrupted"
    return "running" if row.state == TrialState.RUNNING else "waiting"


def parameters_of(row: FrozenTrial) -> dict[str, Any]:
    """Return a row's parameters. For an attempt that waited they are all known, even if it was killed at once."""
    parameters: dict[str, Any] = row.system_attrs.get("fixed_params", row.params)
    return parameters


def spent_s(study: optuna.Study) -> float:
    """Return the seconds that a sweep has been under way, over all its starts, as last stored."""
    return float(study.user_attrs.get(_SPENT, 0.0))


def newest_rows(study: optuna.Study) -> dict[str, FrozenTrial]:
    """Return the newest attempt at each trial, by the trial's id, in the order in which the trials began."""
    return {row.user_attrs[TRIAL]: row for row in study.get_trials(deepcopy=False) if TRIAL in row.user_attrs}


def _searched_values(sweep: Sweep) -> list[dict[str, Value]]:
    """Return every configuration without its constants, as a study stores it."""
    names = searched(sweep.space)
    return [
        {name: value for name, value in configuration.items() if name in names}
        for configuration in configurations(sweep.space)
    ]
