"""What every benchmark shares: the machine it ran on, results kept one file a run, tables of mean and spread."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from core.files import write_json
from core.intervals import interval_of, of_runs
from core.metrics import METRICS

RESULTS = Path(__file__).parent / "results"
ARROWS = {"max": "↑", "min": "↓"}


def machine(device: torch.device) -> str:
    """The hardware and the versions a figure is measured with."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
        names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
        hardware = f"{', '.join(sorted(names)) or platform.processor() or 'CPU'}, {torch.get_num_threads()} thread(s)"
    return f"{hardware}; torch {torch.__version__}, Python {platform.python_version()}"


@dataclass(frozen=True)
class Record:
    """One run's figures, and the hardware they were measured on."""

    figures: dict[str, float]
    machine: str


def kept(folder: Path, name: str, conditions: object, run: Callable[[], Record]) -> Record:
    """The record of a run: read from `folder` where it was measured under the same conditions before, else measured.

    An interrupted benchmark goes on where it stopped, and nothing is reused after a setting or a weight has changed.
    """
    file, digest = folder / f"{name}.json", hashlib.sha256(repr(conditions).encode()).hexdigest()
    if file.is_file():
        known = json.loads(file.read_text())
        if known["conditions"] == digest:
            return Record(known["figures"], known["machine"])
    record = run()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, {"conditions": digest, "figures": record.figures, "machine": record.machine})
    return record


def table(rows: Sequence[tuple[str, Sequence[dict[str, float]]]], columns: Iterable[str] = METRICS) -> str:
    """A Markdown table: one line a name, the mean of each column over its runs, and half its 95 % interval."""
    columns = list(columns)
    heads = [f"{name.replace('_', ' ')} {ARROWS.get(METRICS.get(name, ''), '')}".strip() for name in columns]
    lines = [f"| | runs | {' | '.join(heads)} |", "|---" * (len(columns) + 2) + "|"]
    for name, runs in rows:
        cells = [_cell([run[column] for run in runs if column in run]) for column in columns]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    figure = of_runs("", values)
    interval = interval_of(figure, "")
    return f"{figure['']:.3f}" + (f" ± {half_of(interval):.3f}" if interval else "")


def half_of(interval: tuple[float, float]) -> float:
    """Return half the width of an interval."""
    return (interval[1] - interval[0]) / 2
