"""What Ray Tune asks for a trial to run, and which trials fall behind: the ledger's side towards Tune.

Tune's own wrapper around Optuna is not used: it tells COMPLETE whatever a trial last reported, so that a trial stopped
after a tenth of its iterations competes with full ones, leaves a row RUNNING for ever where a value is missing, and
knows nothing of a trial that goes on after its process has died.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.search.ledger import Ledger
from orchestrator.spec import Sweep
from orchestrator.trial.state import STEP


class LedgerSearch(Searcher):  # type: ignore[misc]  # Ray ships no types
    """Hands out what the ledger says comes next.

    held: whether nothing new may start at this moment (a full disk); over: whether nothing shall start any more;
    room: how many trials may be under way, which changes as machines come and go.
    Tune's record of this search is not kept: the ledger is all there is.
    """

    def __init__(
        self, ledger: Ledger, held: Callable[[], bool], over: Callable[[], bool], room: Callable[[], int]
    ) -> None:
        super().__init__()
        self.ledger, self.held, self.over, self.room = ledger, held, over, room

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what it is given, and nobody reads that

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.over():
            return str(Searcher.FINISHED)
        running = self.ledger.running()
        if self.held() or len(running) >= self.room():
            return None
        given = self.ledger.next()
        if given is not None:
            return {
                "trial_id": given.trial_id,
                "parameters": given.parameters,
                "attempt": given.ends.attempt,
                "out_of_memory": given.ends.out_of_memory,
            }
        return None if running else str(Searcher.FINISHED)  # one that runs may have to be run again

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the recorder closes the row, with what it knows of the reason."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see the class."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: see the class."""


class InOrder(FIFOScheduler):  # type: ignore[misc]
    """Whatever is asked for runs, in an idle process where there is one, else in one of its own.

    Tune would give an idle process to a trial whose own is on its way, end that, and start another for the next trial:
    where trials are shorter than the start of a process, that one is never there.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """No preference: Tune starts every trial that it was given."""


class LedgerAsha(InOrder, ASHAScheduler):  # type: ignore[misc]
    """ASHA among the trials that train, by their own ids: a trial that goes on is the one that it was.

    A set found at once says nothing about those still on their way.
    """

    def __init__(self, sweep: Sweep, ledger: Ledger) -> None:
        assert sweep.scheduler is not None
        asha = sweep.scheduler.asha
        super().__init__(
            time_attr=STEP,  # absolute: a resumed trial's own count would start again at 1
            metric=sweep.asha_metric,
            mode=sweep.asha_mode,
            max_t=sweep.train.iterations,
            grace_period=asha.grace,
            reduction_factor=asha.reduction,
        )
        [bracket] = self._brackets
        for trial_id, reports in ledger.history("learned").items():
            for step, value in reports:
                bracket.on_result(SimpleNamespace(trial_id=trial_id), step, self._metric_op * value)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if _trains(trial):
            super().on_trial_add(tune_controller, _known(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not _trains(trial):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, _known(trial), result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if _trains(trial):
            super().on_trial_complete(tune_controller, _known(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        if _trains(trial):
            super().on_trial_remove(tune_controller, _known(trial))


def _trains(trial: Any) -> bool:
    return bool(trial.config["parameters"]["method"] == "learned")


def _known(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial.config["trial_id"])
