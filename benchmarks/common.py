"""What every benchmark shares: the machine it ran on, results kept one file a run, tables of mean and spread."""

import json
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from core.metrics import METRICS

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """The hardware and the versions a figure was measured with."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
        names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
        device = f"{', '.join(sorted(names)) or platform.processor() or 'CPU'}, {torch.get_num_threads()} thread(s)"
    return f"{device}; torch {torch.__version__}, Python {platform.python_version()}"


def remember(folder: Path, name: str, result: dict[str, float]) -> None:
    """Keep one run's result, so that an interrupted benchmark goes on where it stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def remembered(folder: Path) -> dict[str, dict[str, float]]:
    """Every result kept so far, by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def table(rows: Sequence[tuple[str, Sequence[dict[str, float]]]], columns: Iterable[str] = METRICS) -> str:
    """A Markdown table: one line a name, mean and standard deviation of each column over its runs."""
    columns = list(columns)
    heads = [f"{name.replace('_', ' ')} {_ARROWS.get(METRICS.get(name, ''), '')}".strip() for name in columns]
    lines = [f"| | runs | {' | '.join(heads)} |", "|---" * (len(columns) + 2) + "|"]
    for name, runs in rows:
        cells = [_cell([run[column] for run in runs if column in run]) for column in columns]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


_ARROWS = {"max": "↑", "min": "↓"}


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"
