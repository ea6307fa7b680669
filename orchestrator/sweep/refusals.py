"""Refuse a sweep for what neither its model nor a trial has to tell, before either is loaded."""

import os
import re
import socket
from pathlib import Path

from core.errors import UserError, first_line
from orchestrator.search.fork import forked
from orchestrator.spec import Sweep
from orchestrator.spec.sources import refuse_absent
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driver
from orchestrator.store.study import refuse_damaged

_PLACE = re.compile(r"(?:ray://)?([^/]+):([0-9]{1,5})")  # other addresses, such as auto, Ray has to look up
_PATIENCE_S = 5.0


def refuse_at_once(sweep: Sweep, root: Path, address: str | None, fork: bool) -> None:
    """Raise UserError where the sweep cannot begin or go on. Nothing is written, and only for GPUs Ray is imported."""
    folder = refuse_folder((forked(sweep, root)[1] if fork else sweep), root)
    if folder.result.is_file():  # it is only shown
        return
    refuse_absent(sweep)
    if address is None:
        _refuse_small_machine(sweep)
    elif place := _PLACE.fullmatch(address):
        _refuse_silent(address, place[1].strip("[]"), int(place[2]))


def refuse_folder(sweep: Sweep, root: Path) -> SweepFolder:
    """Return the sweep's folder. Raises UserError where it holds another sweep, or one that is being run."""
    folder = SweepFolder(root, sweep.name)
    if folder.exists():
        folder.refuse_changed(sweep)
        if "study" in folder.read():
            refuse_damaged(folder.study_place_of(sweep), sweep.name)
    if holder := driver(folder.lock):
        raise UserError(f"sweep '{sweep.name}' is being run by {holder}; wait for it, or stop it first")
    return folder


def _refuse_small_machine(sweep: Sweep) -> None:
    """Raise UserError where a trial asks for more than this machine has, as Ray will count it."""
    resources = sweep.resources
    asked = {"CPU": resources.workers * resources.cpus_per_worker, "GPU": resources.gpus_per_trial}
    there = {"CPU": os.cpu_count() or 1, "GPU": _gpus() if asked["GPU"] else 0}
    if any(asked[kind] > there[kind] for kind in asked):
        wanted, have = (" and ".join(f"{n[kind]:g} {kind}" for kind in asked if asked[kind]) for n in (asked, there))
        raise UserError(
            f"resources: a trial asks for {wanted}; this machine has {have}: change resources, or name a Ray cluster "
            "with --address"
        )


def _refuse_silent(address: str, host: str, port: int) -> None:
    """Raise UserError where nothing listens at the address of a Ray cluster."""
    try:
        socket.create_connection((host, port), timeout=_PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"--address: no Ray answers at {address} ({why})") from None


def _gpus() -> int:
    """Return the number of GPUs that Ray will find on this machine for this process."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    count = int(manager.get_current_node_num_accelerators())
    return count if visible is None else min(count, len(visible))
