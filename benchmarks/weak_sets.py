"""What figures say of sets that cannot be seen: directions made weaker, down to a shift of nothing.

python -m benchmarks.weak_sets             writes results/weak_sets.md
"""

import os
from dataclasses import replace
from functools import partial

import torch

from benchmarks.common import RESULTS, Record, kept, machine
from benchmarks.measured_sets import FIGURE_SEEDS, KEPT, REFERENCE, Chain
from core.directions.direction_set import DirectionSet
from core.methods import pca, random
from core.metrics import METRICS, calibrate, evaluate
from core.samples.draw import Sampling

MODEL, STRENGTH, DIRECTIONS, SEEDS = "toyfaces", 0.5, 8, 3
FACTORS = (1.0, 0.1, 0.01, 0.001, 0.0)
ZERO = {"told_apart": 1.0, "strength_error": 0.75}  # of a shift of nothing; 0 for the others


def found(chain: Chain, method: str, seed: int) -> DirectionSet:
    """Return a set at STRENGTH."""
    if method == "pca":
        directions = pca.find(chain.denoiser, chain.schedule, pca.Settings(DIRECTIONS, seed=seed), cache=chain.cache)
    else:
        settings = random.Settings(DIRECTIONS, seed=seed)
        directions = random.find(chain.denoiser, chain.schedule, settings, cache=chain.cache)
    return calibrate(chain.denoiser, chain.schedule, directions, STRENGTH, Sampling(cache=chain.cache))


def measured(chain: Chain, directions: DirectionSet, factor: float) -> Record:
    """Measure a set made `factor` times as strong."""
    weak = replace(directions, sigma=directions.sigma * factor)
    sampling = Sampling(cache=chain.cache)
    figures = evaluate(chain.denoiser, chain.schedule, weak, FIGURE_SEEDS, REFERENCE, sampling=sampling).figures
    values = {name: figure.value for name, figure in figures.items()}
    values |= {f"error/{name}": figure.error for name, figure in figures.items()}
    return Record(values, machine(chain.denoiser.device))


def document(records: dict[tuple[str, int], list[Record]]) -> str:
    """Return the page."""
    names = [name for name in METRICS if any(name in record.figures for row in records.values() for record in row)]
    heads = [f"{factor:g}" for factor in FACTORS]
    tables = []
    for name in names:
        lines = [f"| {name.replace('_', ' ')} | {' | '.join(heads)} | nothing, in standard errors from its zero |"]
        lines.append("|---" * (len(heads) + 2) + "|")
        for (method, seed), row in records.items():
            cells = [f"{record.figures[name]:.3f}" for record in row]
            lines.append(f"| {method}, seed {seed} | {' | '.join(cells)} | {_distance(row[-1], name)} |")
        tables.append("\n".join(lines))
    machines = dict.fromkeys(record.machine for row in records.values() for record in row)
    body = "\n\n".join(tables)
    return f"""# Sets that cannot be seen

Sets of {DIRECTIONS} directions on `{MODEL}`, at strength {STRENGTH} (1) and made 10, 100 and 1,000 times weaker, and
not shifted at all (0), without calibration. The last column says how far a shift of nothing is from the figure's zero:
told apart 1, strength error 0.75, all others 0.

{body}

Measured on {"; ".join(machines)}, by `python -m benchmarks.weak_sets`.
"""


def _distance(record: Record, name: str) -> str:
    apart = record.figures[name] - ZERO.get(name, 0.0)
    error = record.figures[f"error/{name}"]
    return "0" if abs(apart) < 1e-9 else f"{apart / error:.1f}" if error > 0 else f"{apart:.3f}, no error"


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    chain = Chain.load(MODEL, KEPT / "cache")
    records: dict[tuple[str, int], list[Record]] = {}
    for method in ("random", "pca"):
        for seed in range(SEEDS):
            directions = found(chain, method, seed)
            for factor in FACTORS:
                conditions = (chain.denoiser.digest, DIRECTIONS, STRENGTH, method, seed, factor)
                run = partial(measured, chain, directions, factor)
                name = f"{method}_{seed}_{factor:g}"
                records.setdefault((method, seed), []).append(kept(KEPT / MODEL / "weak", name, conditions, run))
                print(f"{method}, seed {seed}, {factor:g}", flush=True)
    (RESULTS / "weak_sets.md").write_text(document(records))


if __name__ == "__main__":
    main()
