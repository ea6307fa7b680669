"""A trial that several processes share, on one machine or on several: Ray Train runs them, all or none.

Ray Tune starts one `GangDriver` for each attempt, on the head of the cluster, where it takes next to nothing, so that
no driver ever holds what workers wait for. It passes on the reports of the first worker. A process or a machine that is
lost ends the attempt; the next one, which the ledger counts, goes on from the trial's checkpoint, on as many processes
as before and not necessarily the same machines.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import train, tune
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue

from orchestrator.outcome import MachineLost, TrialOutcome, classify
from orchestrator.placement import HEAD, of_worker
from orchestrator.process import lost_machine, take_back, write_end
from orchestrator.spec import Sweep
from orchestrator.store import SweepFolder
from orchestrator.worker import Post, as_result, at_home

_ASK_S = 0.5
_FAREWELL_S, _END_S = 60.0, 90.0  # for processes that have done their work; that are told to end at once
_COLLECTIVE_S = 24 * 3600  # a worker that hangs is ended by its own watchdog
# Of the errors of several workers the first of these is the cause; the others end because one has.
_TELLING = (TrialOutcome.OUT_OF_MEMORY, TrialOutcome.DIVERGED, TrialOutcome.PREEMPTED, TrialOutcome.FAILED)


class GangDriver(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """One attempt at a trial. Each `step` waits for the next report."""

    def setup(self, config: dict[str, Any], sweep: Sweep, folder: SweepFolder, home: Path) -> None:
        self.sweep, self.trial = sweep, folder.trial(config["trial_id"])
        self.trial.path.mkdir(parents=True, exist_ok=True)
        # Outside of what Tune holds for this process, which has no room for another.
        options = {"num_cpus": 0, "resources": HEAD, "scheduling_strategy": "DEFAULT"}
        self.reports = Queue(actor_options=options)
        self.error: Exception | None = None
        self.complete = False  # the last report has come
        trainer = TorchTrainer(
            _share,
            train_loop_config={"config": dict(config), "sweep": sweep, "folder": folder, "home": home},
            torch_config=TorchConfig(timeout_s=_COLLECTIVE_S),
            scaling_config=_scaling(sweep),
            run_config=RunConfig(
                name=config["trial_id"],
                storage_path=str(folder.tune / "gangs"),
                callbacks=[_PassOn(self.reports)],
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )
        self.thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self.thread.start()

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except Exception as error:
            self.error = error

    def step(self) -> dict[str, Any]:
        while True:
            running = self.thread.is_alive()  # asked before the queue, which then holds all that came
            try:
                result = as_result(self.reports.get(timeout=_ASK_S), self.sweep)
                self.complete = result["done"]
                return result
            except Empty:
                if not running:
                    break
        error = _cause(self.error or RuntimeError("its processes ended without a report"))
        if not isinstance(error, RayActorError):  # one that was killed gives no reason
            write_end(self.trial.path, self.config["attempt"], error)
        raise error

    def cleanup(self) -> None:
        """See all processes gone, for Ray Train gives back what they hold only where it ends by itself."""
        self.thread.join(_FAREWELL_S if self.complete else 0)
        if self.thread.is_alive():
            take_back(self.trial.path, self.config["attempt"], self.sweep.resources.workers)
            self.thread.join(_END_S)
        self.reports.shutdown(force=True)


def _scaling(sweep: Sweep) -> ScalingConfig:
    each = of_worker(sweep)
    return ScalingConfig(
        num_workers=sweep.resources.workers, use_gpu="GPU" in each, resources_per_worker=each, placement_strategy="PACK"
    )


class _PassOn(UserCallback):  # type: ignore[misc]
    """From the first worker's reports to the driver's queue."""

    def __init__(self, reports: Queue) -> None:
        self.reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.reports.put(metrics[0])


def _share(given: Mapping[str, Any]) -> None:
    """One process's share of a trial."""
    from core.cache import SampleCache
    from orchestrator.crew import Crew
    from orchestrator.trial import Surroundings, run_trial

    config, sweep, folder = given["config"], given["sweep"], given["folder"]
    at_home(given["home"])
    post = Post(sweep, folder, config, train.get_context().get_world_rank())
    crew = Crew.join(post.watchdog.rest)
    around = Surroundings(post.shall_stop, post.moved, crew)
    cache = SampleCache(folder.cache, waiting=around.step)
    trial = folder.trial(config["trial_id"])
    for report in run_trial(config["parameters"], sweep, trial, cache, around, config["out_of_memory"]):
        post.watchdog.rest()
        train.report(report)
        post.watchdog.step()
    post.leave()


def _cause(error: Exception) -> Exception:
    """Of what the workers ended with, that which the others ended for."""
    errors = [_bare(each) for each in getattr(error, "worker_failures", {}).values()] or [error]
    return min(errors, key=lambda each: _TELLING.index(classify(each)))


def _bare(error: Exception) -> Exception:
    """A worker's error without what Ray Train wraps it in."""
    error = getattr(error, "_base_exc", getattr(error, "health_check_failure", error))
    if isinstance(error, RayActorError) and lost_machine(str(error)):
        return MachineLost()
    return error
