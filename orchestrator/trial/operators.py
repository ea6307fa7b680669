"""DeepSpeed's compiled operators: can they be built here, where are they kept; one process at a time builds them.

Imported before DeepSpeed, which reads from its environment what it runs on, and where ninja is, when it is imported.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from orchestrator.spec.sections import DeepSpeed

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# ninja is installed beside this Python, which need not be on the user's path.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def compiler_missing() -> str | None:
    """Why DeepSpeed's own optimiser cannot be built here, in one sentence; None where it can."""
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if not missing:
        return None
    return f"{' and '.join(missing)} not found: DeepSpeed's compiled Adam is replaced by torch's (slower offload)"


def missing(settings: DeepSpeed) -> str | None:
    """Why these settings cannot work on this machine, in one sentence; None where they can."""
    if "nvme" not in (settings.offload_optimizer, settings.offload_param):
        return None
    import deepspeed

    if compiler_missing() or not deepspeed.ops.__compatible_ops__.get("async_io", False):
        needed = "g++, ninja and libaio's headers (package libaio-dev)"
        return f"deepspeed: offloading to nvme needs {needed}, which are not all here"
    if not os.access(str(settings.nvme_path), os.W_OK | os.X_OK):
        return f"deepspeed.nvme_path: {settings.nvme_path} is not a folder that can be written to"
    return None


def build_ops() -> None:
    """Compile the operator that trials use, Adam on the CPU, so that no trial waits for it."""
    if compiler_missing() is None:
        load("CPUAdamBuilder")


def load(builder: str) -> None:
    """Compile an operator where that was not done before; DeepSpeed has it from then on."""
    from deepspeed.accelerator import get_accelerator

    with guarded():
        get_accelerator().create_op_builder(builder).load(verbose=False)


@contextmanager
def guarded() -> Iterator[None]:
    """The folder of compiled operators, to one process at a time.

    torch guards a build by a file that a killed process leaves behind, for which every later one waits for ever. Here
    the kernel guards the folder; whoever has it knows that torch's guards in it are nobody's.
    """
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(_folder())))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "in_use", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in folder.glob("**/lock"):
            left.unlink(missing_ok=True)
        yield


def _folder() -> Path:
    """A folder of our own for this torch, processor and environment.

    Operators are compiled for the very processor, and again by every environment that finds another one's.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    try:
        processor = next(line for line in open("/proc/cpuinfo") if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    kind = hashlib.sha256(f"{processor}{sys.prefix}".encode()).hexdigest()[:8]
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return Path(cache) / "h-space-orchestrator" / f"torch-{torch.__version__}-{python}-{platform.machine()}-{kind}"
