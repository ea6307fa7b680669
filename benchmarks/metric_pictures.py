"""What a metric looks like: of the sets that were drawn, one where its value is low and one where it is high.

    python -m benchmarks.measured_sets toyfaces        draws the sets
    python -m benchmarks.objectives                    measures them
    python -m benchmarks.metric_pictures toyfaces      writes docs/metrics/NAME.png, and the table in docs/metrics.md

All sets are compared at equal strength. What is not drawn or measured yet is left out, and the same command adds it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.common import ARROWS
from benchmarks.measured_sets import KEPT, MODELS, SEEDS, Chain, MeasuredSet, folder_of, read_all
from core.directions.direction_set import DirectionSet
from core.errors import UserError
from core.metrics import METRICS
from core.metrics.traversals import SCALES
from core.pictures.traversal_grid import grid

DOCS = Path(__file__).parents[1] / "docs"
STRENGTH = 0.5
BASES = ("random 16", "pca 16", "jacobian 16", "supervised", "learned 16")  # the columns of the table
START, END = "<!-- values -->", "<!-- end of values -->"
SAMPLES, DIRECTIONS = 2, 4  # shown of a set
SIZES = range(9, 17)  # of the sets that are compared: figures that count things grow with the number of directions
CELL, GAP, COLOURS = 64, 10, 128
COPIES = ", each "  # in the name of a base whose directions are repeated
_OF_COPIES = ("factor_score", "factor_coverage", "told_apart", "identifiability", "diversity", "coverage")
_OF_A_DIAL = ("strength_error", "monotonicity", "evenness")  # metrics of all scales: one sample at each of them
_POSITIONS = (*(scale for scale in SCALES if scale < 0), 0.0, *(scale for scale in SCALES if scale > 0))


@dataclass(frozen=True)
class Shown:
    """The figures of a set at the usual strength, and a few of its images."""

    base: str
    figures: dict[str, float]
    names: tuple[str, ...]  # of the R directions that are shown
    images: Tensor  # [R, SAMPLES, A, *image_shape], at _POSITIONS

    def value(self, metric: str, digits: int = 2) -> str:
        """Return a value as text, with half the width of its 95 % interval where that is known."""
        if metric not in self.figures:
            return "-"
        half = self.figures.get(f"half/{metric}")
        width = "" if half is None else f" ± {half:.{digits}f}"
        return f"{self.figures[metric]:.{digits}f}{width}"


def shown_sets(model: str, kept: Path = KEPT) -> list[Shown]:
    """Return every set of a model that is drawn and measured at STRENGTH."""
    found = []
    for each, directions in read_all(Chain.load(model, kept / "cache"), model, kept):
        name = folder_of(kept, model, each.base, each.strength).name
        record = kept / model / "measured" / f"{name}.json"
        if each.strength == STRENGTH and record.is_file():
            found.append(_shown(each, directions, json.loads(record.read_text())["figures"]))
    return found


def _shown(each: MeasuredSet, directions: DirectionSet, figures: dict[str, float]) -> Shown:
    """Take directions at equal distances in the set, the first among them, so that repeated ones are seen."""
    rows = [len(directions) * row // DIRECTIONS for row in range(DIRECTIONS)]
    drawn, middle = each.traversals, len(SCALES) // 2
    shifted = drawn.shifted[:SAMPLES, rows]
    plain = drawn.plain[:SAMPLES, None, None].expand(-1, len(rows), -1, *drawn.plain.shape[1:])
    samples = torch.cat([shifted[:, :, :middle], plain, shifted[:, :, middle:]], dim=2).transpose(0, 1)
    images = drawn.images(samples.flatten(0, 2))
    names = tuple(directions.names[k].replace("_", " ") for k in rows)
    return Shown(each.base, figures, names, images.reshape(*samples.shape[:3], *images.shape[1:]))


def extremes(sets: Sequence[Shown], metric: str) -> tuple[Shown, Shown] | None:
    """Return the sets of SIZES with the lowest and the highest value of a metric; None where fewer than two have it.

    Sets of copies are compared only where copies change the figure: elsewhere they show one direction in every row.
    """
    measured = [each for each in sets if metric in each.figures and each.figures["directions"] in SIZES]
    comparable = [each for each in measured if COPIES not in each.base or metric in _OF_COPIES]
    ordered = sorted(comparable, key=lambda each: each.figures[metric])
    return (ordered[0], ordered[-1]) if len(ordered) > 1 else None


def picture(low: Shown, high: Shown, metric: str) -> Image.Image:
    """Return the picture of a metric: the set with the low value above the set with the high one."""
    parts = [_grid(low, metric, "lowest"), _grid(high, metric, "highest")]
    size = max(part.width for part in parts), sum(part.height for part in parts) + GAP
    whole = Image.new("RGB", size, "white")
    for part, y in zip(parts, (0, parts[0].height + GAP), strict=True):
        whole.paste(part, (0, y))
    return whole.quantize(COLOURS, dither=Image.Dither.NONE)


def _grid(each: Shown, metric: str, which: str) -> Image.Image:
    scales = range(len(_POSITIONS)) if metric in _OF_A_DIAL else (0, len(_POSITIONS) // 2, len(_POSITIONS) - 1)
    samples = 1 if metric in _OF_A_DIAL else SAMPLES
    images = each.images[:, :samples, list(scales)].flatten(1, 2)
    columns = [f"{_POSITIONS[a]:+g}" if _POSITIONS[a] else "0" for a in scales] * samples
    return grid(images, each.names, columns, CELL, f"{which} {_words(metric)}: {each.value(metric)}, {each.base}")


def values_table(sets: Sequence[Shown], model: str) -> str:
    """Return the Markdown table of every metric: a few sets, and the lowest and the highest value."""
    by_base = {each.base: each for each in sets}
    bases = [base for base in BASES if base in by_base]
    lines = [f"| | {' | '.join(bases)} | lowest | highest |", "|---" * (len(bases) + 3) + "|"]
    for metric, mode in METRICS.items():
        if ends := extremes(sets, metric):
            cells = [by_base[base].value(metric) for base in bases]
            cells += [f"{each.value(metric)} ({each.base})" for each in ends]
            lines.append(f"| {_words(metric)} {ARROWS[mode]} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    compared = f"lowest and highest of the {sum(each.figures['directions'] in SIZES for each in sets)} sets"
    limits = f"of {SIZES[0]} to {SIZES[-1]} directions"
    return f"Model `{model}`, strength {STRENGTH:g}, {SEEDS} samples; {compared} {limits}.\n\n{table}"


def with_table(page: str, table: str) -> str:
    """Return a page with what stands between START and END replaced by a table."""
    before, _, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f"the page of the metrics has no place for the table: it needs {START} and {END}")
    return f"{before}{START}\n{table}\n{END}{after}"


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def write(model: str, kept: Path = KEPT, docs: Path = DOCS) -> list[str]:
    """Write the pictures and the table of a model's sets; return the metrics that have a picture."""
    sets = shown_sets(model, kept)
    page, folder, drawn = docs / "metrics.md", docs / "metrics", []
    page.write_text(with_table(page.read_text(), values_table(sets, model)))
    folder.mkdir(exist_ok=True)
    for metric in METRICS:
        if ends := extremes(sets, metric):
            picture(*ends, metric).save(folder / f"{metric}.png", optimize=True)
            drawn.append(metric)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS, nargs="?", default=MODELS[0])
    drawn = write(parser.parse_args().model)
    missing = [metric for metric in METRICS if metric not in drawn]
    print(f"drawn: {', '.join(drawn) or 'nothing'}; not measured: {', '.join(missing) or 'nothing'}")


if __name__ == "__main__":
    main()
