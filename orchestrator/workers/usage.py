"""Measure what a trial uses of its machine, under the names that MLflow gives to system metrics.

Samples are taken beside the trial's own work, and sent with its reports. MLflow's own monitors would import the whole
of MLflow into the process of every trial.
"""

import os
import time
from contextlib import suppress
from typing import Any

import psutil

_EVERY_S = 10.0  # MLflow's default interval
_MB = 1e6
_FULL = 360  # samples kept between two reports; where there are more, every other one is dropped

Sample = dict[str, float]


class Usage:
    """The samples of one attempt at a trial that have not been reported yet."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.every_s, self.looked = _EVERY_S, time.monotonic()
        self.process, self.gpus = psutil.Process(), _gpus()
        psutil.cpu_percent()  # both return the use since their last call
        self.process.cpu_percent()
        self.sent, self.received = _network()

    def look(self) -> None:
        """Take a sample if it is time for one. Called with every step of the trial; costs nothing between samples."""
        if time.monotonic() - self.looked >= self.every_s:
            self._sample()

    def taken(self) -> list[Sample]:
        """Return the samples since the last report, at least one, and forget them."""
        if not self.samples:
            self._sample()
        taken, self.samples, self.every_s = self.samples, [], _EVERY_S
        return taken

    def _sample(self) -> None:
        self.looked = time.monotonic()
        sample: Sample = {"milliseconds": int(time.time() * 1000)}
        for part in (self._cpu, self._memory, self._disk, self._net, self._gpu):
            with suppress(OSError, psutil.Error):  # the machine does not offer the value, or not to this user
                sample |= {f"system/{name}": round(value, 1) for name, value in part().items()}
        self.samples.append(sample)
        if len(self.samples) > _FULL:
            self.samples, self.every_s = self.samples[::2], 2 * self.every_s

    def _cpu(self) -> Sample:
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "process_cpu_utilization_percentage": self.process.cpu_percent(),  # of one core
        }

    def _memory(self) -> Sample:
        machine = psutil.virtual_memory()
        return {
            "system_memory_usage_megabytes": machine.used / _MB,
            "system_memory_usage_percentage": 100 * machine.used / machine.total,
            "process_memory_usage_megabytes": self.process.memory_info().rss / _MB,
        }

    def _disk(self) -> Sample:
        disk = psutil.disk_usage(os.sep)
        return {
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MB,
            "disk_available_megabytes": disk.free / _MB,
        }

    def _net(self) -> Sample:
        sent, received = _network()
        return {
            "network_receive_megabytes": (received - self.received) / _MB,
            "network_transmit_megabytes": (sent - self.sent) / _MB,
        }

    def _gpu(self) -> Sample:
        return {f"gpu_{n}_{name}": value for n, gpu in enumerate(self.gpus) for name, value in _of_gpu(gpu).items()}


def _network() -> tuple[float, float]:
    """Return the bytes that the machine has sent and received; 0 where it has no network."""
    counted: Any = psutil.net_io_counters()
    return (counted.bytes_sent, counted.bytes_recv) if counted else (0.0, 0.0)


def _gpus() -> list[Any]:
    """Return NVIDIA's handles of the GPUs that this process may use; empty without a GPU or without pynvml."""
    try:
        import pynvml

        pynvml.nvmlInit()
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = list(range(pynvml.nvmlDeviceGetCount())) if seen is None else [n for n in seen.split(",") if n.strip()]
        return [_handle(pynvml, str(name).strip()) for name in names]
    except Exception:  # no pynvml, no driver, a part of a GPU: the trial runs without these samples
        return []


def _handle(pynvml: Any, name: str) -> Any:
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)


def _of_gpu(handle: Any) -> Sample:
    import pynvml

    sample: Sample = {}
    with suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        sample["memory_usage_megabytes"] = memory.used / _MB
        sample["memory_usage_percentage"] = 100 * memory.used / memory.total
    with suppress(pynvml.NVMLError):
        sample["utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    with suppress(pynvml.NVMLError):
        watts = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
        sample["power_usage_watts"] = watts
        sample["power_usage_percentage"] = 100_000 * watts / pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)
    return sample
