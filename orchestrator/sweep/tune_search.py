"""Connect the ledger to Ray Tune: which trial runs next, and which trials fall behind.

Tune's own wrapper around Optuna is not used. It marks every trial COMPLETE with its last report, so that a trial
stopped after a tenth of its iterations competes with full ones. It leaves a row RUNNING for ever where a value is
missing, and it does not support trials that are resumed after their process has died.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.search.ledger import Ledger
from orchestrator.spec import TRAINED, Sweep
from orchestrator.trial.state import STEP


class LedgerSearch(Searcher):  # type: ignore[misc]  # Ray ships no types
    """The search algorithm that gives Tune the next trial of the ledger.

    paused: whether nothing new may start at this moment (a full disk); ended: whether nothing starts any more;
    capacity: how many trials may be under way, which changes as machines come and go.
    Tune's record of this search is not kept, since the ledger holds all state.
    """

    def __init__(
        self, ledger: Ledger, paused: Callable[[], bool], ended: Callable[[], bool], capacity: Callable[[], int]
    ) -> None:
        super().__init__()
        self.ledger, self.paused, self.ended, self.capacity = ledger, paused, ended, capacity

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it, but never reads the result

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial as a config, None where none may start now, or FINISHED where no more will start."""
        if self.ended():
            return str(Searcher.FINISHED)
        running = self.ledger.running()
        if self.paused() or len(running) >= self.capacity():
            return None
        assignment = self.ledger.next_attempt()
        if assignment is not None:
            return {
                "trial_id": assignment.trial_id,
                "parameters": assignment.parameters,
                "attempt": assignment.ends.attempt,
                "out_of_memory": assignment.ends.out_of_memory,
            }
        return None if running else str(Searcher.FINISHED)  # a running trial may need another attempt

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: RecordCallback closes the row, with the reason."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: see the class."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing: see the class."""


class FirstComeScheduler(FIFOScheduler):  # type: ignore[misc]  # Ray ships no types
    """The scheduler that runs trials in their order, in an idle process where there is one, else in a new one.

    Tune would give an idle process to a trial whose own process is starting, end the latter, and start another one for
    the next trial. Where trials are shorter than the start of a process, that process would never be ready in time.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Return no preference: Tune starts every trial that it was given."""


class LedgerAsha(FirstComeScheduler, ASHAScheduler):  # type: ignore[misc]  # Ray ships no types
    """ASHA among the trials that train, by the ledger's trial ids: a resumed trial counts as the same trial.

    Sets of methods that do not train are left out: they cannot be compared with sets of unfinished trials.
    """

    def __init__(self, sweep: Sweep, ledger: Ledger) -> None:
        assert sweep.scheduler is not None
        asha = sweep.scheduler.asha
        super().__init__(
            time_attr=STEP,  # absolute: Tune's own count starts again at 1 when a trial resumes
            metric=sweep.asha_metric,
            mode=sweep.asha_mode,
            max_t=sweep.train.iterations,
            grace_period=asha.grace,
            reduction_factor=asha.reduction,
        )
        [bracket] = self._brackets
        for trial_id, reports in ledger.history(*TRAINED).items():
            for step, value in reports:
                bracket.on_result(SimpleNamespace(trial_id=trial_id), step, self._metric_op * value)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial that trains."""
        if _trains(trial):
            super().on_trial_add(tune_controller, _with_ledger_id(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether a trial continues; one that does not train always does."""
        if not _trains(trial):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, _with_ledger_id(trial), result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Add the last report of a trial that trains."""
        if _trains(trial):
            super().on_trial_complete(tune_controller, _with_ledger_id(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Remove a trial that trains."""
        if _trains(trial):
            super().on_trial_remove(tune_controller, _with_ledger_id(trial))


def _trains(trial: Any) -> bool:
    return bool(trial.config["parameters"]["method"] in TRAINED)


def _with_ledger_id(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial.config["trial_id"])
