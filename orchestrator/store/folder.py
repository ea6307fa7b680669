"""What a sweep keeps in its own folder, `<root>/<name>/`: the one place that knows the file names.

sweep.json    the resolved specification, its identity, versions, and where its MLflow runs are
study.db      Optuna: what has become of every trial; not there where the sweep file names a database for it
trials/       a folder for each trial, with its checkpoints
outbox/       what MLflow has not got yet
champion/     the exported best set
model/        the same as a model that MLflow loads
result.json   the champion and the baseline on the reporting seeds
report.html   what `orchestrate report` found when it was last asked
tune/         Ray Tune's own files, of the last start only
lock, stop    held by the process that drives the sweep; there when trials shall save and end

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
from core.files import atomic_file
from orchestrator.secrets import redacted
from orchestrator.spec import Sweep, deciding, parse
from orchestrator.spec.domains import Slug
from orchestrator.spec.problems import Refused, nearest
from orchestrator.store.checkpoints import TrialFolder
from orchestrator.store.database import Database, Where, place

_VERSIONED = ("torch", "diffusers", "ray", "deepspeed", "optuna", "mlflow")


def default_root() -> Path:
    return Path(os.environ.get("ORCHESTRATE_ROOT", "runs"))


@dataclass(frozen=True)
class SweepFolder:
    """The folder of one sweep."""

    root: Path
    name: str

    def __post_init__(self) -> None:
        try:
            Slug().check(self.name)
        except Refused as refused:
            raise UserError(f"sweep: {refused.problems[0].text}") from None

    @property
    def path(self) -> Path:
        return self.root.resolve() / self.name

    @property
    def study(self) -> Path:
        return self.path / "study.db"

    @property
    def book(self) -> Where:
        """Where the study of this sweep is."""
        return self._book(self.read()["spec"].get("study", {}).get("uri"))

    def book_of(self, sweep: Sweep) -> Where:
        """Where a sweep file that goes on with it says it is. Raises UserError where that is another place."""
        before, now = self.book, self._book(sweep.study.uri)
        if "study" in self.read() and place(before) != place(now):
            raise UserError(
                f"study.uri: the trials of sweep '{self.name}' are in {place(before)}, not in {place(now)}; put "
                f"study.uri back, give the new sweep another name, or remove {self.path} to start over"
            )
        return now

    def _book(self, uri: str | None) -> Where:
        return self.study if uri is None else Database(uri, f"{self.name}-{self.read()['id']}")

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def stop(self) -> Path:
        return self.path / "stop"

    @property
    def outbox(self) -> Path:
        return self.path / "outbox"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def tune(self) -> Path:
        return self.path / "tune"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def champion(self) -> Path:
        return self.path / "champion"

    @property
    def cache(self) -> Path:
        return self.root.resolve() / "cache"

    def trial(self, trial_id: str) -> TrialFolder:
        return TrialFolder(self.path / "trials" / trial_id)

    def exists(self) -> bool:
        return (self.path / "sweep.json").is_file()

    def read(self, file: str = "sweep.json") -> dict[str, Any]:
        """One of the folder's JSON files. Raises UserError where it is missing or damaged."""
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
        if not isinstance(content, dict):
            raise UserError(f"{self.path / file} is damaged: it holds no mapping")
        return content

    def sweep(self) -> Sweep:
        """The specification the sweep was started with."""
        return parse(self.read()["spec"])

    def create(self, sweep: Sweep, weights: str) -> None:
        """The folder of a new sweep; nothing happens where it is there."""
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
        """Leave nothing behind of a sweep that was refused before it began."""
        if not self.exists():
            self.lock.unlink(missing_ok=True)
            with suppress(OSError):
                self.path.rmdir()

    def add(self, **facts: Any) -> dict[str, Any]:
        """Put more into sweep.json; returns what it holds then."""
        content = {**self.read(), **facts}
        self._write(content)
        return content

    def _write(self, content: dict[str, Any]) -> None:
        """sweep.json; for its owner alone where it holds the password of a store."""
        uris = [content["spec"].get(store, {}).get("uri") for store in ("tracking", "study")]
        secret = any(uri is not None and redacted(uri) != uri for uri in uris)
        with atomic_file(self.path / "sweep.json", mode=0o600 if secret else 0o644) as temporary:
            temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")

    def changed(self, sweep: Sweep) -> list[str] | None:
        """What differs between this sweep's folder and a sweep file of the same name; None where it is the same."""
        stored = self.read()
        if stored["identity"] == sweep.identity():
            return None
        return _differences(deciding(stored["spec"]), deciding(sweep.resolved())) or ["the file format"]

    def refuse_changed(self, sweep: Sweep) -> None:
        """Raise UserError, naming what differs, if the folder holds another sweep of the same name."""
        changed = self.changed(sweep)
        if changed is not None:
            raise UserError(
                f"sweep '{self.name}' has already been started with other settings; changed since: "
                f"{', '.join(changed)}; start a new one that learns from it with --fork, give it another name, or "
                f"remove {self.path}"
            )

    def keep_address(self, sweep: Sweep) -> None:
        """Go by the sweep file's address of the study from now on: it may have another password."""
        content = self.read()
        if content["spec"].get("study", {}) != sweep.resolved()["study"]:
            self._write({**content, "spec": {**content["spec"], "study": sweep.resolved()["study"]}})

    def refuse_other_weights(self, weights: str) -> None:
        """Raise UserError if the model is no longer the one that the sweep was started with."""
        if self.exists() and self.read()["weights"] != weights:
            raise UserError(
                f"model: the weights of '{self.sweep().model}' have changed since sweep '{self.name}' was started; "
                f"put the old ones back, give the new sweep another name, or remove {self.path}"
            )


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    # Tuples become lists on the way through JSON.
    return [] if json.dumps(old) == json.dumps(new) else [path]
