"""The processes of trials that the benchmark of sweeps looks at: one that only waits, one that tells when it did what,
one that holds a model and nothing else.
"""

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.files import write_json
from core.metrics import METRICS as NAMES
from orchestrator.trial.state import Report
from orchestrator.workers.worker import TrialWorker

SECONDS, TEMPLATE, MARKS = "STANDIN_SECONDS", "STANDIN_TEMPLATE", "marks.jsonl"
STAGES = ("imported", "loaded", "drawn")
_LOSSES = ("loss", "classification", "regression", "discriminator", "consistency", "accuracy")


class Standin(TrialWorker):
    """Sleeps for a trial's time, keeps checkpoints of a trial's size, and reports. All else is the real process."""

    def _reports(self) -> Iterator[Report]:
        every, iterations = self.sweep.evaluate_every, self.sweep.train.iterations
        trial, chance = self.folder.trial(self.config["trial_id"]), random.Random(self.config["trial_id"])
        for step in range(every, iterations + 1, every):
            until = time.monotonic() + float(os.environ[SECONDS]) * every / iterations
            report = plausible(step, every, chance)

            def write(folder: Path, step: int = step, report: Report = report) -> None:
                shutil.copytree(os.environ[TEMPLATE], folder, dirs_exist_ok=True)
                write_json(folder / "state.json", {"iteration": step, "report": report.to_json()})

            trial.save(step, write)
            time.sleep(max(0.0, until - time.monotonic()))
            yield report


def plausible(step: int, every: int, chance: random.Random) -> Report:
    """A report like a trial's. Later ones are better, so that ASHA compares all of them and stops none."""
    metrics = {name: chance.random() for name in NAMES} | {"identifiability": (time.time() - 1.7e9) / 1e9}
    curve = [{"step": n + 1, **{name: chance.random() for name in _LOSSES}} for n in range(step - every, step)]
    memory: dict[str, str | int] = {"micro_batch": 16, "batch": 64}
    return Report(step, float(step), metrics, curve, memory, int(time.time() * 1000))


class Timed(TrialWorker):
    """The real process; it puts down when an attempt begins, what is imported and loaded, and when it first works."""

    def _begin(self, config: dict[str, Any]) -> None:
        super()._begin(config)
        self._mark("begins", config)
        self._once("called", self.process, "moved")

    def _reports(self) -> Iterator[Report]:
        from orchestrator.trial import model
        from orchestrator.trial import run as trial

        self._mark("imported")
        assert model
        self._once("trains", trial.TrialContext, "iterating")
        return super()._reports()

    def _load(self, *given: Any) -> Any:
        loaded = super()._load(*given)
        self._mark("loaded")
        return loaded

    def _once(self, what: str, owner: Any, name: str) -> None:
        """Put down the first call of something."""
        call = getattr(owner, name)
        told: list[str] = []

        def first(*given: Any, **more: Any) -> Any:
            if not told:
                told.append(what)
                self._mark(what)
            return call(*given, **more)

        setattr(owner, name, first)

    def _mark(self, what: str, config: dict[str, Any] | None = None) -> None:
        mark(self.folder.path, what, (config or self.config)["trial_id"])


def mark(folder: Path, what: str, trial_id: str, at: float | None = None) -> None:
    told = {"what": what, "trial": trial_id, "time": at or time.time(), "pid": os.getpid()}
    with open(folder / MARKS, "a") as file:
        file.write(json.dumps(told) + "\n")


def hold(model: str, leaner: bool) -> None:
    """Load a model as a trial's process does; a line at each stage, and on when one is read."""
    import torch

    from core.execution.lean import lean
    from core.model.denoiser import Denoiser
    from orchestrator.trial import run as trial

    assert trial
    _stage()
    denoiser = Denoiser.from_pretrained(model)
    denoiser = lean(denoiser) if leaner else denoiser
    _stage()
    with torch.no_grad():
        denoiser(torch.zeros(1, *denoiser.sample_shape), 5)
    _stage()


def _stage() -> None:
    print("ready", flush=True)
    sys.stdin.readline()
