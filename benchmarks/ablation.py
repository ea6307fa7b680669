"""Which parts of the learned method earn their place: one change at a time, on seeds that choose.

    python -m benchmarks.ablation toyfaces            all runs that are not done yet, then the table
    python -m benchmarks.ablation toyfaces --only start_random --seeds 0 1

Every set is calibrated to the same strength before it is measured. The seeds are those that choose (SELECT_SEEDS);
the figures to quote are those of benchmarks/methods.py, on other seeds.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, machine, remember, remembered, table
from core import Denoiser, Schedule
from core.methods import learned
from core.metrics import METRICS, calibrate, evaluate
from core.metrics.attributes import coverage
from core.randomness import SELECT_SEEDS
from core.zoo.attributes import embedded

STEPS, STRENGTH, SEEDS = 6, 0.5, 24
BASE = learned.Settings(directions=16, shift_scale=0.5, iterations=300)
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "not_trained": {"iterations": 0},
    "start_random": {"start": "random"},
    "start_pca": {"start": "pca"},
    "consistency_0": {"consistency_weight": 0.0},
    "consistency_3": {"consistency_weight": 3.0},
    "discriminator_0": {"discriminator_weight": 0.0},
    "discriminator_1": {"discriminator_weight": 1.0},
    "direction_rate_0.02": {"direction_rate": 0.02},
    "per_step": {"parametrisation": "per_step"},
    "time": {"parametrisation": "time"},
    "not_orthonormal": {"orthonormal": False},
    "asymmetric": {"injection": "asymmetric"},
    "shift_scale_1": {"shift_scale": 1.0},
    "iterations_300": {"iterations": 300},
}


def measure(model: str, variant: str, seed: int) -> dict[str, float]:
    """Learn one set and measure it."""
    denoiser, attributes = Denoiser.from_pretrained(model), embedded(model)
    schedule = Schedule.ddim(denoiser, STEPS)
    settings = replace(BASE, **VARIANTS[variant], seed=seed)
    started = time.perf_counter()
    directions = learned.find(denoiser, schedule, settings)
    seconds = time.perf_counter() - started
    directions = calibrate(denoiser, schedule, directions, STRENGTH, settings.injection)
    measured = evaluate(
        denoiser,
        schedule,
        directions,
        SELECT_SEEDS[:SEEDS],
        SELECT_SEEDS[SEEDS : 5 * SEEDS],
        attributes,
        settings.injection,
    )
    strict = {} if measured.effects is None else {"coverage_at_half": coverage(measured.effects, 0.5, 0.5)}
    return {**measured.metrics, **strict, "seconds": seconds}


def document(model: str, folder: Path) -> str:
    """The table of everything that was measured."""
    results = remembered(folder)
    rows = [
        (name.replace("_", " "), [result for key, result in results.items() if key.rpartition("-")[0] == name])
        for name in VARIANTS
    ]
    columns = [*METRICS, "coverage_at_half", "seconds"]
    return f"""# Ablation of the learned method on `{model}`

One change at a time from the default ({BASE.directions} directions, {BASE.iterations} iterations, {STEPS} steps), mean
and standard deviation over the seeds. Every set is calibrated so that scale 1.0 moves images {STRENGTH} times as far as
another sample is, and measured on {SEEDS} of the seeds that choose. `coverage at half` asks for half of a direction's
effect on one attribute where `coverage` asks for 0.4.

{table([(name, runs) for name, runs in rows if runs], columns)}

Measured on {machine()}, by `python -m benchmarks.ablation {model}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("toyfaces", "digits"))
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    folder = Path("runs") / f"ablation_{arguments.model}"
    for seed in arguments.seeds:
        for variant in arguments.only:
            name = f"{variant}-{seed}"
            if name not in remembered(folder):
                remember(folder, name, measure(arguments.model, variant, seed))
                print(name, remembered(folder)[name], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"ablation_{arguments.model}.md").write_text(document(arguments.model, folder))


if __name__ == "__main__":
    main()
