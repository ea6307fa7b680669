"""Decide in which MLflow store a sweep is recorded. MLflow is not imported here."""

import os
from pathlib import Path

from orchestrator.secrets import redacted
from orchestrator.spec import Sweep
from orchestrator.store.folder import SweepFolder

VARIABLE = "MLFLOW_TRACKING_URI"


def from_environment() -> str | None:
    """Return the address in MLFLOW_TRACKING_URI; None where that is not set, or blank."""
    return os.environ.get(VARIABLE, "").strip() or None


def addressed(sweep: Sweep, root: Path) -> tuple[Sweep, str | None]:
    """Return the sweep with the address of its store, and a line for the user where it is not the file that decides.

    `tracking.uri` of the file wins. Without it a sweep that has begun goes on where it is recorded, and a new one is
    recorded where MLFLOW_TRACKING_URI says. None is the embedded store.
    """
    own, variable = sweep.tracking.uri, from_environment()
    folder = SweepFolder(root, sweep.name)
    if own is not None:
        ignored = variable not in (None, own)
        return sweep, f"MLflow: tracking.uri of the sweep file wins over {VARIABLE}." if ignored else None
    begun = folder.exists()
    address = folder.read()["spec"].get("tracking", {}).get("uri") if begun else variable
    line = None
    if begun and address != variable:
        where = "the embedded store" if address is None else redacted(address)
        unused = f"; {VARIABLE} is not used" if variable else ""
        line = f"MLflow: sweep '{sweep.name}' goes on in {where}, where it began{unused}."
    elif address is not None:
        line = f"MLflow: recorded in {redacted(address)}, as {VARIABLE} says; tracking.uri in the sweep file would win."
    return sweep.model_copy(update={"tracking": sweep.tracking.model_copy(update={"uri": address})}), line
