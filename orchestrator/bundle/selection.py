"""Decide which trials an export takes. Neither the model nor MLflow is imported, so that a mistake is told at once."""

import re
from collections.abc import Iterable
from pathlib import Path

from core.errors import UserError
from orchestrator.search.ranking import rows
from orchestrator.spec import Sweep
from orchestrator.store.folder import SweepFolder

_MLFLOW_RUN = re.compile("[0-9a-f]{1,32}")  # the id of a run, or its beginning


def check(folder: SweepFolder, to: Path, run: str | None = None, top: int | None = None) -> Sweep:
    """Return the sweep to export from. Raises UserError for everything that its folder alone shows to be wrong.

    run: a trial, an MLflow run, or the beginning of such an id; it is left alone where only MLflow can tell.
    """
    if to.exists():
        raise UserError(f"{to} exists; an export is written into a new folder")
    sweep = folder.sweep()
    if top is not None:
        best(folder, sweep, top)
    elif run is None and not folder.champion.is_dir():
        raise UserError(f"sweep '{folder.name}' has no champion yet; run it to its end, or name a trial with --run")
    elif run is not None and trial_named(folder, sweep, run) is None and not _MLFLOW_RUN.fullmatch(run):
        raise unknown(folder, sweep, run)
    return sweep


def best(folder: SweepFolder, sweep: Sweep, top: int) -> list[str]:
    """Return the ids of the `top` best completed trials. Raises UserError where there are not so many."""
    completed = [row.trial_id for row in rows(folder, sweep) if row.state == "completed"]
    if not 1 <= top <= len(completed):
        raise UserError(f"--top: got {top}; sweep '{sweep.name}' has {len(completed)} completed trials")
    return completed[:top]


def trial_named(folder: SweepFolder, sweep: Sweep, run: str) -> str | None:
    """Return the one trial whose id is `run` or begins with it, or None. Raises UserError where several do."""
    return matching(run, (row.trial_id for row in rows(folder, sweep)))


def matching(beginning: str, ids: Iterable[str]) -> str | None:
    """Return the id that is `beginning` or the only one to begin with it, or None. Raises UserError for several."""
    known = list(ids)
    found = [each for each in known if beginning and each.startswith(beginning)]
    if beginning in known:
        return beginning
    if len(found) > 1:
        raise UserError(f"--run: {len(found)} ids begin with '{beginning}': {', '.join(found)}; give more of one")
    return found[0] if found else None


def unknown(folder: SweepFolder, sweep: Sweep, run: str) -> UserError:
    """Return the error for an id that neither the sweep nor MLflow knows."""
    known = ", ".join(row.trial_id for row in rows(folder, sweep))
    return UserError(f"--run: sweep '{folder.name}' has no run or trial '{run}'; its trials: {known}")
