"""Read and write a sweep's own folder, `<root>/<name>/`. Only this module knows its file names.

sweep.json    the resolved specification, its identity, versions, and where its MLflow runs are
study.db      Optuna's study: the state of every trial; absent where the sweep file names a database for it
trials/       a folder for each trial, with its checkpoints
outbox/       records that MLflow has not received yet
champion/     the exported best set
measured/     bundles of other trials, as they were measured for an export; may be removed at any time
model/        the same as a model that MLflow loads
result.json   the champion and the baseline on the reporting seeds
report.html   the page that `orchestrate report` wrote last
tune/         Ray Tune's own files, of the last start only
lock          held by the process that drives the sweep
stop          present when trials have to save and end

Beside the sweeps' folders, `<root>/cache/` holds the unshifted samples that they all share (core.samples.cache); it may
be removed at any time.
"""

import json
import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import FILE_MODE, atomic_file
from orchestrator.secrets import redacted
from orchestrator.spec import Sweep, parse, result_keys
from orchestrator.spec.domains import Slug
from orchestrator.spec.problems import Refused, SpecError, nearest
from orchestrator.store.checkpoints import TrialFolder
from orchestrator.store.database import Database, StudyPlace, shown_place

_DECIDING = ("id", "identity", "spec", "weights", "versions")  # keys of every sweep.json
_VERSIONED = ("torch", "diffusers", "ray", "deepspeed", "optuna", "mlflow")


def default_root() -> Path:
    """Return the folder of all sweeps: $ORCHESTRATE_ROOT, or `runs`."""
    return Path(os.environ.get("ORCHESTRATE_ROOT", "runs"))


@dataclass(frozen=True)
class SweepFolder:
    """The folder of one sweep. Raises UserError where `name` is no valid sweep name."""

    root: Path
    name: str

    def __post_init__(self) -> None:
        try:
            Slug().check(self.name)
        except Refused as refused:
            raise UserError(f"sweep: {refused.problems[0].text}") from None

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.root.resolve() / self.name

    @property
    def study_file(self) -> Path:
        """The file of Optuna's study, where no database is named for it."""
        return self.path / "study.db"

    @property
    def study_place(self) -> StudyPlace:
        """The place of this sweep's study: a file or a database."""
        return self._study_place(self.read()["spec"].get("study", {}).get("uri"))

    def study_place_of(self, sweep: Sweep) -> StudyPlace:
        """Return the place of the study that a sweep file names. Raises UserError where the study is elsewhere."""
        before, now = self.study_place, self._study_place(sweep.study.uri)
        if "study" in self.read() and shown_place(before) != shown_place(now):
            raise UserError(
                f"study.uri: the trials of sweep '{self.name}' are in {shown_place(before)}, not in {shown_place(now)}"
                f"; put study.uri back, give the new sweep another name, or remove {self.path} to start over"
            )
        return now

    def _study_place(self, uri: str | None) -> StudyPlace:
        return self.study_file if uri is None else Database(uri, f"{self.name}-{self.read()['id']}")

    @property
    def lock(self) -> Path:
        """The lock file (orchestrator.store.lock)."""
        return self.path / "lock"

    @property
    def stop(self) -> Path:
        """The file that asks all trials to save and end."""
        return self.path / "stop"

    @property
    def outbox(self) -> Path:
        """The folder of records for MLflow (orchestrator.tracking.outbox)."""
        return self.path / "outbox"

    @property
    def result(self) -> Path:
        """The file of the champion's and the baseline's final metrics."""
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        """The page that `orchestrate report` writes."""
        return self.path / "report.html"

    @property
    def tune(self) -> Path:
        """The folder of Ray Tune's own files."""
        return self.path / "tune"

    @property
    def model(self) -> Path:
        """The champion as a model that MLflow loads."""
        return self.path / "model"

    @property
    def champion(self) -> Path:
        """The bundle of the champion."""
        return self.path / "champion"

    @property
    def measured(self) -> Path:
        """The folder of bundles that were measured for an export (orchestrator.bundle.export)."""
        return self.path / "measured"

    @property
    def cache(self) -> Path:
        """The folder of unshifted samples that all sweeps under `root` share."""
        return self.root.resolve() / "cache"

    def trial(self, trial_id: str) -> TrialFolder:
        """Return the folder of a trial."""
        return TrialFolder(self.path / "trials" / trial_id)

    def exists(self) -> bool:
        """Return whether the sweep has been created."""
        return (self.path / "sweep.json").is_file()

    def read(self, file: str = "sweep.json") -> dict[str, Any]:
        """Return one of the folder's JSON files. Raises UserError where it is missing or damaged."""
        if not (self.path / file).is_file():
            there = sorted(p.parent.name for p in self.root.glob("*/sweep.json"))
            known = f"sweeps there: {', '.join(there)}" if there else "no sweep has run there"
            near = nearest(self.name, there)
            known += f"; did you mean {near!r}?" if near and near != self.name else ""
            raise UserError(f"no {file} of a sweep '{self.name}' in {self.root}; {known}")
        try:
            content = json.loads((self.path / file).read_text())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path / file} is damaged: {error}") from error
        except OSError as error:
            raise UserError(f"{self.path / file} cannot be read: {error.strerror}") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.path / file} is damaged: it holds no mapping")
        missing = [key for key in _DECIDING if key not in content] if file == "sweep.json" else []
        if missing:
            raise UserError(f"{self.path / file} is damaged: it holds no '{missing[0]}'")
        return content

    def sweep(self) -> Sweep:
        """Return the specification that the sweep was started with.

        Raises UserError where it is damaged, or says what this version does not know.
        """
        try:
            return parse(self.read()["spec"])
        except SpecError as error:
            why = f"is damaged, or another version wrote it: {error.problems[0]}"
            raise UserError(f"{self.path / 'sweep.json'} {why}") from None

    def create(self, sweep: Sweep, weights: str) -> None:
        """Create the folder of a new sweep; an existing one is left alone."""
        if self.exists():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        content = {
            "id": uuid.uuid4().hex,
            "identity": sweep.identity(),
            "spec": sweep.resolved(),
            "weights": weights,
            "versions": {package: version(package) for package in _VERSIONED},
        }
        self._write(content)

    def remove_if_empty(self) -> None:
        """Remove the lock and the empty folder of a sweep that was refused before it began."""
        if not self.exists():
            self.lock.unlink(missing_ok=True)
            with suppress(OSError):
                self.path.rmdir()

    def add(self, **facts: Any) -> dict[str, Any]:
        """Add facts to sweep.json, and return its new content."""
        content = {**self.read(), **facts}
        self._write(content)
        return content

    def _write(self, content: dict[str, Any]) -> None:
        """Write sweep.json, readable by its owner alone where it holds the password of a store."""
        uris = [content["spec"].get(store, {}).get("uri") for store in ("tracking", "study")]
        secret = any(uri is not None and redacted(uri) != uri for uri in uris)
        with atomic_file(self.path / "sweep.json", mode=0o600 if secret else FILE_MODE) as temporary:
            temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")

    @property
    def of_earlier_version(self) -> bool:
        """Whether a version in which sweep files or metrics meant something else started the sweep."""
        return bool(self.read()["identity"] != self.sweep().identity())

    def changed(self, sweep: Sweep) -> list[str] | None:
        """Return what differs between this folder's sweep and a sweep file of the same name; None if nothing does."""
        stored = self.read()
        if stored["identity"] == sweep.identity():
            return None
        return _differences(result_keys(stored["spec"]), result_keys(sweep.resolved())) or ["the file format"]

    def refuse_changed(self, sweep: Sweep) -> None:
        """Raise UserError, naming what differs, if the folder holds another sweep of the same name."""
        if self.of_earlier_version:
            raise UserError(
                f"sweep '{self.name}' was started by an earlier version, whose metrics meant something else, so it "
                "cannot go on; start a new one that tries its best configurations first with --fork, give it another "
                f"name, or remove {self.path}"
            )
        changed = self.changed(sweep)
        if changed is not None:
            raise UserError(
                f"sweep '{self.name}' has already been started with other settings; changed since: "
                f"{', '.join(changed)}; start a new one that learns from it with --fork, give it another name, or "
                f"remove {self.path}"
            )

    def keep_address(self, sweep: Sweep) -> None:
        """Store the sweep file's address of the study, which may have a new password."""
        content = self.read()
        if content["spec"].get("study", {}) != sweep.resolved()["study"]:
            self._write({**content, "spec": {**content["spec"], "study": sweep.resolved()["study"]}})

    def refuse_other_weights(self, weights: str) -> None:
        """Raise UserError if the model's weights are not those that the sweep was started with."""
        if self.exists() and self.read()["weights"] != weights:
            raise UserError(
                f"model: the weights of '{self.sweep().model}' have changed since sweep '{self.name}' was started; "
                f"put the old ones back, give the new sweep another name, or remove {self.path}"
            )


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    # Compare as JSON, which stores tuples as lists.
    return [] if json.dumps(old) == json.dumps(new) else [path]
