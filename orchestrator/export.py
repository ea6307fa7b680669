"""The bundle a user takes away: a direction set, what it looks like, and a card that says what it is.

directions.safetensors, directions.json   the set (core.directions)
traversal.png                             every direction across its scales
README.md                                 the card
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from core.cache import SampleCache
from core.directions import DirectionSet
from core.errors import UserError
from core.files import atomic_folder, open_regular, write_json
from core.metrics import METRICS
from core.randomness import REPORT_SEEDS
from orchestrator.bench import Bench, random_like
from orchestrator.books import Books
from orchestrator.checkpoints import CheckpointError
from orchestrator.disk import with_space
from orchestrator.drawing import Drawing
from orchestrator.ranking import Row, ranked, rows
from orchestrator.spec import Sweep
from orchestrator.store import SweepFolder
from orchestrator.tracking import Tracking

Measured = tuple[dict[str, float], dict[str, float]]  # the champion's metrics, and the baseline's


def crown(books: Books, run: Callable[..., Measured] = lambda work, *given: work(*given)) -> Row | None:
    """Make the best completed trial's set the champion, measured on seeds that chose nothing; None if none completed.

    Beside it stands the honest baseline: random directions, as many and as long, on the same seeds. run: where it is
    measured.
    """
    sweep, folder = books.sweep, books.folder
    best = next((row for row in ranked(books.ledger.study, sweep) if row.state == "completed"), None)
    if best is None:
        books.outbox.end(None, "FAILED", {"outcome": "no trial was completed"}, _last_end(books))
        return None
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = _result(folder, best.trial_id, Path(temporary))
        found = DirectionSet.load(checkpoint / "directions")
        champion, baseline = run(_measured, sweep, folder.cache, found)
        _keep(books, best, checkpoint, found, champion, baseline)
    return best


def _measured(sweep: Sweep, cache: Path, found: DirectionSet) -> Measured:
    """The metrics of a set and of its baseline, on the seeds that chose nothing."""
    bench, drawing = Bench.load(sweep, SampleCache(cache)), Drawing(sweep)
    champion = drawing.run(lambda fitting: bench.measure(fitting, found, REPORT_SEEDS)).metrics
    random = drawing.run(lambda fitting: bench.scaled(fitting, random_like(bench, found, fitting)))
    return champion, drawing.run(lambda fitting: bench.measure(fitting, random, REPORT_SEEDS)).metrics


def _keep(
    books: Books,
    best: Row,
    checkpoint: Path,
    found: DirectionSet,
    champion: Mapping[str, float],
    baseline: Mapping[str, float],
) -> None:
    sweep, folder = books.sweep, books.folder
    named = replace(
        found, metrics=champion, provenance={**found.provenance, "sweep": sweep.name, "trial": best.trial_id}
    )
    with_space(lambda: _enthrone(named, checkpoint / "traversal.png", folder.champion))
    with_space(lambda: _record(books, champion, baseline, best))
    result = {"trial": best.trial_id, "champion": champion, "random": baseline}
    with_space(lambda: write_json(folder.result, result))


def _enthrone(champion: DirectionSet, traversal: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)  # of a run that was interrupted right here
    with atomic_folder(to) as temporary:
        write_bundle(champion, traversal, temporary)


def _record(books: Books, champion: Mapping[str, float], baseline: Mapping[str, float], best: Row) -> None:
    """What the sweep came to, on its own run. The time is the last trial's, the same when it is put down again."""
    outbox, register, now = books.outbox, books.sweep.export.register_as, _last_end(books)
    values = {f"champion/{name}": value for name, value in champion.items()}
    values |= {f"random/{name}": value for name, value in baseline.items()}
    outbox.metrics(None, [{"step": 0, **values}], now)
    outbox.folder(None, books.folder.champion, "champion")
    outbox.image(None, books.folder.champion / "traversal.png", "champion", 0, now)
    if register:
        outbox.register(register, "champion")
    outbox.end(None, "FINISHED", {"champion": best.trial_id, "outcome": "completed"}, now)


def _last_end(books: Books) -> int:
    """When the last trial ended, in milliseconds."""
    ends = [row.datetime_complete for row in books.ledger.begun().values() if row.datetime_complete]
    return int(max(ends, default=datetime.now()).timestamp() * 1000)


def export(folder: SweepFolder, to: Path, run: str | None = None, top: int | None = None) -> list[Path]:
    """Write the champion, one trial's set, or the `top` best into `to`; returns the folders made.

    Raises UserError, with nothing written, where `to` exists or the sweep or the run is not there.
    """
    if to.exists():
        raise UserError(f"{to} exists; an export is written into a new folder")
    sweep = folder.sweep()
    if top is None:
        with atomic_folder(to) as temporary:
            _write_one(folder, sweep, run, temporary)
        return [to]
    completed = [row for row in rows(folder, sweep) if row.state == "completed"]
    if not 1 <= top <= len(completed):
        raise UserError(f"--top: got {top}; sweep '{sweep.name}' has {len(completed)} completed trials")
    with atomic_folder(to) as temporary:
        for place, row in enumerate(completed[:top], start=1):
            part = temporary / f"{place:02d}_{row.trial_id}"
            part.mkdir()
            _write_trial(folder, row.trial_id, part)
    return sorted(to.iterdir())


def _write_one(folder: SweepFolder, sweep: Sweep, run: str | None, to: Path) -> None:
    if run is not None:
        _write_trial(folder, _trial_of(folder, sweep, run), to)
    elif folder.champion.is_dir():
        write_bundle(DirectionSet.load(folder.champion), folder.champion / "traversal.png", to)
    else:
        raise UserError(f"sweep '{folder.name}' has no champion yet; run it to its end, or name a trial with --run")


def _trial_of(folder: SweepFolder, sweep: Sweep, run: str) -> str:
    """The trial that a trial id or an MLflow run id names."""
    known = [row.trial_id for row in rows(folder, sweep)]
    if run in known:
        return run
    state = folder.read()
    for child in _tracking(folder, sweep).children(state["experiment_id"], state["parent_run"]):
        if child.info.run_id == run and child.data.tags.get("trial_id") in known:
            return str(child.data.tags["trial_id"])
    raise UserError(f"--run: sweep '{folder.name}' has no run or trial '{run}'; its trials: {', '.join(known)}")


def _write_trial(folder: SweepFolder, trial_id: str, to: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        result = _result(folder, trial_id, Path(temporary))
        directions = DirectionSet.load(result / "directions")
        directions = replace(directions, provenance={**directions.provenance, "sweep": folder.name, "trial": trial_id})
        write_bundle(directions, result / "traversal.png", to)


def _result(folder: SweepFolder, trial_id: str, temporary: Path) -> Path:
    """A folder with a trial's set and picture: its checkpoint, or what MLflow has where that is not kept any more."""
    try:
        return folder.trial(trial_id).result()
    except CheckpointError:
        return _fetched(folder, trial_id, temporary)


def _fetched(folder: SweepFolder, trial_id: str, to: Path) -> Path:
    """A trial's set and picture out of MLflow. Raises UserError where they are not there either."""
    sweep, state = folder.sweep(), folder.read()
    tracking = _tracking(folder, sweep)
    child = tracking.find(state["experiment_id"], state["parent_run"], trial_id)
    if child is None:
        raise UserError(f"trial '{trial_id}' of sweep '{folder.name}' has no direction set, on disk or in MLflow")
    tracking.download(child.info.run_id, "directions", to)
    pictures = tracking.download(child.info.run_id, "images", to).glob("traversal+step+*.png")
    steps = {int(found[1]): path for path in pictures if (found := re.match(r"traversal\+step\+(\d+)\+", path.name))}
    if not steps:
        raise UserError(f"run '{child.info.run_id}' of trial '{trial_id}' has no traversal picture in {tracking.shown}")
    os.replace(steps[max(steps)], to / "traversal.png")
    return to


def _tracking(folder: SweepFolder, sweep: Sweep) -> Tracking:
    return Tracking(sweep.tracking.uri, folder.root)


def write_bundle(directions: DirectionSet, traversal: Path, to: Path) -> None:
    """The bundle's files into an existing folder, read back once to be sure."""
    directions.write(to)
    with open_regular(traversal, follow=False) as picture, open(to / "traversal.png", "wb") as copy:
        shutil.copyfileobj(picture, copy)
    (to / "README.md").write_text(card(directions))
    DirectionSet.load(to)


_SYMMETRIC = """from diffusers import DDIMPipeline
from core import DirectionSet

directions = DirectionSet.load("this folder")
pipeline = DDIMPipeline.from_pretrained("the model's folder or hub id")
with directions.applied(pipeline.unet, direction={name}, scale=1.0):
    images = pipeline(num_inference_steps={steps}, eta={eta}).images"""

_ASYMMETRIC = """from core import Denoiser, DirectionSet, Schedule, noise, sample

directions = DirectionSet.load("this folder")
denoiser = Denoiser.from_pretrained("the model's folder or hub id")
x_T = noise(seeds=[0, 1, 2, 3], shape=denoiser.sample_shape)
# Measured with asymmetric injection, which a pipeline's own sampler does not have.
images = sample(
    denoiser, Schedule.ddim(denoiser, {steps}, eta={eta}), x_T, directions.shift({name}, 1.0), injection="asymmetric"
)"""


def card(directions: DirectionSet) -> str:
    """What the set is, how good it is, and how to use it, in Markdown."""
    origin = directions.provenance
    metrics = "\n".join(
        f"| {name} | {directions.metrics[name]:.3f} | {'more' if mode == 'max' else 'less'} |"
        for name, mode in METRICS.items()
        if name in directions.metrics
    )
    recipe = _ASYMMETRIC if origin.get("injection") == "asymmetric" else _SYMMETRIC
    name, eta = json.dumps(directions.names[0]), float(origin.get("eta", 0.0))
    use = recipe.format(name=name, steps=len(directions.timesteps), eta=eta)
    told = {key: _plain(origin.get(key)) for key in ("model", "method", "trial", "sweep", "weight_digest")}
    return f"""# {len(directions)} directions in the h-space of `{told["model"]}`

Found by the method `{told["method"]}` in trial `{told["trial"]}` of the sweep `{told["sweep"]}`.
Made for the weights with digest `{told["weight_digest"][:16]}` and {len(directions.timesteps)} steps.

![Every direction (down) at scales -2 to 2 (across)](traversal.png)

| metric | value | better |
|---|---|---|
{metrics}

```python
{use}
```
"""


def _plain(text: object) -> str:
    """A text that stays inside its backticks."""
    return " ".join(str(text).replace("`", "'").split())
