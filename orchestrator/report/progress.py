"""How far a sweep has come, as a value: what is shown while it runs, by the process that drives it and by any other.

The study holds the reports of each trial, in steps of `evaluate.every`. `Mark`s say when they came: the driver has seen
them come, and a checkpoint on disk is as old as its report.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from orchestrator.search.ledger import METRICS, REPORTS, state_of
from orchestrator.search.space import trials
from orchestrator.spec import Sweep
from orchestrator.spec.tables import Mode
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driver
from orchestrator.trial.state import STEP

Mark = tuple[int, float]  # an iteration, and when a trial had come to it, in seconds since the epoch


@dataclass(frozen=True)
class TrialProgress:
    """One trial; `value` and `best` are of the one metric that trials are compared by while they run."""

    trial_id: str
    state: str
    over: bool
    iteration: int
    value: float | None
    best: float | None
    began: float | None  # its newest attempt
    ended: float | None
    ends: float | None = None  # when it will, at its own pace; None where that is not known yet

    def left(self, now: float) -> float | None:
        """Seconds to its end."""
        return None if self.over or self.ends is None else max(0.0, self.ends - now)


@dataclass(frozen=True)
class SweepProgress:
    """A sweep at one moment."""

    name: str
    metric: str
    mode: Mode
    iterations: int
    total: int  # trials that it will have
    slots: int  # trials that run at a time
    spent: float  # seconds under way at `asof`, over all its starts
    asof: float
    driven: bool  # a process runs it
    trials: tuple[TrialProgress, ...]  # in the order in which they began

    def of(self, over: bool) -> list[TrialProgress]:
        """Trials that are over, or those that are not."""
        return [trial for trial in self.trials if trial.over == over]

    def ranked(self) -> list[TrialProgress]:
        """Trials that are over, the best first, then those without a value."""
        sign = -1 if self.mode == "max" else 1
        return sorted(self.of(over=True), key=lambda each: math.inf if each.best is None else sign * each.best)

    def best(self) -> TrialProgress | None:
        """The trial that has come to the best value so far."""
        found = [trial for trial in self.trials if trial.best is not None]
        return better(self.mode)(found, key=lambda trial: trial.best) if found else None

    def elapsed(self, now: float) -> float:
        return self.spent + (now - self.asof if self.driven else 0.0)

    def left(self, now: float) -> float | None:
        """Seconds to the end of the last trial; None where nothing tells.

        What is left of the trials under way, and for each one that has not begun the mean time of those that ran to
        their end or were stopped early, all of it divided by how many run at a time; at least what is left of the
        longest. The mean is over methods, too.
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
        """As plain JSON; times in seconds, what is not known is null."""
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

    rows: the newest of each trial (orchestrator.search.ledger.newest_rows); marks: of each trial, (iteration, time)
    since it was started; slots: trials at a time; spent: seconds so far; driven: whether a process drives the sweep.
    """
    metric, mode = sweep.compared
    found = tuple(_trial(sweep, trial_id, row, marks.get(trial_id, ()), driven) for trial_id, row in rows.items())
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
        trials=found,
    )


def sweep_state(folder: SweepFolder, done: bool = False) -> str:
    """Return "complete", "running (DRIVER)" or "interrupted, the same command goes on".

    done: the process that drives the sweep asks, and has its result.
    """
    holder = None if done else driver(folder.lock)
    if holder is not None:
        return f"running ({holder})"
    return "complete" if done or folder.result.is_file() else "interrupted, the same command goes on"


def ends_at(marks: Sequence[Mark], iterations: int) -> float | None:
    """When a trial will have come to its last iteration at the pace of its marks; None where they tell no pace.

    The first stretch holds the start of the process and the samples that are drawn before the first iteration: it
    counts only as long as there is no other.
    """
    known = [mark for n, mark in enumerate(marks) if n == 0 or mark[0] > marks[n - 1][0]]
    if len(known) < 2:
        return None
    first, last = known[0 if len(known) == 2 else 1], known[-1]
    return last[1] + (iterations - last[0]) * (last[1] - first[1]) / (last[0] - first[0])


def better(mode: Mode) -> Any:
    """max or min."""
    return max if mode == "max" else min


def _trial(sweep: Sweep, trial_id: str, row: Any, marks: Sequence[Mark], driven: bool) -> TrialProgress:
    told, over = row.user_attrs, bool(row.state.is_finished())
    metric, mode = sweep.compared
    reports = sorted((int(step), report["value"]) for step, report in told.get(REPORTS, {}).items())
    values = [value for _, value in reports if value is not None]
    last = told.get(METRICS, {}).get(metric)
    values += [] if last is None else [last]
    reached = max([int(told.get(STEP, 0)), *(step for step, _ in reports), *(step for step, _ in marks)])
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
    )


def _trial_document(trial: TrialProgress, now: float) -> dict[str, Any]:
    plain = asdict(trial)
    del plain["ends"]
    began, ended = plain.pop("began"), plain.pop("ended")
    taken = None if began is None else (ended or now) - began
    return {**plain, "elapsed_seconds": _rounded(taken), "left_seconds": _rounded(trial.left(now))}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
