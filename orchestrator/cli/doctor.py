"""Check whether this machine is ready, one line for each check; a problem is printed with its cure."""

import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

from core.errors import UserError, first_line
from orchestrator.secrets import redacted

_PROJECT = "h-space-orchestrator"
_NAMED = ("torch", "diffusers", "ray", "deepspeed", "optuna", "mlflow")  # others are printed only if wrong
_EXTRAS = {
    "explore": "orchestrate explore",
    "postgresql": "studies of many sweeps in one database",
    "cluster": "machines of Ray's own",
}
_LEAST_DISK_GB, _LEAST_MEMORY_GB, _LEAST_SHARED_GB = 5, 4, 1
_COLOURS = {"ok": "green", "note": "yellow", "fix": "red"}


@dataclass(frozen=True)
class Check:
    """A finding, whether it is in order, and what to do if it is not."""

    verdict: Literal["ok", "note", "fix"]
    found: str
    cure: str = ""


def show(root: Path, build: bool, console: Console) -> int:
    """Print every check; return 1 if one failed, else 0."""
    failed = 0
    for look in (_python, _packages, _extras, _devices, _memory, _operators_of(build, console), _ray, _mlflow, _disk):
        for check in look(root):
            failed += check.verdict == "fix"
            cure = f" -> {check.cure}" if check.cure else ""
            line = Text.assemble((f"{check.verdict:<5}", _COLOURS[check.verdict]), check.found, cure)
            console.print(line, soft_wrap=True)
    return 1 if failed else 0


def _python(_root: Path) -> Iterator[Check]:
    yield Check("ok", f"Python {sys.version.split()[0]} in {sys.prefix}")


def _packages(_root: Path) -> Iterator[Check]:
    """Check every package that the project's own metadata requires."""
    for needed in _needed(extra=""):
        problem = _amiss(needed)
        if problem:
            yield Check("fix", problem, f"pip install --constraint constraints.txt '{needed.name}{needed.specifier}'")
        elif needed.name in _NAMED:
            yield Check("ok", f"{needed.name} {version(needed.name)}")


def _extras(_root: Path) -> Iterator[Check]:
    for extra, purpose in _EXTRAS.items():
        lacking = [problem for needed in _needed(extra) if (problem := _amiss(needed))]
        if lacking:
            yield Check("note", f"{purpose}: {', '.join(lacking)}", f"pip install '{_PROJECT}[{extra}]', if wanted")


def _needed(extra: str) -> Iterator[Requirement]:
    """Yield the project's requirements, or those that an extra adds."""
    for text in requires(_PROJECT) or ():
        needed = Requirement(text)
        of_extra = needed.marker is not None and "extra" in str(needed.marker)
        if of_extra == bool(extra) and (needed.marker is None or needed.marker.evaluate({"extra": extra})):
            yield needed


def _amiss(needed: Requirement) -> str | None:
    try:
        installed = version(needed.name)
    except PackageNotFoundError:
        return f"{needed.name} is missing"
    return (
        None
        if needed.specifier.contains(installed, prereleases=True)
        else f"{needed.name} {installed} is not {needed.specifier}"
    )


def _devices(_root: Path) -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            yield Check(
                "ok", f"GPU {i}: {properties.name}, {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"
            )
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if shutil.which("nvidia-smi"):
        why = f"torch {torch.__version__} was built without CUDA" if torch.version.cuda is None else "torch sees none"
        cure = "install torch's CUDA build, and look at what nvidia-smi says of the driver"
        yield Check("fix", f"device: the machine has NVIDIA's tools, but {why}", cure)
        return
    yield Check("ok", f"device: CPU with {cores} cores (no GPU found)")


def _memory(_root: Path) -> Iterator[Check]:
    free = psutil.virtual_memory().available / 1e9
    verdict: Literal["ok", "note"] = "ok" if free >= _LEAST_MEMORY_GB else "note"
    cure = (
        "" if verdict == "ok" else f"end other programs; a trial takes 1 GB and more, {_LEAST_MEMORY_GB} GB are little"
    )
    yield Check(verdict, f"memory: {free:.0f} GB free", cure)


def _operators_of(build: bool, console: Console) -> Callable[[Path], Iterator[Check]]:
    def look(_root: Path) -> Iterator[Check]:
        from orchestrator.trial.operators import build_cure, build_problem, compiler_problem

        missing = compiler_problem()
        if missing:
            cure = "install g++ and ninja to train with DeepSpeed's own Adam"
            yield Check("note", f"DeepSpeed operators: {missing}", cure)
            return
        if build:
            console.print("building DeepSpeed's operators (a minute or two, once) ...")
            if why := build_problem("CPUAdamBuilder"):
                yield Check("fix", f"DeepSpeed operators: the compiler fails: {why}", build_cure(why))
                return
        yield Check("ok", f"DeepSpeed operators: {'built' if build else 'compiled when first used'}")

    return look


def _ray(_root: Path) -> Iterator[Check]:
    """Check whether Ray starts here, which fails most often on a machine that otherwise looks fine."""
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free / 1e9) < _LEAST_SHARED_GB:
        cure = "give the machine more shared memory (a container: --shm-size=2g)"
        yield Check("note", f"shared memory: {free:.1f} GB free in {shared}, so Ray keeps objects on disk", cure)
    try:
        socket.gethostbyname("localhost")
    except OSError:
        yield Check("fix", "network: the name localhost leads nowhere", "add '127.0.0.1 localhost' to /etc/hosts")
        return
    from orchestrator.sweep.cluster import Cluster

    began = time.monotonic()
    try:
        with Cluster(None):
            pass
    except Exception as error:  # Ray raises many kinds; each means that no sweep would start
        cure = (
            "end Ray processes that were left behind (ray stop), and look for a full disk or a firewall on this machine"
        )
        why = error.__cause__ if isinstance(error.__cause__, Exception) else error  # Ray's own error
        yield Check("fix", f"Ray does not start: {first_line(why)}", cure)
        return
    yield Check("ok", f"Ray starts, in {time.monotonic() - began:.0f} s")


def _mlflow(root: Path) -> Iterator[Check]:
    from orchestrator.tracking.address import VARIABLE, from_environment
    from orchestrator.tracking.client import Tracking
    from orchestrator.tracking.mlflow_store import store_uri

    if address := from_environment():
        try:
            Tracking(address, root).check()
            yield Check("ok", f"MLflow: new sweeps are recorded in {redacted(address)}, as {VARIABLE} says")
        except UserError as error:
            yield Check("fix", f"MLflow: {error}", f"start it, or correct or unset {VARIABLE}")
        return
    if not (root / "mlflow.db").is_file():
        yield Check("ok", f"MLflow: no store in {root} yet; the first sweep makes it")
        return
    try:
        Tracking(None, root).check()
    except UserError as error:
        cure = f"with no sweep running: mlflow db upgrade {shlex.quote(store_uri(None, root))}"
        yield Check("fix", f"MLflow: {error}", cure)
        return
    yield Check("ok", f"MLflow: the store in {root} opens")


def _disk(root: Path) -> Iterator[Check]:
    place = next(folder for folder in (root.resolve(), *root.resolve().parents) if folder.is_dir())
    free, writable = shutil.disk_usage(place).free / 1e9, os.access(place, os.W_OK)
    if not writable:
        yield Check("fix", f"disk: {place} cannot be written to", "move the sweeps with --root")
        return
    enough = free >= _LEAST_DISK_GB
    cure = "" if enough else "free some space, or move the sweeps with --root"
    yield Check("ok" if enough else "fix", f"disk: {free:.0f} GB free at {place}", cure)
