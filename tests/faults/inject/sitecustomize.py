"""Faults inside trials: Python imports this at its start in every process that has the folder on its PYTHONPATH.

FAULTS names a folder with plan.json:

    {"pace": 0.5, "faults": {"0": {"kind": "exit", "at": 3, "times": 1}}}

A trial's number is its place in the order in which trials begin, kept here in the files 0, 1, ...; `at` is the
iteration, from 0; `times` how often the fault strikes (the files struck-0, ...); `pace` seconds are slept in every
iteration, so that there is time to strike from outside. Nothing is imported that was not going to be.
"""

import importlib.abc
import importlib.machinery
import itertools
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

_ROOM, _NEED = 64 << 20, 48 << 20  # bytes that a short process has left; that it needs for every sample at a time


class _Plan:
    """What shall happen to the trial that this process makes an attempt at."""

    def __init__(self, folder):
        self.folder, self.trial, self.short = folder, None, False
        self.content = json.loads((folder / "plan.json").read_text())

    def number(self):
        mine = self.folder / f"claim-{os.getpid()}"
        mine.write_text(self.trial)
        try:
            for number in itertools.count():
                try:
                    os.link(mine, self.folder / str(number))  # whole or not at all
                    return number
                except FileExistsError:
                    if (self.folder / str(number)).read_text() == self.trial:
                        return number
        finally:
            mine.unlink()

    def due(self, iteration):
        """The kind of fault that strikes at this iteration of the trial, if any; it is counted."""
        if self.trial is None:
            return None
        number = self.number()
        fault = self.content.get("faults", {}).get(str(number))
        if fault is None or iteration != fault["at"]:
            return None
        for time_struck in range(fault.get("times", 1)):
            try:
                (self.folder / f"struck-{number}-{time_struck}").touch(exist_ok=False)
                return fault["kind"]
            except FileExistsError:
                continue
        return None


def _strike(kind, n):
    if kind == "raise":
        raise RuntimeError(f"injected at iteration {n}")
    if kind == "exit":
        os._exit(3)
    if kind == "hang":
        time.sleep(3600)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    if kind == "memory":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ROOM, hard))


def _patch_learned(module, plan):
    iterate = module.Learner.iterate
    loss = module.losses.direction_loss

    def faulty(self, n):
        time.sleep(plan.content.get("pace", 0))
        kind = plan.due(n)
        _strike(kind, n)
        plan.short = plan.short or kind == "memory"
        if plan.short:
            module.torch.empty(self.micro_batch * _NEED, dtype=module.torch.uint8)
        if kind == "nan":
            module.losses.direction_loss = lambda *given: loss(*given) * float("nan")
        return iterate(self, n)

    module.Learner.iterate = faulty


def _patch_trial(module, plan):
    run = module.run_trial

    def run_known(parameters, sweep, folder, *more):
        plan.trial = folder.path.name
        return run(parameters, sweep, folder, *more)

    module.run_trial = run_known


_PATCHES = {"core.methods.learned.training": _patch_learned, "orchestrator.trial.run": _patch_trial}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the two modules where they are, and patches them when they have been executed."""

    def __init__(self, plan):
        self.plan = plan

    def find_spec(self, name, path, target=None):
        if name not in _PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            _PATCHES[name](module, self.plan)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("FAULTS"):
    sys.meta_path.insert(0, _Finder(_Plan(Path(os.environ["FAULTS"]))))
