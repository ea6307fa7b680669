"""What the matrix stands on: the tiny model, the machine in words, and the fuzzing of the readers beside it."""

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from tests.faults.rows import Scenario
from tests.faults.sweep_under_test import check

_VERSIONED = ("torch", "diffusers", "ray", "deepspeed", "optuna", "mlflow")


def short_folder() -> Path:
    """A new folder whose path leaves room for Ray's sockets, which may have 107 bytes."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="", dir=usual if len(usual) <= len("/dev/shm") else "/tmp"))


def tiny_model(folder: Path) -> Path:
    """A diffusers folder with random weights: 8x8 images, h of 8x2x2; the same wherever it is made."""
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 8, 8),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(folder)
    return folder


def readers(scenario: Scenario, examples: int) -> None:
    """The fuzzing of each reader, in a process that gives way to all others."""
    for name, row in scenario.rows.items():
        command = [sys.executable, "-m", "tests.faults.fuzz", "--examples", str(examples), "--only", name]
        began = time.monotonic()
        done = subprocess.run(["nice", "-n", "15", *command], capture_output=True, text=True)
        with scenario.row(name, 0):
            found = re.search(r"([\d,]+) inputs", done.stdout)
            row.times = int(found[1].replace(",", "")) if found else 0
            check(done.returncode == 0, f"{(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        row.seconds = time.monotonic() - began


def facts(minutes: float, seed: int, starts: str) -> str:
    """The head of results.md."""
    usual = Path(tempfile.gettempdir())
    disks = [each for each in psutil.disk_partitions(all=True) if usual.is_relative_to(each.mountpoint)]
    disk = max(disks, key=lambda each: len(each.mountpoint)).fstype
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in _VERSIONED)
    machine = f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB, files in {disk}"
    return f"""# What sweeps go through

Written by `make faults` on {datetime.now(UTC):%Y-%m-%d}, in {minutes:.1f} minutes, from seed {seed}: real processes, a
real MLflow server, a model of random weights, sweeps of a few small learned trials. "Equal" is to the last
digit, against the same sweep undisturbed.

Machine: {machine}; Python {platform.python_version()}, {versions}.
{starts}

"""


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()
