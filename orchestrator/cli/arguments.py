"""Define the options of every verb, with examples. Nothing heavy is imported, so that --help answers at once."""

import argparse
import math
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

_MOST_SAMPLES = 1000  # configurations that `plan --samples` may show
SHELLS = ("bash", "zsh", "tcsh")
_EPILOG = """\
examples:
  orchestrate find toyfaces --to out/               directions of a model, without a file
  orchestrate new toyfaces > toyfaces.yaml          a sweep file to change
  orchestrate sweep sweeps/toyfaces.yaml            search; the same command again resumes
  orchestrate plan sweeps/celeba.yaml               what would run, without running it
  orchestrate status --watch                        how it stands, from another shell
  orchestrate report toyfaces                       the result, on screen and as a page
  orchestrate export toyfaces --to out/             the best direction set, ready to use
  orchestrate explore out/                          a page with a slider for each direction
  orchestrate ui                                    compare everything in MLflow

Each verb has examples of its own: orchestrate VERB --help

exit codes: 0 done, 2 a mistake in what was given, 1 anything else, 130 interrupted (state saved)
"""
_EXAMPLES = {
    "find": """
  orchestrate find toyfaces --to out/
  orchestrate find toyfaces --attributes "smile, glasses" --to out/
  orchestrate find ./my-model --method learned --minutes 120 --to out/
  orchestrate find stable-diffusion-v1-5/stable-diffusion-v1-5 --prompt "a portrait photo of a person" --to out/""",
    "new": """
  orchestrate new toyfaces > toyfaces.yaml
  orchestrate new ./my-model --method learned --trials 24 > mine.yaml""",
    "sweep": """
  orchestrate sweep sweeps/toyfaces.yaml
  orchestrate sweep sweeps/toyfaces.yaml --set budget.trials=4 --set search.directions=8
  orchestrate sweep sweeps/celeba.yaml --address auto --root /shared/runs""",
    "plan": """
  orchestrate plan sweeps/celeba.yaml
  orchestrate plan sweeps/celeba.yaml --device-memory 24GB
  orchestrate plan sweeps/toyfaces.yaml --probe --price-per-hour 0.4
  orchestrate plan sweeps/toyfaces.yaml --json | jq .disk""",
    "launch": """
  orchestrate launch sweeps/celeba.yaml --on slurm --set cluster.nodes=8
  orchestrate launch sweeps/celeba.yaml --on kuberay --set cluster.image=IMAGE --set cluster.volume=CLAIM --dry-run""",
    "status": """
  orchestrate status                     one line a sweep
  orchestrate status toyfaces --watch    its trials, until it has ended
  orchestrate status toyfaces --repair   after a crash, without going on""",
    "report": """
  orchestrate report toyfaces
  orchestrate report toyfaces --to toyfaces.html
  orchestrate report toyfaces --json | jq .champion""",
    "export": """
  orchestrate export toyfaces --to out/
  orchestrate export toyfaces --top 3 --to best/
  orchestrate export toyfaces --run 78df4b014f --to other/
  orchestrate export toyfaces --format hub --to hub/""",
    "name": """
  orchestrate name out/ 3=smile "direction_0=turn left"
  orchestrate name out/ --predictor openai/clip-vit-large-patch14
  orchestrate name out/ --predictor MODEL --words "a red car|a blue car, fog" """,
    "gallery": """
  orchestrate gallery out/ --to gallery.html
  orchestrate gallery out/ other/ --to both.html""",
    "ui": """
  orchestrate ui
  orchestrate ui --port 5001 --root /shared/runs""",
    "doctor": """
  orchestrate doctor
  orchestrate doctor --build""",
    "completion": """
  orchestrate completion bash > ~/.local/share/bash-completion/completions/orchestrate
  orchestrate completion zsh > ~/.zfunc/_orchestrate""",
}

Add = Callable[..., argparse.ArgumentParser]


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs; its result has the verb's name as `verb`."""
    built = argparse.ArgumentParser(
        prog="orchestrate",
        description="Search for the best set of editing directions in the h-space of a pretrained diffusion model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    built.add_argument("--version", action="version", version=f"%(prog)s {version('h-space-orchestrator')}")
    verbs = built.add_subparsers(title="verbs", required=True, metavar="VERB", dest="verb")
    rooted = argparse.ArgumentParser(add_help=False)
    rooted.add_argument("--root", type=Path, metavar="DIR", help="where sweeps are kept (ORCHESTRATE_ROOT, or runs/)")

    def add(name: str, summary: str, root: bool = True) -> argparse.ArgumentParser:
        examples = f"examples:{_EXAMPLES[name]}\n" if name in _EXAMPLES else None
        return verbs.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=examples,
            parents=[rooted] if root else [],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _starting(add)
    _running(add)
    _looking(add)
    _using(add)
    _machine(add)
    return built


def _starting(add: Add) -> None:
    find = add("find", "find directions of a model without a sweep file; the same command again resumes")
    find.add_argument("model", metavar="MODEL", help="a built-in name, a folder, a .safetensors file, or a hub id")
    find.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new folder for the directions")
    new = add("new", "print a sweep file for a model, with sizes that fit it and this machine", root=False)
    new.add_argument("model", metavar="MODEL", help="as of find")
    for verb in (find, new):
        verb.add_argument(
            "--method", metavar="METHOD", help="(default: semantic, or guided where --attributes are given)"
        )
        verb.add_argument(
            "--directions", type=_whole(2, 4096), metavar="N", help="how many (default: 16, or one an attribute)"
        )
        verb.add_argument("--attributes", type=_listed, default=(), metavar="A,B", help="what directions are to change")
        verb.add_argument(
            "--predictor", metavar="M", help="what scores attributes: an image classifier or a CLIP model"
        )
        verb.add_argument(
            "--prompt",
            action="append",
            default=[],
            dest="prompts",
            metavar="TEXT",
            help="what samples show; repeatable",
        )
        verb.add_argument("--negative-prompt", metavar="TEXT", help="what they do not show")
        verb.add_argument(
            "--guidance", type=_real(1, "5"), metavar="W", help="of prompts or classes (default: the model's)"
        )
        verb.add_argument(
            "--class",
            action="append",
            default=[],
            type=_whole(0, 2**31),
            dest="classes",
            metavar="N",
            help="of samples; repeatable",
        )
        verb.add_argument("--trials", type=_whole(1, 100_000), metavar="N", help="settings to try (default: 1)")
        verb.add_argument("--minutes", type=_real(1, "90"), metavar="M", help="to go on trying settings for")


def _running(add: Add) -> None:
    sweep = add("sweep", "run a sweep; the same command again resumes it, or shows its result")
    plan = add("plan", "show what a sweep would do, without running anything")
    launch = add("launch", "write what runs a sweep on Slurm, Kubernetes or machines of Ray's; submits nothing")
    for verb in (sweep, plan, launch):
        verb.add_argument("spec", type=Path, metavar="SPEC", help="the sweep's YAML file")
        verb.add_argument(
            "--set", action="append", default=[], metavar="PATH=VALUE", help="override a value of the file"
        )
    sweep.add_argument("--dry-run", action="store_true", help="the same as plan")
    sweep.add_argument("--address", help="a running Ray cluster (default: Ray on this machine)")
    sweep.add_argument(
        "--fork", action="store_true", help="if the file has changed: a new sweep that learns from the old one"
    )
    plan.add_argument("--device-memory", type=_size, metavar="SIZE", help="of a GPU to plan for, e.g. 24GB")
    plan.add_argument(
        "--samples", type=_whole(0, _MOST_SAMPLES), default=5, metavar="N", help="configurations to show (default: 5)"
    )
    plan.add_argument(
        "--probe", action="store_true", help="measure on this machine, a minute or two, and predict the time"
    )
    plan.add_argument(
        "--price-per-hour",
        type=_real(0, "2.5"),
        metavar="PRICE",
        help="of one GPU, or of one machine where trials hold no GPU: with --probe the cost is told",
    )
    plan.add_argument("--json", action="store_true", help="print the data instead")
    launch.add_argument("--on", required=True, choices=("slurm", "kuberay", "ray"), help="which cluster")
    launch.add_argument("--to", type=Path, metavar="DIR", help="a new folder (default: NAME-CLUSTER)")
    launch.add_argument("--dry-run", action="store_true", help="print the files, write nothing")


def _looking(add: Add) -> None:
    status = add("status", "how sweeps stand, while they run and afterwards")
    status.add_argument("sweep", nargs="?", metavar="SWEEP")
    seen = status.add_mutually_exclusive_group()
    seen.add_argument("--watch", action="store_true", help="again and again, until it has ended or Ctrl-C")
    seen.add_argument("--json", action="store_true", help="print the data instead")
    status.add_argument(
        "--repair",
        action="store_true",
        help="after a crash, or a move of the folder: make Optuna and MLflow agree with what is there",
    )
    report = add("report", "ranked trials, Pareto front, champion; and all of it as a page to open")
    report.add_argument("sweep", metavar="SWEEP")
    choice = report.add_mutually_exclusive_group()
    choice.add_argument("--to", type=Path, metavar="FILE", help="the page (default: report.html in the sweep's folder)")
    choice.add_argument("--json", action="store_true", help="print the data instead; no page")
    ui = add("ui", "open the MLflow interface of the embedded store")
    ui.add_argument("--port", type=int, default=5000, metavar="N", help="of 127.0.0.1 (default: 5000)")
    ui.add_argument("--no-browser", action="store_true", help="open none; the links are printed")


def _using(add: Add) -> None:
    export = add("export", "write a direction set, ready to use, into a new folder")
    export.add_argument("sweep", metavar="SWEEP")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new folder")
    which = export.add_mutually_exclusive_group()
    which.add_argument(
        "--run", metavar="ID", help="a trial or MLflow run (or its first letters) instead of the champion"
    )
    which.add_argument("--top", type=int, metavar="N", help="the N best trials, one folder each")
    export.add_argument(
        "--format", choices=("bundle", "hub"), default="bundle", help="hub: with what a model hub reads"
    )
    name = add("name", "name directions of a bundle, by hand or from what they do", root=False)
    name.add_argument("bundle", type=Path, metavar="BUNDLE", help="a folder that export wrote, or a sweep's champion/")
    name.add_argument("names", nargs="*", metavar="OLD=NEW", help="a direction's number or name, and its new name")
    name.add_argument("--predictor", metavar="MODEL", help="a classifier or a CLIP model: name the others by it")
    name.add_argument("--words", metavar="WORDS", help="for CLIP: known ones, or a text and its opposite")
    name.add_argument("--names-only", action="store_true", help="without the model: picture and gallery are removed")
    name.add_argument("--model", metavar="M", help="a folder or hub id, instead of the model that the set names")
    model_options(name)
    gallery = add("gallery", "the page of one bundle, or of two side by side", root=False)
    gallery.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    gallery.add_argument("--to", type=Path, required=True, metavar="FILE", help="a new HTML file")
    gallery.add_argument("--model", metavar="M", help="a folder or hub id, instead of the model that the sets name")
    model_options(gallery)
    edit_options(add("edit", "edit seeds or your own images along a set's directions", root=False))
    explore_options(add("explore", "a page with a slider for each direction of a set", root=False))


def _machine(add: Add) -> None:
    doctor = add("doctor", "check this machine: versions, devices, Ray, MLflow, disk; each problem with its cure")
    doctor.add_argument("--build", action="store_true", help="compile DeepSpeed's operators now")
    completion = add("completion", "print what completes verbs and options in a shell", root=False)
    completion.add_argument("shell", choices=SHELLS)


def _size(text: str) -> str:
    from orchestrator.spec import Size
    from orchestrator.spec.problems import Refused

    try:
        return Size().check(text)
    except Refused as refused:
        raise argparse.ArgumentTypeError(refused.problems[0].text) from None


def _whole(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of integers from `low` to `high`."""

    def read(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"got {text!r}; allowed: an integer from {low} to {high}")
        return int(text)

    return read


def _real(low: float, example: str) -> Callable[[str], float]:
    """Return a reader of finite numbers of at least `low`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value < math.inf:
            raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a number of {low:g} or more, such as {example}")
        return value

    return read


def _listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


_MOST_SEEDS = 100_000  # in one edit
_PRECISIONS = ("fp32", "tf32", "bf16", "fp16")  # those of core.precision, which imports torch
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
    """Add the options of every verb that opens a direction set."""
    verb.formatter_class, verb.epilog = argparse.RawDescriptionHelpFormatter, epilog
    verb.add_argument("bundle", type=Path, metavar="BUNDLE", help="a direction set's folder, as export writes it")
    verb.add_argument("--model", metavar="M", help="a folder or hub id, instead of the model that the set names")
    verb.add_argument("--any-model", action="store_true", help="use it even if its weights are others than the set's")
    verb.add_argument("--steps", type=int, metavar="N", help="of the chain (default: the set's own)")
    model_options(verb)


def model_options(verb: argparse.ArgumentParser) -> None:
    """Add the options on how a set's model is run."""
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
    """Add the options of `edit`."""
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
    verb.add_argument("--grid", action="store_true", help="one picture: samples down, scales across, original included")
    verb.add_argument(
        "--frames", type=int, metavar="N", help="of an animation (default: 21), or at least N across a grid (7)"
    )
    verb.add_argument("--from", type=float, dest="first", metavar="X", help="the first multiple of the scales")
    verb.add_argument(
        "--until",
        type=float,
        dest="last",
        metavar="X",
        help="the last (default: what stays faithful; across a grid, round scales on both sides of the original)",
    )
    verb.add_argument("--batch", type=int, default=64, metavar="N", help="images drawn at a time (default: 64)")
    verb.add_argument("--settings", type=Path, metavar="FILE", help="repeat an edit; what else is given overrides it")
    verb.add_argument(
        "--save-settings", type=Path, metavar="FILE", help="keep them (a folder has settings.json anyway)"
    )


def explore_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of `explore`."""
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
