"""The command line: verbs only. What a verb needs is imported inside it, so that --help answers at once."""

import argparse
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_PIPED_WIDTH = 160  # columns, where no terminal says how wide it is
_EPILOG = """\
examples:
  orchestrate sweep sweeps/toyfaces.yaml            search; the same command again resumes
  orchestrate plan sweeps/celeba.yaml               what would run, without running it
  orchestrate launch sweeps/celeba.yaml --on slurm  the files that run it on a cluster
  orchestrate report toyfaces                       the ranked trials and the Pareto front
  orchestrate export toyfaces --to out/             the best direction set, ready to use
  orchestrate ui                                    compare everything in MLflow

exit codes: 0 done, 2 a mistake in what was given, 1 anything else, 130 interrupted (state saved)
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    from core.errors import UserError

    try:
        verb: Callable[[argparse.Namespace], int] = parsed.verb
        return verb(parsed)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left: `orchestrate report x | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that is not ours
        print(f"{error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orchestrate",
        description="Search for the best set of editing directions in the h-space of a pretrained diffusion model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('h-space-orchestrator')}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    rooted = argparse.ArgumentParser(add_help=False)
    rooted.add_argument("--root", type=Path, metavar="DIR", help="where sweeps are kept (ORCHESTRATE_ROOT, or runs/)")

    def add(
        name: str, verb: Callable[[argparse.Namespace], int], summary: str, root: bool = True
    ) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=summary, description=summary, parents=[rooted] if root else [])
        made.set_defaults(verb=verb)
        return made

    for name, verb, summary in (
        ("sweep", _sweep, "run a sweep; the same command again resumes it, or shows its result"),
        ("plan", _plan, "show what a sweep would do, without running anything"),
        ("launch", _launch, "write what runs a sweep on Slurm, Kubernetes or machines of Ray's; submits nothing"),
    ):
        with_spec = add(name, verb, summary)
        with_spec.add_argument("spec", type=Path, metavar="SPEC", help="the sweep's YAML file")
        with_spec.add_argument(
            "--set", action="append", default=[], metavar="PATH=VALUE", help="override, e.g. budget.trials=4"
        )
        if name == "plan":
            with_spec.add_argument(
                "--device-memory", type=_size, metavar="SIZE", help="of a GPU to plan for, e.g. 24GB"
            )
        if name == "launch":
            with_spec.add_argument("--on", required=True, choices=("slurm", "kuberay", "ray"), help="which cluster")
            with_spec.add_argument("--to", type=Path, metavar="DIR", help="a new folder (default: NAME-CLUSTER)")
            with_spec.add_argument("--dry-run", action="store_true", help="print the files, write nothing")
        if name == "sweep":
            with_spec.add_argument("--dry-run", action="store_true", help="the same as plan")
            with_spec.add_argument("--address", help="a running Ray cluster (default: Ray on this machine)")
            with_spec.add_argument(
                "--fork", action="store_true", help="if the file has changed: a new sweep that learns from the old one"
            )
    standing = add("status", _status, "how sweeps stand")
    standing.add_argument("sweep", nargs="?", metavar="SWEEP")
    standing.add_argument(
        "--repair", action="store_true", help="after a crash: make Optuna and MLflow agree with what still runs"
    )
    add("report", _report, "ranked trials, Pareto front, champion").add_argument("sweep", metavar="SWEEP")
    taken = add("export", _export, "write a direction set, ready to use, into a new folder")
    taken.add_argument("sweep", metavar="SWEEP")
    taken.add_argument("--to", type=Path, required=True, metavar="DIR")
    which = taken.add_mutually_exclusive_group()
    which.add_argument("--run", metavar="ID", help="a trial or MLflow run instead of the champion")
    which.add_argument("--top", type=int, metavar="N", help="the N best trials, one folder each")
    served = add("ui", _ui, "open the MLflow interface of the embedded store")
    served.add_argument("--port", type=int, default=5000)
    checked = add("doctor", _doctor, "check this machine: versions, devices, compiled operators, disk")
    checked.add_argument("--build", action="store_true", help="compile DeepSpeed's operators now")
    return parser


def _sweep(given: argparse.Namespace) -> int:
    if given.dry_run:
        return _plan(given)
    from orchestrator.cluster import configure
    from orchestrator.spec import load

    sweep = load(given.spec, given.set)
    console = _console()
    console.print("Loading ...", style="dim")
    configure(given.address)
    from orchestrator.sweep import Interrupted, run

    try:
        name = run(sweep, _root(given), given.address, console, given.fork)
    except Interrupted:
        console.print("Interrupted; the state is saved. The same command goes on.")
        return 130
    console.print(f"\nTake it away:  orchestrate export {name} --to out/")
    console.print("Compare:       orchestrate ui")
    return 0


def _plan(given: argparse.Namespace) -> int:
    from orchestrator.plan import show
    from orchestrator.spec import load

    show(load(given.spec, given.set), _console(), _root(given), getattr(given, "device_memory", None))
    return 0


def _launch(given: argparse.Namespace) -> int:
    from orchestrator.launch import launch
    from orchestrator.spec import load

    sweep = load(given.spec, given.set)
    folder = given.to or Path(f"{sweep.name}-{given.on}")
    print(launch(sweep, given.on, folder, _root(given), given.dry_run))
    return 0


def _status(given: argparse.Namespace) -> int:
    from orchestrator.status import show

    if given.repair:
        from orchestrator.repair import repair

        repair(_root(given), given.sweep, _console())
    show(_root(given), given.sweep, _console())
    return 0


def _report(given: argparse.Namespace) -> int:
    from orchestrator.report import show
    from orchestrator.store import SweepFolder

    show(SweepFolder(_root(given), given.sweep), _console())
    return 0


def _export(given: argparse.Namespace) -> int:
    from orchestrator.export import export
    from orchestrator.store import SweepFolder

    folder = SweepFolder(_root(given), given.sweep)
    folder.read()
    for made in export(folder, given.to, given.run, given.top):
        print(made)
    return 0


def _ui(given: argparse.Namespace) -> int:
    from orchestrator.ui import serve

    return serve(_root(given), given.port, _console())


def _doctor(given: argparse.Namespace) -> int:
    from orchestrator.doctor import show

    return show(_root(given), given.build, _console())


def _size(text: str) -> str:
    from orchestrator.spec import Size
    from orchestrator.spec.problems import Refused

    try:
        return Size().check(text)
    except Refused as refused:
        raise argparse.ArgumentTypeError(refused.problems[0].text) from None


def _root(given: argparse.Namespace) -> Path:
    from orchestrator.store import default_root

    return given.root or default_root()


def _console() -> "Console":
    from rich.console import Console

    # No markup: what errors and folders say may look like it.
    return Console(markup=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)


if __name__ == "__main__":
    sys.exit(main())
