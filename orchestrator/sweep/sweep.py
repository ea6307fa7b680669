"""Run a sweep: Ray Tune runs the trials that Optuna proposes, ASHA stops those that fall behind, MLflow records.

`run` is idempotent: a new sweep starts, an interrupted one resumes, a finished one prints its result. No state of Ray
is read back: every start is a new Tune experiment over the trials that the ledger still lists as open.
"""

import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from core.errors import UserError
from core.progress import Listener, listening
from orchestrator.interruption import pause
from orchestrator.report import terminal
from orchestrator.report.live import Screen, screen
from orchestrator.search.fork import carry_over, forked
from orchestrator.search.ledger import Ledger
from orchestrator.search.space import trials
from orchestrator.spec import Sweep
from orchestrator.store.database import shown_place
from orchestrator.store.disk import is_full
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driving
from orchestrator.store.moved import moved
from orchestrator.store.spool import pending
from orchestrator.store.study import check_place, create_study
from orchestrator.sweep.champion import SETS, choose_champion
from orchestrator.sweep.cluster import Cluster
from orchestrator.sweep.inspection import inspect
from orchestrator.sweep.preflight import check_model
from orchestrator.sweep.refusals import refuse_folder
from orchestrator.sweep.resume import settle
from orchestrator.sweep.stopping import Stopping
from orchestrator.sweep.tune_callback import RecordCallback
from orchestrator.sweep.tune_search import FirstComeScheduler, LedgerAsha, LedgerSearch
from orchestrator.text import counted
from orchestrator.tracking import views
from orchestrator.tracking.client import Tracking
from orchestrator.tracking.lineage import of_model
from orchestrator.tracking.notes import UNDER_WAY, sweep_tags
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.record import SweepRecord
from orchestrator.trial.operators import adam_problem, settings_problem
from orchestrator.trial.outcome import sentence
from orchestrator.workers.placement import Capacity, fitting, of_trial, of_worker, refuse_unfit
from orchestrator.workers.worker import TrialWorker
from orchestrator.workers.worker_group import WorkerGroup

_FLUSH_S, _HASTY_FLUSH_S = 60.0, 10.0  # seconds that the end of a sweep waits for MLflow; after an interruption
_FRESH_STARTS = 3  # starts of Tune in a row without any trial getting further
_WAIT_S = 5.0  # seconds before a new start where the disk is full
_TIME_IS_UP = "stopped early: the hours of the budget were over"


class Interrupted(Exception):
    """The exception that the user stopped the sweep; its state is saved. The message says what is kept."""


def run(sweep: Sweep, root: Path, address: str | None, console: Console, fork: bool = False) -> str:
    """Start, resume or show a sweep, and return its name. Raises UserError, with nothing written, if it cannot run.

    fork: where the sweep's folder holds another sweep of that name, start a new one that learns from it.
    """
    root = root.resolve()  # trials may run elsewhere
    source, sweep = forked(sweep, root) if fork else (None, sweep)
    folder = refuse_folder(sweep, root)
    tracking = Tracking(sweep.tracking.uri, root)
    if tracking.embedded and (where := moved(root)):
        raise UserError(where)  # else it would write into the folder that it was copied from
    if folder.result.is_file():
        _show_complete(sweep, folder, tracking, console)
        return sweep.name
    if not tracking.embedded:
        _check_store(folder, sweep.experiment, tracking, console)
    if not folder.exists() or "study" not in folder.read():
        check_place(sweep)
    model = check_model(sweep)
    for note in model.notes:
        console.print(f"Note: {note}.", soft_wrap=True, highlight=False, markup=False)
    folder.refuse_other_weights(model.weights)
    if tracking.embedded:  # checked last, because that makes its file
        _check_store(folder, sweep.experiment, tracking, console)
    with driving(folder.lock, f"sweep '{sweep.name}'"):
        if folder.exists():  # another process began it meanwhile, and has ended
            folder.refuse_changed(sweep)
            folder.refuse_other_weights(model.weights)
        if folder.result.is_file():
            terminal.show(folder, console)
            return sweep.name
        try:
            with Cluster(address) as cluster, Stopping(folder, console, model.set_bytes) as stopping:
                refuse_unfit(sweep)
                if address is not None:
                    console.print("Asking every machine whether it is ready ...", style="dim")
                    for line in inspect(sweep, root, model.weights):
                        console.print(line, soft_wrap=True)
                elif lacking := settings_problem(sweep.deepspeed):
                    raise UserError(lacking)
                _prepare(sweep, folder, tracking, model.weights, source)
                _run_to_end(SweepRun(sweep, folder, cluster, stopping, console), tracking, model.weights)
        finally:
            folder.remove_if_empty()
    return sweep.name


def _check_store(folder: SweepFolder, experiment: str, tracking: Tracking, console: Console) -> None:
    """Raise UserError where a new sweep's MLflow store cannot be used; print what the store is warned of."""
    if folder.exists():
        return
    if warning := tracking.check():
        console.print(warning, soft_wrap=True, highlight=False, markup=False)
    tracking.known_experiment(experiment)


@dataclass(frozen=True)
class SweepRun:
    """A sweep under way: its sweep file, its folder, Ray, the conditions that stop it, and the console."""

    sweep: Sweep
    folder: SweepFolder
    cluster: Cluster
    stopping: Stopping
    console: Console


def _counting_sets(console: Console) -> Listener:
    """Return a listener that tells the user of each set that is measured, where this process measures it."""

    def told(what: str, done: int, total: int) -> None:
        if what == SETS:
            console.print(f"  {done} of {total} sets measured", style="dim")

    return told


def _run_to_end(sweep_run: SweepRun, tracking: Tracking, weights: str) -> None:
    """Run the rest of the sweep and show its result. Where an error ends it early, settle the records."""
    sweep, folder, console = sweep_run.sweep, sweep_run.folder, sweep_run.console
    outbox, patience = _outbox(folder, tracking, console), _FLUSH_S
    slots = min(fitting(sweep), trials(sweep))
    outbox.open()
    try:
        record = SweepRecord(sweep, folder, Ledger(sweep, folder.study_place, weights, slots, console.print), outbox)
        console.print(f"Sweep '{sweep.name}': {trials(sweep)} trials, {slots} at a time, in {folder.path}")
        if sweep.deepspeed.offload_optimizer == "cpu" and sweep_run.cluster.address is None:
            console.print("Loading DeepSpeed's Adam (the first time takes a minute or two) ...", style="dim")
            if slower := adam_problem():
                console.print(slower, soft_wrap=True)
        outbox.start(None, tags=UNDER_WAY, inputs=of_model(sweep, weights))
        try:
            with screen(console, sweep, slots, record.ledger.spent()) as display:
                _search(record, sweep_run, display)
            console.print("Measuring the best set beside random directions ...", style="dim")
            with listening(_counting_sets(console)):
                best = choose_champion(record, partial(sweep_run.cluster.run, of_worker(sweep)), console.print)
        except BaseException:
            patience = _HASTY_FLUSH_S
            settle(record)
            outbox.end(None, "KILLED", {"outcome": "interrupted"})
            raise
    finally:
        if not outbox.close(patience):
            console.print(f"{outbox.pending()} records wait for MLflow in {folder.outbox}; the same command sends them")
    terminal.show(folder, console, ended=True)
    if best is None:
        raise RuntimeError(f"no trial of sweep '{sweep.name}' reached its last iteration; the table says why")


def _show_complete(sweep: Sweep, folder: SweepFolder, tracking: Tracking, console: Console) -> None:
    """Show a complete sweep. Send MLflow the records that it has not received yet."""
    if pending(folder.outbox):
        with driving(folder.lock, f"sweep '{sweep.name}'"), _outbox(folder, tracking, console).sending(_FLUSH_S):
            console.print("Sending to MLflow what it has not got yet ...")
    terminal.show(folder, console)


def _prepare(sweep: Sweep, folder: SweepFolder, tracking: Tracking, weights: str, source: SweepFolder | None) -> None:
    """Create what a sweep needs before its first trial. Each step skips what an interrupted start has made already."""
    folder.create(sweep, weights)
    folder.keep_address(sweep)
    state = folder.read()
    if "study" not in state:
        study = create_study(sweep, folder.study_place)
        if source is not None:
            carry_over(source, sweep, study, weights)
        state = folder.add(study=shown_place(folder.study_place))
    if "parent_run" not in state:
        experiment = tracking.experiment(sweep.experiment)
        tags = sweep_tags(sweep, state["id"])
        parent = tracking.start_parent(experiment, sweep.name, tags, sweep.resolved())
        tracking.tag_experiment(experiment, views.tag(sweep, parent, int(time.time() * 1000)))
        folder.add(tracking_uri=tracking.shown, experiment_id=experiment, parent_run=parent)


def _outbox(folder: SweepFolder, tracking: Tracking, console: Console) -> Outbox:
    state = folder.read()
    return Outbox(folder.outbox, tracking, state["experiment_id"], state["parent_run"], console.print)


def _search(record: SweepRecord, sweep_run: SweepRun, display: Screen) -> None:
    """Run the remaining trials, with a new start of Tune whenever one ends too early.

    Raises Interrupted where the user stops it.
    """
    ledger, stopping, idle = record.ledger, sweep_run.stopping, 0
    settle(record)
    stopping.limit(sweep_run.sweep.budget.hours, ledger.spent())
    while ledger.has_work() and not stopping.no_more_trials():
        before, error = ledger.progress(), None
        try:
            with stopping.search():
                _tune(record, sweep_run, display)
        except Exception as raised:
            error = raised
        ledger.count_time(0)
        if stopping.no_more_trials():
            break
        settle(record)
        idle = 0 if ledger.progress() > before or (error and is_full(error)) else idle + 1
        if ledger.has_work():
            why = sentence(error) if error else "it gave no reason"
            if idle >= _FRESH_STARTS:
                raise RuntimeError(f"Ray Tune ends before any trial gets further ({why})") from error
            sweep_run.console.print(f"Ray ended too early ({why}); it starts anew, from every last checkpoint")
            _start_again(sweep_run.cluster, error)
    settle(record, None if stopping.stop_asked_at else _TIME_IS_UP)
    if stopping.stop_asked_at and ledger.has_work():
        raise Interrupted(_kept(record))


def _kept(record: SweepRecord) -> str:
    """Return `2 of 8 trials are over, 2 go on from what they have saved`."""
    rows = record.ledger.begun().values()
    over = sum(row.state.is_finished() for row in rows)
    kept = f"{over} of {counted(trials(record.sweep), 'trial')} {'is' if over == 1 else 'are'} over"
    begun = len(rows) - over
    return f"{kept}, {begun} {'goes' if begun == 1 else 'go'} on from what is saved" if begun else kept


def _start_again(cluster: Cluster, error: Exception | None) -> None:
    if error is not None and is_full(error):
        pause(_WAIT_S)
    cluster.stop()
    cluster.start()


def _tune(record: SweepRecord, sweep_run: SweepRun, display: Screen) -> None:
    """Run one Tune experiment over the remaining trials."""
    sweep, folder, stopping = sweep_run.sweep, sweep_run.folder, sweep_run.stopping

    def look() -> None:
        stopping.check_disk()
        sweep_run.cluster.check_alive()
        record.ledger.count_time()

    shutil.rmtree(folder.tune, ignore_errors=True)
    room = Capacity(sweep, sweep_run.console.print, scales=sweep_run.cluster.address is not None)
    worker = WorkerGroup if sweep.resources.workers > 1 else TrialWorker
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(worker, sweep=sweep, folder=folder, home=Path.cwd()),
            of_trial(sweep),
        ),
        tune_config=tune.TuneConfig(
            search_alg=LedgerSearch(record.ledger, stopping.paused_by_disk, stopping.no_more_trials, room),
            scheduler=LedgerAsha(sweep, record.ledger) if sweep.scheduler else FirstComeScheduler(),
            num_samples=-1,  # LedgerSearch ends it
            reuse_actors=worker is TrialWorker,  # the next trial needs the same model, which is loaded
            trial_dirname_creator=_trial_name,
            trial_name_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=folder.tune.name,
            storage_path=str(folder.path),
            callbacks=[RecordCallback(record, display, look)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials write their own
            failure_config=tune.FailureConfig(max_failures=0),  # the ledger makes new attempts
            stop=stopping.stopper(),
            verbose=0,
        ),
    )
    tuner.fit()


def _trial_name(trial: Any) -> str:
    return f"{trial.config['trial_id']}_{trial.config['attempt']}"
