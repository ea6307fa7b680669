"""Serve MLflow's own interface on the embedded store, and print links to the pages of each sweep."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from rich.console import Console

from core.errors import UserError
from orchestrator.pages.port import HOST, check_port
from orchestrator.store.folder import SweepFolder
from orchestrator.store.moved import ARTIFACTS, moved
from orchestrator.tracking import views
from orchestrator.tracking.client import Tracking
from orchestrator.tracking.mlflow_store import store_uri

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_START_S = 120.0  # how long MLflow's server may take to answer
_TRIALS = "trials, charts and pictures"


def serve(root: Path, port: int, console: Console, browser: bool = False) -> int:
    """Serve until interrupted. Raises UserError where there is nothing to serve, or no such port is free.

    browser: whether to open the trials of the newest sweep in a browser, where this machine has a display.
    """
    root = root.resolve()
    check_port(port)
    elsewhere = [f"  {name}: {uri}" for name, uri in _elsewhere(root).items()]
    if not (root / "mlflow.db").is_file():
        if elsewhere:  # nothing to serve here: their servers have their own pages
            console.print(
                "\n".join(["These sweeps are recorded elsewhere; open:", *elsewhere]), soft_wrap=True, highlight=False
            )
            return 0
        raise UserError(f"no embedded store in {root}; run a sweep first, or name its folder with --root")
    address = f"http://{HOST}:{port}"
    lines = [f"MLflow: {address}   (Ctrl-C ends it)", *filter(None, [moved(root)])]
    pages = links(root, address)
    lines += [*(f"  {line}" for line in pages), *elsewhere]
    first = next((line.rpartition("  ")[2] for line in reversed(pages) if f": {_TRIALS}  " in line), None)
    if first is not None:  # last, and by itself: MLflow's own front page opens in a view that shows nothing of a sweep
        lines += [f"Start here:  {first}"]
    console.print("\n".join(lines), soft_wrap=True, highlight=False)
    if browser and first is not None and _has_display():
        threading.Thread(target=_open, args=(port, first), daemon=True).start()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store_uri(None, root)]
    command += ["--default-artifact-root", (root / ARTIFACTS).as_uri(), "--host", HOST, "--port", str(port)]
    return _until_interrupted([*command, "--workers", "1"])


def _has_display() -> bool:
    """Return whether a browser would open in a window, and not in this terminal."""
    shown = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, shown))


def _open(port: int, page: str) -> None:
    """Open a page in the browser once the server answers."""
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                webbrowser.open(page)
                return
        time.sleep(0.2)


def _until_interrupted(command: list[str]) -> int:
    """Run the server, which ends whenever this process ends, killed or not."""
    # Else MLflow starts two more processes for jobs, which are not used here.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    try:
        return subprocess.run(command, check=False, env=environment, preexec_fn=_end_with(os.getpid())).returncode
    except KeyboardInterrupt:
        return 0


def _end_with(parent: int) -> Callable[[], None] | None:
    """Return a function for a child to call before exec: the kernel then sends SIGTERM when `parent` ends.

    None where the system is not Linux, which alone offers this. The signal is not SIGKILL, so that MLflow can pass it
    on to its own children.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded here, because little is allowed between fork and exec

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent has ended meanwhile
            os._exit(1)

    return ask


def _elsewhere(root: Path) -> dict[str, str]:
    """Return the sweeps under `root` that are recorded in other stores, with the address of each store."""
    addresses: dict[str, str] = {}
    for folder in _folders(root):
        with suppress(UserError):  # `links` tells a damaged sweep
            state = folder.read()
            if not _embedded(state) and "tracking_uri" in state:
                addresses[folder.name] = str(state["tracking_uri"])
    return addresses


def _embedded(state: Mapping[str, Any]) -> bool:
    return state["spec"].get("tracking", {}).get("uri") is None


def _folders(root: Path) -> list[SweepFolder]:
    """Return the folders of the sweeps under `root`, the one that was started last at the end."""
    files = sorted(root.glob("*/sweep.json"), key=lambda path: (path.stat().st_mtime, path))
    return [SweepFolder(root, path.parent.name) for path in files]


def links(root: Path, address: str) -> list[str]:
    """Return a line for each page of each sweep: result, charts and pictures, comparison, HTML pages, report, model.

    A sweep whose folder cannot be read has a line with the reason.
    """
    tracking = Tracking(None, root)
    lines = []
    for folder in _folders(root):
        try:
            state = folder.read()
            if _embedded(state) and "parent_run" in state:
                lines += [
                    f"{folder.name}: {what}  {address}/#/{page}" for what, page in _pages(folder, state, tracking)
                ]
        except UserError as error:  # it is damaged, or was brought here without its store
            lines.append(f"{folder.name}: {error}")
    return lines


def _pages(folder: SweepFolder, state: Mapping[str, Any], tracking: Tracking) -> Iterator[tuple[str, str]]:
    """Yield what there is to see of a sweep, and the address of each page within MLflow."""
    experiment, parent, workspace = state["experiment_id"], state["parent_run"], urlencode(views.TRAINING)
    tracking.status(parent)  # raises where the store does not know the run
    runs = [run.info.run_id for run in tracking.children(experiment, parent)]
    page = f"experiments/{experiment}/runs"
    yield "result", f"{page}/{parent}?{workspace}"
    known = tracking.experiment_tags(experiment)
    yield _TRIALS, f"{page}?{views.query(parent, known)}"
    chosen = urlencode({"runs": json.dumps(runs), "experiments": json.dumps([experiment])}, quote_via=quote)
    yield "compare", f"compare-runs?{chosen}&{workspace}"
    for file in sorted(folder.champion.glob("*.html")):
        yield file.stem, f"{page}/{parent}/artifacts/champion/{quote(file.name)}?{workspace}"
    if folder.result.is_file() and folder.report.is_file():
        yield "report", f"{page}/{parent}/artifacts/report/{folder.report.name}?{workspace}"
    if name := state["spec"].get("export", {}).get("register"):
        yield "model", f"models/{quote(name, safe='')}?{workspace}"
