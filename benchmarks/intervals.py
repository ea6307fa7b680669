"""How often a set that is measured again, on other samples, falls inside the interval of its first measurement.

    python -m benchmarks.intervals             writes results/intervals.md, from sets of benchmarks/measured_sets.py

Both measurements err by chance. So where samples alone are resampled about 86 of 100 fall inside, and not 95; more
where directions are resampled too.
"""

import os
import time
from functools import partial

import torch

from benchmarks.common import RESULTS, Record, kept, machine
from benchmarks.measured_sets import KEPT, SEEDS, Chain, read_all
from core.directions.direction_set import DirectionSet
from core.metrics import METRICS, evaluate
from core.randomness import SELECT_SEEDS
from core.samples.draw import Sampling

MODEL, STRENGTH, DRAWS = "toyfaces-latent", 0.5, 5
WIDTHS_OF, COUNTS = "learned 16", (12, 24, 48)
BASES = ("learned 16", "pca 16", "jacobian 16", "supervised", "random 16")


def measured(chain: Chain, directions: DirectionSet, draw: int) -> Record:
    """Measure a set on one draw of samples: its figures, and the ends of their intervals."""
    first = 10_000 + 5 * SEEDS * draw
    seeds, reference = SELECT_SEEDS[first : first + SEEDS], SELECT_SEEDS[first + SEEDS : first + 5 * SEEDS]
    found = evaluate(
        chain.denoiser, chain.schedule, directions, seeds, reference, chain.attributes, Sampling(cache=chain.cache)
    )
    return Record(found.metrics, machine(chain.denoiser.device))


def width(chain: Chain, directions: DirectionSet, count: int) -> Record:
    """Measure a set on `count` samples: half the width of each interval, and the seconds it takes."""
    seeds, reference = SELECT_SEEDS[20_000 : 20_000 + count], SELECT_SEEDS[30_000 : 30_000 + 4 * count]
    started = time.perf_counter()
    found = evaluate(chain.denoiser, chain.schedule, directions, seeds, reference, chain.attributes)
    figures = {name: (figure.interval[1] - figure.interval[0]) / 2 for name, figure in found.figures.items()}
    return Record(figures | {"seconds": time.perf_counter() - started}, machine(chain.denoiser.device))


def inside(records: list[Record], name: str) -> tuple[int, int]:
    """Return in how many of the later draws a figure lies within the interval of the first, and of how many."""
    first, *others = (record.figures for record in records)
    values = [figures[name] for figures in others if name in figures]
    return sum(first[f"{name}/low"] - 1e-12 <= value <= first[f"{name}/high"] + 1e-12 for value in values), len(values)


def document(sets: dict[str, list[Record]], widths: dict[int, Record]) -> str:
    """Return the page."""
    names = [name for name in METRICS if all(f"{name}/low" in records[0].figures for records in sets.values())]
    lines = [f"| figure | {' | '.join(sets)} | in all |", "|---" * (len(sets) + 2) + "|"]
    total = [0, 0]
    for name in names:
        counts = [inside(records, name) for records in sets.values()]
        sums = [sum(column) for column in zip(*counts, strict=True)]
        total = [a + b for a, b in zip(total, sums, strict=True)]
        cells = [f"{count} of {of}" for count, of in [*counts, (sums[0], sums[1])]]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    shown = [*names, "seconds"]
    rows = [f"| {name.replace('_', ' ')} | {' | '.join(_cells(widths, name))} |" for name in shown]
    half = "\n".join(
        [f"| half the interval | {' | '.join(map(str, widths))} |", "|---" * (len(widths) + 1) + "|", *rows]
    )
    machines = dict.fromkeys(record.machine for records in sets.values() for record in records)
    return f"""# Measured again on other samples

Sets of `{MODEL}` at strength {STRENGTH}, each measured on {SEEDS} samples, and then on {DRAWS} other draws of as many
samples and references: how many of these lie within the 95 % interval of the first measurement. In all {total[0]} of
{total[1]}, {total[0] / max(total[1], 1):.0%}.

{table}

## How many samples

Half the 95 % interval of `{WIDTHS_OF}` by the number of samples, and how long a measurement takes, drawing included.

{half}

Measured on {"; ".join(machines)}, by `python -m benchmarks.measured_sets {MODEL}` and `python -m benchmarks.intervals`.
"""


def _cells(widths: dict[int, Record], name: str) -> list[str]:
    return [f"{record.figures[name]:.3g}" for record in widths.values()]


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    chain = Chain.load(MODEL, KEPT / "cache")
    sets: dict[str, list[Record]] = {}
    widths: dict[int, Record] = {}
    for each, directions in read_all(chain, MODEL):
        if each.base in BASES and each.strength == STRENGTH:
            for draw in range(DRAWS + 1):
                conditions = (chain.denoiser.digest, each.base, STRENGTH, SEEDS, draw)
                run = partial(measured, chain, directions, draw)
                name = f"{each.base.replace(' ', '_')}_{draw}"
                sets.setdefault(each.base, []).append(kept(KEPT / MODEL / "again", name, conditions, run))
                print(f"{each.base}, draw {draw}", flush=True)
        if each.base == WIDTHS_OF and each.strength == STRENGTH:
            for count in COUNTS:
                run = partial(width, chain, directions, count)
                widths[count] = kept(KEPT / MODEL / "again", f"of_{count}_samples", (chain.denoiser.digest, count), run)
    (RESULTS / "intervals.md").write_text(document(sets, widths))


if __name__ == "__main__":
    main()
