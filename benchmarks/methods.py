"""Every method side by side on seeds that trained and chose nothing: reads a finished `sweeps/compare_MODEL.yaml`.

orchestrate sweep sweeps/compare_toyfaces.yaml
python -m benchmarks.methods toyfaces            writes results/methods_toyfaces.md
"""

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import RESULTS, Record, kept, machine, table
from core.directions.direction_set import DirectionSet
from core.metrics import METRICS
from core.metrics.attributes import coverage
from core.randomness import REPORT_SEEDS
from orchestrator.search.ranking import rows
from orchestrator.spec import Sweep
from orchestrator.store.folder import SweepFolder
from orchestrator.trial.model import TrialModel

SEEDS = REPORT_SEEDS[100_000:]  # looked at by this table alone
MIN_EFFECT = 0.5


def measure(bench: TrialModel, sweep: Sweep, directions: DirectionSet, seconds: float) -> Record:
    """A trial's set, as strong as the sweep made it, on fresh seeds; its best share of each attribute."""
    measured = bench.measure(sweep, directions, SEEDS)
    figures = {**measured.metrics, "seconds": seconds}
    if measured.effects is not None and bench.attributes is not None:
        figures["coverage_at_half"] = coverage(measured.effects, MIN_EFFECT, 0.5)
        figures |= best_shares(measured.effects, bench.attributes.names)
    return Record(figures, machine(bench.denoiser.device))


def best_shares(effects: Tensor, names: Sequence[str]) -> dict[str, float]:
    """For each attribute the largest share it has of a direction that moves it most, by MIN_EFFECT or more; else 0."""
    size = effects.abs()
    share = size / size.sum(dim=1, keepdim=True).clamp(min=1e-12)
    controls = (size == size.amax(dim=1, keepdim=True)) & (size >= MIN_EFFECT)
    return dict(zip((f"share/{name}" for name in names), (share * controls).amax(dim=0).tolist(), strict=True))


def shares_table(methods: Mapping[str, Sequence[Mapping[str, float]]], names: Sequence[str]) -> str:
    """One line an attribute, one column a method: mean over the runs of the best share."""
    lines = [f"| attribute | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for name in names:
        cells = [f"{statistics.fmean(run[f'share/{name}'] for run in runs):.2f}" for runs in methods.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def document(model: str, sweep: Sweep, names: Sequence[str], methods: Mapping[str, Sequence[Record]]) -> str:
    """The page."""
    count = sweep.evaluate.seeds
    figures = {method: [record.figures for record in records] for method, records in methods.items()}
    machines = dict.fromkeys(record.machine for records in methods.values() for record in records)
    return f"""# Every method on `{model}`

Mean and half its 95 % interval, over seeds of the method. Every set is scaled so that scale 1.0 moves images
{sweep.evaluate.strength} times as far as another sample is, and measured on {count} samples (beside {4 * count}
unshifted ones) whose seeds trained and chose nothing. `supervised` is told the attributes by the very predictor that
measures disentanglement and coverage: it is the ceiling of those two, not a rival. `coverage` asks for 0.4 of a
direction's effect on one attribute, `coverage at half` for 0.5; both for half a standard deviation. `seconds`: to find
the set.

{table(list(figures.items()), [*METRICS, "coverage_at_half", "seconds"])}

The largest share of a direction's effect that each attribute has (0: no direction moves it most by half a standard
deviation), mean over the same runs:

{shares_table(figures, names)}

Measured on {"; ".join(machines)}, by `orchestrate sweep sweeps/compare_{model}.yaml` and
`python -m benchmarks.methods {model}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("toyfaces", "digits"))
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where the sweep's results are")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    folder = SweepFolder(arguments.root, f"compare_{arguments.model}")
    sweep = folder.sweep()
    bench = TrialModel.load(sweep)
    methods: dict[str, list[Record]] = {}
    for row in rows(folder, sweep):
        if row.state == "completed":
            directions = DirectionSet.load(folder.trial(row.trial_id).result() / "directions")
            run = partial(measure, bench, sweep, directions, row.seconds or 0.0)
            conditions = (sweep.identity(), row.trial_id, SEEDS, bench.denoiser.digest)
            record = kept(folder.path / "measured", row.trial_id, conditions, run)
            methods.setdefault(row.parameters["method"], []).append(record)
    ordered = {method: methods[method] for method in sweep.methods if method in methods}
    names = bench.attributes.names if bench.attributes else ()
    (RESULTS / f"methods_{arguments.model}.md").write_text(document(arguments.model, sweep, names, ordered))


if __name__ == "__main__":
    main()
