"""Every method side by side, five seeds each, on samples that trained and chose nothing.

    python -m benchmarks.methods toyfaces       measures what is not kept yet, writes results/methods_toyfaces.md
    python -m benchmarks.methods toyfaces --only learned pca --seeds 0 1      methods_toyfaces_learned_pca.md

A finished run is kept in runs/methods_MODEL, so an interrupted benchmark goes on where it stopped.
"""

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.common import ARROWS, RESULTS, Record, half_of, kept, machine, table
from benchmarks.measured_sets import STEPS, Chain
from core.directions.direction_set import DirectionSet
from core.files import digest_of_files
from core.intervals import interval_of, of_runs, verdict
from core.methods import METHODS, guided, jacobian, learned, pca, random, sae, semantic, supervised
from core.metrics import METRICS, calibrate, evaluate
from core.metrics.attributes import coverage, effects_by_sample
from core.metrics.traversals import Traversals, draw_plain
from core.model.catalogue import model_folder
from core.predictors import digit_measures
from core.predictors.attribute_net import AttributeNet
from core.predictors.embedded import digit_classifier, second_embedded_predictor
from core.predictors.vision import Extractor
from core.randomness import REPORT_SEEDS
from core.samples.draw import Sampling
from orchestrator.trial.settings import method_of

MODELS = ("toyfaces", "toyfaces-latent", "mnist")
STRENGTH, COUNT, MIN_EFFECT = 0.5, 24, 0.5
SEEDS = REPORT_SEEDS[200_000 : 200_000 + COUNT]  # looked at by this table alone
REFERENCE = REPORT_SEEDS[200_000 + COUNT : 200_000 + 5 * COUNT]
OURS = learned.Settings(iterations=150)
_KEPT = """`digit kept`: the share of digits that the classifier still reads as the
same at scales -1 and 1, by directions that move slant or thickness more than any other attribute. """
BY_CLASSIFIER = "learned, look classifier"  # of mnist alone
SETTINGS: dict[str, Any] = {
    "learned": OURS,
    "learned, look denoiser": replace(OURS, look="denoiser"),
    BY_CLASSIFIER: replace(OURS, look="classifier"),
    "learned, not trained": replace(OURS, iterations=0),
    "pca": pca.Settings(16),
    "jacobian": jacobian.Settings(16),
    "semantic": semantic.Settings(16),
    "sae": sae.Settings(16),
    "sae, 64 directions": sae.Settings(64),
    "random": random.Settings(16),
    "supervised": supervised.Settings(),
    "guided": guided.Settings(),
    "guided, not trained": guided.Settings(iterations=0),
}


def find(chain: Chain, settings: Any) -> DirectionSet:
    """Find a set by the method that has these settings."""
    method = METHODS[method_of(settings)]
    networks: dict[str, Any] = {"attributes": chain.attributes} if method in (guided, supervised) else {}
    if getattr(settings, "look", None) == "classifier":
        networks = {"vision": classifier_features()}
    found: DirectionSet = method.find(chain.denoiser, chain.schedule, settings, cache=chain.cache, **networks)
    return found


@cache
def classifier_features() -> Extractor:
    """What the last hidden layer of the classifier of mnist makes of images: [N, 128]."""
    net = AttributeNet.load(model_folder("mnist") / "classifier")
    through = nn.Sequential(net.body, net.head[:2])
    return Extractor("classifier of mnist", torch.no_grad()(through), through)


def judged_by() -> str:
    """A digest of everything that scores: weights, and the arithmetic of digits."""
    weights = [file for model in MODELS for file in sorted(model_folder(model).glob("*/attributes.safetensors"))]
    return digest_of_files([*weights, Path(digit_measures.__file__)])


def measure(chain: Chain, settings: Any) -> Record:
    """Find one set, bring it to STRENGTH, and measure it; its best share of each attribute."""
    sampling, second = Sampling(cache=chain.cache), second_embedded_predictor(chain.denoiser.name)
    started = time.process_time()
    found = find(chain, settings)
    seconds = time.process_time() - started
    directions = calibrate(chain.denoiser, chain.schedule, found, STRENGTH, sampling)
    arguments = (chain.denoiser, chain.schedule, directions, SEEDS, REFERENCE, chain.attributes, sampling)
    measured = evaluate(*arguments, second=second)
    assert measured.effects is not None
    figures = {**measured.metrics, "seconds": seconds}
    figures["coverage_at_half"] = coverage(measured.effects, MIN_EFFECT, 0.5)
    if second is not None:
        reference = draw_plain(chain.denoiser, chain.schedule, REFERENCE, cache=chain.cache)
        effects = effects_by_sample(measured.traversals, second, reference).mean(dim=0)
        figures["second_coverage_at_half"] = coverage(effects, MIN_EFFECT, 0.5)
    if chain.denoiser.name == "mnist":
        figures |= digits_kept(measured.traversals, measured.effects, chain.attributes.names)
    return Record(figures | best_shares(measured.effects, chain.attributes.names), machine(chain.denoiser.device))


def digits_kept(traversals: Traversals, effects: Tensor, names: Sequence[str]) -> dict[str, float]:
    """The share of digits that stay what they are at scales -1 and 1, by the directions that change the stroke most.

    These are the directions that move slant or thickness more than any other attribute; none: no figure.
    """
    strokes = [
        k for k, most in enumerate(effects.abs().argmax(dim=1).tolist()) if names[most] in ("slant", "thickness")
    ]
    if not strokes:
        return {}
    read = digit_classifier().score
    before = read(traversals.plain).argmax(dim=1)  # [M]
    ends = traversals.shifted[:, strokes][:, :, [0, -1]]  # [M, K', 2, C, H, W]
    after = read(ends.flatten(0, 2)).argmax(dim=1).reshape(ends.shape[:3])
    return {"digit_kept": float((after == before[:, None, None]).float().mean())}


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


def differences_table(first: str, methods: Mapping[str, Sequence[Mapping[str, float]]], columns: Sequence[str]) -> str:
    """One line a metric, one column for each other method: `first` minus it, paired by seed, and the verdict."""
    others = [method for method in methods if method != first]
    lines = [f"| {first} minus | {' | '.join(others)} |", "|---" * (len(others) + 1) + "|"]
    for column in columns:
        cells = [_difference(methods[first], methods[other], column) for other in others]
        lines.append(f"| {column.replace('_', ' ')} {ARROWS[_mode(column)]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]], column: str) -> str:
    pairs = [(a[column], b[column]) for a, b in zip(ours, theirs, strict=False) if column in a and column in b]
    if len(pairs) < 2:
        return "-"
    figure = of_runs("", [a - b for a, b in pairs])
    interval = interval_of(figure, "")
    assert interval is not None
    return f"{figure['']:+.3f} ± {half_of(interval):.3f}, {verdict(interval, _mode(column))}"


def _mode(column: str) -> Literal["max", "min"]:
    return "min" if METRICS.get(column) == "min" else "max"


def document(model: str, names: Sequence[str], methods: Mapping[str, Sequence[Record]], command: Sequence[str]) -> str:
    """The page. command: what followed `python -m benchmarks.methods`."""
    figures = {method: [record.figures for record in records] for method, records in methods.items()}
    machines = dict.fromkeys(record.machine for records in methods.values() for record in records)
    measured = {name for runs in figures.values() for run in runs for name in run}
    columns = [
        name for name in (*METRICS, "coverage_at_half", "second_coverage_at_half", "digit_kept") if name in measured
    ]
    differences = "\n\n".join(
        differences_table(each, figures, columns)
        for each in ("learned", "guided", "semantic", "sae")
        if each in figures
    )
    return f"""# {"Some methods" if "--only" in command else "Every method"} on `{model}`

Mean and half its 95 % interval, over seeds of the method. {OURS.directions} directions ({OURS.iterations} iterations of
`learned`, {guided.Settings().iterations} of `guided`, whose directions, like those of `supervised`, are one for each
attribute), {STEPS} steps. Every set is scaled so that scale 1.0 moves images {STRENGTH} times as far as another sample
is, and measured on {COUNT} samples (beside {4 * COUNT} unshifted ones) whose seeds trained and chose nothing.
`supervised` and `guided` are told the attributes by the very predictor that measures disentanglement and coverage;
`second` is by another one, with which nothing was found. `coverage` asks for 0.4 of a direction's effect on one
attribute, `coverage at half` for 0.5; both for half a standard deviation. {_KEPT if "digit_kept" in measured else ""}
`seconds`: of processor time, to find the set, which for the first method of a seed holds drawing the samples that
others read from the cache.

{table(list(figures.items()), [*columns, "seconds"])}

Differences, paired by seed, with half their 95 % interval:

{differences}

The largest share of a direction's effect that each attribute has (0: no direction moves it most by half a standard
deviation), mean over the same runs:

{shares_table(figures, names)}

Measured on {"; ".join(machines)}, by `python -m benchmarks.methods {shlex.join(command)}`.
"""


def _file_name(method: str) -> str:
    return method.replace(", ", "-").replace(" ", "_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, metavar="METHOD", help="on a page of their own")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    folder = Path("runs") / f"methods_{arguments.model}"
    chain = Chain.load(arguments.model, folder / "samples")
    chosen = arguments.only or [method for method in SETTINGS if method != BY_CLASSIFIER or arguments.model == "mnist"]
    methods: dict[str, list[Record]] = {method: [] for method in chosen}
    for seed in arguments.seeds:
        for method in chosen:
            settings = replace(SETTINGS[method], seed=seed)
            conditions = settings, STEPS, STRENGTH, SEEDS, chain.denoiser.digest, judged_by()
            record = kept(folder, f"{_file_name(method)}-{seed}", conditions, partial(measure, chain, settings))
            methods[method].append(record)
            print(method, seed, {name: round(value, 3) for name, value in record.figures.items()}, flush=True)
    page = document(arguments.model, chain.attributes.names, methods, sys.argv[1:])
    name = "_".join(["methods", arguments.model, *map(_file_name, arguments.only or ())])
    (RESULTS / f"{name}.md").write_text(page)


if __name__ == "__main__":
    main()
