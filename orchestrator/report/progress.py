"""Compute how far a sweep has come, for the process that drives it and for any other process.

The study holds the reports of each trial, in steps of `evaluate.every`. `Mark`s record their times: the driver notes
when they come, and elsewhere the time of a checkpoint on disk stands for that of its report.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

from core.intervals import interval_of
from orchestrator.search.ledger import METRICS, REPORTS, state_of
from orchestrator.search.ranking import Row, ranked_rows
from orchestrator.search.space import trials
from orchestrator.spec import Sweep
from orchestrator.spec.tables import Mode
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driver
from orchestrator.trial.state import STEP
from orchestrator.workers.process_record import Doing

Mark = tuple[int, float]  # an iteration, and when a trial reached it, in seconds since the epoch


@dataclass(frozen=True)
class TrialProgress:
    """The progress of one trial. value, best: of the metric that compares trials while they run.

    interval: 95 %, of the value; None while the trial runs, for its reports to the search are values alone.
    """

    trial_id: str
    state: str
    over: bool
    iteration: int
    value: float | None
    best: float | None
    began: float | None  # of its newest attempt
    ended: float | None
    ends: float | None = None  # the predicted end, at its own pace; None where that is not known yet
    interval: tuple[float, float] | None = None
    doing: str | None = None  # of a method that does not train, such as "samples 64/512"
    place: int = 0  # in the report's order, from 0

    def left(self, now: float) -> float | None:
        """Return the seconds to its end; None where it is over or not predicted."""
        return None if self.over or self.ends is None else max(0.0, self.ends - now)


@dataclass(frozen=True)
class SweepProgress:
    """The progress of a sweep at one moment."""

    name: str
    metric: str
    mode: Mode
    iterations: int
    total: int  # trials in all
    slots: int  # trials at a time
    spent: float  # seconds that the sweep was running until `asof`, over all its starts
    asof: float
    driven: bool  # whether a process runs it
    trials: tuple[TrialProgress, ...]  # in the order in which they began

    def of(self, over: bool) -> list[TrialProgress]:
        """Return the trials that are over, or those that are not."""
        return [trial for trial in self.trials if trial.over == over]

    def ranked(self) -> list[TrialProgress]:
        """Return the trials that are over, in the report's order (orchestrator.search.ranking)."""
        return sorted(self.of(over=True), key=lambda trial: trial.place)

    def best(self) -> TrialProgress | None:
        """Return the trial with the best value so far; None where none has a value."""
        measured = [trial for trial in self.trials if trial.best is not None]
        return better(self.mode)(measured, key=lambda trial: trial.best) if measured else None

    def elapsed(self, now: float) -> float:
        """Return the seconds that the sweep has been running until `now`, over all its starts."""
        return self.spent + (now - self.asof if self.driven else 0.0)

    def left(self, now: float) -> float | None:
        """Return the seconds to the end of the last trial; None where they cannot be predicted.

        The sum of what trials under way have left, and of the mean time of finished trials for each trial that has not
        begun, is divided by the trials at a time; the result is at least what the longest has left. Before any trial is
        over, the mean is over the predicted times of those under way. It is over all methods.
        """
        active = self.of(over=False)
        took = [each.ended - each.began for each in self.trials if each.over and each.began and each.ended]
        took = took or [each.ends - each.began for each in active if each.ends and each.began]
        if not self.driven or not took:
            return None
        usual = mean(took)
        lefts = [self._left_of(each, usual, now) for each in active]
        work = sum(lefts) + usual * max(0, self.total - len(self.trials))
        return max([*lefts, work / max(1, self.slots)])

    def _left_of(self, trial: TrialProgress, usual: float, now: float) -> float:
        known = trial.left(now)
        since = now - trial.began if trial.began is not None else 0.0
        return max(0.0, usual - since) if known is None else known

    def document(self, now: float) -> dict[str, Any]:
        """Return the progress as plain JSON; times in seconds, null for what is not known."""
        best = self.best()
        return {
            "metric": self.metric,
            "better": self.mode,
            "iterations": self.iterations,
            "trials_total": self.total,
            "trials_done": len(self.of(over=True)),
            "trials_active": len(self.of(over=False)),
            "best": best and best.best,
            "best_trial": best and best.trial_id,
            "elapsed_seconds": round(self.elapsed(now), 1),
            "left_seconds": _rounded(self.left(now)),
            "trials": [_trial_document(trial, now) for trial in self.trials],
        }


def progress_of(
    sweep: Sweep,
    rows: Mapping[str, Any],
    marks: Mapping[str, Sequence[Mark]],
    slots: int,
    spent: float,
    driven: bool = True,
) -> SweepProgress:
    """Return how far a sweep has come.

    rows: the newest row of each trial (orchestrator.search.ledger.newest_rows); marks: of each trial, (iteration, time)
    since it was started; slots: trials at a time; spent: seconds so far; driven: whether a process drives the sweep.
    """
    metric, mode = sweep.checkpoint_metric
    places = {row.trial_id: place for place, row in enumerate(ranked_rows(rows, sweep, driven))}
    trials_now = tuple(
        replace(_trial(sweep, trial_id, row, marks.get(trial_id, ()), driven), place=places[trial_id])
        for trial_id, row in rows.items()
    )
    whole = sweep.train.iterations
    return SweepProgress(
        name=sweep.name,
        metric=metric,
        mode=mode,
        iterations=whole,
        total=trials(sweep),
        slots=slots,
        spent=spent,
        asof=time.time(),
        driven=driven,
        trials=trials_now,
    )


def with_doing(progress: SweepProgress, doing: Mapping[str, Doing]) -> SweepProgress:
    """Return the progress with what trials are doing whose method does not train; doing: by trial id."""
    now = tuple(
        replace(trial, doing=str(doing[trial.trial_id]), ends=doing[trial.trial_id].ends())
        if trial.trial_id in doing and not trial.over
        else trial
        for trial in progress.trials
    )
    return replace(progress, trials=now)


def sweep_state(
    folder: SweepFolder, rows: Sequence[Row], total: int, *, done: bool = False, ended: bool = False
) -> str:
    """Return "complete", "running (DRIVER)", "over: no trial was completed" or "interrupted, the same command goes on".

    total: trials in all; done: True where the caller drives the sweep and has its result; ended: True where the caller
    drives it and its last trial is over.
    """
    if done or folder.result.is_file():
        return "complete"
    holder = None if ended else driver(folder.lock)
    if holder:
        return f"running ({holder})"
    over = ended or len(rows) >= total
    if over and all(row.over and row.state != "completed" for row in rows):
        return "over: no trial was completed"
    return "interrupted, the same command goes on"


def ends_at(marks: Sequence[Mark], iterations: int) -> float | None:
    """Return when a trial will reach its last iteration at the pace of its marks; None where they show no pace.

    The first interval includes the start of the process and the samples drawn before the first iteration. It is used
    only while there is no other.
    """
    known = [mark for n, mark in enumerate(marks) if n == 0 or mark[0] > marks[n - 1][0]]
    if len(known) < 2:
        return None
    first, last = known[0 if len(known) == 2 else 1], known[-1]
    return last[1] + (iterations - last[0]) * (last[1] - first[1]) / (last[0] - first[0])


def better(mode: Mode) -> Any:
    """Return max or min."""
    return max if mode == "max" else min


def _trial(sweep: Sweep, trial_id: str, row: Any, marks: Sequence[Mark], driven: bool) -> TrialProgress:
    attributes, over = row.user_attrs, bool(row.state.is_finished())
    metric, mode = sweep.checkpoint_metric
    reports = sorted((int(step), report["value"]) for step, report in attributes.get(REPORTS, {}).items())
    values = [value for _, value in reports if value is not None]
    measured = attributes.get(METRICS, {})
    last = measured.get(metric)
    values += [] if last is None else [last]
    reached = max([int(attributes.get(STEP, 0)), *(step for step, _ in reports), *(step for step, _ in marks)])
    return TrialProgress(
        trial_id,
        state_of(row, driven).replace("_", " "),
        over,
        reached,
        values[-1] if values else None,
        better(mode)(values) if values else None,
        row.datetime_start.timestamp() if row.datetime_start else None,
        row.datetime_complete.timestamp() if row.datetime_complete else None,
        None if over or not driven else ends_at(marks, sweep.train.iterations),
        None if last is None else interval_of(measured, metric),
    )


def _trial_document(trial: TrialProgress, now: float) -> dict[str, Any]:
    plain = asdict(trial)
    del plain["ends"], plain["place"]
    began, ended = plain.pop("began"), plain.pop("ended")
    taken = None if began is None else (ended or now) - began
    return {**plain, "elapsed_seconds": _rounded(taken), "left_seconds": _rounded(trial.left(now))}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
