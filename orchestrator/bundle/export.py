"""Export direction sets from a sweep: the champion, one trial's set, or the best few, each as a bundle in a folder."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from core.directions.direction_set import DirectionSet
from core.errors import UserError
from core.files import atomic_folder
from core.samples.cache import SampleCache
from orchestrator.bundle.files import Bundle, Format, bundle_of, is_whole, read_bundle, write_bundle
from orchestrator.bundle.selection import best, check, matching, trial_named, unknown
from orchestrator.search.ranking import rows
from orchestrator.spec import Sweep
from orchestrator.store.checkpoints import CheckpointError
from orchestrator.store.folder import SweepFolder
from orchestrator.tracking.client import Tracking
from orchestrator.trial.attempt import DrawBatch
from orchestrator.trial.model import TrialModel

Say = Callable[[str], None]
_MEASURED = 1  # increase it whenever the same set is measured or drawn in another way


def export(
    folder: SweepFolder,
    to: Path,
    run: str | None = None,
    top: int | None = None,
    style: Format = "bundle",
    say: Say = lambda _: None,
) -> list[Path]:
    """Write the champion, one trial's set, or the `top` best into `to`, and return the folders written.

    The champion already has dials and gallery. Those of another trial are measured now, with the sweep's model, and
    kept for the next export. say: called with a sentence at the beginning of each part that takes a while.
    Raises UserError, with nothing written, where `to` exists or the sweep or the run is missing.
    """
    sweep = check(folder, to, run, top)
    if top is None:
        bundle = _one(folder, sweep, run, say)
        with atomic_folder(to) as temporary:
            write_bundle(bundle, temporary, style)
        return [to]
    with atomic_folder(to) as temporary:
        for place, trial_id in enumerate(best(folder, sweep, top), start=1):
            part = temporary / f"{place:02d}_{trial_id}"
            part.mkdir()
            write_bundle(_of_trial(folder, sweep, trial_id, say), part, style)
    return sorted(to.iterdir())


def _one(folder: SweepFolder, sweep: Sweep, run: str | None, say: Say) -> Bundle:
    if run is not None:
        return _of_trial(folder, sweep, _trial_of(folder, sweep, run), say)
    if is_whole(folder.champion):
        return read_bundle(folder.champion)
    return _measured(folder, sweep, DirectionSet.load(folder.champion), say)


def _of_trial(folder: SweepFolder, sweep: Sweep, trial_id: str, say: Say) -> Bundle:
    if is_whole(folder.champion):
        champion = read_bundle(folder.champion)
        if champion.directions.provenance.get("trial") == trial_id:
            return champion
    with tempfile.TemporaryDirectory() as temporary:
        directions = DirectionSet.load(result_of(folder, trial_id, Path(temporary), say) / "directions")
    origin = {**directions.provenance, "sweep": folder.name, "trial": trial_id}
    return _measured(folder, sweep, replace(directions, provenance=origin), say)


def _measured(folder: SweepFolder, sweep: Sweep, directions: DirectionSet, say: Say) -> Bundle:
    """Measure the dials of a set, draw its gallery, and return both as a bundle, or the one that was kept of them."""
    trial_id = directions.provenance.get("trial")
    kept = folder.measured / _key(folder, sweep, directions)
    with suppress(UserError):  # none is kept, or it is damaged
        bundle = read_bundle(kept)
        say(f"Trial {trial_id} has been measured before, on the same settings ...")
        return bundle
    say(f"Loading the model of sweep '{sweep.name}' ...")
    trial_model, drawing = TrialModel.load(sweep, SampleCache(folder.cache)), DrawBatch(sweep)
    say(f"Measuring the dials of trial {trial_id} ({len(directions)} directions), and drawing its gallery ...")
    dialled = drawing.run(lambda fitting: trial_model.with_dials(fitting, directions))
    bundle = bundle_of(dialled, f"{sweep.name}, trial {trial_id}")
    with suppress(OSError):  # an export does without, as from a folder that cannot be written
        shutil.rmtree(kept, ignore_errors=True)
        with atomic_folder(kept) as temporary:
            write_bundle(bundle, temporary)
    return bundle


def _key(folder: SweepFolder, sweep: Sweep, directions: DirectionSet) -> str:
    """Return the digest of all that a measured bundle follows from: the set, the sweep's settings and the weights."""
    told = {
        "format": _MEASURED,
        "sweep": sweep.identity(),
        "weights": folder.read()["weights"],
        "names": directions.names,
        "provenance": dict(directions.provenance),
        "metrics": dict(directions.metrics),
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for tensor in (directions.table, directions.sigma):
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _trial_of(folder: SweepFolder, sweep: Sweep, run: str) -> str:
    """Return the trial id for a trial id or an MLflow run id, or for the beginning of one; trials come first."""
    if (trial_id := trial_named(folder, sweep, run)) is not None:
        return trial_id
    known, state = [row.trial_id for row in rows(folder, sweep)], folder.read()
    children = _tracking(folder, sweep).children(state["experiment_id"], state["parent_run"])
    trial_of = {child.info.run_id: child.data.tags.get("trial_id") for child in children}
    found = matching(run, (run_id for run_id, trial_id in trial_of.items() if trial_id in known))
    if found is None:
        raise unknown(folder, sweep, run)
    return str(trial_of[found])


def result_of(folder: SweepFolder, trial_id: str, temporary: Path, say: Say = lambda _: None) -> Path:
    """Return a folder with a trial's set and picture: its checkpoint, or a copy from MLflow if that is gone."""
    try:
        return folder.trial(trial_id).result()
    except CheckpointError:
        say(f"Fetching trial {trial_id} from MLflow ...")
        return _fetched(folder, trial_id, temporary)


def _fetched(folder: SweepFolder, trial_id: str, to: Path) -> Path:
    """Download a trial's set and picture from MLflow. Raises UserError where they are missing there too."""
    sweep, state = folder.sweep(), folder.read()
    tracking = _tracking(folder, sweep)
    child = tracking.find(state["experiment_id"], state["parent_run"], trial_id)
    if child is None:
        raise UserError(f"trial '{trial_id}' of sweep '{folder.name}' has no direction set, on disk or in MLflow")
    tracking.download(child.info.run_id, "directions", to)
    pictures = tracking.download(child.info.run_id, "images", to).glob("traversal+step+*.png")
    steps = {int(match[1]): path for path in pictures if (match := re.match(r"traversal\+step\+(\d+)\+", path.name))}
    if not steps:
        raise UserError(f"run '{child.info.run_id}' of trial '{trial_id}' has no traversal picture in {tracking.shown}")
    os.replace(steps[max(steps)], to / "traversal.png")
    return to


def _tracking(folder: SweepFolder, sweep: Sweep) -> Tracking:
    return Tracking(sweep.tracking.uri, folder.root)
