"""Check whether DeepSpeed's compiled operators can be built here, build them one process at a time, and keep them.

Import this module before DeepSpeed: DeepSpeed reads from its environment, when it is imported, which accelerator to
use and where ninja is.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from orchestrator.spec.sections import DeepSpeed

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# ninja is installed beside this Python, which need not be on the user's path.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


_REPLACED = "DeepSpeed's compiled Adam is replaced by torch's (slower offload)"


def compiler_problem() -> str | None:
    """Return a sentence on why DeepSpeed's own optimiser cannot be built here; None where its tools are here."""
    missing = [tool for tool in (_compiler(), "ninja") if shutil.which(tool) is None]
    if not missing:
        return None
    return f"{' and '.join(missing)} not found: {_REPLACED}"


def adam_problem() -> str | None:
    """Return a sentence on why DeepSpeed's own Adam is replaced here, after an attempt to build it; else None."""
    if missing := compiler_problem():
        return missing
    why = build_problem("CPUAdamBuilder")
    return why and f"the C++ compiler fails ({why}): {_REPLACED}; what to do: orchestrate doctor --build"


@cache
def build_problem(builder: str) -> str | None:
    """Build an operator, and load it into DeepSpeed for later calls. Return the compiler's last line if that fails.

    A process tries once: torch would not build again in the same process what it has failed to build.
    """
    try:
        load(builder)
    except Exception as error:  # torch, ninja and the compiler raise many kinds; each means that there is no operator
        return _last_line(str(error)) or type(error).__name__
    return None


def build_cure(why: str) -> str:
    """Return what to do about a compiler that failed with this line."""
    if "Python.h" in why:
        return f"install Python's headers (Debian: python{sys.version_info.major}.{sys.version_info.minor}-dev)"
    wrong = [f"{name}={os.environ[name]}" for name in ("CXX", "CXXFLAGS", "CPATH") if os.environ.get(name)]
    if wrong:
        return f"unset or correct {' and '.join(wrong)}: g++ of version 9 or later builds them"
    return "install g++ of version 9 or later, with the headers of its C++ library"


def _compiler() -> str:
    """Return the compiler that torch calls: CXX may hold arguments, too."""
    return next(iter(shlex.split(os.environ.get("CXX", ""))), "g++")


def _last_line(output: str) -> str:
    """Return the last line in which the compiler, and not ninja, says what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith(("ninja:", "["))]
    said = [line for line in lines if re.search(r"error|not found|denied|No such file", line, re.IGNORECASE)]
    return (said or lines or [""])[-1]


def settings_problem(settings: DeepSpeed) -> str | None:
    """Return a sentence on why these settings cannot work on this machine; None where they can."""
    if settings.offload_optimizer != "none" and compiler_problem() is None and (unkept := _folder_problem()):
        return unkept
    if "nvme" not in (settings.offload_optimizer, settings.offload_param):
        return None
    import deepspeed

    if compiler_problem() or not deepspeed.ops.__compatible_ops__.get("async_io", False):
        needed = "g++, ninja and libaio's headers (package libaio-dev)"
        return f"deepspeed: offloading to nvme needs {needed}, which are not all here"
    if not os.access(str(settings.nvme_path), os.W_OK | os.X_OK):
        return f"deepspeed.nvme_path: {settings.nvme_path} is not a folder that can be written to"
    if why := build_problem("AsyncIOBuilder"):
        return f"deepspeed: offloading to nvme needs an operator that cannot be built here ({why}): {build_cure(why)}"
    return None


def load(builder: str) -> None:
    """Compile an operator unless that was done before, and load it into DeepSpeed for later calls."""
    from deepspeed.accelerator import get_accelerator

    with build_lock():
        get_accelerator().create_op_builder(builder).load(verbose=False)


@contextmanager
def build_lock() -> Iterator[None]:
    """Lock this product's own folder of compiled operators for this process, and have torch build there.

    torch guards a build by a lock file, which a killed process leaves behind; every later process then waits for ever.
    This lock is the kernel's, which ends with its process. Its holder can therefore remove torch's leftover lock files.
    Only builds under this lock are in the folder: what others build in the user's TORCH_EXTENSIONS_DIR lies beside it.
    """
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    with FileLock(folder / "in_use", fallback_to_soft=False):
        for left in folder.glob("*/lock"):
            left.unlink(missing_ok=True)
        yield


def _folder_problem() -> str | None:
    """Return a sentence on why compiled operators cannot be kept here; None where they can."""
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return (
            f"deepspeed: its compiled operators cannot be kept in {folder} ({error.strerror}); set HOME, or "
            "TORCH_EXTENSIONS_DIR, to a folder to write to, or deepspeed.offload_optimizer: none"
        )


def _folder() -> Path:
    """Return a folder for this torch, processor and environment, in the user's TORCH_EXTENSIONS_DIR where that is set.

    Operators are compiled for one type of processor, and every environment that finds another one's compiles them
    again.
    """
    try:
        with open("/proc/cpuinfo") as cpus:
            processor = next(line for line in cpus if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    kind = hashlib.sha256(f"{processor}{sys.prefix}".encode()).hexdigest()[:8]
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    name = f"torch-{torch.__version__}-{python}-{platform.machine()}-{kind}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parent = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache)
    if parent.name == name:  # set by `build_lock`, possibly in the process that started this one
        return parent
    return parent / "h-space-orchestrator" / name
