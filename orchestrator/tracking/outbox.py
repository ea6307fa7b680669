"""Send a sweep's records to its MLflow store: write them to disk first, send them in order, remove those received.

A store that is down, slow or full therefore delays no trial and loses no record. A driver that is killed leaves its
unsent records to the next driver. The records lie in a spool (orchestrator.store.spool), and beside them

steps/<trial>.json    the last step of every metric and picture of a trial that the store has

A record is sent again until the store has answered, so it may arrive twice. Each kind of record has the same effect
when it arrives twice (orchestrator.tracking.client). A resumed trial repeats steps: recorded steps are not recorded
again.
"""

import json
import logging
import math
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from core.errors import first_line
from core.files import TEMPORARY, write_json
from orchestrator.store.spool import Record, Spool, Unreadable, pending
from orchestrator.tracking.client import Point, Tracking
from orchestrator.tracking.lineage import Dataset
from orchestrator.tracking.mlflow_store import permanent

log = logging.getLogger(__name__)
Tell = Callable[[str], None]
Steps = dict[str, dict[str, int]]  # trial -> metric -> last step

_LONGEST_WAIT_S = 30.0
_TOLD_AFTER = 2  # failures in a row before the user is told: a single one may be momentary
_OF_POINTS = ("step", "milliseconds")  # keys of a point that are no metrics
_PARENT = "sweep"  # in place of a trial's id, for the sweep's own run


class Outbox:
    """The records of one sweep for its MLflow store. Only the process that drives the sweep, under its lock, has one.

    In all methods, trial_id None means the sweep's own run, and milliseconds None means now.
    """

    def __init__(
        self, path: Path, tracking: Tracking, experiment_id: str, parent_run: str, tell: Tell = log.warning
    ) -> None:
        self.path, self.tracking, self.tell = path, tracking, tell
        self.experiment_id, self.parent_run = experiment_id, parent_run
        self._spool = Spool(path)
        self._delivery = Delivery(tracking, experiment_id, parent_run)
        self._reasons_said: set[str] = set()
        self._sender: threading.Thread | None = None
        self._alone = threading.Lock()  # held by the sending thread, also while it waits for a late answer
        self._changed = threading.Condition()  # guards the fields below
        self._closing = self._hurry = self._given_up = False
        self._queue = deque(self._spool.numbers())
        self._steps = self._recorded()

    def start(
        self,
        trial_id: str | None,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        milliseconds: int | None = None,
        inputs: Sequence[Dataset] = (),
    ) -> None:
        """Record that a trial's run is RUNNING; a resumed trial keeps its run. inputs: the datasets it works on."""
        plain = {name: str(value) for name, value in (parameters or {}).items()}
        values = {"parameters": plain, "tags": dict(tags or {}), "inputs": list(inputs)}
        self._put("start", trial_id, values, milliseconds)

    def metrics(
        self, trial_id: str | None, points: Sequence[Mapping[str, float]], milliseconds: int | None = None
    ) -> None:
        """Record values at steps, [{"step": 5, "loss": 0.1}, ...].

        The steps of a metric increase; a value at a step already recorded is left out. A point may contain its own time
        as
        "milliseconds".
        """
        values = [
            # JSON has no NaN.
            [name, value if math.isfinite(value) else str(value), int(point["step"]), point.get("milliseconds")]
            for point in points
            for name, value in ((name, float(value)) for name, value in point.items() if name not in _OF_POINTS)
            if int(point["step"]) > self.last_step(trial_id, name)
        ]
        if values:
            self._put("metrics", trial_id, {"points": values}, milliseconds)

    def usage(self, trial_id: str, samples: Sequence[Mapping[str, float]]) -> None:
        """Record what a trial used of its machine (orchestrator.workers.usage), one step for each sample."""
        first = 1 + max((self.last_step(trial_id, name) for sample in samples for name in sample), default=0)
        self.metrics(trial_id, [{**sample, "step": first + n} for n, sample in enumerate(samples)])

    def inputs(self, trial_id: str | None, datasets: Sequence[Dataset]) -> None:
        """Record more datasets that the run has worked on (orchestrator.tracking.lineage)."""
        self._put("inputs", trial_id, {"inputs": list(datasets)})

    def tags(self, trial_id: str | None, values: Mapping[str, str]) -> None:
        """Record tags of the run."""
        self._put("tags", trial_id, {"tags": dict(values)})

    def folder(self, trial_id: str | None, folder: Path, name: str) -> None:
        """Record the files of a folder as the artifact folder `name`; they replace files of the same names."""
        self._put("folder", trial_id, {"name": name}, files=folder)

    def file(self, trial_id: str | None, file: Path, name: str) -> None:
        """Record one file in the artifact folder `name`; it replaces a file of the same name."""
        self._put("folder", trial_id, {"name": name}, files=file)

    def image(self, trial_id: str | None, picture: Path, key: str, step: int, milliseconds: int | None = None) -> None:
        """Record the picture of a step. Steps increase; a picture at a step already recorded is left out."""
        if step > self.last_step(trial_id, _image(key)):
            values = {"key": key, "step": step, "name": picture.name}
            self._put("image", trial_id, values, milliseconds, files=picture)

    def end(
        self, trial_id: str | None, status: str, tags: Mapping[str, str] | None = None, milliseconds: int | None = None
    ) -> None:
        """Record the end of a run. status: FINISHED, FAILED or KILLED."""
        self._put("end", trial_id, {"status": status, "tags": dict(tags or {})}, milliseconds)

    def register(self, name: str, artifact: str, description: str = "") -> None:
        """Record an artifact folder of the sweep's run as the champion of the registered model `name`."""
        self._put("register", None, {"name": name, "artifact": artifact, "description": description})

    def last_step(self, trial_id: str | None, name: str) -> int:
        """Return the last step at which a metric was recorded; -1 where it never was."""
        with self._changed:
            return self._steps.get(trial_id or _PARENT, {}).get(name, -1)

    def pending(self) -> int:
        """Return how many records wait to be sent."""
        return pending(self.path)

    @contextmanager
    def sending(self, seconds: float) -> Iterator[None]:
        """Send for the duration of a block, and for at most `seconds` after it; `pending` then counts what is left."""
        self.open()
        try:
            yield
        finally:
            self.close(seconds)

    def open(self) -> None:
        """Start sending in a background thread, which ends with its process even while the store hangs."""
        self._closing = self._hurry = self._given_up = False
        self._sender = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._sender.start()

    def close(self, seconds: float) -> bool:
        """Send the rest for at most `seconds`, stop, and return whether everything was sent."""
        with self._changed:
            self._closing = self._hurry = True
            self._changed.notify_all()
        if self._sender is not None:
            self._sender.join(seconds)
        with self._changed:
            self._given_up = True
            self._changed.notify_all()
        return self.pending() == 0

    def _put(
        self,
        kind: str,
        trial_id: str | None,
        values: Mapping[str, Any],
        milliseconds: int | None = None,
        files: Path | None = None,
    ) -> None:
        """Write one record to the spool. Raises OSError, with nothing written, where the disk is full."""
        now = milliseconds or int(time.time() * 1000)
        record = {"kind": kind, "trial": trial_id, "time": now, **self.tracking.hide_address(dict(values))}
        with self._changed:
            self._queue.append(self._spool.put(record, files))
            _advance(self._steps, record)
            self._changed.notify_all()

    def _recorded(self) -> Steps:
        """Return the last steps that the store has, or will have when the waiting records are sent."""
        for path in self.path.glob(f"steps/{TEMPORARY}*"):  # left by a driver that was killed
            shutil.rmtree(path, ignore_errors=True)
        steps: Steps = {}
        for path in self.path.glob("steps/*.json"):
            with suppress(OSError, TypeError, ValueError):
                steps[path.stem] = dict(json.loads(path.read_text()))
        for number in self._queue:
            with suppress(Unreadable, KeyError, TypeError, ValueError):
                _advance(steps, self._spool.read(number) or {})
        return steps

    def _work(self) -> None:
        with self._alone:
            self._send_all()
            with suppress(Exception):  # only cleans up; the next trial that starts does so too
                self.tracking.delete_unclaimed(self.experiment_id, self.parent_run)

    def _send_all(self) -> None:
        """Send records in order until the outbox is closed and empty, or given up."""
        failures, away = 0, False
        store = f"tracking: the MLflow store {self.tracking.shown}"
        while (number := self._head()) is not None:
            error = self._deliver(number)
            if error is None:
                if away:
                    self._say(f"{store} is back; {self.pending()} records that waited are being sent")
                failures, away = 0, False
                continue
            failures += 1
            if failures >= _TOLD_AFTER and not away:
                away, why = True, self.tracking.scrub(first_line(error))
                waiting = f"{self.pending()} records wait in {self.path}, training goes on"
                self._say(f"{store} does not answer ({why}); {waiting}")
            if self._pause(min(2.0 ** (failures - 1), _LONGEST_WAIT_S)):
                failures = 0

    def _head(self) -> int | None:
        """Wait for the next record and return its number; None when sending has to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            return self._queue[0] if self._queue and not self._given_up else None

    def _pause(self, seconds: float) -> bool:
        """Wait before the next attempt. Return True where `close` cut the wait short."""
        with self._changed:
            self._changed.wait_for(lambda: self._hurry or self._given_up, seconds)
            hurried, self._hurry = self._hurry, False
            return hurried

    def _deliver(self, number: int) -> Exception | None:
        """Send one record and remove it, or set it aside. Return the error where it has to be sent again."""
        record, reason = None, None
        try:
            try:
                record = self._spool.read(number)
                if record is not None:  # else another process has sent it after this one gave up
                    self._delivery.send(record, self._spool.files(number))
            except Exception as error:
                if not self._hopeless(error):
                    return error
                reason = self.tracking.scrub(first_line(error))
            self._write_steps(record or {})
            if reason is None:
                self._spool.remove(number)
            else:
                self._complain(f"tracking: {self._spool.set_aside(number, reason)} was refused and set aside", reason)
        except Exception as error:
            return error
        with self._changed:
            self._queue.popleft()
        return None

    def _hopeless(self, error: Exception) -> bool:
        """Return whether the store would refuse a record for ever.

        Raises the store's error where it does not know the sweep's own run: then it is another store, or only half
        started,
        and its refusals mean nothing.
        """
        if isinstance(error, Unreadable):
            return True
        if not isinstance(error, Refused) and not permanent(error):
            return False
        self.tracking.check_run(self.parent_run)
        return True

    def _write_steps(self, record: Record) -> None:
        """Write down the steps of a record that was answered, before it leaves: else a resumed trial repeats them."""
        trial = record.get("trial") or _PARENT
        if record.get("kind") in ("metrics", "image"):
            with self._changed:
                steps = dict(self._steps.get(trial, {}))
            (self.path / "steps").mkdir(exist_ok=True)
            write_json(self.path / "steps" / f"{trial}.json", steps)

    def _complain(self, text: str, reason: str) -> None:
        """Tell the user of a problem, once for each reason: a deleted run refuses every record of its trial."""
        if reason not in self._reasons_said:
            self._reasons_said.add(reason)
            self._say(f"{text}: {reason}")

    def _say(self, text: str) -> None:
        with suppress(Exception):  # the output may be closed; the reason is in the folder too
            self.tell(text)


def _advance(steps: Steps, record: Record) -> None:
    """Enter the steps of a record into `steps`."""
    points = record.get("points", [])
    if record.get("kind") == "image":
        points = [(_image(record["key"]), None, record["step"])]
    known = steps.setdefault(record.get("trial") or _PARENT, {})
    for name, _, step, *_ in points:
        known[name] = max(known.get(name, -1), int(step))


def _image(key: str) -> str:
    return f"image {key}"


class Refused(Exception):
    """A record that the store would refuse however often it is sent."""


class Delivery:
    """The sender of one sweep's records: it turns each into calls of the store. Each record may be sent twice."""

    def __init__(self, tracking: Tracking, experiment_id: str, parent_run: str) -> None:
        self.tracking, self.experiment_id, self.parent_run = tracking, experiment_id, parent_run
        self._runs: dict[str, str] = {}  # trial id -> run id

    def send(self, record: Record, files: Path) -> None:
        """Send a record with its files.

        Raises Refused or Unreadable where no repetition can help, and else the store's own errors.
        """
        run, time_ms = self._run(record), record["time"]
        match record["kind"]:
            case "start":
                self.tracking.inputs(run, record.get("inputs", []))  # `_run` has started the run
            case "inputs":
                self.tracking.inputs(run, record["inputs"])
            case "metrics":
                self.tracking.points(run, [_point(*each) for each in record["points"]], time_ms)
            case "tags":
                self.tracking.tags(run, record["tags"])
            case "folder":
                self.tracking.folder(run, _there(files), record["name"])
            case "image":
                self.tracking.image(run, _there(files / record["name"]), record["key"], record["step"], time_ms)
            case "end":
                self.tracking.end(run, record["status"], record["tags"], time_ms)
            case "register":
                self.tracking.register(record["name"], run, record["artifact"], record.get("description", ""))
            case kind:
                raise Refused(f"a record of an unknown kind, {kind}")

    def _run(self, record: Record) -> str:
        """Return the id of the run that a record is about, after starting it where the record says so."""
        trial, starts = record["trial"], record["kind"] == "start"
        if trial is None:
            if starts:
                self.tracking.restart(self.parent_run)
                self.tracking.tags(self.parent_run, record["tags"])
            return self.parent_run
        if starts:
            self._runs[trial] = self.tracking.start_child(
                self.experiment_id, self.parent_run, trial, record["parameters"], record["tags"], record["time"]
            )
        elif trial not in self._runs:
            run = self.tracking.child(self.experiment_id, self.parent_run, trial)
            if run is None:
                raise Refused(f"trial {trial} has no run in the store: it was deleted, or never started")
            self._runs[trial] = str(run.info.run_id)
        return self._runs[trial]


def _point(name: str, value: float | str, step: int, milliseconds: int | None = None) -> Point:
    return name, float(value), step, milliseconds


def _there(path: Path) -> Path:
    """Return a path of a record's files. Raises Unreadable where it is missing."""
    if not path.exists():
        raise Unreadable(f"its files have gone: {path.name}")
    return path
