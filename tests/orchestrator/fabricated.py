"""Sweeps that have never run: whatever a report may have to show, written into a study as a sweep writes it."""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from orchestrator.search.ledger import Ledger
from orchestrator.search.ranking import rows
from orchestrator.spec import Sweep, parse
from orchestrator.store.folder import SweepFolder
from orchestrator.store.study import create_study
from orchestrator.trial.outcome import TrialOutcome
from orchestrator.trial.state import Report

SEARCH = {
    "directions": {"choice": [8, 12, 16]},
    "shift_scale": {"float": [0.15, 1.5], "log": True},
    "orthonormal": {"choice": [True, False]},
}
HOSTILE = "<script>alert(1)</script> ключ [bold] </table> {{ 7 * 7 }}"

Outcome = Callable[[int], TrialOutcome | None]  # of the trial that began as the i-th, from 0; None: it still runs


def completed(_: int) -> TrialOutcome:
    return TrialOutcome.COMPLETED


def mixed(i: int) -> TrialOutcome | None:
    """Some of everything."""
    others = {3: TrialOutcome.PRUNED, 5: TrialOutcome.FAILED, 7: TrialOutcome.DIVERGED, 8: None}
    return others.get(i, TrialOutcome.COMPLETED)


def started(root: Path, name: str, trials: int, **sections: Any) -> tuple[SweepFolder, Sweep]:
    """A sweep that has a study, without trials."""
    given: dict[str, Any] = {"search": SEARCH, "objectives": [{"identifiability": "max"}, {"fidelity_kid": "min"}]}
    given |= {"model": "toyfaces", "train": {"iterations": 100}, "budget": {"trials": trials}} | sections
    sweep = parse({"name": name, **given})
    folder = SweepFolder(root, name)
    folder.create(sweep, "weights")
    create_study(sweep, folder.study_file)
    folder.add(study="study.db")
    return folder, sweep


def with_intervals(values: Mapping[str, float], half: float = 0.04) -> dict[str, float]:
    """The table of these metrics, each with an interval of this half width."""
    low, high = (
        {f"{name}/{end}": v + by for name, v in values.items()} for end, by in (("low", -half), ("high", half))
    )
    return {**values, **low, **high}


def metrics_of(parameters: Mapping[str, Any]) -> dict[str, float]:
    scale, seed = float(parameters.get("shift_scale", 0.5)), int(parameters.get("seed", 0))
    identifiability = 1 - math.exp(-2 * scale) - 0.01 * seed
    values = {"identifiability": identifiability, "fidelity_kid": scale**2 + 0.02 * seed, "globality": 0.5}
    return with_intervals(values)


def fabricated(
    root: Path,
    trials: int = 12,
    outcome: Outcome = completed,
    name: str = "made",
    reason: str = HOSTILE,
    measured: Callable[[Mapping[str, Any]], dict[str, float]] = metrics_of,
    steps: Sequence[int] = (25, 50, 75),
    **sections: Any,
) -> SweepFolder:
    """A sweep with so many trials. More shift_scale, more identifiability and more KID; nothing else matters."""
    folder, sweep = started(root, name, trials, **sections)
    ledger = Ledger(sweep, folder.study_file, "weights")
    for i in range(trials):
        given = ledger.next_attempt()
        assert given is not None
        metrics = measured(given.parameters)
        for step in steps:
            ledger.reported(given.trial_id, step, metrics["identifiability"] * step / 100, False)
        end = outcome(i)
        if end is not None:
            whole = end in (TrialOutcome.COMPLETED, TrialOutcome.PRUNED)
            memory = {
                "gradient": "keep_steps",
                "micro_batch": 2,
                "sampler_batch": 8,
                "out_of_memory_retries": int(i == 0),
            }
            step = 100 if end == TrialOutcome.COMPLETED else 50
            told = Report(step, 10.0 + i, metrics, memory=memory)
            ledger.end(given.trial_id, end, "" if whole else reason, told if whole else None)
    return folder


def crowned(folder: SweepFolder, metrics: Sequence[str] = ("identifiability", "fidelity_kid", "globality")) -> str:
    """Give the sweep a champion, with a picture; returns its trial. Ahead in the first metric, behind in the second."""
    best = rows(folder, folder.sweep())[0].trial_id
    own, random = dict(zip(metrics, (0.9, 0.2, 0.5), strict=True)), dict(zip(metrics, (0.4, 0.1, 0.5), strict=True))
    differences = {name: own[name] - random[name] for name in metrics}
    tables = {"champion": own, "random": random, "differences": differences}
    folder.result.write_text(json.dumps({"trial": best} | {name: with_intervals(t) for name, t in tables.items()}))
    folder.champion.mkdir()
    Image.new("RGB", (64, 48), "orange").save(folder.champion / "traversal.png")
    return best


def copied(folder: SweepFolder, root: Path) -> SweepFolder:
    """The same under another root, for a test that changes it."""
    shutil.copytree(folder.path, root / folder.name)
    return SweepFolder(root, folder.name)
