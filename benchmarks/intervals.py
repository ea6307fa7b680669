"""How often a set that is measured again, on other samples, falls inside the interval of its first measurement.

    python -m benchmarks.intervals runs/toyfaces     writes results/intervals.md: the champion of each sweep given, and
                                                     sets of benchmarks/measured_sets.py

Both measurements err by chance. So where samples alone are resampled about 86 of 100 fall inside, and not 95; more
where directions are resampled too.
"""

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import RESULTS, Record, half_of, kept, machine
from benchmarks.measured_sets import KEPT, SEEDS, Chain, draw_all, read_all
from core.directions.direction_set import DirectionSet
from core.intervals import interval_of
from core.metrics import METRICS, evaluate
from core.randomness import REPORT_SEEDS, SELECT_SEEDS
from core.samples.cache import SampleCache
from core.samples.draw import Sampling
from orchestrator.spec import Sweep
from orchestrator.store.folder import SweepFolder
from orchestrator.trial.model import TrialModel

MODEL, STRENGTH, DRAWS = "toyfaces", 0.5, 5
WIDTHS_OF, COUNTS = "learned 16", (12, 24, 48)
BASES = ("random 16", "pca 16", "learned 16")


def of_champion(folder: SweepFolder) -> list[Record]:
    """Return the figures that a sweep reports of its champion, then those on DRAWS other draws of as many samples."""
    sweep, result = folder.sweep(), json.loads(folder.result.read_text())
    trial = DirectionSet.load(folder.trial(result["trial"]).result() / "directions")
    directions = replace(DirectionSet.load(folder.champion), sigma=trial.sigma)  # with the dials' signs
    model = TrialModel.load(sweep, SampleCache(KEPT / "cache"))
    here = machine(model.denoiser.device)
    records = [Record(result["champion"], here)]
    for draw in range(1, DRAWS + 1):
        seeds = REPORT_SEEDS[draw * 5 * sweep.evaluate.seeds :]
        run = partial(_again, model, sweep, directions, seeds)
        conditions = (model.denoiser.digest, result, draw)
        records.append(kept(KEPT / "champions", f"{folder.name}_{draw}", conditions, run))
        print(f"{folder.name}, draw {draw}", flush=True)
    return records


def _again(model: TrialModel, sweep: Sweep, directions: DirectionSet, seeds: range) -> Record:
    return Record(model.measure(sweep, directions, seeds).metrics, machine(model.denoiser.device))


def of_sets(chain: Chain) -> Iterator[tuple[str, list[Record]]]:
    """Yield each of BASES at STRENGTH, with its figures on DRAWS + 1 draws of SEEDS samples."""
    for each, directions in read_all(chain, MODEL):
        if each.base in BASES and each.strength == STRENGTH:
            yield each.base, [_drawn(chain, each.base, directions, draw) for draw in range(DRAWS + 1)]


def _drawn(chain: Chain, base: str, directions: DirectionSet, draw: int) -> Record:
    def run() -> Record:
        first = 10_000 + 5 * SEEDS * draw
        return _measured(chain, directions, SELECT_SEEDS[first : first + 5 * SEEDS], SEEDS)

    print(f"{base}, draw {draw}", flush=True)
    conditions = (chain.denoiser.digest, base, STRENGTH, SEEDS, draw)
    return kept(KEPT / MODEL / "again", f"{base.replace(' ', '_')}_{draw}", conditions, run)


def _measured(chain: Chain, directions: DirectionSet, seeds: range, count: int) -> Record:
    """Measure a set on the first `count` of the seeds, beside the others as a reference."""
    started = time.process_time()
    sampling = Sampling(cache=chain.cache)
    found = evaluate(
        chain.denoiser, chain.schedule, directions, seeds[:count], seeds[count:], chain.attributes, sampling
    )
    seconds = time.process_time() - started
    return Record(found.metrics | {"seconds": seconds}, machine(chain.denoiser.device))


def widths(chain: Chain) -> dict[int, Record]:
    """Return the figures of WIDTHS_OF by the number of samples, with the processor's seconds for each measurement."""
    directions = next(
        found for each, found in read_all(chain, MODEL) if (each.base, each.strength) == (WIDTHS_OF, STRENGTH)
    )
    records = {}
    for count in COUNTS:
        seeds = SELECT_SEEDS[20_000 : 20_000 + 5 * count]
        run = partial(_measured, chain, directions, seeds, count)
        conditions = (chain.denoiser.digest, WIDTHS_OF, count)
        records[count] = kept(KEPT / MODEL / "again", f"of_{count}_samples", conditions, run)
        print(f"{WIDTHS_OF}, {count} samples", flush=True)
    return records


def inside(records: list[Record], name: str) -> tuple[int, int]:
    """Return in how many of the later draws a figure lies within the interval of the first, and of how many."""
    first, *others = (record.figures for record in records)
    values = [figures[name] for figures in others if name in figures]
    return sum(first[f"{name}/low"] - 1e-12 <= value <= first[f"{name}/high"] + 1e-12 for value in values), len(values)


def table(sets: Mapping[str, list[Record]]) -> str:
    """Return how often each figure of each set lies inside, with sums."""
    names = [name for name in METRICS if all(f"{name}/low" in records[0].figures for records in sets.values())]
    lines = [f"| figure | {' | '.join(sets)} | in all |", "|---" * (len(sets) + 2) + "|"]
    counts = {name: [inside(records, name) for records in sets.values()] for name in names}
    for name, row in counts.items():
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(_of(cell) for cell in row)} | {_of(_sum(row))} |")
    columns = [_sum(column) for column in zip(*counts.values(), strict=True)]
    whole = _sum(columns)
    cells = " | ".join(_of(column) for column in columns)
    lines.append(f"| **all** | {cells} | {_of(whole)}, {whole[0] / max(whole[1], 1):.0%} |")
    return "\n".join(lines)


def _sum(cells: Iterable[tuple[int, int]]) -> tuple[int, int]:
    return sum(count for count, _ in cells), sum(of for _, of in cells)


def _of(cell: tuple[int, int]) -> str:
    return f"{cell[0]} of {cell[1]}"


def document(
    champions: Mapping[str, list[Record]], sets: Mapping[str, list[Record]], by_count: Mapping[int, Record]
) -> str:
    """Return the page."""
    shown = [name for name in METRICS if all(f"{name}/low" in record.figures for record in by_count.values())]
    rows = [f"| {name.replace('_', ' ')} | {' | '.join(_half(r, name) for r in by_count.values())} |" for name in shown]
    seconds = " | ".join(format(record.figures["seconds"], ".0f") for record in by_count.values())
    rows.append(f"| seconds | {seconds} |")
    half = "\n".join([f"| | {' | '.join(map(str, by_count))} |", "|---" * (len(by_count) + 1) + "|", *rows])
    every = [record for records in [*champions.values(), *sets.values()] for record in records]
    return f"""# Measured again on other samples

Each set is measured on some samples, and then on {DRAWS} other draws of as many samples and references. The tables
count how many of these lie within the 95 % interval of the first measurement.

## Champions of sweeps

The first measurement is the one that the sweep reports.

{table(champions)}

## Sets of every method

Sets on `{MODEL}` at strength {STRENGTH}, on {SEEDS} samples.

{table(sets)}

## How many samples

Half the 95 % interval of `{WIDTHS_OF}` by the number of samples, and the processor's seconds for a measurement, drawing
included.

{half}

Measured on {"; ".join(dict.fromkeys(record.machine for record in every))}, by `orchestrate sweep` and
`python -m benchmarks.intervals {" ".join(f"runs/{name}" for name in champions)}`.
"""


def _half(record: Record, name: str) -> str:
    interval = interval_of(record.figures, name)
    return "-" if interval is None else f"{half_of(interval):.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="FOLDER", help="the folder of a finished sweep")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    champions = {path.name: of_champion(SweepFolder(path.parent, path.name)) for path in arguments.sweeps}
    draw_all(MODEL, wanted=[(base, STRENGTH) for base in BASES])
    chain = Chain.load(MODEL, KEPT / "cache")
    (RESULTS / "intervals.md").write_text(document(champions, dict(of_sets(chain)), widths(chain)))


if __name__ == "__main__":
    main()
