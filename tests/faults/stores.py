"""What is checked of a sweep's stores: they agree, nothing is missing or twice, results are equal to the last digit."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import optuna
from mlflow.entities import Run
from optuna.trial import FrozenTrial

from orchestrator.search.ledger import METRICS, OUTCOME, REASON, SECONDS, TRIAL
from orchestrator.store.spool import pending, refused
from orchestrator.tracking.mlflow_store import store_uri
from orchestrator.tracking.views import RESULT
from tests.faults.sweep_under_test import EVERY, ITERATIONS, SweepUnderTest, check

_MEASURED = list(range(EVERY, ITERATIONS + 1, EVERY))
_TRAINED = list(range(1, ITERATIONS + 1))
History = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Result:
    """What a sweep came to, to the last digit."""

    champion: dict[str, Any]  # result.json
    metrics: dict[str, dict[str, float]]  # by trial, from the study
    histories: dict[str, History]  # by trial, from MLflow


Reference = Callable[[], Result]  # waits for the uninterrupted sweep to end


def rows(sweep: SweepUnderTest) -> list[FrozenTrial]:
    """Every row of the study."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.load_study(study_name=sweep.name, storage=f"sqlite:///{sweep.folder.study_file}").trials


def newest(sweep: SweepUnderTest) -> dict[str, FrozenTrial]:
    """Every trial's last row."""
    return {row.user_attrs[TRIAL]: row for row in rows(sweep) if TRIAL in row.user_attrs}


def outcomes(sweep: SweepUnderTest) -> dict[str, tuple[str, str]]:
    """How each trial ended, and why."""
    told = {trial: row.user_attrs for trial, row in newest(sweep).items()}
    return {trial: (told.get(OUTCOME, ""), told.get(REASON, "")) for trial, told in told.items()}


def standing(sweep: SweepUnderTest) -> Counter[str]:
    """How many trials the study holds in each state, by a reader of our own."""
    if not sweep.folder.study_file.is_file():
        return Counter()
    try:
        return Counter(row.state.name for row in newest(sweep).values())
    except (KeyError, sqlite3.Error, optuna.exceptions.StorageInternalError):  # killed before the study was made
        return Counter()


class Runs:
    """A sweep's runs, as MLflow tells them."""

    def __init__(self, sweep: SweepUnderTest, uri: str | None = None) -> None:
        state = sweep.folder.read()
        self.experiment, self.parent = state["experiment_id"], state["parent_run"]
        self.client = mlflow.MlflowClient(uri or store_uri(None, sweep.root))

    def children(self) -> dict[str, Run]:
        """By trial; a trial with two runs is a broken promise."""
        found = self.client.search_runs([self.experiment], f"tags.`mlflow.parentRunId` = '{self.parent}'")
        names = [run.data.tags["trial_id"] for run in found]
        check(len(set(names)) == len(names), f"trials with two runs: {names}")
        return dict(zip(names, found, strict=True))

    def running(self) -> list[str]:
        """All of the experiment that MLflow holds RUNNING, the sweep's own included."""
        found = self.client.search_runs([self.experiment], "attributes.status = 'RUNNING'")
        return [str(run.info.run_name) for run in found]

    def history(self, run: Run) -> History:
        """Every metric that follows from the sweep: times and what the machine did are others each time."""
        names = [name for name in run.data.metrics if name != SECONDS and not name.startswith("system/")]
        points = {name: self.client.get_metric_history(run.info.run_id, name) for name in names}
        return {name: [(point.step, point.value) for point in found] for name, found in points.items()}

    def whole(self, trial: str, run: Run) -> None:
        """Every metric, picture and file of a trial that reached its end is there once, in order."""
        for name, points in self.history(run).items():
            wanted = _TRAINED if name.startswith("training/") else _MEASURED
            steps = [step for step, _ in points]
            check(steps == wanted, f"trial {trial}: {name} has the steps {steps}")
        pictures = [Path(file.path).name for file in self.client.list_artifacts(run.info.run_id, "images")]
        for ending in (".png", ".webp"):
            found = sorted(_key_and_step(name) for name in pictures if name.endswith(ending))
            pictured = [RESULT, *(("traversal", step) for step in _MEASURED)]
            check(found == pictured, f"trial {trial}: pictures ({ending}) of {found}")
        files = {Path(file.path).name for file in self.client.list_artifacts(run.info.run_id, "directions")}
        check(files == {"directions.json", "directions.safetensors"}, f"trial {trial}: artifacts {sorted(files)}")


def _key_and_step(name: str) -> tuple[str, int]:
    key, _, rest = name.partition("+step+")
    return key, int(rest.partition("+")[0])


def result(sweep: SweepUnderTest, uri: str | None = None) -> Result:
    """What a finished sweep came to."""
    runs = Runs(sweep, uri)
    histories = {trial: runs.history(run) for trial, run in runs.children().items()}
    metrics = {trial: row.user_attrs.get(METRICS, {}) for trial, row in newest(sweep).items()}
    return Result(json.loads(sweep.folder.result.read_text()), metrics, histories)


def agree(sweep: SweepUnderTest, uri: str | None = None) -> None:
    """As many trials as asked, none finished twice, nothing running, and MLflow says the same."""
    found, runs = rows(sweep), Runs(sweep, uri)
    done = Counter(row.user_attrs[TRIAL] for row in found if row.state.name in ("COMPLETE", "PRUNED"))
    check(all(count == 1 for count in done.values()), f"trials finished more than once: {done}")
    check(len(newest(sweep)) == sweep.trials, f"{len(newest(sweep))} trials instead of {sweep.trials}")
    check(not open_rows(sweep), f"rows that are open: {open_rows(sweep)}")
    children = runs.children()
    check(children.keys() == newest(sweep).keys(), f"runs of {sorted(children)} for {sorted(newest(sweep))}")
    for trial, run in children.items():
        outcome = outcomes(sweep)[trial][0]
        ended = "FINISHED" if outcome in ("completed", "pruned") else "FAILED"
        check(run.info.status == ended, f"trial {trial} is {outcome}, its run {run.info.status}")
        if outcome == "completed":
            runs.whole(trial, run)
    parent = runs.client.get_run(runs.parent)
    check(parent.info.status == "FINISHED", f"the sweep's run is {parent.info.status}")
    check(pending(sweep.folder.outbox) == 0, "records still wait for MLflow")
    check(refused(sweep.folder.outbox) == 0, "records were refused by MLflow")


def open_rows(sweep: SweepUnderTest, states: Collection[str] = ("RUNNING", "WAITING")) -> list[int]:
    """Rows that say that something goes on."""
    return [row.number for row in rows(sweep) if row.state.name in states]


def closed(sweep: SweepUnderTest, uri: str | None = None) -> None:
    """Nothing runs: no row says otherwise, and no run as soon as the outbox is empty."""
    check(not open_rows(sweep, ("RUNNING",)), f"RUNNING rows of the study: {open_rows(sweep, ('RUNNING',))}")
    if pending(sweep.folder.outbox) == 0:
        running = Runs(sweep, uri).running()
        check(not running, f"RUNNING in MLflow: {running}")


def equal(found: Result, reference: Result, trials: Collection[str] | None = None) -> None:
    """To the last digit: the trials (all, if not told) and, if all, the champion."""
    if trials is None:
        check(found.metrics.keys() == reference.metrics.keys(), f"other trials: {sorted(found.metrics)}")
        check(found.champion == reference.champion, f"another champion: {_unlike(found.champion, reference.champion)}")
    for trial in reference.metrics if trials is None else trials:
        pairs = ((found.metrics, reference.metrics), (found.histories, reference.histories))
        for mine, theirs in pairs:
            different = _unlike(mine[trial], theirs[trial])
            check(not different, f"trial {trial} differs from the uninterrupted one: {different}")


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {one.get(key)} for {other.get(key)}" for key in other if one.get(key) != other[key])


def tidy(sweep: SweepUnderTest) -> None:
    """No process and no temporary file of a sweep that has ended is left."""
    sweep.gone()
    patterns = (".writing-*", ".*-*", ".*.new", ".*.old", ".*.gone", "*.tmp", "*-journal")
    left = {path.relative_to(sweep.root) for pattern in patterns for path in sweep.root.rglob(pattern)}
    check(not left, f"temporary files: {', '.join(sorted(map(str, left)))}")
    names = sorted(path.name for path in (sweep.place / "tmp").iterdir())
    left_temporary = [name for name in names if not name.startswith("torchinductor_")]  # torch's cache, which stays
    check(not left_temporary, f"in the temporary folder: {', '.join(left_temporary)}")
