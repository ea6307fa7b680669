"""How far a trial has come, and what it reports on the way."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

STEP = "global_step"  # the field of a report by which ASHA compares trials


@dataclass(frozen=True)
class Report:
    """What a trial reports of the set that it has found so far.

    global_step: iterations done; find_seconds: spent on finding, without loading, measuring and drawing; metrics: of
    the set, by name, on the seeds that choose between trials; curve: the losses of every iteration since the last
    report; memory: how the trial was made to fit its device; milliseconds: when it was made, since 1970; notes:
    sentences for the user; usage: samples of what the trial took of its machine (orchestrator.workers.usage). All are
    plain JSON values, so that a report passes through Ray Tune.
    """

    global_step: int
    find_seconds: float
    metrics: dict[str, float]
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
    """How far a trial has come. What a checkpoint keeps of it is enough to go on to the same numbers."""

    iteration: int = 0
    seconds: float = 0.0  # of finding: loading, measuring and drawing do not count
    curve: list[dict[str, float]] = field(default_factory=list)  # the losses since the last report
    report: Report | None = None  # what was reported at this iteration, if it was measured
    parts: dict[str, Any] | None = None  # how it trains (orchestrator.trial.attempt)

    @classmethod
    def read(cls, checkpoint: Path) -> "State":
        """Read the state that a checkpoint's folder keeps."""
        values = json.loads((checkpoint / "state.json").read_text())
        report = values.pop("report")
        return cls(**values, report=Report.from_json(report) if report else None)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the seconds inside the block as time spent on finding."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
