"""Faults inside trials, one each, in one sweep whose MLflow server is away twice meanwhile; and sweeps side by side."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from orchestrator.search.ledger import ENDS
from orchestrator.trial.outcome import ADVICE, TrialOutcome
from tests.faults import stores
from tests.faults.rows import Row, Scenario
from tests.faults.sweep_under_test import Server, SweepUnderTest, check, until

_ORDER = ("stop", "exit", "hang", "terminate", "memory", "nan", "raise")  # the first four are in the reference too
_AT = 3
TRIALS = len(_ORDER)
PLAN = {
    "pace": 0.3,
    "faults": {
        str(number): {"kind": kind, "at": _AT, "times": 9 if kind == "raise" else 1}
        for number, kind in enumerate(_ORDER)
    },
}
SETTINGS = ("recovery.crashes=1", "recovery.stalled_minutes=0.75")

ROWS = {
    "stop": Row("a trial suspended (SIGSTOP)", "the driver ends it a minute after its limit; goes on, result equal"),
    "exit": Row("a trial's process exits by itself", "told, counted as a crash; goes on, result equal"),
    "hang": Row(
        "a trial hangs in Python", "ended after recovery.stalled_minutes, where it stood is told; result equal"
    ),
    "terminate": Row("a trial preempted (SIGTERM)", "saves; not counted as a crash; goes on, result equal"),
    "memory": Row("a trial short of memory (RLIMIT_AS)", "goes on in smaller parts, or fails as out_of_memory, told"),
    "nan": Row("a trial's loss becomes NaN", "diverged, the step and the term named, not tried again"),
    "raise": Row("a trial raises, always", "tried again within recovery.crashes, then failed with the sentence"),
    "stopped": Row("MLflow server suspended in mid-sweep", "every metric, picture and file arrives, once, in order"),
    "restarted": Row("MLflow server ended and started again", "every metric, picture and file arrives, once, in order"),
}


def play(
    scenario: Scenario, sweep: SweepUnderTest, server: Server, reference: stores.Reference, outage_s: float
) -> None:
    """One sweep to its end, then a look at each of its trials."""
    sweep.start()
    until(lambda: len(sweep.training(1)) >= 1, 200, "a trial with a checkpoint")
    with scenario.row("stopped"):
        server.send(signal.SIGSTOP)
        time.sleep(outage_s)
        server.send(signal.SIGCONT)
    sweep.says("completed", 300)
    with scenario.row("restarted"):
        server.kill(signal.SIGTERM)
        time.sleep(outage_s)
        server.start()
        until(server.up, 120, "the server again")
    sweep.finish()
    for name in ("stopped", "restarted"):
        with scenario.row(name, 0):
            stores.agree(sweep, server.uri)
            stores.tidy(sweep)
    look_at_trials(scenario, sweep, server, reference)


def look_at_trials(scenario: Scenario, sweep: SweepUnderTest, server: Server, reference: stores.Reference) -> None:
    """What became of each trial that a fault struck."""
    order = [(sweep.place / "faults" / str(number)).read_text() for number in range(TRIALS)]
    by_kind = dict(zip(_ORDER, order, strict=True))
    told, ended, found = stores.outcomes(sweep), ends(sweep), stores.result(sweep, server.uri)
    crash = {"crashes": 1, "out_of_memory": 0, "preemptions": 0}
    for kind in ("stop", "exit", "hang", "terminate"):
        trial = by_kind[kind]
        with scenario.row(kind):
            check(told[trial][0] == "completed", f"it ended {told[trial]}")
            wanted = crash if kind != "terminate" else {"crashes": 0, "out_of_memory": 0, "preemptions": 1}
            check(ended[trial] == wanted, f"counted as {ended[trial]}")
            stores.equal(found, reference(), [trial])
    for kind, words in (("exit", "its process ended without a word"), ("hang", "in _strike; it will go on")):
        with scenario.row(kind, 0):
            check(_told(sweep, by_kind[kind], words), f"never told: '{words}'")
    with scenario.row("memory"):
        outcome, reason = told[by_kind["memory"]]
        sound = outcome == "completed" or reason == ADVICE[TrialOutcome.OUT_OF_MEMORY]
        check(sound, f"it ended {outcome}: {reason}")
    with scenario.row("nan"):
        diverged(told[by_kind["nan"]], ended[by_kind["nan"]])
    with scenario.row("raise", 2):
        check(
            told[by_kind["raise"]] == ("failed", f"injected at iteration {_AT}"), f"it ended {told[by_kind['raise']]}"
        )
        check(ended[by_kind["raise"]] == crash, f"counted as {ended[by_kind['raise']]}")


def diverged(told: tuple[str, str], ended: dict[str, int], at: int = _AT) -> None:
    """Named, and not tried again for that."""
    check(told == ("diverged", f"direction_loss became nan at iteration {at}"), f"it ended {told}")
    check(not ended.get("crashes"), f"it was tried again: {ended}")


def ends(sweep: SweepUnderTest) -> dict[str, dict[str, int]]:
    """How often the process of each trial ended before its time, and of what."""
    return {trial: dict(row.user_attrs.get(ENDS, {})) for trial, row in stores.newest(sweep).items()}


def _told(sweep: SweepUnderTest, trial: str, words: str) -> bool:
    """Whether the sweep has said this of a trial, in one line."""
    return re.search(rf"trial {trial} failed (?:(?! \d+:\d\d ).)*{re.escape(words)}", sweep.said()) is not None


# --- side by side ----------------------------------------------------------------------------------------------------

TOGETHER = {
    "both": Row("two different sweeps at once in one root", "both finish, each with stores that agree"),
    "ui": Row("`orchestrate ui` serves the embedded store meanwhile", "answers while both write; neither is held up"),
}


def play_together(scenario: Scenario, sweep: SweepUnderTest, other: SweepUnderTest) -> None:
    """`sweep` is the reference, too: nobody disturbs it."""
    began = time.monotonic()
    sweep.start()
    sweep.says(f"Sweep '{sweep.name}'")
    sweep.took = time.monotonic() - began
    other.start()
    with scenario.row("ui"):
        until(lambda: sweep.training(1), 200, "a trial with a checkpoint")
        _serve_meanwhile(sweep)
    with scenario.row("both", 2):
        sweep.finish()
        other.finish()
        stores.agree(sweep)
        stores.agree(other)
        stores.tidy(sweep)


def _serve_meanwhile(sweep: SweepUnderTest) -> None:
    """Ask the interface for the runs until the sweep is complete."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "orchestrator.cli", "ui", "--root", str(sweep.root), "--port", str(port)]
    with open(sweep.place / "ui.log", "ab") as log:
        served = subprocess.Popen(
            command, cwd=sweep.place, env=sweep.environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until(lambda: _answers(port, sweep), 120, "an answer of orchestrate ui")
        check(sweep.running(), "the sweep had ended before the interface answered")
        asked = 0
        while sweep.running():
            check(_answers(port, sweep), f"no answer after {asked}")
            asked += 1
            time.sleep(1)
    finally:
        os.killpg(served.pid, signal.SIGINT)  # a terminal's Ctrl-C
        served.wait(60)


def _answers(port: int, sweep: SweepUnderTest) -> bool:
    """Whether it tells of the runs of the sweep's experiment."""
    experiment = {"experiment_ids": [sweep.folder.read()["experiment_id"]]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search",
        json.dumps(experiment).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return len(json.load(answer)["runs"]) >= 1
    except (OSError, KeyError, ValueError):
        return False
