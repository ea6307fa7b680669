"""Open a sweep's Optuna study so that storage that is away for a while loses no trial.

The study is a SQLite file in the sweep's folder, or one study of many in a PostgreSQL database. Another process may
hold the file, the disk may be full, or the server may be restarted: each call waits and is repeated, until it works or
the user asks for an end. Only the process that drives the sweep writes to the study.
"""

import sqlite3
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import TrialModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from core.errors import UserError
from orchestrator.interruption import pause
from orchestrator.spec import Sweep
from orchestrator.store.database import Database, StudyPlace, passing_reason, sqlite_address

Tell = Callable[[str], None]
T = TypeVar("T")

_BUSY_S = 3  # how long SQLite itself waits for another process; nothing interrupts it meanwhile
_RETRY_S, _TOLD_S = 2.0, 60.0
# SQLite's messages for failures where waiting helps.
_PASSING = ("database is locked", "database table is locked", "disk is full", "disk I/O error")
# The calls of Optuna's cache that have the same effect when they are made twice.
_CALLS = (
    *("create_new_study", "_set_trial_param", "set_trial_user_attr", "set_trial_system_attr", "set_study_user_attr"),
    *("set_study_system_attr", "get_trial", "_get_trials", "get_study_user_attrs", "get_study_system_attrs"),
    *("get_study_id_from_name", "get_study_name_from_id", "get_study_directions", "get_trial_user_attrs"),
    *("get_trial_system_attrs", "get_trial_id_from_study_id_trial_number"),
)


class _PatientStorage(RDBStorage):
    """A storage that repeats a failed call for as long as the reason may pass.

    Each call is one transaction, so a failed call has changed nothing, unless the server committed it and ended before
    it
    answered. The repeated call detects that case, because no other process writes to the study.
    """

    tell: Tell = staticmethod(lambda _: None)
    _newest: int | None = None  # the id of the study's last row before the new one

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        self._newest = None
        return _until_it_works(lambda: RDBStorage._create_new_trial(self, study_id, template_trial), self.tell)

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Any) -> Any:
        """Return a new row, or the row that an earlier attempt committed without an answer.

        Optuna calls this at each attempt, its own repeats included, with the study's row locked.
        """
        rows = session.query(TrialModel).filter(TrialModel.study_id == study_id)
        last = rows.order_by(TrialModel.trial_id.desc()).first()
        newest = 0 if last is None else last.trial_id
        if self._newest is not None and newest > self._newest:
            return last
        self._newest = newest
        return super()._get_prepared_new_trial(study_id, template_trial, session)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state as Optuna does, again while the database is busy. Return whether it was set."""
        attempts = 0

        def call() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except UpdateFinishedTrialError:
                if attempts == 1:
                    raise
                return False

        if _until_it_works(call, self.tell):
            return True
        return attempts > 1 and self.get_trial(trial_id).state == state  # committed by an attempt whose answer was lost


def _patient(name: str) -> Callable[..., Any]:
    call = getattr(RDBStorage, name)

    @wraps(call)
    def until_it_works(self: _PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return _until_it_works(lambda: call(self, *args, **kwargs), self.tell)

    return until_it_works


for _name in _CALLS:
    setattr(_PatientStorage, _name, _patient(_name))


def _until_it_works(call: Callable[[], T], tell: Tell) -> T:
    last_told = float("-inf")
    while True:
        try:
            return call()
        except (StorageInternalError, SQLAlchemyError, sqlite3.OperationalError) as error:
            said = f"{error} {error.__cause__}"
            word = next((word for word in _PASSING if word in said), None) or passing_reason(error)
            if word is None:
                raise
        if time.monotonic() - last_told > _TOLD_S:
            last_told = time.monotonic()
            tell(f"study: {word}; waiting, nothing is lost")
        pause(_RETRY_S)


def check_place(sweep: Sweep) -> None:
    """Raise UserError where no study can be made in the place that the sweep file names."""
    if sweep.study.uri is not None:
        Database(sweep.study.uri, sweep.name).check()


def create_study(sweep: Sweep, where: StudyPlace) -> optuna.Study:
    """Return the study of a new sweep, or the one that an interrupted start left."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
    directions = [kinds[objective.mode] for objective in sweep.objectives]
    with where.making_tables() if isinstance(where, Database) else nullcontext():
        storage = _storage(where, make=True)
    name = _name_of(sweep.name, where)
    study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of a function that the capped version has
        study.set_metric_names([objective.metric for objective in sweep.objectives])  # Optuna's own tools show them
    return study


def open_study(name: str, where: StudyPlace, tell: Tell | None = None) -> optuna.Study:
    """Return the study of a sweep.

    Raises UserError, with nothing written, where the study is missing, damaged or out of reach.
    """
    refuse_damaged(where, name)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = _storage(where, tell or _PatientStorage.tell)
    return optuna.load_study(study_name=_name_of(name, where), storage=storage)


def _name_of(sweep: str, where: StudyPlace) -> str:
    return where.study if isinstance(where, Database) else sweep


def refuse_damaged(where: StudyPlace, name: str) -> None:
    """Raise UserError where `where` has no readable study of this name."""
    if isinstance(where, Path):
        _refuse_damaged_file(where, name)
    elif not where.holds():
        raise UserError(
            f"study.uri: the database {where.shown} does not hold the study '{where.study}'; restore it from a copy, "
            f"or remove the folder of sweep '{name}' to start over; nothing was written"
        )


def _refuse_damaged_file(path: Path, name: str) -> None:
    """Raise UserError where the file is missing, or is no sound database with the study of this name."""
    cure = f"restore it from a copy, or remove {path.parent} to start over; nothing was written"
    if not path.is_file():
        raise UserError(f"{path} is missing; {cure}")
    connection = sqlite3.connect(path, timeout=_BUSY_S)
    try:
        [verdict] = connection.execute("PRAGMA quick_check(1)").fetchone()
        row = connection.execute("SELECT 1 FROM studies WHERE study_name = ?", (name,)).fetchone()
        verdict = "it does not hold the study of this sweep" if verdict == "ok" and row is None else verdict
    except sqlite3.DatabaseError as error:
        if any(word in str(error) for word in _PASSING):
            return  # not damage: `open_study` waits for it
        verdict = str(error)
    finally:
        connection.close()
    if verdict != "ok":
        raise UserError(f"{path} is damaged ({verdict.splitlines()[-1]}); {cure}")


def _storage(where: StudyPlace, tell: Tell = _PatientStorage.tell, make: bool = False) -> _PatientStorage:
    def opened() -> _PatientStorage:
        url = sqlite_address(where) if isinstance(where, Path) else where.url
        url = url.replace("{", "{{").replace("}", "}}")  # Optuna fills in what is between braces
        if isinstance(where, Path):
            return _PatientStorage(url, {"connect_args": {"timeout": _BUSY_S}})
        options = {"connect_args": where.options, "pool_pre_ping": True, "pool_size": 1}
        return _PatientStorage(url, options, skip_table_creation=not make)

    tell_scrubbed = tell if isinstance(where, Path) else lambda message: tell(where.scrub(message))
    storage = _until_it_works(opened, tell_scrubbed)
    storage.tell = tell_scrubbed
    weakref.finalize(storage, storage.engine.dispose)  # close connections with the storage, not when the server notices
    return storage
