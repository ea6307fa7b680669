"""Check that every machine of a cluster is ready for a sweep, before its first trial. All are checked at once.

Each machine loads the model during its check, so that it is downloaded once there, and not by every trial.
"""

import platform
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core.errors import UserError, first_line
from orchestrator.spec import Sweep
from orchestrator.spec.sources import absent
from orchestrator.workers.placement import alive, hosts
from orchestrator.workers.worker import at_home

_PACKAGES = ("h-space-orchestrator", "torch", "diffusers", "ray", "deepspeed")
_PATIENCE_S = 1800  # a model may have to be downloaded, and operators compiled
_LEAST_DISK = 1 << 30  # bytes


@dataclass(frozen=True)
class Requirements:
    """What every machine has to have, as it is on the driver's machine."""

    sweep: Sweep
    weights: str  # digest of the model's weights
    home: Path  # the folder that relative paths of the sweep file start from
    probe: Path  # a file beside the sweeps' folders
    versions: Mapping[str, str]


def inspect(sweep: Sweep, root: Path, weights: str) -> list[str]:
    """Return a line for each thing that makes trials slower on some machines.

    Raises UserError where trials could not run, with one line for each problem, its machines and its cure.
    """
    root.mkdir(parents=True, exist_ok=True)
    probe = root / f".probe-{uuid.uuid4().hex}"
    probe.touch()
    try:
        requirements = Requirements(sweep, weights, Path.cwd(), probe, versions())
        if nodes_with := _ask(requirements, problems):
            raise UserError("\n".join(_lines(nodes_with)))
        return _lines(_ask(requirements, slower)) if sweep.deepspeed.offload_optimizer != "none" else []
    finally:
        probe.unlink(missing_ok=True)


def _lines(nodes_with: Mapping[str, list[str]]) -> list[str]:
    return [f"{' and '.join(machines)}: {finding}" for finding, machines in nodes_with.items()]


def _ask(requirements: Requirements, look: Callable[[Requirements], list[str]]) -> dict[str, list[str]]:
    """Return the machines of each finding that `look` returns there."""
    machines = {}
    for node in hosts(requirements.sweep, alive()):
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(look)
        machines[task.remote(requirements)] = node["NodeManagerAddress"]
    ready, late = ray.wait(list(machines), num_returns=len(machines), timeout=_PATIENCE_S)
    nodes_with: dict[str, list[str]] = {}
    for answer in ready:
        for problem in _answer(answer):
            nodes_with.setdefault(problem, []).append(machines[answer])
    for answer in late:
        nodes_with.setdefault(f"did not answer within {_PATIENCE_S // 60} minutes", []).append(machines[answer])
    return nodes_with


def _answer(answer: Any) -> list[str]:
    try:
        problems: list[str] = ray.get(answer)
        return problems
    except Exception as error:
        cause = getattr(error, "cause", None) or error
        return [f"cannot run this package ({first_line(cause)}): install it there as on the driver's machine"]


def versions() -> dict[str, str]:
    """Return the versions that have to be the same on every machine, by package."""
    packages = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in _PACKAGES:
        try:
            packages[package] = version(package).partition("+")[0]  # builds for a CPU and for CUDA go together
        except PackageNotFoundError:
            packages[package] = "missing"
    return packages


def problems(requirements: Requirements) -> list[str]:
    """Return the problems of this machine, each with its cure."""
    at_home(requirements.home)
    return [
        *_versions(requirements),
        *_disks(requirements),
        *_device(requirements),
        *_model(requirements),
        *_engines(requirements),
    ]


def _versions(requirements: Requirements) -> Iterator[str]:
    for package, own in versions().items():
        if own != requirements.versions[package]:
            there = requirements.versions[package]
            yield f"{package} is {own}, the driver has {there}: install from the same constraints.txt"


def _disks(requirements: Requirements) -> Iterator[str]:
    root = requirements.probe.parent
    if not requirements.probe.exists():
        yield f"does not see {root}: set --root to a folder on a disk that all machines share"
        return
    try:
        with tempfile.NamedTemporaryFile(dir=root, prefix=".probe-"):
            pass
    except OSError as error:
        yield f"cannot write to {root} ({error.strerror}): let the user that Ray runs as write there"
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < _LEAST_DISK:
        yield f"only {free >> 20} MiB are free in {tempfile.gettempdir()}: free {_LEAST_DISK >> 20} MiB"


def _device(requirements: Requirements) -> Iterator[str]:
    import torch

    if requirements.sweep.resources.gpus_per_trial and torch.version.cuda is None:
        yield "its torch is built for the CPU alone: install one for CUDA, or set resources.gpus_per_trial: 0"


def _model(requirements: Requirements) -> Iterator[str]:
    from core.model.denoiser import Denoiser
    from core.precision import PRECISIONS
    from core.predictors import classifier
    from orchestrator.trial.model import judges_of, vision_models_of

    sweep = requirements.sweep
    dtype = PRECISIONS[sweep.train.precision].dtype
    missing = absent(sweep)
    yield from (str(source.absent) for source in missing)
    try:
        if not any(source.key == "model" for source in missing):
            if Denoiser.from_pretrained(sweep.model, dtype, **sweep.denoiser.use).digest != requirements.weights:
                yield f"model '{sweep.model}' has other weights than on the driver's machine: copy those"
        if not missing:
            classifier.load(sweep.predictor, sweep.model)
            classifier.load_second(sweep.evaluate.second_predictor, sweep.model)
            judges_of(sweep)
            vision_models_of(sweep)
    except UserError as error:
        yield str(error)


def _engines(requirements: Requirements) -> Iterator[str]:
    from orchestrator.trial import operators

    missing = operators.settings_problem(requirements.sweep.deepspeed)
    if missing is not None:
        yield missing


def slower(_requirements: Requirements) -> list[str]:
    """Return why DeepSpeed's own Adam is replaced on this machine, if it is; else it is built when this returns."""
    from orchestrator.trial import operators

    return [why] if (why := operators.adam_problem()) else []
