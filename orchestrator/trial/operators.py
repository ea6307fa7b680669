"""Check whether DeepSpeed's compiled operators can be built here, build them one process at a time, and keep them.

Import this module before DeepSpeed: DeepSpeed reads from its environment, when it is imported, which accelerator to
use and where ninja is.
"""

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock

from orchestrator.spec.sections import DeepSpeed

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# ninja is installed beside this Python, which need not be on the user's path.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def compiler_problem() -> str | None:
    """Return a sentence on why DeepSpeed's own optimiser cannot be built here; None where it can."""
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if not missing:
        return None
    return f"{' and '.join(missing)} not found: DeepSpeed's compiled Adam is replaced by torch's (slower offload)"


def settings_problem(settings: DeepSpeed) -> str | None:
    """Return a sentence on why these settings cannot work on this machine; None where they can."""
    if "nvme" not in (settings.offload_optimizer, settings.offload_param):
        return None
    import deepspeed

    if compiler_problem() or not deepspeed.ops.__compatible_ops__.get("async_io", False):
        needed = "g++, ninja and libaio's headers (package libaio-dev)"
        return f"deepspeed: offloading to nvme needs {needed}, which are not all here"
    if not os.access(str(settings.nvme_path), os.W_OK | os.X_OK):
        return f"deepspeed.nvme_path: {settings.nvme_path} is not a folder that can be written to"
    return None


def build_ops() -> None:
    """Compile the operator that trials use, Adam on the CPU, so that no trial has to wait for it."""
    if compiler_problem() is None:
        load("CPUAdamBuilder")


def load(builder: str) -> None:
    """Compile an operator unless that was done before, and load it into DeepSpeed for later calls."""
    from deepspeed.accelerator import get_accelerator

    with build_lock():
        get_accelerator().create_op_builder(builder).load(verbose=False)


@contextmanager
def build_lock() -> Iterator[None]:
    """Lock the folder of compiled operators for this process.

    torch guards a build by a lock file, which a killed process leaves behind; every later process then waits for ever.
    This lock is the kernel's, which ends with its process. Its holder can therefore remove torch's leftover lock files.
    """
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(_folder())))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "in_use", fallback_to_soft=False):
        for left in folder.glob("**/lock"):
            left.unlink(missing_ok=True)
        yield


def _folder() -> Path:
    """Return a folder for this torch, processor and environment.

    Operators are compiled for one type of processor, and every environment that finds another one's compiles them
    again.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    try:
        processor = next(line for line in open("/proc/cpuinfo") if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    kind = hashlib.sha256(f"{processor}{sys.prefix}".encode()).hexdigest()[:8]
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return Path(cache) / "h-space-orchestrator" / f"torch-{torch.__version__}-{python}-{platform.machine()}-{kind}"
