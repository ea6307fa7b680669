"""Which label-free figure follows what people mean: every figure beside what an attribute predictor says of a set.

    python -m benchmarks.measured_sets toyfaces             draws the sets (about an hour of one core), so each model
    python -m benchmarks.measured_sets toyfaces-latent
    python -m benchmarks.objectives                         measures them and writes results/objectives.md

Rank correlations over all sets of a model, with a 95 % interval by a bootstrap over bases: the sets of one base at
several strengths are drawn together.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import RESULTS, Record, half_of, kept, machine
from benchmarks.measured_sets import FIGURE_SEEDS, KEPT, MODELS, STEPS, Chain, MeasuredSet, read_all, reference_of
from core.directions.direction_set import DirectionSet
from core.intervals import without_intervals
from core.metrics import METRICS
from core.metrics.attributes import coverage, disentanglement
from core.metrics.consistency import spearman
from core.metrics.evaluation import factors_of, measure
from core.metrics.factors import Factors
from core.samples.draw import Sampling

RESAMPLES = 1000
_NEED_LABELS = ("disentanglement", "coverage", "second_disentanglement", "second_coverage")
_TRUTHS: dict[str, Callable[[Tensor], float]] = {
    "coverage x disentanglement": lambda effect: coverage(effect) * disentanglement(effect),
    "coverage": coverage,
    "disentanglement": disentanglement,
    "coverage at half x disentanglement": lambda effect: coverage(effect, 0.5, 0.5) * disentanglement(effect),
}


def measured(chain: Chain, reference: Tensor, factors: Factors, each: MeasuredSet, directions: DirectionSet) -> Record:
    """Measure the label-free figures of a set, and what the predictor says of it."""
    started = time.perf_counter()
    found = measure(chain.denoiser, each.traversals, reference, factors)
    figures = without_intervals(found.metrics)
    figures |= {f"half/{name}": half_of(figure.interval) for name, figure in found.figures.items()}
    figures |= {name: float(truth(each.effects)) for name, truth in _TRUTHS.items()}
    figures |= {"directions": float(len(directions)), "seconds": time.perf_counter() - started}
    return Record(figures, machine(chain.denoiser.device))


def measured_sets(model: str) -> dict[str, list[Record]]:
    """Return the records of every set of a model that was drawn, by base."""
    chain = Chain.load(model, KEPT / "cache")
    reference = reference_of(chain)
    factors = factors_of(chain.denoiser, chain.schedule, Sampling(cache=chain.cache))
    records: dict[str, list[Record]] = {}
    for each, directions in read_all(chain, model):
        run = partial(measured, chain, reference, factors, each, directions)
        name = f"{each.base} at {each.strength:g}"
        conditions = (model, chain.denoiser.digest, STEPS, FIGURE_SEEDS, name, each.effects.sum().item(), _VERSION)
        file = name.replace(", ", "_").replace(" ", "_")
        records.setdefault(each.base, []).append(kept(KEPT / model / "measured", file, conditions, run))
        print(f"{model}: {name}", flush=True)
    return records


_VERSION = 2  # of the figures: raised where one of them changes


def correlation(bases: Sequence[Sequence[Record]], figure: str, truth: str, sign: float) -> tuple[float, float, float]:
    """Return the rank correlation of a figure with a truth over the sets, and the ends of its 95 % interval."""
    x = [torch.tensor([record.figures.get(figure, 0.0) * sign for record in base]).double() for base in bases]
    y = [torch.tensor([record.figures[truth] for record in base]).double() for base in bases]
    drawing = torch.Generator().manual_seed(0)
    values = []
    for _ in range(RESAMPLES):
        chosen = torch.randint(len(bases), (len(bases),), generator=drawing).tolist()
        values.append(spearman(torch.cat([x[i] for i in chosen]), torch.cat([y[i] for i in chosen])))
    low, high = torch.stack(values).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(spearman(torch.cat(x), torch.cat(y))), low, high


def document(models: dict[str, dict[str, list[Record]]]) -> str:
    """Return the page."""
    names = [name for name in METRICS if name not in _NEED_LABELS and _known(models, name)]
    parts = [_table(models, names, truth) for truth in _TRUTHS]
    counts = ", ".join(f"{sum(map(len, bases.values()))} of {model}" for model, bases in models.items())
    machines = dict.fromkeys(r.machine for bases in models.values() for records in bases.values() for r in records)
    tables = "\n\n".join(f"## {truth}\n\n{part}" for truth, part in zip(_TRUTHS, parts, strict=True))
    return f"""# Which figure follows interpretability?

Sets of directions that were drawn: {counts}.
They are of every method, 4 to 32 directions, several seeds, good ones and ones made worse on purpose (directions mixed
by a rotation, repeated, trained too briefly or too narrowly), at strengths from 0.02 to 1. Each figure needs no label;
what it is compared with is said by the model's attribute predictor, on other samples of the same sets. A figure of
which less is better is turned round.

Spearman's rank correlation over all sets of a model, with its 95 % interval by a bootstrap over the sets as found
(those of one set at several strengths are drawn together).

{tables}

## What was chosen

`factor_score` is the default objective of new sweeps, and what ASHA compares: of these figures it is the one that
follows coverage and disentanglement on both models. `factor_coverage` alone does not see that directions move several
things at once, `purity` alone does not see that they repeat each other. The champion is the trial of the best first
objective; among trials within its interval the other objectives decide, such as `fidelity_kid`, which by itself follows
nothing here and says whether images are spoiled. How many factors there are, and that features and pixels are taken
together, was chosen on a part of these same sets, so another model may follow less closely.

Measured on {"; ".join(machines)}, by `python -m benchmarks.measured_sets MODEL` and `python -m benchmarks.objectives`.
"""


def _known(models: dict[str, dict[str, list[Record]]], name: str) -> bool:
    return any(name in record.figures for bases in models.values() for records in bases.values() for record in records)


def _table(models: dict[str, dict[str, list[Record]]], names: Sequence[str], truth: str) -> str:
    lines = [f"| figure | {' | '.join(models)} |", "|---" * (len(models) + 1) + "|"]
    for name in (*names, "directions"):
        sign = -1.0 if METRICS.get(name) == "min" else 1.0
        cells = []
        for bases in models.values():
            value, low, high = correlation(list(bases.values()), name, truth, sign)
            cells.append(f"{value:.2f} [{low:.2f}, {high:.2f}]")
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    models = {model: measured_sets(model) for model in arguments.models}
    (RESULTS / "objectives.md").write_text(document(models))


if __name__ == "__main__":
    main()
