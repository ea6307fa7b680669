"""What happens in Tune, recorded in MLflow and told on the screen as it happens."""

import time
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from rich.console import Console

from orchestrator.outcome import ADVICE, TrialOutcome, classify, sentence
from orchestrator.searcher import MEMORY, SECONDS, STEP
from orchestrator.spec import Fixed, Sweep
from orchestrator.tracking import Tracking, fail_open


class Recorder(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Follows every trial of a sweep. Trial -> run id is looked up by tag, so that a resumed sweep finds its runs."""

    def __init__(self, sweep: Sweep, tracking: Tracking, experiment_id: str, parent: str, console: Console) -> None:
        self.tracking, self.experiment_id, self.parent, self.console = tracking, experiment_id, parent, console
        self.iterations, self.objective = sweep.train.iterations, sweep.objectives[0].metric
        self.searched = [name for name, values in sweep.space.items() if not isinstance(values, Fixed)]
        self.runs: dict[str, str] = {}  # Tune's trial id -> MLflow's run id
        self.pictures: dict[str, int] = {}  # Tune's trial id -> step of its last result
        self.open: set[str] = set()
        self.recorded: dict[str, int] = {}  # Tune's trial id -> last step that MLflow has: a resumed trial repeats some
        self.started = time.monotonic()

    def get_state(self) -> dict[str, Any] | None:
        return None  # MLflow's tags are the truth; a snapshot can lag behind them

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; what talks to the outside is made anew by the process that needs it."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._start(trial)
        searched = {name: trial.config[name] for name in self.searched if name in trial.config}
        self._say(trial, "starts", ", ".join(f"{name}={_short(value)}" for name, value in searched.items()))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.pictures[trial.trial_id] = result[STEP]
        self._result(trial, result)
        self._say(
            trial, f"iteration {result[STEP]}/{self.iterations}", f"{self.objective} {result[self.objective]:.3f}"
        )

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any) -> None:
        self._checkpoint(trial, checkpoint)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        whole = (trial.last_result or {}).get(STEP, 0) >= self.iterations
        outcome = TrialOutcome.COMPLETED if whole else TrialOutcome.PRUNED
        self._end(trial, "FINISHED", outcome, ADVICE[outcome])
        self._say(trial, outcome)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = _error_of(trial)
        outcome = classify(error)
        self._end(trial, "FAILED", outcome, f"{ADVICE[outcome]}: {sentence(error)}")
        self._say(trial, outcome, sentence(error))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Runs of trials that Tune stopped without telling (a time budget, Ctrl-C)."""
        for trial in trials:
            if trial.trial_id in self.open:
                self._end(trial, "KILLED", TrialOutcome.PREEMPTED, ADVICE[TrialOutcome.PREEMPTED])

    @fail_open
    def _start(self, trial: Any) -> None:
        run = self.tracking.start_child(self.experiment_id, self.parent, trial.trial_id, trial.config)
        self.runs[trial.trial_id] = run
        self.recorded[trial.trial_id] = self.tracking.last_step(run, self.objective)
        self.open.add(trial.trial_id)

    @fail_open
    def _result(self, trial: Any, result: dict[str, Any]) -> None:
        run, now = self.runs[trial.trial_id], int(time.time() * 1000)
        known = self.recorded[trial.trial_id]
        for point in result["curve"]:
            if point["step"] <= known:
                continue
            values = {f"training/{name}": value for name, value in point.items() if name != "step"}
            self.tracking.metrics(run, values, int(point["step"]), now)
        if memory := result.get(MEMORY):
            self.tracking.tags(run, {name: str(value) for name, value in memory.items()})
        if result[STEP] > known:
            self.tracking.metrics(run, {**result["metrics"], SECONDS: result[SECONDS]}, result[STEP], now)
        self.recorded[trial.trial_id] = max(known, result[STEP])

    @fail_open
    def _checkpoint(self, trial: Any, checkpoint: Any) -> None:
        run = self.runs[trial.trial_id]
        with checkpoint.as_directory() as folder:
            self.tracking.folder(run, Path(folder) / "directions", "directions")
            self.tracking.image(run, Path(folder) / "traversal.png", "traversal", self.pictures[trial.trial_id])

    @fail_open
    def _end(self, trial: Any, status: str, outcome: TrialOutcome, reason: str) -> None:
        self.open.discard(trial.trial_id)
        self.tracking.end(self.runs[trial.trial_id], status, {"outcome": outcome, "reason": reason})

    def _say(self, trial: Any, what: str, more: str = "") -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        self.console.print(
            f"{minutes:4}:{seconds:02}  trial {trial.trial_id}  {what:<18} {more}".rstrip(), highlight=False
        )


def _error_of(trial: Any) -> BaseException:
    """What a trial raised: from its own folder, for Tune copies it to the storage only later."""
    file = Path(trial.pickled_error_file or "")
    if file.is_file():
        error: BaseException = cloudpickle.loads(file.read_bytes())
        return error
    return RuntimeError("its process ended without a word")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
