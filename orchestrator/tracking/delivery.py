"""What a record of the outbox comes to in the store: the one place that knows the kinds of records."""

from pathlib import Path

from orchestrator.store.spool import Record, Unreadable
from orchestrator.tracking.client import Point, Tracking


class Refused(Exception):
    """A record that no sending again can help."""


class Delivery:
    """Records of one sweep, made into calls of its store. Each may be sent twice."""

    def __init__(self, tracking: Tracking, experiment_id: str, parent_run: str) -> None:
        self.tracking, self.experiment_id, self.parent_run = tracking, experiment_id, parent_run
        self._runs: dict[str, str] = {}  # trial id -> run id

    def send(self, record: Record, files: Path) -> None:
        """Raises Refused, or Unreadable, where no sending again can help, and what the store answers."""
        run, time_ms = self._run(record), record["time"]
        match record["kind"]:
            case "start":
                self.tracking.inputs(run, record.get("inputs", []))  # `_run` has seen to the rest
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
        """The run that a record is about; one that starts a run has done so after this."""
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
            found = self.tracking.child(self.experiment_id, self.parent_run, trial)
            if found is None:
                raise Refused(f"trial {trial} has no run in the store: it was deleted, or never started")
            self._runs[trial] = str(found.info.run_id)
        return self._runs[trial]


def _point(name: str, value: float | str, step: int, milliseconds: int | None = None) -> Point:
    return name, float(value), step, milliseconds


def _there(path: Path) -> Path:
    """A path of a record's files. Raises Unreadable where it has gone."""
    if not path.exists():
        raise Unreadable(f"its files have gone: {path.name}")
    return path
