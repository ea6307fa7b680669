"""A sweep's study: Optuna's SQLite file, opened so that neither another process nor a full disk loses a trial."""

import sqlite3
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from core.errors import UserError
from orchestrator.spec import Sweep

Tell = Callable[[str], None]
T = TypeVar("T")

_BUSY_S = 30  # SQLite itself waits so long for another process
_RETRY_S, _TOLD_S = 2.0, 60.0
# What SQLite says where waiting helps.
_PASSING = ("database is locked", "database table is locked", "disk is full", "disk I/O error")
_CALLS = (
    *("create_new_study", "create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_user_attr"),
    *("set_trial_system_attr", "set_study_user_attr", "set_study_system_attr", "get_all_trials", "get_trial"),
    *("_get_trials", "get_study_user_attrs", "get_study_system_attrs", "get_study_id_from_name"),
    *("get_study_directions", "get_trial_id_from_study_id_trial_number"),
)


class _PatientStorage(RDBStorage):
    """Tries again, for as long as it takes, what fails because the database is locked or the disk is full.

    Each call is one transaction, so that one that failed has left nothing behind.
    """

    tell: Tell = staticmethod(lambda _: None)


def _patient(name: str) -> Callable[..., Any]:
    call = getattr(RDBStorage, name)

    @wraps(call)
    def until_it_works(self: _PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return _until_it_works(lambda: call(self, *args, **kwargs), self.tell)

    return until_it_works


for _name in _CALLS:
    setattr(_PatientStorage, _name, _patient(_name))


def _until_it_works(call: Callable[[], T], tell: Tell) -> T:
    told = float("-inf")
    while True:
        try:
            return call()
        except (StorageInternalError, SQLAlchemyError, sqlite3.OperationalError) as error:
            said = f"{error} {error.__cause__}"
            word = next((word for word in _PASSING if word in said), None)
            if word is None:
                raise
        if time.monotonic() - told > _TOLD_S:
            told = time.monotonic()
            tell(f"study: {word}; waiting, nothing is lost")
        time.sleep(_RETRY_S)


def create_study(sweep: Sweep, path: Path) -> optuna.Study:
    """The study of a new sweep, or what an interrupted start has left of it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
    directions = [kinds[objective.mode] for objective in sweep.objectives]
    return optuna.create_study(
        study_name=sweep.name, storage=_storage(path), directions=directions, load_if_exists=True
    )


def open_study(name: str, path: Path, tell: Tell | None = None) -> optuna.Study:
    """The study of a sweep. Raises UserError, with nothing written, where its file is missing or damaged."""
    refuse_damaged(path, name)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _storage(path, tell or _PatientStorage.tell)
    storage.tell = tell or storage.tell
    return optuna.load_study(study_name=name, storage=storage)


def refuse_damaged(path: Path, name: str) -> None:
    """Raise UserError where the file is not there, or is no sound database with the study of that name."""
    cure = f"restore it from a copy, or remove {path.parent} to start over; nothing was written"
    if not path.is_file():
        raise UserError(f"{path} is missing; {cure}")
    connection = sqlite3.connect(path, timeout=_BUSY_S)
    try:
        [verdict] = connection.execute("PRAGMA quick_check(1)").fetchone()
        found = connection.execute("SELECT 1 FROM studies WHERE study_name = ?", (name,)).fetchone()
        verdict = "it does not hold the study of this sweep" if verdict == "ok" and found is None else verdict
    except sqlite3.DatabaseError as error:
        if any(word in str(error) for word in _PASSING):
            return  # whoever opens it will wait
        verdict = str(error)
    finally:
        connection.close()
    if verdict != "ok":
        raise UserError(f"{path} is damaged ({verdict.splitlines()[-1]}); {cure}")


def _storage(path: Path, tell: Tell = _PatientStorage.tell) -> _PatientStorage:
    options = {"connect_args": {"timeout": _BUSY_S}}
    return _until_it_works(lambda: _PatientStorage(f"sqlite:///{path}", engine_kwargs=options), tell)
