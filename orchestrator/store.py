"""What a sweep keeps in its own folder, `<root>/<name>/`: the one place that knows the file names.

sweep.json    the resolved specification, its identity, versions, and where its MLflow runs are
study.db      Optuna
tune/         Ray Tune
champion/     the exported best set
result.json   the champion and the baseline on the reporting seeds

Beside the sweeps' folders, `<root>/cache/` holds the unshifted samples that they all share (core.cache); it may be
removed at any time.
"""

import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import write_json
from orchestrator.spec import Sweep, deciding, parse

_VERSIONED = ("torch", "diffusers", "ray", "deepspeed", "optuna", "mlflow")


def default_root() -> Path:
    return Path(os.environ.get("ORCHESTRATE_ROOT", "runs"))


@dataclass(frozen=True)
class SweepFolder:
    """The folder of one sweep."""

    root: Path
    name: str

    @property
    def path(self) -> Path:
        return self.root.resolve() / self.name

    @property
    def study(self) -> str:
        return str(self.path / "study.db")

    @property
    def tune(self) -> Path:
        return self.path / "tune"

    @property
    def champion(self) -> Path:
        return self.path / "champion"

    @property
    def cache(self) -> Path:
        return self.root.resolve() / "cache"

    def exists(self) -> bool:
        return (self.path / "sweep.json").is_file()

    def read(self, file: str = "sweep.json") -> dict[str, Any]:
        """One of the folder's JSON files. Raises UserError where it is missing or damaged."""
        if not (self.path / file).is_file():
            there = sorted(p.parent.name for p in self.root.glob("*/sweep.json"))
            known = f"sweeps there: {', '.join(there)}" if there else "no sweep has run there"
            raise UserError(f"no {file} of a sweep '{self.name}' in {self.root}; {known}")
        try:
            content: dict[str, Any] = json.loads((self.path / file).read_text())
            return content
        except ValueError as error:
            raise UserError(f"{self.path / file} is damaged: {error}") from error

    def sweep(self) -> Sweep:
        """The specification the sweep was started with."""
        return parse(self.read()["spec"])

    def create(self, sweep: Sweep, tracking_uri: str, experiment_id: str, parent: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        content = {
            "identity": sweep.identity(),
            "spec": sweep.resolved(),
            "tracking_uri": tracking_uri,
            "experiment_id": experiment_id,
            "parent_run": parent,
            "versions": {package: version(package) for package in _VERSIONED},
        }
        write_json(self.path / "sweep.json", content)

    def refuse_changed(self, sweep: Sweep) -> None:
        """Raise UserError, naming what differs, if the folder holds another sweep of the same name."""
        stored = self.read()
        if stored["identity"] == sweep.identity():
            return
        changed = _differences(deciding(stored["spec"]), deciding(sweep.resolved()))
        raise UserError(
            f"sweep '{self.name}' has already been started with other settings; changed since: "
            f"{', '.join(changed) or 'the file format'}; give the new one another name, or remove {self.path}"
        )


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    # Tuples become lists on the way through JSON.
    return [] if json.dumps(old) == json.dumps(new) else [path]
