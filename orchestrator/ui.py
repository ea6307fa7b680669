"""MLflow's own interface on the embedded store, with links to what a person wants to see first."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from rich.console import Console

from core.errors import UserError
from orchestrator.store import SweepFolder
from orchestrator.tracking import Tracking, store_uri

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TRAINING = "workflowType=machine_learning"  # MLflow's workspace for training, not for chats


def serve(root: Path, port: int, console: Console) -> int:
    """Serve until interrupted. Raises UserError where there is nothing to serve or the port is taken."""
    root = root.resolve()
    elsewhere = [f"  {name}: {uri}" for name, uri in _elsewhere(root).items()]
    if not (root / "mlflow.db").is_file():
        if elsewhere:  # there is nothing to serve: their servers have pages of their own
            console.print(
                "\n".join(["These sweeps are recorded elsewhere; open:", *elsewhere]), soft_wrap=True, highlight=False
            )
            return 0
        raise UserError(f"no embedded store in {root}; run a sweep first, or name its folder with --root")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"--port: {port} is taken; choose another one")
    address = f"http://127.0.0.1:{port}"
    console.print(f"MLflow: {address}   (Ctrl-C ends it)")
    for link in links(root, address):
        console.print(f"  {link}", soft_wrap=True, highlight=False)
    for line in elsewhere:
        console.print(line, soft_wrap=True, highlight=False)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store_uri(None, root)]
    command += ["--default-artifact-root", (root / "mlartifacts").as_uri(), "--host", "127.0.0.1", "--port", str(port)]
    return _until_interrupted([*command, "--workers", "1"])


def _until_interrupted(command: list[str]) -> int:
    """Run the server; it ends when this process ends, however that ends."""
    # MLflow would keep two more processes for jobs, which nothing here asks for.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    try:
        return subprocess.run(command, check=False, env=environment, preexec_fn=_end_with(os.getpid())).returncode
    except KeyboardInterrupt:
        return 0


def _end_with(parent: int) -> Callable[[], None] | None:
    """For a child, before it becomes what it runs: the kernel asks it to end when `parent` does. Linux alone can.

    MLflow hands the request on to its own children; so that it can, it is not simply killed.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded here: between fork and exec little is allowed

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended meanwhile
            os._exit(1)

    return ask


def _elsewhere(root: Path) -> dict[str, str]:
    """The sweeps under a root whose runs another store has, and which."""
    found: dict[str, str] = {}
    for path in sorted(root.glob("*/sweep.json")):
        uri = SweepFolder(root, path.parent.name).read().get("tracking_uri")
        if uri not in (None, store_uri(None, root)):
            found[path.parent.name] = str(uri)
    return found


def links(root: Path, address: str) -> list[str]:
    """For each sweep: its runs, and the comparison of its trials."""
    tracking = Tracking(None, root)
    found = []
    for path in sorted(root.glob("*/sweep.json")):
        state = SweepFolder(root, path.parent.name).read()
        if state.get("tracking_uri") != tracking.uri:
            continue
        experiment, parent = state["experiment_id"], state["parent_run"]
        runs = [run.info.run_id for run in tracking.children(experiment, parent)]
        compare = f"runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([experiment]))}"
        page, name = f"{address}/#/experiments/{experiment}/runs", path.parent.name
        found.append(f"{name}: result   {page}/{parent}?{_TRAINING}")
        found.append(
            f"{name}: charts and pictures (+ opens the run's trials)  {page}?compareRunsMode=CHART&{_TRAINING}"
        )
        found.append(f"{name}: compare  {address}/#/compare-runs?{compare}&{_TRAINING}")
    return found
