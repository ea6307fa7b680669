"""What `orchestrate edit` and `orchestrate explore` take on the command line, read without anything heavy."""

import argparse
import re
from pathlib import Path

_MOST_SEEDS = 100_000  # of one edit
_PRECISIONS = ("fp32", "tf32", "bf16", "fp16")  # core.precision, which loads torch
_EDIT_EPILOG = """\
examples:
  orchestrate edit out/ --seed 7 --direction smile=1.5 --to smile.png
  orchestrate edit out/ --seeds 0-7 --direction smile --direction yaw=-0.5 --to faces/
  orchestrate edit out/ --seeds 0-3 --direction smile --grid --to grid.png
  orchestrate edit out/ --seed 7 --direction smile --frames 30 --from -2 --until 2 --to smile.gif
  orchestrate edit out/ --image me.jpg --direction smile=1.5 --to me/
  orchestrate edit out/ --settings faces/settings.json --to again/
  orchestrate edit out/ --seed 7 --direction smile --to smile.png --weights cpu --precision bf16

TO ends in .png (one picture, or a --grid), in .gif or .webp (an animation), or is a new folder (a picture each).
"""
_EXPLORE_EPILOG = """\
examples:
  orchestrate explore out/                          opens http://127.0.0.1:7860
  orchestrate explore out/ --port 7861 --no-browser
"""


def _bundle(verb: argparse.ArgumentParser, epilog: str) -> None:
    """What every verb that opens a direction set takes."""
    verb.formatter_class, verb.epilog = argparse.RawDescriptionHelpFormatter, epilog
    verb.add_argument("bundle", type=Path, metavar="BUNDLE", help="a direction set's folder, as export writes it")
    verb.add_argument("--model", metavar="M", help="a folder or hub id, instead of the model that the set names")
    verb.add_argument("--any-model", action="store_true", help="use it even if its weights are others than the set's")
    verb.add_argument("--steps", type=int, metavar="N", help="of the chain (default: the set's own)")
    model_options(verb)


def model_options(verb: argparse.ArgumentParser) -> None:
    """How a set's model is run."""
    verb.add_argument(
        "--precision",
        choices=_PRECISIONS,
        help="what the model is run in (default: what the set was found in; fp32 where it does not say so)",
    )
    verb.add_argument(
        "--weights",
        choices=("device", "cpu"),
        default="device",
        help="where the model's are kept; cpu: block by block on the GPU, for models that it does not hold",
    )


def edit_options(verb: argparse.ArgumentParser) -> None:
    _bundle(verb, _EDIT_EPILOG)
    verb.add_argument("--to", type=Path, required=True, metavar="TO", help="a new folder, or a new file")
    whom = verb.add_mutually_exclusive_group()
    whom.add_argument("--seed", type=_seeds, dest="seeds", metavar="N", help="one sample (default: 0)")
    whom.add_argument("--seeds", type=_seeds, metavar="A-B", help="the samples of seeds A to B")
    whom.add_argument(
        "--image", type=Path, nargs="+", dest="images", metavar="FILE", help="images of your own, or folders of them"
    )
    verb.add_argument(
        "--direction",
        action="append",
        default=[],
        dest="directions",
        metavar="NAME[=SCALE]",
        help="how far along which direction; again for another one",
    )
    verb.add_argument("--scale", type=float, metavar="S", help="of directions without one of their own (default: 1)")
    verb.add_argument("--injection", choices=("symmetric", "asymmetric"), help="(default: the set's own)")
    verb.add_argument(
        "--window", type=int, nargs=2, metavar=("HIGH", "LOW"), help="the training timesteps within which it is edited"
    )
    verb.add_argument("--animate", action="store_true", help="an animation, there and back (TO ends in .gif or .webp)")
    verb.add_argument("--grid", action="store_true", help="one picture: samples down, scales across")
    verb.add_argument("--frames", type=int, metavar="N", help="of an animation (default: 21) or across a grid (7)")
    verb.add_argument("--from", type=float, dest="first", metavar="X", help="the first multiple of the scales")
    verb.add_argument("--until", type=float, dest="last", metavar="X", help="the last (default: what stays faithful)")
    verb.add_argument("--batch", type=int, default=64, metavar="N", help="images drawn at a time (default: 64)")
    verb.add_argument("--settings", type=Path, metavar="FILE", help="repeat an edit; what else is given overrides it")
    verb.add_argument(
        "--save-settings", type=Path, metavar="FILE", help="keep them (a folder has settings.json anyway)"
    )


def explore_options(verb: argparse.ArgumentParser) -> None:
    _bundle(verb, _EXPLORE_EPILOG)
    verb.add_argument("--port", type=int, default=7860, metavar="N", help="of 127.0.0.1 (default: 7860)")
    verb.add_argument("--no-browser", action="store_true", help="open none; the address is printed")


def _seeds(text: str) -> tuple[int, ...]:
    ends = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", text)
    if ends is None:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a seed of 0 or more, as in 7, or a range, as in 0-7")
    low, high = int(ends[1]), int(ends[2] or ends[1])
    if not 0 <= high - low < _MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a range of 1 to {_MOST_SEEDS} seeds, as in 0-7")
    return tuple(range(low, high + 1))
