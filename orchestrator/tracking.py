"""MLflow: one parent run for a sweep, one child for each trial, by explicit run id.

Everything goes through MlflowClient from the process that drives the sweep, the store's only writer. What a running
sweep records comes from its outbox (orchestrator.outbox), which sends again what may not have arrived: every call that
it makes here can be made twice and leaves what one call leaves.
"""

import fcntl
import functools
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the address may hold a password

import mlflow  # noqa: E402  # reads its environment on import
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException, RestException  # noqa: E402
from PIL import Image, UnidentifiedImageError  # noqa: E402

from core.errors import UserError, first_line  # noqa: E402
from orchestrator.secrets import redacted, scrub  # noqa: E402

P = ParamSpec("P")
T = TypeVar("T")

PARENT = "mlflow.parentRunId"
_KIND = "mlflow.experimentKind"
_IMAGES = "mlflow.loggedImages"  # MLflow's page shows a run's images where it has this tag
_UNCLAIMED, _SWEEP_RUN = "unclaimed", "sweep_run"
_PARAMETER_LIMIT = 500  # characters MLflow keeps of a parameter
_BATCH = 1000  # metrics that MLflow takes in one request
_THUMBNAIL = 256  # pixels, of the small picture that MLflow's page shows first
_BUSY_S = 60.0  # how long another process may hold the embedded store

# What the store will say again however often it is asked. Rights, limits and a server's own faults can be mended.
_PERMANENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")
_PERMANENT_STATUS = (400, 413, 414, 422)  # the same in HTTP, from what stores artifacts


def permanent(error: Exception) -> bool:
    """Whether the same call would fail for ever, though the store answers."""
    if isinstance(error, UserError):  # the store could not be opened
        return False
    if isinstance(error, MlflowException):
        if error.error_code == "BAD_REQUEST":  # also what a proxy says, and a server with too few connections
            return "QueuePool" not in str(error) and (
                isinstance(error, RestException) or "API request" not in str(error)
            )
        return error.error_code in _PERMANENT
    if isinstance(error, OSError):
        status = getattr(getattr(error, "response", None), "status_code", None)
        return isinstance(error, UnidentifiedImageError) or status in _PERMANENT_STATUS
    return isinstance(error, ValueError | TypeError | KeyError)


def _told(call: Callable[Concatenate["Tracking", P], T]) -> Callable[Concatenate["Tracking", P], T]:
    """A call whose failure is one sentence without a secret; an error of MLflow may name the whole address."""

    @functools.wraps(call)
    def told(self: "Tracking", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(self, *args, **kwargs)
        except UserError:
            raise
        except Exception as error:
            why = self.scrub(first_line(error))
        # Outside of the handler: a traceback would show the library's own text.
        raise UserError(f"tracking.uri: the MLflow store {self.shown} failed ({why})")

    return told


def _refusal(error: Exception, shown: str) -> str | None:
    """What a server wants that answers and will not serve us, and what to do; None where it is another failure."""
    said, code = str(error), getattr(error, "error_code", "")
    if "Invalid Host header" in said:
        host = urlsplit(shown).netloc.rpartition("@")[2]
        return f"does not know itself by that name; start it with --allowed-hosts '{host}', or call it by another name"
    if code == "UNAUTHENTICATED" or "error code 401 " in said:
        return (
            "wants to know who asks; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN, to what it accepts"
        )
    if code == "PERMISSION_DENIED" or "error code 403 " in said:
        return (
            "refuses this user; have the right to read and make experiments granted, or set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to one that has it"
        )
    return None


def store_uri(uri: str | None, root: Path) -> str:
    """A server's address, or the embedded store under `root`."""
    return uri or f"sqlite:///{root.resolve()}/mlflow.db"


class Tracking:
    """One sweep's runs in an MLflow store."""

    def __init__(self, uri: str | None, root: Path) -> None:
        self.uri, self.root, self.embedded = store_uri(uri, root), root.resolve(), uri is None
        self.shown = redacted(self.uri)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # Both tell of every attempt, with the address; whoever makes the last one says what came of it.
        for name in ("mlflow.store", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    @functools.cached_property
    def client(self) -> mlflow.MlflowClient:
        """Opened when it is first needed, for a database that is away would hold up whoever opens it."""
        return self._open()

    @_told
    def _open(self) -> mlflow.MlflowClient:
        if not self.embedded:
            return mlflow.MlflowClient(self.uri, self.uri)
        self.root.mkdir(parents=True, exist_ok=True)
        with _alone(self.root / "mlflow.lock"):
            return _patiently(lambda: mlflow.MlflowClient(self.uri, self.uri))

    def scrub(self, value: Any) -> Any:
        """A text, or what holds texts, without the secrets of the store's address."""
        return scrub(value, self.uri)

    def check(self) -> None:
        """Raise UserError, in one sentence, where the store does not answer."""
        try:
            self.client.search_experiments(max_results=1)
            return
        except Exception as error:
            kind, refusal = type(error).__name__, _refusal(error, self.shown)
        if refusal is not None:
            raise UserError(f"tracking.uri: the MLflow store {self.shown} {refusal}")
        raise UserError(
            f"tracking.uri: the MLflow store {self.shown} does not answer ({kind}); "
            "start it, correct the address, or leave uri out to use the embedded store"
        )

    def reach(self, run_id: str) -> None:
        """Raise what the store answers with where it does not know a run, deleted ones included."""
        self.client.get_run(run_id)

    @_told
    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, made if it is not there."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        place = (self.root / "mlartifacts" / name).as_uri() if self.embedded else None
        # Without the tag MLflow opens an experiment as one of its chat workspaces.
        tags = {_KIND: "custom_model_development"}
        try:
            return str(_patiently(lambda: self.client.create_experiment(name, place, tags=tags)))
        except MlflowException as error:
            found = self.client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
            return str(found.experiment_id)  # another sweep has made it just now

    @_told
    def start_parent(self, experiment_id: str, name: str, tags: Mapping[str, str], spec: Mapping[str, Any]) -> str:
        shown, tagged = self.scrub(dict(spec)), self.scrub({"role": "sweep", **tags})
        run_id = self._parent(experiment_id, tagged.get("sweep_id"))  # of a start that was killed right here
        if run_id is None:
            run = _patiently(lambda: self.client.create_run(experiment_id, run_name=name, tags=tagged))
            run_id = str(run.info.run_id)
        _patiently(lambda: self._params(run_id, flatten(shown)))
        self.client.log_dict(run_id, shown, "sweep.json")
        return run_id

    def _parent(self, experiment_id: str, sweep_id: str | None) -> str | None:
        """The run that was made for a sweep, if there is one."""
        if sweep_id is None:
            return None
        rule = f"tags.role = 'sweep' and tags.sweep_id = '{sweep_id}'"
        runs = self.client.search_runs([experiment_id], rule, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def start_child(
        self,
        experiment_id: str,
        parent: str,
        trial_id: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        milliseconds: int | None = None,
    ) -> str:
        """The run of a trial: the one it already has, or a new one; it is RUNNING and has these parameters and tags.

        A parameter that the run has stays as it is, for MLflow does not let one change.
        """
        found = self.child(experiment_id, parent, trial_id)
        if found is None:
            run_id, known = self._claimed(experiment_id, parent, trial_id, milliseconds), {}
        else:
            run_id, known = str(found.info.run_id), found.data.params
            self.restart(run_id)
        self._params(run_id, {name: value for name, value in parameters.items() if name not in known})
        self.tags(run_id, tags or {})
        return run_id

    def _claimed(self, experiment_id: str, parent: str, trial_id: str, milliseconds: int | None) -> str:
        """A new run that is a trial's own.

        A server that hangs carries out a request after its sender has given it up and sent another. A run is therefore
        the trial's only when a second request has claimed it, which may arrive twice; the others are deleted.
        """
        self.reach(parent)  # or it is another sweep's store, in which nothing is made
        name, tags = f"trial {trial_id}", {"role": _UNCLAIMED, _SWEEP_RUN: parent}
        unclaimed = [run for run in self._unclaimed(experiment_id, parent) if run.info.run_name == name]
        run = unclaimed[0] if unclaimed else self.client.create_run(experiment_id, milliseconds, tags, name)
        run_id = str(run.info.run_id)
        self.tags(run_id, {PARENT: parent, "role": "trial", "trial_id": trial_id})
        self.delete_unclaimed(experiment_id, parent)
        return run_id

    def _unclaimed(self, experiment_id: str, parent: str) -> list[Run]:
        rule = f"tags.role = '{_UNCLAIMED}' and tags.{_SWEEP_RUN} = '{parent}'"
        return list(self.client.search_runs([experiment_id], rule))

    def delete_unclaimed(self, experiment_id: str, parent: str) -> None:
        """Delete the runs that were made for a sweep's trials twice."""
        for run in self._unclaimed(experiment_id, parent):
            self.client.delete_run(run.info.run_id)

    def restart(self, run_id: str) -> None:
        """Set a run RUNNING, whatever it was."""
        self.client.update_run(run_id, status="RUNNING")

    @_told
    def status(self, run_id: str) -> str:
        """RUNNING, FINISHED, FAILED or KILLED, as the store has it."""
        return str(self.client.get_run(run_id).info.status)

    @_told
    def running(self, experiment_id: str, parent: str) -> list[tuple[str, str]]:
        """Run id and trial id of the trials that the store holds RUNNING."""
        rule = f"tags.`{PARENT}` = '{parent}' and attributes.status = 'RUNNING'"
        runs = self.client.search_runs([experiment_id], rule, max_results=5000)
        return [(str(run.info.run_id), str(run.data.tags["trial_id"])) for run in runs if "trial_id" in run.data.tags]

    def child(self, experiment_id: str, parent: str, trial_id: str) -> Run | None:
        rule = f"tags.`{PARENT}` = '{parent}' and tags.trial_id = '{trial_id}'"
        runs = self.client.search_runs([experiment_id], rule, max_results=1, order_by=["attributes.start_time ASC"])
        return runs[0] if runs else None

    @_told
    def find(self, experiment_id: str, parent: str, trial_id: str) -> Run | None:
        """`child`, for whoever tells a person what went wrong."""
        return self.child(experiment_id, parent, trial_id)

    @_told
    def children(self, experiment_id: str, parent: str) -> list[Run]:
        return list(self.client.search_runs([experiment_id], f"tags.`{PARENT}` = '{parent}'", max_results=5000))

    def _params(self, run_id: str, values: Mapping[str, Any]) -> None:
        params = [Param(name, str(value)[:_PARAMETER_LIMIT]) for name, value in values.items()]
        if params:
            self.client.log_batch(run_id, params=params, synchronous=True)

    def points(self, run_id: str, points: Sequence[tuple[str, float, int]], milliseconds: int) -> None:
        """Values of metrics at many steps. A point that the store has, to the same millisecond, is not added again."""
        metrics = [Metric(name, value, milliseconds, step) for name, value, step in points]
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + _BATCH], synchronous=True)

    def image(self, run_id: str, picture: Path, key: str, step: int, milliseconds: int) -> None:
        """A picture of a step, for the slider on a run's page.

        MLflow's own log_image draws a new name each time; here the name follows from what is recorded, so that a
        picture sent twice, or by halves, is there once.
        """
        own = uuid.uuid5(uuid.NAMESPACE_URL, f"{run_id}/{key}/{step}/{milliseconds}")
        name = f"{key.replace('/', '~')}+step+{step}+timestamp+{milliseconds}+{own}"
        with tempfile.TemporaryDirectory() as folder, Image.open(picture) as image:
            image.save(Path(folder) / f"{name}.png")
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            image.save(Path(folder) / f"{name}+compressed.webp")
            self.client.log_artifacts(run_id, folder, "images")
        self.client.set_tag(run_id, _IMAGES, True, synchronous=True)

    def folder(self, run_id: str, folder: Path, name: str) -> None:
        self.client.log_artifacts(run_id, str(folder), name)

    def tags(self, run_id: str, values: Mapping[str, str]) -> None:
        if values:
            tags = [RunTag(name, value) for name, value in values.items()]
            self.client.log_batch(run_id, tags=tags, synchronous=True)

    def end(self, run_id: str, status: str, tags: Mapping[str, str], milliseconds: int | None = None) -> None:
        """FINISHED, FAILED or KILLED, with the tags that say why; at the given time, or now."""
        self.tags(run_id, tags)
        self.client.set_terminated(run_id, status, milliseconds)

    def register(self, name: str, run_id: str, artifact: str) -> str:
        """The version of the registered model `name` that is this artifact, made if need be, now champion."""
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self.client.get_run(run_id).info.artifact_uri}/{artifact}"
        found = self.client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        numbers = [int(version.version) for version in found if version.source == source]
        version = str(min(numbers) if numbers else self.client.create_model_version(name, source, run_id).version)
        self.client.set_registered_model_alias(name, "champion", version)
        return version

    def download(self, run_id: str, artifact: str, to: Path) -> Path:
        """Fetch an artifact folder of a run. Raises UserError where the run or the artifact is not there."""
        try:
            return Path(self.client.download_artifacts(run_id, artifact, str(to)))
        except Exception as error:
            kind = type(error).__name__
        raise UserError(f"run '{run_id}' has no artifact '{artifact}' in {self.shown} ({kind})")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel frees when its holder dies.

    Two processes that open a new store at once would both make its tables, and one of them would fail.
    """
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _patiently(call: Callable[[], T]) -> T:
    """Call again while another process holds the embedded store; SQLite gives up sooner than a sweep may."""
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            return call()
        except Exception as error:
            if "database is locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.2)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
