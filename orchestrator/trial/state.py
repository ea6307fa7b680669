"""How far a trial has come: what its checkpoint keeps beside the state of its networks."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Report = dict[str, Any]  # plain JSON


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
        return cls(**json.loads((checkpoint / "state.json").read_text()))

    @contextmanager
    def running(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
