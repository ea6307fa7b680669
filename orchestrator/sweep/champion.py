"""Make the champion from the best completed trial's set: measure it on unused seeds, give it dials, and draw it."""

import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.directions.direction_set import DirectionSet
from core.errors import first_line
from core.files import atomic_folder, write_json
from core.metrics.bootstrap import Figure, flat, pooled
from core.progress import advanced
from core.randomness import REPORT_SEEDS
from core.samples.cache import SampleCache
from orchestrator.bundle.export import result_of
from orchestrator.bundle.files import Bundle, bundle_of, write_bundle
from orchestrator.report.findings import read
from orchestrator.report.page import write_page
from orchestrator.search.ranking import Row, ranked
from orchestrator.search.space import with_constants
from orchestrator.spec import Sweep
from orchestrator.store.disk import with_space
from orchestrator.tracking import pyfunc
from orchestrator.tracking.lineage import of_result
from orchestrator.tracking.notes import MODEL, NOTE, counts, loading, method_of, sweep_note
from orchestrator.tracking.record import SweepRecord
from orchestrator.trial.attempt import DrawBatch
from orchestrator.trial.model import RANDOM_DRAWS, TrialModel, random_like

SETS = "sets"  # what a listener is told of: the champion, and the draws of the baseline (core.progress)
_CLOSE = 0.1  # relative error of their strength; too small to be seen in the images


@dataclass(frozen=True)
class ChampionAndBaseline:
    """The champion, ready to be written, and how it compares with random directions.

    random: the metrics of the baseline, pooled over its draws; differences: those of the champion less those of the
    baseline, measured on the same samples. Both are flat tables (core.metrics.bootstrap.flat).
    """

    champion: Bundle
    random: Mapping[str, float]
    differences: Mapping[str, float]


def choose_champion(
    record: SweepRecord,
    run: Callable[..., ChampionAndBaseline] = lambda work, *arguments: work(*arguments),
    say: Callable[[str], None] = lambda _: None,
) -> Row | None:
    """Make the set of the best completed trial the champion, and return its row; None where no trial completed.

    The baseline is RANDOM_DRAWS sets of as many random directions, at the same strength and on the same seeds. run:
    runs the measurement, possibly on another machine; say: tells the user that something is missing which can be made
    later.
    """
    sweep, folder = record.sweep, record.folder
    best = next((row for row in ranked(record.ledger.study, sweep) if row.state == "completed"), None)
    if best is None:
        record.outbox.end(None, "FAILED", {"outcome": "no trial was completed"}, _last_end(record))
        return None
    with tempfile.TemporaryDirectory() as temporary:
        directions = DirectionSet.load(result_of(folder, best.trial_id, Path(temporary)) / "directions")
    origin = {**directions.provenance, "sweep": sweep.name, "trial": best.trial_id}
    _publish(record, best, run(_measured, sweep, folder.cache, replace(directions, provenance=origin)), say)
    return best


def _measured(sweep: Sweep, cache: Path, directions: DirectionSet) -> ChampionAndBaseline:
    """Give the set its dials, and measure it and its baseline on seeds that chose nothing.

    The metrics are those of the set as its trial was measured, at the strength at which trials are compared. Only the
    signs are those of the dials: some metrics look at one side.
    """
    trial_model, drawing = TrialModel.load(sweep, SampleCache(cache)), DrawBatch(sweep)
    dialled = drawing.run(lambda fitting: trial_model.with_dials(fitting, directions))
    turned = replace(dialled.directions, sigma=directions.sigma)
    champion = _figures(trial_model, drawing, turned)
    advanced(SETS, 1, 1 + RANDOM_DRAWS)
    random = _baseline(trial_model, drawing, turned)
    differences = {name: figure.minus(random[name]) for name, figure in champion.items() if name in random}
    measured = replace(dialled, directions=replace(dialled.directions, metrics=flat(champion)))
    bundle = bundle_of(measured, f"{sweep.name}, trial {directions.provenance['trial']}")
    return ChampionAndBaseline(bundle, flat(random), flat(differences))


def _baseline(trial_model: TrialModel, drawing: DrawBatch, directions: DirectionSet) -> dict[str, Figure]:
    """Return the figures of random directions at the strength of the set, pooled over RANDOM_DRAWS draws.

    A draw is calibrated from the stretch of the draw before, which saves rounds. A figure that one draw lacks is left
    out.
    """
    strength = drawing.run(lambda fitting: trial_model.strength_of(fitting, directions))
    stretch, measured = torch.ones(len(directions), 1), []
    for number in range(RANDOM_DRAWS):
        scaled, stretch = _random_set(trial_model, drawing, directions, number, strength, stretch)
        measured.append(_figures(trial_model, drawing, scaled))
        advanced(SETS, 2 + number, 1 + RANDOM_DRAWS)
    everywhere = [name for name in measured[0] if all(name in figures for figures in measured)]
    return {name: pooled([figures[name] for figures in measured]) for name in everywhere}


def _random_set(
    trial_model: TrialModel,
    drawing: DrawBatch,
    directions: DirectionSet,
    number: int,
    strength: float,
    stretch: Tensor,
) -> tuple[DirectionSet, Tensor]:
    """Return a draw of the baseline, scaled to the strength from a first `stretch` [K, 1] on, and its own stretch."""
    found = drawing.run(lambda fitting: random_like(trial_model, directions, fitting, number))
    near = replace(found, sigma=found.sigma * stretch)
    scaled = drawing.run(lambda fitting: trial_model.at_strength(fitting, near, strength, _CLOSE))
    return scaled, scaled.sigma.norm(dim=1, keepdim=True) / found.sigma.norm(dim=1, keepdim=True)


def _figures(trial_model: TrialModel, drawing: DrawBatch, directions: DirectionSet) -> dict[str, Figure]:
    return drawing.run(lambda fitting: trial_model.measure(fitting, directions, REPORT_SEEDS)).figures


def _publish(record: SweepRecord, best: Row, measured: ChampionAndBaseline, say: Callable[[str], None]) -> None:
    folder, champion = record.folder, measured.champion.directions.metrics
    random, differences = dict(measured.random), dict(measured.differences)
    result = {"trial": best.trial_id, "champion": dict(champion), "random": random, "differences": differences}
    with_space(lambda: _write_champion(measured.champion, folder.champion))
    _report(record, result, say)
    with_space(lambda: log_champion(record, best, result, _last_end(record)))
    with_space(lambda: write_json(folder.result, result))


def _report(record: SweepRecord, result: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Write the page of the sweep and send it to MLflow. It can be made later too, so no error of it ends the sweep."""
    folder = record.folder
    try:
        write_page(read(folder, result), folder.report)
    except Exception as error:
        say(f"The report was not written ({first_line(error)}); make it with: orchestrate report {folder.name}")
        return
    with_space(lambda: record.outbox.file(None, folder.report, "report"))


def _write_champion(champion: Bundle, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)  # left by a run that was interrupted here
    with atomic_folder(to) as temporary:
        write_bundle(champion, temporary)


def _last_end(record: SweepRecord) -> int:
    """Return when the last trial ended, in milliseconds."""
    ends = [row.datetime_complete for row in record.ledger.begun().values() if row.datetime_complete]
    return int(max(ends, default=datetime.now()).timestamp() * 1000)


def log_champion(record: SweepRecord, best: Row, result: Mapping[str, Any], milliseconds: int) -> None:
    """Queue everything on the champion for the sweep's own MLflow run, including the files in the champion's folder.

    result: the content of result.json; milliseconds: when the last trial ended, so that a repeated call records the
    same time.
    """
    sweep, folder, outbox, weights = record.sweep, record.folder, record.outbox, record.ledger.weights
    rows, state = ranked(record.ledger.study, sweep), folder.read()
    tables = {"champion": result["champion"], "random": result["random"], "difference": result["differences"]}
    values = {f"{prefix}/{name}": value for prefix, table in tables.items() for name, value in table.items()}
    values |= counts(rows)
    outbox.metrics(None, [{"step": 0, **values}], milliseconds)
    outbox.inputs(None, of_result(sweep, weights, [with_constants(row.parameters, sweep.space) for row in rows]))
    outbox.folder(None, folder.champion, "champion")
    outbox.image(None, folder.champion / "traversal.png", "champion", 0, milliseconds)
    identity = uuid.uuid5(uuid.NAMESPACE_URL, state["id"]).hex
    pyfunc.save(folder.champion, sweep, folder.model, milliseconds, state["parent_run"], identity)
    outbox.folder(None, folder.model, MODEL)
    if name := sweep.export.register_as:
        text = f"The champion of sweep `{sweep.name}`: trial `{best.trial_id}`."
        outbox.register(name, MODEL, "\n".join([text, "", *loading(name)]))
    for row in rows:
        if row.on_front:
            outbox.tags(row.trial_id, {"on_front": "true"})
    outbox.tags(best.trial_id, {"champion": "true"})
    spent = record.ledger.spent()
    note = sweep_note(sweep, rows, result["champion"], result["random"], result["differences"], spent)
    tags = {"champion": best.trial_id, "champion_method": method_of(best.parameters, sweep), "outcome": "completed"}
    outbox.end(None, "FINISHED", {**tags, NOTE: note}, milliseconds)
