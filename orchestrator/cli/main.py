"""Run the verbs of the command line. Each verb imports what it needs itself, so that --help answers at once."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from orchestrator.cli.arguments import parser

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

_PIPED_WIDTH = 160  # columns of the output where it does not go to a terminal


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    parsed = parser().parse_args(arguments)
    from core.errors import UserError

    try:
        return _VERBS[parsed.verb](parsed)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has closed it: `orchestrate report x | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder without permission
        print(f"{error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 1


def _sweep(given: argparse.Namespace) -> int:
    if given.dry_run:
        return _plan(given)
    from orchestrator.spec import load
    from orchestrator.sweep.cluster import configure

    sweep = load(given.spec, given.set)
    console = _console()
    console.print("Loading ...", style="dim")
    configure(given.address)
    from orchestrator.sweep.sweep import Interrupted, run

    try:
        name = run(sweep, _root(given), given.address, console, given.fork)
    except Interrupted:
        console.print("Interrupted; the state is saved. The same command goes on.")
        return 130
    console.print(f"\nTake it away:  orchestrate export {name} --to out/")
    console.print("Compare:       orchestrate ui")
    return 0


def _plan(given: argparse.Namespace) -> int:
    from orchestrator.plan.dry_run import PlanOptions, as_json, show
    from orchestrator.spec import load

    sweep = load(given.spec, given.set)
    options = _fields_of(given, PlanOptions)  # sweep --dry-run has none of them
    if getattr(given, "json", False):
        print(as_json(sweep, _console(sys.stderr), _root(given), options))
    else:
        show(sweep, _console(), _root(given), options)
    return 0


def _launch(given: argparse.Namespace) -> int:
    from orchestrator.cli.launch import launch
    from orchestrator.spec import load

    sweep = load(given.spec, given.set)
    folder = given.to or Path(f"{sweep.name}-{given.on}")
    print(launch(sweep, given.on, folder, _root(given), given.dry_run))
    return 0


def _status(given: argparse.Namespace) -> int:
    from orchestrator.report import status

    if given.repair:
        from orchestrator.sweep.repair import repair

        repair(_root(given), given.sweep, _console(sys.stderr if given.json else None))
    if given.json:
        print(status.document(_root(given), given.sweep))
    else:
        (status.watch if given.watch else status.show)(_root(given), given.sweep, _console())
    return 0


def _report(given: argparse.Namespace) -> int:
    from orchestrator.store.folder import SweepFolder

    folder = SweepFolder(_root(given), given.sweep)
    if given.json:
        from orchestrator.report.findings import as_json, read

        print(as_json(read(folder)))
        return 0
    from orchestrator.report.page import write_page
    from orchestrator.report.terminal import show

    console = _console()
    found = show(folder, console)
    console.print(f"Page: {write_page(found, given.to or folder.report)}", soft_wrap=True, highlight=False)
    return 0


def _export(given: argparse.Namespace) -> int:
    from orchestrator.bundle.export import export
    from orchestrator.store.folder import SweepFolder

    folder = SweepFolder(_root(given), given.sweep)
    folder.read()
    for made in export(folder, given.to, given.run, given.top, given.format, _console(sys.stderr).print):
        print(made)
    return 0


def _name(given: argparse.Namespace) -> int:
    from orchestrator.edit.naming import name, parse_names
    from orchestrator.edit.session import ModelOptions

    names = parse_names(given.names)
    options = _fields_of(given, ModelOptions)
    found = name(given.bundle, names, given.predictor, given.words, given.names_only, options)
    for number, called in enumerate(found.names):
        print(f"{number:3}  {called}")
    return 0


def _gallery(given: argparse.Namespace) -> int:
    from orchestrator.edit.naming import gallery
    from orchestrator.edit.session import ModelOptions

    gallery(given.bundles, given.to, _fields_of(given, ModelOptions))
    print(given.to)
    return 0


def _edit(given: argparse.Namespace) -> int:
    from orchestrator.edit.edit import EditRequest, edit
    from orchestrator.edit.session import ModelOptions

    given.options, given.window = _fields_of(given, ModelOptions), given.window and tuple(given.window)
    edit(given.bundle, given.to, _fields_of(given, EditRequest), _console(sys.stderr))
    print(given.to)
    return 0


def _explore(given: argparse.Namespace) -> int:
    from orchestrator.edit.explore import serve
    from orchestrator.edit.session import ModelOptions

    return serve(given.bundle, given.port, not given.no_browser, _console(), _fields_of(given, ModelOptions))


def _ui(given: argparse.Namespace) -> int:
    from orchestrator.cli.ui import serve

    return serve(_root(given), given.port, _console())


def _doctor(given: argparse.Namespace) -> int:
    from orchestrator.cli.doctor import show

    return show(_root(given), given.build, _console())


def _completion(given: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(parser(), shell=given.shell))
    return 0


def _fields_of(given: argparse.Namespace, kind: type[T]) -> T:
    """Return a frozen value of the options that were given under the names of its fields."""
    return kind(**{each.name: getattr(given, each.name) for each in fields(kind) if hasattr(given, each.name)})  # type: ignore[arg-type]


def _root(given: argparse.Namespace) -> Path:
    from orchestrator.store.folder import default_root

    return given.root or default_root()


def _console(file: TextIO | None = None) -> "Console":
    from rich.console import Console

    # No markup: errors and folder names may contain brackets.
    return Console(file=file, markup=False, width=None if (file or sys.stdout).isatty() else _PIPED_WIDTH)


_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "sweep": _sweep,
    "plan": _plan,
    "launch": _launch,
    "status": _status,
    "report": _report,
    "ui": _ui,
    "export": _export,
    "name": _name,
    "gallery": _gallery,
    "edit": _edit,
    "explore": _explore,
    "doctor": _doctor,
    "completion": _completion,
}
