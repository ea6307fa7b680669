"""What the ui verb refuses, where it listens, and that it leaves no server behind."""

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import psutil
import pytest
from rich.console import Console

from core.errors import UserError
from orchestrator.cli import ui
from orchestrator.cli.ui import _elsewhere, links, serve
from orchestrator.spec import parse
from orchestrator.store.folder import SweepFolder
from orchestrator.tracking import views
from orchestrator.tracking.client import Tracking


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port: {port} is taken; choose another one"):
            serve(tmp_path, port, Console())


@pytest.mark.parametrize(("browser", "display"), [(True, ":0"), (True, ""), (False, ":0")])
def test_the_trials_of_the_newest_sweep_come_last_and_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], browser: bool, display: str
) -> None:
    (tmp_path / "mlflow.db").touch()
    trials = [f"{name}: trials, charts and pictures  http://here/#/{name}" for name in "ab"]
    opened: Queue[tuple[int, str]] = Queue()
    monkeypatch.setattr(ui, "links", lambda root, address: [trials[0], trials[1], "b: model  http://here/#/models/b"])
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ui, "moved", lambda root: f"{root} was moved")
    monkeypatch.setattr(ui, "_open", lambda port, page: opened.put((port, page)))
    monkeypatch.setattr(ui, "_until_interrupted", lambda command: 0)
    for name in ("WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", display)
    started = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    assert serve(tmp_path, port, Console(width=200), browser) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == f"{tmp_path} was moved" and said[-1] == "Start here:  http://here/#/b"
    _wait(lambda: threading.active_count() == started, "the thread that opens the page has ended")
    assert opened.empty() != bool(browser and display)
    assert opened.empty() or opened.get() == (port, "http://here/#/b")


def test_a_page_is_opened_once_its_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(ui, "_START_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ui._open(port, "http://here")
    assert opened == ["http://here"]
    ui._open(port, "http://away")
    assert opened == ["http://here"], "a server that never answers"


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_damaged_sweep_is_told_and_hides_no_other(tmp_path: Path, content: str) -> None:
    elsewhere = {"uri": "http://elsewhere"}
    sweep = parse({"name": "whole", "model": "toyfaces", "method": "pca", "tracking": elsewhere})
    folder = SweepFolder(tmp_path, "whole")
    folder.create(sweep, "weights")
    folder.add(tracking_uri="http://elsewhere", experiment_id="1", parent_run="p")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sweep.json").write_text(content)
    assert _elsewhere(tmp_path) == {"whole": "http://elsewhere"}
    [line] = links(tmp_path, "http://here")
    assert line.startswith(f"broken: {tmp_path / 'broken' / 'sweep.json'} is damaged: ")


@pytest.mark.slow
def test_links_to_what_there_is(tmp_path: Path) -> None:
    """Older sweeps have no view of their trials, and not every sweep registers its champion."""
    tracking, address = Tracking(None, tmp_path / "runs"), "http://here"
    experiment = tracking.experiment("faces")
    spec = {"name": "b", "model": "toyfaces", "search": {"directions": {"choice": [8, 16]}}}
    parents = {}
    for name, more in (("a", {}), ("b", {"export": {"register": "faces directions"}})):
        sweep, folder = parse(spec | {"name": name} | more), SweepFolder(tmp_path / "runs", name)
        folder.create(sweep, "weights")
        parents[name] = tracking.start_parent(experiment, name, {}, {})
        folder.add(tracking_uri=tracking.shown, experiment_id=experiment, parent_run=parents[name])
        tracking.start_child(experiment, parents[name], "t1", {})
    tracking.tag_experiment(experiment, views.tag(sweep, parents["b"], 1000))
    (folder.champion / "empty").mkdir(parents=True)
    (folder.champion / "gallery & more.html").write_text("<p>")
    lines = links(tmp_path / "runs", address)
    told = dict(line.rsplit("  ", 1) for line in lines)
    assert list(told) == [
        "a: result",
        "a: trials, charts and pictures",
        "a: compare",
        "b: result",
        "b: trials, charts and pictures",
        "b: compare",
        "b: gallery & more",
        "b: model",
    ]
    assert all(link.startswith(f"{address}/#/") and "workflowType=machine_learning" in link for link in told.values())
    assert not any(letter in link for link in told.values() for letter in ' "<>')
    runs, trials = f"experiments/{experiment}/runs", "trials, charts and pictures"
    assert f"{runs}/{parents['a']}?" in told["a: result"]
    assert "searchFilter=" in told[f"a: {trials}"] and f"viewStateShareKey=sweep-{parents['b']}" in told[f"b: {trials}"]
    assert f"{runs}/{parents['b']}/artifacts/champion/gallery%20%26%20more.html?" in told["b: gallery & more"]
    assert "/models/faces%20directions?" in told["b: model"]
    there = shutil.move(tmp_path / "runs", tmp_path / "project")
    assert links(there, address) == lines, "a folder that was moved has all of its pages"
    alone = shutil.copytree(there, tmp_path / "alone", ignore=shutil.ignore_patterns("mlflow.db"))
    assert [line.partition(" sqlite")[0] for line in links(alone, address)] == [
        f"{name}: tracking.uri: the MLflow store" for name in "ab"
    ]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def started(tmp_path: Path, free_port: int) -> Iterator[psutil.Process]:
    """`orchestrate ui` on an embedded store, serving."""
    Tracking(None, tmp_path).check()
    command = [sys.executable, "-m", "orchestrator.cli", "ui", "--root", str(tmp_path), "--port", str(free_port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        family = psutil.Process(process.pid)
        _wait(lambda: _listens(free_port), "the server answers")
        yield family
        for left in [*family.children(recursive=True), family] if process.poll() is None else []:
            left.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(happened: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, f"a minute has passed before {what}"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no kernel tells a process that its parent has ended")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_no_server_outlives_the_verb(started: psutil.Process, free_port: int, ending: signal.Signals) -> None:
    servers = started.children(recursive=True)
    try:
        places = {c.laddr.ip for p in servers for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert places == {"127.0.0.1"}
        started.send_signal(ending)
        _wait(lambda: not any(map(psutil.Process.is_running, servers)), "the servers have ended")
        assert not _listens(free_port)
    finally:
        for left in filter(psutil.Process.is_running, servers):
            left.kill()
