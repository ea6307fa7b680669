"""The bundle a user takes away: a direction set, what it looks like, and a card that says what it is.

directions.safetensors, directions.json   the set (core.directions)
traversal.png                             every direction across its scales
README.md                                 the card
"""

import shutil
from dataclasses import replace
from pathlib import Path

from core.cache import SampleCache
from core.directions import DirectionSet
from core.errors import UserError
from core.files import atomic_folder, write_json
from core.metrics import METRICS
from core.randomness import REPORT_SEEDS
from orchestrator.drawing import Drawing
from orchestrator.ranking import Row, checkpoint_folder, rows
from orchestrator.spec import Sweep
from orchestrator.store import SweepFolder
from orchestrator.tracking import Tracking
from orchestrator.trial import Bench, random_like


def crown(sweep: Sweep, folder: SweepFolder, tracking: Tracking) -> Row | None:
    """Make the best completed trial's set the champion, measured on seeds that chose nothing; None if none completed.

    Beside it stands the honest baseline: random directions, as many and as long, on the same seeds.
    """
    best = next((row for row in rows(folder, sweep) if row.state == "completed"), None)
    if best is None:
        return None
    bench, drawing = Bench.load(sweep, SampleCache(folder.cache)), Drawing(sweep)
    found = DirectionSet.load(checkpoint_folder(folder, best.trial_id) / "directions")
    champion = drawing.run(lambda fitting: bench.measure(fitting, found, REPORT_SEEDS)).metrics
    random = drawing.run(lambda fitting: bench.scaled(fitting, random_like(bench, found, fitting)))
    baseline = drawing.run(lambda fitting: bench.measure(fitting, random, REPORT_SEEDS)).metrics
    named = replace(
        found, metrics=champion, provenance={**found.provenance, "sweep": sweep.name, "trial": best.trial_id}
    )

    shutil.rmtree(folder.champion, ignore_errors=True)  # of a run that was interrupted right here
    with atomic_folder(folder.champion) as temporary:
        write_bundle(named, checkpoint_folder(folder, best.trial_id) / "traversal.png", temporary)
    parent = folder.read()["parent_run"]
    _record(tracking, parent, sweep, folder, champion, baseline, best)
    write_json(folder.path / "result.json", {"trial": best.trial_id, "champion": champion, "random": baseline})
    return best


def _record(
    tracking: Tracking,
    parent: str,
    sweep: Sweep,
    folder: SweepFolder,
    champion: dict[str, float],
    baseline: dict[str, float],
    best: Row,
) -> None:
    values = {f"champion/{name}": value for name, value in champion.items()}
    values |= {f"random/{name}": value for name, value in baseline.items()}
    tracking.log_summary(parent, values, folder.champion)
    tags = {"champion": best.trial_id}
    if sweep.export.register_as:
        tags["registered"] = tracking.register(sweep.export.register_as, parent, "champion")
    tracking.end(parent, "FINISHED", tags)


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
        DirectionSet.load(folder.champion)  # verified before it is given away
        shutil.copytree(folder.champion, to, dirs_exist_ok=True)
    else:
        raise UserError(f"sweep '{folder.name}' has no champion yet; run it to its end, or name a trial with --run")


def _trial_of(folder: SweepFolder, sweep: Sweep, run: str) -> str:
    """The trial that a trial id or an MLflow run id names."""
    if (folder.tune / f"trial_{run}").is_dir():
        return run
    state = folder.read()
    children = Tracking(sweep.tracking.uri, folder.root).children(state["experiment_id"], state["parent_run"])
    for child in children:
        if child.info.run_id == run:
            return str(child.data.tags["trial_id"])
    known = ", ".join(row.trial_id for row in rows(folder, sweep))
    raise UserError(f"--run: sweep '{folder.name}' has no run or trial '{run}'; its trials: {known}")


def _write_trial(folder: SweepFolder, trial_id: str, to: Path) -> None:
    checkpoint = checkpoint_folder(folder, trial_id)
    directions = DirectionSet.load(checkpoint / "directions")
    directions = replace(directions, provenance={**directions.provenance, "sweep": folder.name, "trial": trial_id})
    write_bundle(directions, checkpoint / "traversal.png", to)


def write_bundle(directions: DirectionSet, traversal: Path, to: Path) -> None:
    """The bundle's files into an existing folder, read back once to be sure."""
    directions.write(to)
    shutil.copyfile(traversal, to / "traversal.png")
    (to / "README.md").write_text(card(directions))
    DirectionSet.load(to)


_SYMMETRIC = """from diffusers import DDIMPipeline
from core import DirectionSet

directions = DirectionSet.load("this folder")
pipeline = DDIMPipeline.from_pretrained("the model's folder or hub id")
with directions.applied(pipeline.unet, direction="{name}", scale=1.0):
    images = pipeline(num_inference_steps={steps}, eta={eta}).images"""

_ASYMMETRIC = """from core import Denoiser, DirectionSet, Schedule, noise, sample

directions = DirectionSet.load("this folder")
denoiser = Denoiser.from_pretrained("the model's folder or hub id")
x_T = noise(seeds=[0, 1, 2, 3], shape=denoiser.sample_shape)
# Measured with asymmetric injection, which a pipeline's own sampler does not have.
images = sample(
    denoiser, Schedule.ddim(denoiser, {steps}, eta={eta}), x_T, directions.shift("{name}", 1.0), injection="asymmetric"
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
    use = recipe.format(name=directions.names[0], steps=len(directions.timesteps), eta=origin.get("eta", 0.0))
    return f"""# {len(directions)} directions in the h-space of `{origin.get("model")}`

Found by the method `{origin.get("method")}` in trial `{origin.get("trial")}` of the sweep `{origin.get("sweep")}`.
Made for the weights with digest `{str(origin.get("weight_digest"))[:16]}` and {len(directions.timesteps)} steps.

![Every direction (down) at scales -2 to 2 (across)](traversal.png)

| metric | value | better |
|---|---|---|
{metrics}

```python
{use}
```
"""
