"""Run a trial in several processes, on one machine or on several. Ray Train starts all of them, or none.

Ray Tune starts one `WorkerGroup` for each attempt, on the head of the cluster. It takes next to nothing there, so it
never holds resources that workers wait for. It passes on the reports of the first worker. A process or a machine that
is lost ends the attempt. The next attempt, which the ledger counts, goes on from the trial's checkpoint, on as many
processes as before and not necessarily the same machines.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import train, tune
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue

from orchestrator.spec import Sweep
from orchestrator.store.folder import SweepFolder
from orchestrator.trial.outcome import MachineLost, Preempted, TrialOutcome, classify
from orchestrator.trial.state import Report
from orchestrator.workers.placement import HEAD, HELD, alive, all_answer, free_resources, of_worker
from orchestrator.workers.process_record import ProcessRecord, end_remotely, says_machine_lost, stop_file, write_end
from orchestrator.workers.worker import AttemptProcess, as_result, at_home

_ASK_S = 0.5
_FAREWELL_S, _END_S = 60.0, 90.0  # for processes that have finished; for processes told to end at once
_COLLECTIVE_S = 24 * 3600  # long, because a worker that hangs is ended by its own watchdog
_SILENT = "one of its processes ended without a word (killed, or crashed in a library)"
_CONNECTION_LOST = (
    "/gloo/",
    "NCCL error",
    "Connection closed by peer",
    "Connection reset by peer",
)  # how others see it
# Of the errors of several workers, the first in this order is the cause; the other workers end because of it.
_CAUSE_ORDER = (TrialOutcome.OUT_OF_MEMORY, TrialOutcome.DIVERGED, TrialOutcome.PREEMPTED, TrialOutcome.FAILED)


class WorkerGroup(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """One attempt at a trial by several processes, as Ray Tune runs it. Each `step` waits for the next report."""

    def setup(self, config: dict[str, Any], sweep: Sweep, folder: SweepFolder, home: Path) -> None:
        """Start the processes in a background thread."""
        self.sweep, self.folder, self.trial = sweep, folder, folder.trial(config["trial_id"])
        self.machines = {node["NodeID"] for node in alive()}
        self.trial.path.mkdir(parents=True, exist_ok=True)
        # Outside of what Tune reserves for this process, which has no room for the queue's process.
        options = {"num_cpus": 0, "resources": HEAD, "scheduling_strategy": "DEFAULT"}
        self.reports = Queue(actor_options=options)
        self.error: Exception | None = None
        self.complete = False  # the last report has arrived
        trainer = _Trainer(
            _run_rank,
            train_loop_config={"config": dict(config), "sweep": sweep, "folder": folder, "home": home},
            torch_config=_Torch(timeout_s=_COLLECTIVE_S, held=self.trial.path / HELD),
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
        """Wait for the next report and return it as a result for Ray Tune. Raises the error that ended the attempt."""
        while True:
            running = self.thread.is_alive()  # asked before the queue, so that no report is missed
            try:
                result = as_result(Report.from_json(self.reports.get(timeout=_ASK_S)), self.sweep)
                self.complete = result["done"]
                return result
            except Empty:
                if not running or self._is_to_wait_no_more():
                    break
        error = Preempted() if running else self._cause()
        if not isinstance(error, RayActorError):  # a killed process leaves no reason
            write_end(self.trial.path, self.config["attempt"], error)
        raise error

    def _cause(self) -> Exception:
        """Return the error that ended the attempt. Where a machine is lost, the other workers' errors do not say so."""
        error = _cause(self.error or RuntimeError("its processes ended without a report"))
        if classify(error) != TrialOutcome.FAILED:
            return error
        nodes = {each.node for each in self._processes() if each.node}
        if not all_answer(nodes or self.machines):  # any machine, before the processes have recorded theirs
            return MachineLost()
        return RuntimeError(_SILENT) if any(word in str(error) for word in _CONNECTION_LOST) else error

    def _processes(self) -> list[ProcessRecord]:
        """Return the processes of this attempt that have begun."""
        return [each for each in ProcessRecord.all_of(self.trial.path) if each.attempt == self.config["attempt"]]

    def _is_to_wait_no_more(self) -> bool:
        """Return whether the attempt has to end before its first process has begun; a running one ends by itself."""
        stops = self.folder.stop, stop_file(self.trial.path, self.config["attempt"])
        return any(each.exists() for each in stops) and not self._processes()

    def cleanup(self) -> None:
        """Wait until all processes are gone: Ray Train frees their resources only where it ends by itself."""
        self.thread.join(_FAREWELL_S if self.complete else 0)
        if self.thread.is_alive() and self._processes():
            end_remotely(self.trial.path, self.config["attempt"], self.sweep.resources.workers)
            self.thread.join(_END_S)
        free_resources(self.trial.path)
        self.reports.shutdown(force=True)


def _scaling(sweep: Sweep) -> ScalingConfig:
    each = of_worker(sweep)
    return ScalingConfig(
        num_workers=sweep.resources.workers, use_gpu="GPU" in each, resources_per_worker=each, placement_strategy="PACK"
    )


class _Trainer(TorchTrainer):  # type: ignore[misc]  # Ray ships no types
    """A TorchTrainer without the process that Ray Train leaves behind for each attempt where no dashboard runs.

    That process would free the resources of a killed attempt; `free_resources` does (orchestrator.workers.placement).
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if type(each).__name__ != "PlacementGroupCleanerCallback"]


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray ships no types
    def on_start(self, worker_group: Any, backend_config: "_Torch") -> None:
        state = worker_group.get_worker_group_state()
        backend_config.held.write_text(state.placement_group_handle.placement_group.id.hex())
        worker_group.execute(_use_network)
        super().on_start(worker_group, backend_config)


@dataclass
class _Torch(TorchConfig):  # type: ignore[misc]  # Ray ships no types
    """torch.distributed over the network that Ray uses. held: the file for the id of the attempt's placement group."""

    held: Path = Path(HELD)

    @property
    def backend_cls(self) -> type:
        return _Backend


def _use_network() -> None:
    """Tell gloo which network Ray uses: by itself it looks up the host's name, which often means the loopback."""
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _PassOn(UserCallback):  # type: ignore[misc]  # Ray ships no types
    """A callback that puts the first worker's reports into the driver's queue."""

    def __init__(self, reports: Queue) -> None:
        self.reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.reports.put(metrics[0])


def _run_rank(arguments: Mapping[str, Any]) -> None:
    """Run one process's share of a trial."""
    from core.samples.cache import SampleCache
    from orchestrator.trial.model import TrialModel
    from orchestrator.trial.ranks import Ranks
    from orchestrator.trial.run import TrialContext, run_trial

    config, sweep, folder = arguments["config"], arguments["sweep"], arguments["folder"]
    at_home(arguments["home"])
    process = AttemptProcess(sweep, folder, config, train.get_context().get_world_rank())
    ranks = Ranks.join(process.watchdog.rest)
    context = TrialContext(
        process.shall_stop, process.moved, ranks, config["out_of_memory"], advanced=process.doing.advanced
    )
    cache = SampleCache(folder.cache, waiting=context.network_called)
    trial, load = folder.trial(config["trial_id"]), partial(TrialModel.load, ranks=ranks)
    for report in run_trial(config["parameters"], sweep, trial, cache, context, load):
        process.watchdog.rest()
        train.report(process.with_usage(report).to_json())
        process.watchdog.step()
    process.leave()


def _cause(error: Exception) -> Exception:
    """Return the error that made the other workers end: of all workers' errors, the first by _CAUSE_ORDER."""
    errors = [_bare(each) for each in getattr(error, "worker_failures", {}).values()] or [error]
    return min(errors, key=lambda each: _CAUSE_ORDER.index(classify(each)))


def _bare(error: Exception) -> Exception:
    """Return a worker's error without Ray Train's wrapping; MachineLost where its machine is gone."""
    error = getattr(error, "_base_exc", getattr(error, "health_check_failure", error))
    if isinstance(error, RayActorError) and says_machine_lost(str(error)):
        return MachineLost()
    return error
