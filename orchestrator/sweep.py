"""The sweep: Ray Tune runs the trials that Optuna proposes, ASHA stops those that fall behind, MLflow keeps the record.

`run` is idempotent: a new sweep starts, an interrupted one goes on, a finished one prints its result.
"""

import functools
import logging
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our recorder is the log
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # a trial reads ./paths where the user wrote them

import ray  # reads its environment on import
from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from rich.console import Console

from core.cache import SampleCache
from core.errors import UserError
from orchestrator import export, report
from orchestrator.engine import compiler_missing
from orchestrator.preflight import check_model
from orchestrator.ranking import rows
from orchestrator.recorder import Recorder
from orchestrator.reporter import TuneReporter
from orchestrator.searcher import STEP, DirectionSearch
from orchestrator.space import trials
from orchestrator.spec import Sweep
from orchestrator.store import SweepFolder
from orchestrator.tracking import Tracking
from orchestrator.trial import run_trial


class Interrupted(Exception):
    """The user stopped the sweep; its state is saved."""


def run(sweep: Sweep, root: Path, address: str | None, console: Console) -> None:
    """Start, resume or show a sweep. Raises UserError before anything is written where it cannot run."""
    folder = SweepFolder(root, sweep.name)
    if folder.exists():
        folder.refuse_changed(sweep)
    if (folder.path / "result.json").is_file():
        console.print(f"Sweep '{sweep.name}' is complete.")
        report.show(folder, console)
        return
    check_model(sweep)
    tracking = Tracking(sweep.tracking.uri, root)
    tracking.check()
    with _ray(address, sweep) as slots:
        if not folder.exists():
            _create(sweep, folder, tracking)
        state = folder.read()
        console.print(f"Sweep '{sweep.name}': {trials(sweep)} trials, {slots} at a time, in {folder.path}")
        missing = compiler_missing()
        if missing and sweep.deepspeed.offload_optimizer == "cpu":
            console.print(missing)
        recorder = Recorder(sweep, tracking, state["experiment_id"], state["parent_run"], console)
        _search(sweep, folder, recorder, slots)
    finish(sweep, folder, tracking, console)


def _create(sweep: Sweep, folder: SweepFolder, tracking: Tracking) -> None:
    experiment_id = tracking.experiment(sweep.tracking.experiment or sweep.name)
    tags = {"sweep": sweep.name, "identity": sweep.identity(), "model": sweep.model}
    parent = tracking.start_parent(experiment_id, sweep.name, tags, sweep.resolved())
    folder.create(sweep, tracking.uri, experiment_id, parent)


@dataclass
class _ray:
    """Ray for the duration of a block; yields how many trials fit at a time."""

    address: str | None
    sweep: Sweep

    def __enter__(self) -> int:
        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the recorder tells what failed, in a line
        ray.init(
            address=self.address,
            include_dashboard=False if self.address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
        try:
            return _slots(self.sweep)
        except BaseException:
            ray.shutdown()
            raise

    def __exit__(self, *_: object) -> None:
        ray.shutdown()


def _slots(sweep: Sweep) -> int:
    """How many trials the cluster can hold at a time."""
    have, need = ray.cluster_resources(), _resources(sweep)
    fits = [int(have.get(kind.upper(), 0) // amount) for kind, amount in need.items() if amount]
    if min(fits) < 1:
        wanted = " and ".join(f"{amount:g} {kind.upper()}" for kind, amount in need.items() if amount)
        there = " and ".join(f"{have.get(kind.upper(), 0):g} {kind.upper()}" for kind in need)
        raise UserError(f"resources: a trial asks for {wanted}; this cluster has {there}")
    return min(min(fits), trials(sweep))


def _resources(sweep: Sweep) -> dict[str, float]:
    return {"cpu": float(sweep.resources.cpus_per_worker), "gpu": sweep.resources.gpus_per_trial}


def _search(sweep: Sweep, folder: SweepFolder, recorder: Recorder, slots: int) -> None:
    """Run what is left of the trials. Raises Interrupted if the user stops it."""
    trainable = tune.with_resources(
        functools.partial(_on_tune, sweep=sweep, cache=SampleCache(folder.cache)),
        {k: v for k, v in _resources(sweep).items() if v},
    )
    run_config = tune.RunConfig(
        name=folder.tune.name,
        storage_path=str(folder.path),
        callbacks=[recorder],
        checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
        failure_config=tune.FailureConfig(max_failures=0),
        verbose=0,
    )
    if tune.Tuner.can_restore(str(folder.tune)):
        tuner = tune.Tuner.restore(str(folder.tune), trainable, resume_unfinished=True)
        # Tune restores its own pickled configuration; what talks to MLflow and the screen is ours of today.
        tuner._local_tuner._run_config.callbacks = [recorder]
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=DirectionSearch(sweep, folder.study, slots),
                scheduler=_scheduler(sweep),
                num_samples=trials(sweep),
                max_concurrent_trials=slots,
                time_budget_s=sweep.budget.hours * 3600 if sweep.budget.hours else None,
                reuse_actors=False,  # DeepSpeed keeps state in its process
                trial_dirname_creator=_trial_name,
                trial_name_creator=_trial_name,
            ),
            run_config=run_config,
        )
    started = time.monotonic()
    tuner.fit()
    # Tune returns as usual after Ctrl-C; only the study tells that trials are missing.
    ended = sum(row.state in ("completed", "pruned", "failed") for row in rows(folder, sweep))
    hours = sweep.budget.hours
    if ended < trials(sweep) and not (hours and time.monotonic() - started >= hours * 3600):
        raise Interrupted


def _on_tune(config: dict[str, Any], sweep: Sweep, cache: SampleCache) -> None:
    run_trial(config, sweep, TuneReporter(), cache)


def _trial_name(trial: Any) -> str:
    return f"trial_{trial.trial_id}"


class _Asha(ASHAScheduler):  # type: ignore[misc]  # Ray ships no types
    """ASHA among the trials that train: a set found at once says nothing about those still on their way."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not _trains(trial):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if _trains(trial):
            super().on_trial_complete(tune_controller, trial, result)


def _trains(trial: Any) -> bool:
    return bool(trial.config["method"] == "learned")


def _scheduler(sweep: Sweep) -> TrialScheduler | None:
    if sweep.scheduler is None:
        return None
    asha = sweep.scheduler.asha
    return _Asha(
        time_attr=STEP,  # absolute: a resumed trial's own count would start again at 1
        metric=sweep.asha_metric,
        mode=sweep.asha_mode,
        max_t=sweep.train.iterations,
        grace_period=asha.grace,
        reduction_factor=asha.reduction,
    )


def finish(sweep: Sweep, folder: SweepFolder, tracking: Tracking, console: Console) -> None:
    """Choose the champion, measure it and the baseline on the reporting seeds, export, record, print."""
    result = export.crown(sweep, folder, tracking)
    if result is None:
        tracking.end(folder.read()["parent_run"], "FAILED", {"outcome": "no trial was completed"})
        report.show(folder, console)
        raise RuntimeError(f"no trial of sweep '{sweep.name}' reached its last iteration; the table says why")
    report.show(folder, console)
