"""Write a sweep's runs to MLflow: one parent run for the sweep, one child run for each trial, by explicit run id.

Only the process that drives the sweep writes to the store, through MlflowClient. A running sweep's records come from
its outbox (orchestrator.tracking.outbox), which repeats a call that may not have arrived. Every method that the outbox
calls therefore has the same effect when it is called twice.
"""

import functools
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

# Imported before MLflow, which reads the environment variables set there.
from orchestrator.tracking.mlflow_store import (
    check_version,
    flatten,
    open_store,
    quieten,
    refusal,
    retry_while_locked,
    store_uri,
)

# isort: split
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image

from core.errors import UserError, first_line
from orchestrator.secrets import hide_addresses, redacted, scrub, without_secrets
from orchestrator.store.moved import ARTIFACTS

if TYPE_CHECKING:
    from mlflow import MlflowClient

P = ParamSpec("P")
T = TypeVar("T")

Point = tuple[str, float, int, int | None]  # metric, value, step, milliseconds

PARENT = "mlflow.parentRunId"
_KIND = "mlflow.experimentKind"
_IMAGES = "mlflow.loggedImages"  # MLflow's page shows a run's images where it has this tag
_UNCLAIMED, _SWEEP_RUN = "unclaimed", "sweep_run"
_PARAMETER_LIMIT = 500  # characters MLflow keeps of a parameter
_CONTEXT = "mlflow.data.context"  # the purpose of a dataset, as MLflow's page shows it
_BATCH = 1000  # metrics that MLflow takes in one request
_KIND_OF_ERROR = re.compile(r"^\([\w.]+\) ")  # SQLAlchemy puts the type of the database's error first
_THUMBNAIL = 256  # pixels, the longer side of the preview that MLflow's page shows first


def _user_error(call: Callable[Concatenate["Tracking", P], T]) -> Callable[Concatenate["Tracking", P], T]:
    """Make a method raise a UserError of one sentence without secrets: errors of MLflow may show the whole address."""

    @functools.wraps(call)
    def wrapped(self: "Tracking", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(self, *args, **kwargs)
        except UserError:
            raise
        except Exception as error:
            why = self.scrub(first_line(error))
        # Raised outside of the handler, else the traceback would show MLflow's own text.
        raise UserError(f"tracking.uri: the MLflow store {self.shown} failed ({why})")

    return wrapped


class Tracking:
    """The runs of one sweep in an MLflow store."""

    def __init__(self, uri: str | None, root: Path) -> None:
        self.uri, self.root, self.embedded = store_uri(uri, root), root.resolve(), uri is None
        self.shown = redacted(self.uri)
        quieten()

    @functools.cached_property
    def client(self) -> "MlflowClient":
        """The client, opened when first needed: opening waits for a database that is away."""
        return self._open()

    @_user_error
    def _open(self) -> "MlflowClient":
        return open_store(self.uri, self.root, self.embedded)

    def scrub(self, message: str) -> str:
        """Return a library's message without the secrets of the store's address."""
        return scrub(message, self.uri)

    def hide_address(self, value: Any) -> Any:
        """Return a text, or a container of texts, with the store's address and all others in it redacted."""
        return hide_addresses(value, self.uri)

    def check(self) -> str | None:
        """Return a warning on a usable store, or None.

        Raises UserError, in one sentence, where the store does not answer, refuses this user, or is of another version.
        """
        warning = check_version(self.uri)
        try:
            open_store(self.uri, self.root, self.embedded).search_experiments(max_results=1)
            return warning
        except UserError:  # it could not be opened, and says why
            raise
        except Exception as error:
            refused, why = refusal(error, self.shown), self.scrub(first_line(error))
        if self.embedded:
            why = _KIND_OF_ERROR.sub("", why)
            cure = "" if os.access(self.root, os.W_OK) else "; name a folder to write to"
            raise UserError(f"--root: the MLflow store in {self.root} cannot be opened ({why}){cure}")
        if refused is not None:
            raise UserError(f"tracking.uri: the MLflow store {self.shown} {refused}")
        raise UserError(
            f"tracking.uri: the MLflow store {self.shown} does not answer ({why}); "
            "start it, correct the address, or give none (tracking.uri, MLFLOW_TRACKING_URI) to use the embedded store"
        )

    def check_run(self, run_id: str) -> None:
        """Raise the store's error where it has no run of this id. A deleted run is still found."""
        self.client.get_run(run_id)

    @_user_error
    def experiment(self, name: str) -> str:
        """Return the id of the experiment `name`, creating it if it is missing. Raises as `known_experiment` does."""
        if (known_id := self.known_experiment(name)) is not None:
            return known_id
        place = (self.root / ARTIFACTS / name).as_uri() if self.embedded else None
        # Without the tag MLflow opens an experiment as one of its chat workspaces.
        tags = {_KIND: "custom_model_development"}
        try:
            return str(retry_while_locked(lambda: self.client.create_experiment(name, place, tags=tags)))
        except MlflowException as error:
            known = self.client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or known is None:
                raise
            return str(known.experiment_id)  # another sweep has created it at the same time

    @_user_error
    def known_experiment(self, name: str) -> str | None:
        """Return the id of the experiment `name`; None where it is missing. Raises UserError where it was deleted."""
        known = self.client.get_experiment_by_name(name)
        if known is not None and known.lifecycle_stage == LifecycleStage.DELETED:
            raise UserError(
                f"tracking.experiment: '{name}' was deleted in the MLflow store {self.shown}, which keeps its name; "
                f"restore it (mlflow experiments restore --experiment-id {known.experiment_id}, with that store as "
                "MLFLOW_TRACKING_URI), or name another one"
            )
        return None if known is None else str(known.experiment_id)

    @_user_error
    def tag_experiment(self, experiment_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of an experiment."""
        for name, value in tags.items():
            retry_while_locked(functools.partial(self.client.set_experiment_tag, experiment_id, name, value))

    @_user_error
    def experiment_tags(self, experiment_id: str) -> dict[str, str]:
        """Return the tags of an experiment."""
        return dict(self.client.get_experiment(experiment_id).tags)

    @_user_error
    def start_parent(self, experiment_id: str, name: str, tags: Mapping[str, str], spec: Mapping[str, Any]) -> str:
        """Return the id of the sweep's own run, creating it if needed, with its parameters and sweep.json."""
        parameters, tagged = without_secrets(spec), self.hide_address({"role": "sweep", **tags})
        run_id = self._parent(experiment_id, tagged.get("sweep_id"))  # of a start that was killed here
        if run_id is None:
            run = retry_while_locked(lambda: self.client.create_run(experiment_id, run_name=name, tags=tagged))
            run_id = str(run.info.run_id)
        retry_while_locked(lambda: self._params(run_id, flatten(parameters)))
        self.client.log_dict(run_id, parameters, "sweep.json")
        return run_id

    def _parent(self, experiment_id: str, sweep_id: str | None) -> str | None:
        """Return the id of the run that was created for a sweep, if there is one."""
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
        """Return the id of a trial's run, an existing one or a new one, RUNNING and with these parameters and tags.

        A parameter that the run already has is left alone, because MLflow does not let it change.
        """
        run = self.child(experiment_id, parent, trial_id)
        if run is None:
            run_id, known = self._claimed(experiment_id, parent, trial_id, milliseconds), {}
        else:
            run_id, known = str(run.info.run_id), run.data.params
            self.restart(run_id)
        self._params(run_id, {name: value for name, value in parameters.items() if name not in known})
        self.tags(run_id, tags or {})
        return run_id

    def _claimed(self, experiment_id: str, parent: str, trial_id: str, milliseconds: int | None) -> str:
        """Create a run and claim it for a trial.

        A server that hangs may carry out a request after the client has given up and sent another one, and so create
        two
        runs. A run therefore belongs to the trial only after a second request has claimed it; that request may arrive
        twice.
        The other runs are deleted.
        """
        self.check_run(parent)  # raises where this is not the sweep's store, so that nothing is created in it
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
        """Delete surplus runs, which were created twice for a trial of this sweep."""
        for run in self._unclaimed(experiment_id, parent):
            self.client.delete_run(run.info.run_id)

    def restart(self, run_id: str) -> None:
        """Set a run to RUNNING, whatever its status."""
        self.client.update_run(run_id, status="RUNNING")

    @_user_error
    def status(self, run_id: str) -> str:
        """Return the status of a run in the store: RUNNING, FINISHED, FAILED or KILLED."""
        return str(self.client.get_run(run_id).info.status)

    @_user_error
    def running(self, experiment_id: str, parent: str) -> list[tuple[str, str]]:
        """Return (run id, trial id) of the trials that are RUNNING in the store."""
        rule = f"tags.`{PARENT}` = '{parent}' and attributes.status = 'RUNNING'"
        runs = self.client.search_runs([experiment_id], rule, max_results=5000)
        return [(str(run.info.run_id), str(run.data.tags["trial_id"])) for run in runs if "trial_id" in run.data.tags]

    def child(self, experiment_id: str, parent: str, trial_id: str) -> Run | None:
        """Return the oldest run of a trial, or None. Raises MLflow's own errors."""
        rule = f"tags.`{PARENT}` = '{parent}' and tags.trial_id = '{trial_id}'"
        runs = self.client.search_runs([experiment_id], rule, max_results=1, order_by=["attributes.start_time ASC"])
        return runs[0] if runs else None

    @_user_error
    def find(self, experiment_id: str, parent: str, trial_id: str) -> Run | None:
        """Return the oldest run of a trial, or None. Raises UserError where the store fails."""
        return self.child(experiment_id, parent, trial_id)

    @_user_error
    def children(self, experiment_id: str, parent: str) -> list[Run]:
        """Return the runs of all trials, at most 5000."""
        return list(self.client.search_runs([experiment_id], f"tags.`{PARENT}` = '{parent}'", max_results=5000))

    def _params(self, run_id: str, values: Mapping[str, Any]) -> None:
        params = [Param(name, str(value)[:_PARAMETER_LIMIT]) for name, value in values.items()]
        if params:
            self.client.log_batch(run_id, params=params, synchronous=True)

    def points(self, run_id: str, points: Sequence[Point], milliseconds: int) -> None:
        """Log values of metrics. A point that the store has, to the same millisecond, is not added again.

        milliseconds: the time of the points that have no time of their own.
        """
        metrics = [Metric(name, value, at or milliseconds, step) for name, value, step, at in points]
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + _BATCH], synchronous=True)

    def inputs(self, run_id: str, datasets: Sequence[Mapping[str, str]]) -> None:
        """Log the datasets of a run (orchestrator.tracking.lineage); a dataset of the same name and digest is kept."""
        logged = [
            DatasetInput(
                Dataset(each["name"], each["digest"], each["source_type"], each["source"], profile=each.get("profile")),
                [InputTag(_CONTEXT, each["context"])],
            )
            for each in datasets
        ]
        if logged:
            self.client.log_inputs(run_id, logged)

    def image(self, run_id: str, picture: Path, key: str, step: int, milliseconds: int) -> None:
        """Log the picture of a step, for the slider on a run's page.

        MLflow's own log_image makes up a new file name for each call. Here the name follows from the arguments, so a
        picture
        that is sent twice, or half sent before, is stored once.
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
        """Log the files of a folder as the artifact folder `name`."""
        self.client.log_artifacts(run_id, str(folder), name)

    def tags(self, run_id: str, values: Mapping[str, str]) -> None:
        """Set tags of a run."""
        if values:
            tags = [RunTag(name, value) for name, value in values.items()]
            self.client.log_batch(run_id, tags=tags, synchronous=True)

    def end(self, run_id: str, status: str, tags: Mapping[str, str], milliseconds: int | None = None) -> None:
        """Set the tags of a run, and its status to FINISHED, FAILED or KILLED.

        milliseconds: when the run ended; None means now.
        """
        self.tags(run_id, tags)
        self.client.set_terminated(run_id, status, milliseconds)

    def register(self, name: str, run_id: str, artifact: str, description: str = "") -> str:
        """Register an artifact folder as a version of the model `name`, make it the champion, and return its version.

        The model and the version are created only if they are missing.
        """
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self.client.get_run(run_id).info.artifact_uri}/{artifact}"
        versions = self.client.search_model_versions(f"run_id = '{run_id}'")  # a name may hold a quote
        numbers = [int(each.version) for each in versions if (each.name, each.source) == (name, source)]
        if not numbers:
            numbers = [int(self.client.create_model_version(name, source, run_id, description=description).version)]
        version = str(min(numbers))
        self.client.set_registered_model_alias(name, "champion", version)
        return version

    def download(self, run_id: str, artifact: str, to: Path) -> Path:
        """Download an artifact folder of a run. Raises UserError where the run or the artifact is missing."""
        try:
            return Path(self.client.download_artifacts(run_id, artifact, str(to)))
        except Exception as error:
            why = self.scrub(first_line(error))
        raise UserError(f"run '{run_id}' has no artifact '{artifact}' in {self.shown} ({why})")
