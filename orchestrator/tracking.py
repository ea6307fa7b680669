"""MLflow: one parent run for a sweep, one child for each trial, by explicit run id.

Everything goes through MlflowClient from the process that drives the sweep, the store's only writer. Once a sweep runs,
no outage of the store stops it: a call that fails is told once and the sweep goes on.
"""

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

import mlflow  # noqa: E402  # reads its environment on import
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from PIL import Image  # noqa: E402

from core.errors import UserError  # noqa: E402

log = logging.getLogger(__name__)
P = ParamSpec("P")

PARENT = "mlflow.parentRunId"
_KIND = "mlflow.experimentKind"
_PARAMETER_LIMIT = 500  # characters MLflow keeps of a parameter


def fail_open(call: Callable[P, None]) -> Callable[P, None]:
    """A tracking call that can fail without stopping what it records."""

    @functools.wraps(call)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:
            log.warning("tracking: %s was not recorded (%s)", call.__name__, str(error).splitlines()[0])

    return guarded


def store_uri(uri: str | None, root: Path) -> str:
    """A server's address, or the embedded store under `root`."""
    return uri or f"sqlite:///{root.resolve()}/mlflow.db"


class Tracking:
    """One sweep's runs in an MLflow store."""

    def __init__(self, uri: str | None, root: Path) -> None:
        self.uri, self.root, self.embedded = store_uri(uri, root), root.resolve(), uri is None
        if self.embedded:
            root.mkdir(parents=True, exist_ok=True)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store").setLevel(logging.WARNING)
        self.client = mlflow.MlflowClient(self.uri, self.uri)

    def check(self) -> None:
        """Raise UserError, in one sentence, where the store does not answer."""
        try:
            self.client.search_experiments(max_results=1)
        except Exception as error:
            raise UserError(
                f"tracking.uri: the MLflow store {self.uri} does not answer ({type(error).__name__}); "
                "start it, correct the address, or leave uri out to use the embedded store"
            ) from error

    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, made if it is not there."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        place = (self.root / "mlartifacts" / name).as_uri() if self.embedded else None
        # Without the tag MLflow opens an experiment as one of its chat workspaces.
        return str(self.client.create_experiment(name, place, tags={_KIND: "custom_model_development"}))

    def start_parent(self, experiment_id: str, name: str, tags: Mapping[str, str], spec: Mapping[str, Any]) -> str:
        run = self.client.create_run(experiment_id, run_name=name, tags={"role": "sweep", **tags})
        self._params(run.info.run_id, flatten(spec))
        self.client.log_dict(run.info.run_id, dict(spec), "sweep.json")
        return str(run.info.run_id)

    def start_child(self, experiment_id: str, parent: str, trial_id: str, parameters: Mapping[str, Any]) -> str:
        """The run of a trial: the one it already has, or a new one."""
        found = self.child(experiment_id, parent, trial_id)
        if found is not None:
            self.client.update_run(found.info.run_id, status="RUNNING")
            return str(found.info.run_id)
        tags = {PARENT: parent, "role": "trial", "trial_id": trial_id}
        run = self.client.create_run(experiment_id, run_name=f"trial {trial_id}", tags=tags)
        self._params(run.info.run_id, parameters)
        return str(run.info.run_id)

    def child(self, experiment_id: str, parent: str, trial_id: str) -> Run | None:
        rule = f"tags.`{PARENT}` = '{parent}' and tags.trial_id = '{trial_id}'"
        runs = self.client.search_runs([experiment_id], rule, max_results=1)
        return runs[0] if runs else None

    def children(self, experiment_id: str, parent: str) -> list[Run]:
        return list(self.client.search_runs([experiment_id], f"tags.`{PARENT}` = '{parent}'", max_results=5000))

    def _params(self, run_id: str, values: Mapping[str, Any]) -> None:
        params = [Param(name, str(value)[:_PARAMETER_LIMIT]) for name, value in values.items()]
        self.client.log_batch(run_id, params=params, synchronous=True)

    def metrics(self, run_id: str, values: Mapping[str, float], step: int, milliseconds: int) -> None:
        metrics = [Metric(name, float(value), milliseconds, step) for name, value in values.items()]
        self.client.log_batch(run_id, metrics=metrics, synchronous=True)

    def last_step(self, run_id: str, metric: str) -> int:
        """The last step at which a run has a metric; 0 where it has none."""
        return max((point.step for point in self.client.get_metric_history(run_id, metric)), default=0)

    def image(self, run_id: str, picture: Path, key: str, step: int) -> None:
        with Image.open(picture) as image:
            self.client.log_image(run_id, image, key=key, step=step, synchronous=True)

    def folder(self, run_id: str, folder: Path, name: str) -> None:
        self.client.log_artifacts(run_id, str(folder), name)

    def tags(self, run_id: str, values: Mapping[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in values.items()], synchronous=True)

    def log_summary(self, run_id: str, values: Mapping[str, float], champion: Path) -> None:
        """What a sweep came to, on its parent run: figures, the champion's folder, its picture."""
        self.metrics(run_id, values, 0, int(time.time() * 1000))
        self.folder(run_id, champion, "champion")
        self.image(run_id, champion / "traversal.png", "champion", 0)

    def end(self, run_id: str, status: str, tags: Mapping[str, str]) -> None:
        """FINISHED, FAILED or KILLED, with the tags that say why."""
        self.tags(run_id, tags)
        self.client.set_terminated(run_id, status)

    def register(self, name: str, run_id: str, artifact: str) -> str:
        """A new version of the registered model `name`, with the alias champion; returns the version."""
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self.client.get_run(run_id).info.artifact_uri}/{artifact}"
        version = str(self.client.create_model_version(name, source, run_id).version)
        self.client.set_registered_model_alias(name, "champion", version)
        return version

    def download(self, run_id: str, artifact: str, to: Path) -> Path:
        """Fetch an artifact folder of a run. Raises UserError where the run or the artifact is not there."""
        try:
            return Path(self.client.download_artifacts(run_id, artifact, str(to)))
        except Exception as error:
            raise UserError(
                f"run '{run_id}' has no artifact '{artifact}' in {self.uri} ({type(error).__name__})"
            ) from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
