"""Notice that a runs folder was moved or copied, and put the addresses in its embedded MLflow store right.

MLflow stores the full address of the artifacts of every experiment, run and model. Nothing else under a root holds the
root's own path.
"""

import os
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from core.errors import UserError, first_line
from orchestrator.store.folder import SweepFolder

ARTIFACTS = "mlartifacts"  # the folder of all artifacts, under the root
DATABASE = "mlflow.db"
_BUSY_S = 30
_ADDRESSES = (  # table and column
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)


def moved(root: Path) -> str | None:
    """Return a sentence on where the folder was before and what mends it; None where its store names this place."""
    former = [_path(address) for address in _former(root.resolve())]
    if not former:
        return None
    return (
        f"{root} was moved or copied from {' and '.join(map(str, former))}, where MLflow still looks for its pictures "
        f"and models; mend it with: orchestrate status --repair --root {shlex.quote(str(root))}"
    )


def mend(root: Path) -> int:
    """Make the store of this root name this place. Return how many addresses changed. No other folder is touched.

    No sweep may run in the root. Raises UserError where the store cannot be written to; nothing is changed then.
    """
    root = root.resolve()
    former = _former(root)
    if not former:
        return 0
    try:
        with closing(sqlite3.connect(root / DATABASE, timeout=_BUSY_S)) as store, store:
            return sum(_replaced(store, old, root.as_uri()) for old in former)
    except sqlite3.Error as error:
        raise UserError(f"{root / DATABASE} cannot be mended ({first_line(error)}); nothing was changed") from None


def _former(root: Path) -> list[str]:
    """Return the addresses of other folders under which the experiments of this root's sweeps have their artifacts."""
    if not (root / DATABASE).is_file():
        return []
    experiments = sorted(set(_experiments(root)))
    places = []
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{(root / DATABASE).as_uri()}?mode=ro", uri=True)) as store:
        for experiment in experiments:
            found = "SELECT artifact_location FROM experiments WHERE experiment_id = ?"
            places += [str(location) for (location,) in store.execute(found, (experiment,))]
    former = {place.rpartition(f"/{ARTIFACTS}/")[0] for place in places if place.startswith("file:")}
    return sorted(address for address in former if address and not _same(address, root))


def _experiments(root: Path) -> Iterator[str]:
    """Yield the experiments of the sweeps that are recorded in the embedded store."""
    for path in root.glob("*/sweep.json"):
        with suppress(UserError, KeyError, AttributeError):  # another one's damage is told where it is looked at
            state = SweepFolder(root, path.parent.name).read()
            if state["spec"]["tracking"]["uri"] is None:
                yield str(state["experiment_id"])


def _same(address: str, root: Path) -> bool:
    """Return whether an address is that of the root, perhaps by another way to the same disk."""
    try:
        return address == root.as_uri() or os.path.samefile(_path(address), root)
    except OSError:
        return False


def _path(address: str) -> Path:
    return Path(url2pathname(urlsplit(address).path))


def _replaced(store: sqlite3.Connection, old: str, new: str) -> int:
    """Replace the root's address at the beginning of every artifact's address. Return how many there were."""
    count = 0
    for table, column in _ADDRESSES:
        if column in {name for _, name, *_ in store.execute(f"PRAGMA table_info({table})")}:
            begun = f"{old}/{ARTIFACTS}/"
            update = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
            count += store.execute(update, (new, len(old) + 1, len(begun), begun)).rowcount
    return count
