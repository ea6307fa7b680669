"""Is this machine ready? One line a check, each with its cure."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.text import Text

_PACKAGES = ("torch", "diffusers", "ray", "deepspeed", "optuna", "mlflow")
_LEAST_DISK_GB = 5


def show(root: Path, build: bool, console: Console) -> int:
    """Print every check; returns 1 if one failed."""
    checks = [*_packages(), _device(), _operators(build, console), _disk(root)]
    for good, what, cure in checks:
        mark = ("ok   ", "green") if good else ("fix  ", "red")
        console.print(Text.assemble(mark, what, "" if good or not cure else f" -> {cure}"))
    return 0 if all(good for good, _, _ in checks) else 1


def _packages() -> list[tuple[bool, str, str]]:
    found = []
    for package in _PACKAGES:
        try:
            found.append((True, f"{package} {version(package)}", ""))
        except PackageNotFoundError:
            found.append((False, f"{package} is missing", "make install"))
    return found


def _device() -> tuple[bool, str, str]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return True, f"devices: {', '.join(names)}", ""
    return True, f"device: CPU with {os.cpu_count()} cores (no GPU found)", ""


def _operators(build: bool, console: Console) -> tuple[bool, str, str]:
    from orchestrator.operators import build_ops, compiler_missing

    missing = compiler_missing()
    if missing:
        return True, f"DeepSpeed operators: {missing}", ""
    if build:
        console.print("building DeepSpeed's operators (a minute or two, once) ...")
        build_ops()
    return True, "DeepSpeed operators: compiled when first used" if not build else "DeepSpeed operators: built", ""


def _disk(root: Path) -> tuple[bool, str, str]:
    place = root if root.exists() else Path.cwd()
    free = shutil.disk_usage(place).free / 1e9
    return (
        free >= _LEAST_DISK_GB,
        f"disk: {free:.0f} GB free at {place}",
        "free some space, or move the sweeps with --root",
    )
