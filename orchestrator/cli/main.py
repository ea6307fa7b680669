"""Run the verbs of the command line. Each verb imports what it needs itself, so that --help answers at once."""

import argparse
import locale
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from orchestrator.cli.arguments import parser

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from rich.status import Status

    from orchestrator.cli.console import Console
    from orchestrator.plan.wanted import Wanted
    from orchestrator.spec import Sweep

Fields = TypeVar("Fields", bound="DataclassInstance")


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit code. arguments: None means those of this process."""
    if arguments is None:
        _settle_environment()
    parsed = parser().parse_args(arguments)
    parsed.command = shlex.join(["orchestrate", *(sys.argv[1:] if arguments is None else arguments)])
    from core.errors import UserError, first_line
    from orchestrator import interruption

    try:
        _require_home()
        with interruption.handled(interruption.interrupt) if parsed.verb in _RESUMED else nullcontext():
            code = _VERBS[parsed.verb](parsed)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = f"; what is done is kept, go on with: {parsed.command}" if parsed.verb in _RESUMED else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has closed it: `orchestrate report x | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder without permission, a network that is away
        print(": ".join(filter(None, (error.strerror or first_line(error), error.filename))), file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 1


def _settle_environment() -> None:
    """Start this process again where its environment would break libraries; its children inherit the new one.

    In a locale that is not UTF-8, libraries read their own files in the wrong encoding. Where PYTHONWARNINGS makes
    errors of warnings, they fail by what they use of one another.
    """
    other_encoding = not sys.flags.utf8_mode and locale.getencoding().lower().replace("-", "") != "utf8"
    strict = "error" in os.environ.get("PYTHONWARNINGS", "")
    if other_encoding or strict:
        if strict:
            del os.environ["PYTHONWARNINGS"]
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _require_home() -> None:
    """Raise UserError where nobody knows a home folder, which MLflow asks for when it is imported."""
    from core.errors import UserError

    try:
        Path.home()
    except RuntimeError:
        raise UserError("HOME: is not set, and this user has no home folder; set it to a folder to write to") from None


def _new(arguments: argparse.Namespace) -> int:
    wanted = _wanted(arguments)
    with _loading():
        from orchestrator.plan.starter import starter

    print(f"# Written by: {arguments.command}\n\n{starter(wanted).text}", end="")
    return 0


def _find(arguments: argparse.Namespace) -> int:
    from core.errors import UserError

    if arguments.to.exists():
        raise UserError(f"--to: {arguments.to} exists; directions are written into a new folder")
    wanted, console = _wanted(arguments), _console()
    with _loading():
        from orchestrator.cli.find import find

    return find(wanted, arguments.to, _root(arguments), lambda sweep: _run(sweep, arguments, console), console)


def _wanted(arguments: argparse.Namespace) -> "Wanted":
    from orchestrator.plan.wanted import Wanted, method_for

    arguments.prompts, arguments.classes = tuple(arguments.prompts), tuple(arguments.classes)
    wanted = _fields_of(arguments, Wanted)
    method_for(wanted)
    return wanted


def _sweep(arguments: argparse.Namespace) -> int:
    if arguments.dry_run:
        return _plan(arguments)
    console = _console()
    sweep = _loaded(arguments, console)
    if code := _run(sweep, arguments, console, arguments.address, arguments.fork):
        return code
    console.print(f"\nTake it away:  orchestrate export {sweep.name} --to out/")
    console.print("Compare:       orchestrate ui")
    return 0


def _run(
    sweep: "Sweep",
    arguments: argparse.Namespace,
    console: "Console",
    address: str | None = None,
    fork: bool = False,
) -> int:
    """Run a sweep to its end, and return the exit code. address, fork: the options of `sweep`."""
    from orchestrator.sweep.cluster import configure
    from orchestrator.sweep.refusals import refuse_at_once

    configure(address)
    refuse_at_once(sweep, _root(arguments).resolve(), address, fork)
    console.print("Loading ...", style="dim")
    from orchestrator.sweep.sweep import Interrupted, run

    try:
        run(sweep, _root(arguments), address, console, fork)
    except Interrupted as interrupted:
        console.print(f"Interrupted: {interrupted}; go on with: {arguments.command}", soft_wrap=True)
        return 130
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    as_data = getattr(arguments, "json", False)
    console = _console(sys.stderr if as_data else None)
    sweep = _loaded(arguments, console)
    from orchestrator.plan.dry_run import PlanOptions, as_json, show
    from orchestrator.spec.sources import refuse_absent

    options = _fields_of(arguments, PlanOptions)  # sweep --dry-run has none of them
    if options.probe:
        refuse_absent(sweep)
    if as_data:
        print(as_json(sweep, console, _root(arguments), options))
    else:
        show(sweep, console, _root(arguments), options)
    return 0


def _launch(arguments: argparse.Namespace) -> int:
    from orchestrator.cli.launch import launch

    sweep = _loaded(arguments, _console(sys.stderr))
    folder = arguments.to or Path(f"{sweep.name}-{arguments.on}")
    print(launch(sweep, arguments.on, folder, _root(arguments), arguments.dry_run))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from orchestrator.report import status

    if arguments.repair:
        from orchestrator.sweep.resume import repair

        repair(_root(arguments), arguments.sweep, _console(sys.stderr if arguments.json else None))
    if arguments.json:
        print(status.document(_root(arguments), arguments.sweep))
    else:
        (status.watch if arguments.watch else status.show)(_root(arguments), arguments.sweep, _console())
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from orchestrator.store.folder import SweepFolder

    folder = SweepFolder(_root(arguments), arguments.sweep)
    folder.read()
    if arguments.json:
        from orchestrator.report.findings import as_json, read

        print(as_json(read(folder)))
        return 0
    from orchestrator.report.page import write_page
    from orchestrator.report.terminal import show

    console = _console()
    findings = show(folder, console)
    console.print(f"Page: {write_page(findings, arguments.to or folder.report)}", soft_wrap=True, highlight=False)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from orchestrator.bundle.selection import check
    from orchestrator.store.folder import SweepFolder

    folder = SweepFolder(_root(arguments), arguments.sweep)
    check(folder, arguments.to, arguments.run, arguments.top)
    with _loading():
        from orchestrator.bundle.export import export
    for path in export(folder, arguments.to, arguments.run, arguments.top, arguments.format, _say):
        print(path)
    return 0


def _name(arguments: argparse.Namespace) -> int:
    from orchestrator.edit.request import ModelOptions, check_name, parse_names

    names = parse_names(arguments.names)
    options = _fields_of(arguments, ModelOptions)
    check_name(arguments.bundle, arguments.predictor, arguments.words, arguments.names_only)
    with _loading():
        from orchestrator.edit.naming import name, rename

    if arguments.names_only:
        directions, removed = rename(arguments.bundle, names)
        if removed:
            print(
                f"Removed, as they have the old names: {', '.join(removed)}; `orchestrate name` without --names-only "
                "draws them anew",
                file=sys.stderr,
            )
    else:
        directions = name(arguments.bundle, names, arguments.predictor, arguments.words, options, _say)
    for number, called in enumerate(directions.names):
        print(f"{number:3}  {called}")
    return 0


def _gallery(arguments: argparse.Namespace) -> int:
    from orchestrator.edit.request import ModelOptions, check_gallery

    check_gallery(arguments.bundles, arguments.to)
    with _loading():
        from orchestrator.edit.naming import gallery

    gallery(arguments.bundles, arguments.to, _fields_of(arguments, ModelOptions), _say)
    print(arguments.to)
    return 0


def _edit(arguments: argparse.Namespace) -> int:
    from orchestrator.edit.request import EditRequest, ModelOptions, check_edit, kind_of

    arguments.options, arguments.window = (
        _fields_of(arguments, ModelOptions),
        arguments.window and tuple(arguments.window),
    )
    request = _fields_of(arguments, EditRequest)
    kind_of(arguments.to, request)
    check_edit(arguments.bundle, arguments.to, request)
    with _loading():
        from orchestrator.edit.edit import edit

    edit(arguments.bundle, arguments.to, request, _console(sys.stderr))
    print(arguments.to)
    return 0


def _explore(arguments: argparse.Namespace) -> int:
    from orchestrator.edit.request import ModelOptions, check_bundle
    from orchestrator.pages.port import check_port

    check_port(arguments.port)
    check_bundle(arguments.bundle)
    with _loading():
        from orchestrator.edit.explore import serve

    return serve(
        arguments.bundle, arguments.port, not arguments.no_browser, _console(), _fields_of(arguments, ModelOptions)
    )


def _ui(arguments: argparse.Namespace) -> int:
    from orchestrator.pages.port import check_port

    check_port(arguments.port)
    from orchestrator.cli.ui import serve

    return serve(_root(arguments), arguments.port, _console(), browser=not arguments.no_browser)


def _doctor(arguments: argparse.Namespace) -> int:
    from orchestrator.cli.doctor import show

    return show(_root(arguments), arguments.build, _console())


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(parser(), shell=arguments.shell))
    return 0


def _loaded(arguments: argparse.Namespace, console: "Console") -> "Sweep":
    """Return the sweep that a verb was given, with the address of its MLflow store; print what decides on that."""
    from orchestrator.spec import load
    from orchestrator.tracking.address import addressed

    sweep, line = addressed(load(arguments.spec, arguments.set), _root(arguments))
    if line:
        console.print(line, soft_wrap=True, highlight=False)
    return sweep


def _fields_of(arguments: argparse.Namespace, kind: type[Fields]) -> Fields:
    """Return a frozen value of the options that were given under the names of its fields."""
    return kind(**{each.name: getattr(arguments, each.name) for each in fields(kind) if hasattr(arguments, each.name)})


def _root(arguments: argparse.Namespace) -> Path:
    from orchestrator.store.folder import default_root

    return arguments.root or default_root()


def _loading() -> "Status":
    """Show, in a terminal, that the libraries of a verb are being loaded."""
    return _console(sys.stderr).status("Loading ...")


def _say(sentence: str) -> None:
    """Print what is being done on stderr; the output itself stays what other programs read."""
    _console(sys.stderr).print(sentence, soft_wrap=True, highlight=False)


def _console(file: TextIO | None = None) -> "Console":
    from orchestrator.cli.console import Console

    return Console(file or sys.stdout)


_RESUMED = ("find", "sweep")  # verbs that go on where they were interrupted
_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "find": _find,
    "new": _new,
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
