"""Find a model's directions without a sweep file: write one, run it, export its champion (`orchestrate find`)."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from orchestrator.bundle.export import export
from orchestrator.cli.console import Console
from orchestrator.plan.starter import starter
from orchestrator.plan.summary import predict_all, takes
from orchestrator.plan.wanted import Wanted
from orchestrator.spec import Sweep
from orchestrator.store.folder import SweepFolder
from orchestrator.tracking.address import addressed


def find(wanted: Wanted, to: Path, root: Path, run: Callable[[Sweep], int], console: Console) -> int:
    """Write the directions into the folder `to`, and return the exit code.

    run: runs or resumes a sweep, and returns the exit code. The same wish is the same sweep, which goes on.
    Raises UserError, with nothing written, where the wish cannot be fulfilled.
    """
    file = starter(wanted)
    sweep, told = addressed(file.sweep, root)
    folder = SweepFolder(root, sweep.name)
    lines = [told] if told else []
    if not folder.exists():
        lines.append(takes(predict_all(sweep, root, Console(sys.stderr), measure=bool(sweep.trained))))
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
    if code := run(sweep):
        return code
    export(folder, to)
    console.print(f"\nThe sweep file that does the same:\n\n{file.text}", soft_wrap=True, highlight=False)
    gallery, bundle = to / "gallery.html", shlex.quote(str(to))
    console.print(f"Look:  {gallery}\nUse:   orchestrate explore {bundle}", soft_wrap=True, highlight=False)
    return 0
