"""What the discriminator's weight does where shifts are large: a dose-response, three seeds a weight.

The terms of learned that keep directions pure and local keep images near the model too. They are off here, so that what
is seen is the discriminator's own.

    python -m benchmarks.discriminator toyfaces      what has not been measured yet, then results/discriminator.md

Sets are measured at their own scale, where training left them, since equal strength would hide what the weight does.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import RESULTS, Record, half_of, kept, machine, table
from benchmarks.measured_sets import STEPS, Chain
from core.intervals import interval_of, of_runs
from core.methods import learned
from core.metrics import calibrate, draw_traversals
from core.metrics.attributes import coverage, disentanglement, effects_by_sample
from core.metrics.features import features_of, standardise
from core.metrics.fidelity import kid
from core.metrics.strength import moved
from core.metrics.traversals import Traversals, draw_plain
from core.predictors.attribute_net import AttributeNet
from core.predictors.embedded import predictor_folder
from core.randomness import SELECT_SEEDS
from core.samples.draw import Sampling

WEIGHTS, STRENGTH, SEEDS = (0.0, 1.0, 3.0, 10.0, 30.0), 0.5, 24
BASE = learned.Settings(shift_scale=1.5, iterations=150, purity_weight=0.0, locality_weight=0.0)
CHOSEN, REFERENCE = SELECT_SEEDS[200_000 : 200_000 + SEEDS], SELECT_SEEDS[200_000 + SEEDS : 200_000 + 5 * SEEDS]
COLUMNS = ("kid", "kid by the predictor", "out of range", "moved", "coverage", "coverage at half", "disentanglement")


def measure(chain: Chain, weight: float, seed: int) -> Record:
    """Learn one set and measure it, at its own scale and, for coverage and disentanglement, at equal strength."""
    settings = replace(BASE, discriminator_weight=weight, seed=seed)
    denoiser, schedule, sampling = chain.denoiser, chain.schedule, Sampling(cache=chain.cache)
    directions = learned.find(denoiser, schedule, settings, cache=chain.cache)
    own = draw_traversals(denoiser, schedule, directions, CHOSEN, sampling=sampling)
    reference = draw_plain(denoiser, schedule, REFERENCE, cache=chain.cache)
    equal = calibrate(denoiser, schedule, directions, STRENGTH, sampling)
    scaled = draw_traversals(denoiser, schedule, equal, CHOSEN, sampling=sampling)
    effects = effects_by_sample(scaled, chain.attributes, reference).mean(dim=0)
    ends = own.shifted[:, :, [0, -1]]
    figures = {
        "kid": _kid(own, reference, partial(features_of, denoiser)),
        "kid by the predictor": _kid(own, reference, partial(body_features, AttributeNet.load(predictor_folder()))),
        "out of range": float((denoiser.images(ends.flatten(0, 2)).abs() > 1.05).float().mean()),
        "moved": float(moved(denoiser, schedule, directions, sampling=sampling).mean()),
        "coverage": coverage(effects),
        "coverage at half": coverage(effects, 0.5, 0.5),
        "disentanglement": disentanglement(effects),
    }
    return Record(figures, machine(denoiser.device))


@torch.no_grad()
def body_features(net: AttributeNet, images: Tensor) -> Tensor:
    """What the body of an attribute predictor, which the discriminator never sees, makes of images: [N, F]."""
    return torch.cat([net.body(part.float()) for part in torch.split(images, 64)])


def _kid(own: Traversals, reference: Tensor, features: Callable[[Tensor], Tensor]) -> float:
    unshifted = features(reference)
    plain, ends = features(own.plain), features(own.shifted[:, :, [0, -1]].flatten(0, 2))
    shifted = standardise(ends, unshifted).reshape(len(plain), -1, plain.shape[1])
    return kid(shifted, standardise(plain, unshifted), standardise(unshifted, unshifted)).value


def steps_table(records: Mapping[float, Sequence[Mapping[str, float]]], column: str) -> str:
    """One line for each step from a weight to the next: the difference, paired by seed, and the ratio of the means."""
    lines = ["| weight | difference | ratio |", "|---|---|---|"]
    weights = list(records)
    for before, after in zip(weights, weights[1:], strict=False):
        pairs = zip(records[before], records[after], strict=True)
        figure = of_runs("", [b[column] - a[column] for a, b in pairs])
        interval = interval_of(figure, "")
        half = f" ± {half_of(interval):.3f}" if interval else ""
        means = [sum(run[column] for run in records[each]) / len(records[each]) for each in (before, after)]
        lines.append(f"| {before:g} to {after:g} | {figure['']:+.3f}{half} | {means[1] / means[0]:.2f} |")
    return "\n".join(lines)


def document(model: str, records: Mapping[float, Sequence[Record]]) -> str:
    """The page."""
    figures = {weight: [record.figures for record in runs] for weight, runs in records.items()}
    machines = dict.fromkeys(record.machine for runs in records.values() for record in runs)
    return f"""# What the discriminator does: its weight, where shifts are large

`learned` on `{model}`, shift scale {BASE.shift_scale:g}, {BASE.iterations} iterations, {STEPS} steps, without the terms
of purity and locality, which keep images near the model too, otherwise the defaults; mean and half its 95 % interval
over seeds of the method. `kid` is the excess over unshifted samples, at the scale that training left, in features of
the denoiser, on whose maps the discriminator has heads; `kid by the predictor` is in those of the attribute predictor,
which it never sees. `out of range`: the share of pixels beyond +-1.05. `moved`: how far scale 1.0 moves images, in
distances of two samples. Coverage and disentanglement are taken at equal strength {STRENGTH}. All on {SEEDS} of the
seeds that choose.

{table([(f"weight {weight:g}", runs) for weight, runs in figures.items()], COLUMNS)}

KID from one weight to the next, paired by seed:

{steps_table(figures, "kid")}

Measured on {"; ".join(machines)}, by `python -m benchmarks.discriminator {model}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("toyfaces",))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    folder = Path("runs") / "discriminator"
    chain = Chain.load(arguments.model, folder / "samples")
    records: dict[float, list[Record]] = {weight: [] for weight in WEIGHTS}
    for seed in arguments.seeds:
        for weight in WEIGHTS:
            conditions = (BASE, STRENGTH, CHOSEN, chain.denoiser.digest)
            record = kept(folder, f"{weight:g}-{seed}", conditions, partial(measure, chain, weight, seed))
            records[weight].append(record)
            print(weight, seed, {name: round(value, 3) for name, value in record.figures.items()}, flush=True)
    (RESULTS / "discriminator.md").write_text(document(arguments.model, records))


if __name__ == "__main__":
    main()
