"""Keep how far a trial has come, and define its reports."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

STEP = "global_step"  # the field of a report by which ASHA aligns trials


@dataclass(frozen=True)
class Report:
    """One report of a trial on the set that it has found so far.

    global_step: iterations done; find_seconds: seconds spent on finding, without loading, measuring and drawing;
    metrics: of the set, by name, on the seeds that compare trials; curve: the losses of every iteration since the last
    report; memory: how the trial was made to fit its device; milliseconds: when the report was made, since 1970; notes:
    sentences for the user; usage: samples of the trial's use of its machine (orchestrator.workers.usage). All are plain
    JSON values, so that a report passes through Ray Tune.
    """

    global_step: int = 0
    find_seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    memory: dict[str, str | int] = field(default_factory=dict)
    milliseconds: int = 0
    notes: list[str] = field(default_factory=list)
    usage: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Report":
        """Return the report in `values`, whose other keys, such as those that Ray Tune adds, are ignored."""
        return cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})

    def to_json(self) -> dict[str, Any]:
        """Return the report as a dict of plain values."""
        return asdict(self)


@dataclass
class State:
    """The progress of a trial. A checkpoint keeps it, which is enough to continue to the same numbers."""

    iteration: int = 0
    seconds: float = 0.0  # spent on finding: loading, measuring and drawing do not count
    curve: list[dict[str, float]] = field(default_factory=list)  # the losses since the last report
    report: Report | None = None  # the report of this iteration, if it was measured
    attempt: dict[str, Any] | None = None  # how the trial trains (orchestrator.trial.attempt)

    @classmethod
    def read(cls, checkpoint: Path) -> "State":
        """Return the state in the folder of a checkpoint."""
        values = json.loads((checkpoint / "state.json").read_text())
        report, attempt = values.pop("report"), values.pop("parts", None)
        return cls(**values, report=Report.from_json(report) if report else None, attempt=attempt)

    def to_json(self) -> dict[str, Any]:
        """Return the state as a dict of plain values, as `read` reads it: the key of `attempt` is "parts"."""
        values = asdict(self)
        values["parts"] = values.pop("attempt")
        return values

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the seconds inside the block as time spent on finding."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
