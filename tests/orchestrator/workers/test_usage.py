"""What a trial takes of its machine: sampled beside its work, reported, put down under MLflow's names."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.spec import parse
from orchestrator.store.folder import SweepFolder
from orchestrator.trial.state import Report
from orchestrator.workers import usage as module
from orchestrator.workers.usage import Usage
from orchestrator.workers.worker import AttemptProcess

NAMES = {
    "system/cpu_utilization_percentage",
    "system/process_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "system/disk_available_megabytes",
    "system/network_receive_megabytes",
}


def test_a_report_brings_at_least_one_sample() -> None:
    usage, now = Usage(), time.time() * 1000
    [sample] = usage.taken()
    assert sample.keys() >= NAMES and abs(sample["milliseconds"] - now) < 60_000
    assert 10 < sample["system/process_memory_usage_megabytes"] < sample["system/system_memory_usage_megabytes"]
    assert usage.samples == []


def test_it_is_looked_at_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    usage = Usage()
    for _ in range(35):
        clock[0] += 1.0
        usage.look()
    assert len(usage.taken()) == 3


def test_a_long_wait_for_a_report_takes_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module, "_FULL", 8)
    usage = Usage()
    for _ in range(200):
        clock[0] += 10.0
        usage.look()
    assert usage.every_s > 10 and 4 <= len(usage.taken()) <= 8 and usage.every_s == 10


class _Nvml:
    """NVIDIA's library on a machine of three GPUs, one of which does not tell its power."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        return {"GPU-b": 1}[name]

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:
        return SimpleNamespace(used=(gpu + 1) * 1e9, total=4e9)

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:
        return SimpleNamespace(gpu=10 * gpu)

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        if gpu == 2:
            raise self.NVMLError
        return 150_000

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: int) -> int:
        return 600_000


@pytest.mark.parametrize(("seen", "memory"), [(None, [1000, 2000, 3000]), ("2", [3000]), ("GPU-b,0", [2000, 1000])])
def test_of_the_gpus_only_its_own(monkeypatch: pytest.MonkeyPatch, seen: str | None, memory: list[int]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _Nvml())  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    [sample] = Usage().taken()
    assert [sample[f"system/gpu_{n}_memory_usage_megabytes"] for n in range(len(memory))] == memory
    assert f"system/gpu_{len(memory)}_memory_usage_megabytes" not in sample
    power = sample.get("system/gpu_0_power_usage_percentage")
    assert power == (None if seen == "2" else 25.0)


def test_without_a_gpu_none_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # its import fails
    [sample] = Usage().taken()
    assert not any("gpu" in name for name in sample)


@pytest.mark.parametrize(("asked", "rank", "told"), [(True, 0, True), (False, 0, False), (True, 1, False)])
def test_the_first_process_of_a_trial_tells_unless_the_file_says_no(
    tmp_path: Path, asked: bool, rank: int, told: bool
) -> None:
    base: dict[str, Any] = {"name": "a", "model": "toyfaces", "search": {"directions": {"choice": [8, 16]}}}
    sweep = parse(base | {"tracking": {"system_metrics": asked}})
    post = AttemptProcess(sweep, SweepFolder(tmp_path, "a"), {"trial_id": "t", "attempt": 1}, rank)
    report = Report(5, 0.0, {})
    assert bool(post.with_usage(report).usage) == told and not report.usage
    post.leave()
