"""Which parts of the learned method earn their place: one change at a time, on seeds that choose.

    python -m benchmarks.ablation toyfaces            what has not been measured yet, then the table
    python -m benchmarks.ablation toyfaces --only start_random start_pca --seeds 0

The figures to quote are those of benchmarks/methods.py, on seeds that chose nothing.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, Record, kept, machine, table
from benchmarks.measured_sets import STEPS, Chain
from core.methods import learned
from core.metrics import METRICS, calibrate, evaluate
from core.metrics.attributes import coverage
from core.randomness import SELECT_SEEDS
from core.samples.draw import Sampling

STRENGTH, SEEDS = 0.5, 24
BASE = learned.Settings(iterations=150)
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "not_trained": {"iterations": 0},
    "start_pca": {"start": "pca"},
    "start_random": {"start": "random"},
    "purity_0": {"purity_weight": 0.0},
    "purity_300": {"purity_weight": 300.0},
    "consistency_0": {"consistency_weight": 0.0},
    "locality_0": {"locality_weight": 0.0},
    "locality_10": {"locality_weight": 10.0},
    "discriminator_0": {"discriminator_weight": 0.0},
    "discriminator_30": {"discriminator_weight": 30.0},
    "direction_rate_0.05": {"direction_rate": 0.05},
    "shift_scale_1.5": {"shift_scale": 1.5},
    "per_step": {"parametrisation": "per_step"},
    "orthonormal": {"orthonormal": True},
    "papers_terms_alone": {"start": "random", "purity_weight": 0.0, "locality_weight": 0.0, "consistency_weight": 0.0},
}


def measure(chain: Chain, settings: learned.Settings) -> Record:
    """Learn one set and measure it."""
    denoiser, schedule, sampling = chain.denoiser, chain.schedule, Sampling(settings.injection, cache=chain.cache)
    started = time.process_time()
    directions = learned.find(denoiser, schedule, settings, cache=chain.cache)
    seconds = time.process_time() - started
    directions = calibrate(denoiser, schedule, directions, STRENGTH, sampling)
    chosen, reference = SELECT_SEEDS[:SEEDS], SELECT_SEEDS[SEEDS : 5 * SEEDS]
    measured = evaluate(denoiser, schedule, directions, chosen, reference, chain.attributes, sampling)
    figures = {**measured.metrics, "seconds": seconds}
    if measured.effects is not None:
        figures["coverage_at_half"] = coverage(measured.effects, 0.5, 0.5)
    return Record(figures, machine(denoiser.device))


def document(model: str, records: Mapping[str, Sequence[Record]]) -> str:
    """The page."""
    rows = [(name.replace("_", " "), [record.figures for record in runs]) for name, runs in records.items()]
    machines = dict.fromkeys(record.machine for runs in records.values() for record in runs)
    return f"""# Ablation of the learned method on `{model}`

One change at a time from the default: {BASE.directions} directions, {BASE.iterations} iterations, {STEPS} steps.
Mean and half its 95 % interval, over the seeds that were run. Every set is calibrated so that scale 1.0 moves images
{STRENGTH} times as far as another sample is, and measured on {SEEDS} of the seeds that choose. `coverage at half` asks
for half of a direction's effect on one attribute where `coverage` asks for 0.4. `seconds`: of processor time, to find
the set.

{table(rows, [*METRICS, "coverage_at_half", "seconds"])}

Measured on {"; ".join(machines)}, by `python -m benchmarks.ablation {model}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("toyfaces", "mnist"))
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES), metavar="CHANGE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    folder = Path("runs") / f"ablation_{arguments.model}"
    chain = Chain.load(arguments.model, folder / "cache")
    records: dict[str, list[Record]] = {name: [] for name in arguments.only}
    for seed in arguments.seeds:
        for name in arguments.only:
            settings = replace(BASE, **CHANGES[name], seed=seed)
            conditions = (settings, STEPS, STRENGTH, SEEDS, chain.denoiser.digest)
            record = kept(folder, f"{name}-{seed}", conditions, partial(measure, chain, settings))
            records[name].append(record)
            print(name, seed, record.figures, flush=True)
    (RESULTS / f"ablation_{arguments.model}.md").write_text(document(arguments.model, records))


if __name__ == "__main__":
    main()
