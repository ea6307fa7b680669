"""SIGKILL at random points of sweeps, the same for the same seed: of the driver, a trial, Ray's raylet, the server.

Each campaign is a sweep under fire until its shots are spent, with the same command after every death of the driver;
then it is compared with the sweep that nobody disturbed.
"""

import random
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.faults import stores
from tests.faults.sweep_under_test import TRIALS, Broken, Server, SweepUnderTest, check, until

NAMES = {"driver": "driver", "trial": "trials' processes", "raylet": "Ray's raylet", "server": "MLflow server"}
_LATEST_S = {"driver": 26.0, "trial": 12.0, "raylet": 12.0}  # after which a victim is struck, at a random time before
_NOBODY_S = 120.0
_REPAIRS = 2  # of each campaign


@dataclass
class Campaign:
    """One sweep and what is fired at it, in this order; servers fall beside it, `server_shots` times."""

    sweep: SweepUnderTest
    server: Server
    shots: list[str]
    server_shots: int
    seed: int
    killed: Counter[str] = field(default_factory=Counter)
    truths: int = 0  # times that `status` was compared with the study
    repairs: int = 0

    def run(self) -> None:
        """To the result. Raises Broken."""
        self.chance = random.Random(self.seed)
        self.spent, self.between = threading.Event(), threading.Lock()
        besieger = threading.Thread(target=self._besiege, daemon=True)
        besieger.start()
        try:
            self._fire()
            self._kill_the_crowning()
        finally:
            self.spent.set()
            besieger.join()
        self.sweep.start()
        self.sweep.finish()

    def _fire(self) -> None:
        if "driver" in self.shots:
            self._kill_the_first_start()
        else:
            self.sweep.start()
        while self.shots:
            if not self.sweep.running():
                code = self.sweep.ended()
                if code == 2 and not self.begun():
                    self._was_refused()
                    code = -signal.SIGKILL
                check(code in (0, -signal.SIGKILL), f"the sweep ended with {code}: {self.sweep.said()[-300:]}")
                if code == 0:
                    return
                self.sweep.start()
            victim = self.shots[0]
            if self._strike(victim):
                self.shots.pop(0)
                self.killed[victim] += 1
                if victim == "driver":
                    self._after_the_driver()

    def _kill_the_first_start(self) -> None:
        """Before the first trial, wherever that start is by then."""
        self.shots.remove("driver")
        self.sweep.start()
        until(lambda: self.sweep.folder.lock.exists() or not self.sweep.running(), 200, "the first start")
        while not self.sweep.running():
            self.sweep.ended()
            self._was_refused()
            self.sweep.start()
            until(lambda: self.sweep.folder.lock.exists() or not self.sweep.running(), 200, "the first start")
        time.sleep(self.chance.uniform(0, 5))
        self.sweep.send(signal.SIGKILL)
        self.sweep.ended()
        self.killed["driver"] += 1
        self._after_the_driver()

    def _was_refused(self) -> None:
        """A sweep does not begin without its store, and says so."""
        check("tracking.uri: the MLflow store" in self.sweep.said()[-600:], self.sweep.said()[-300:])
        until(self.server.up, 120, "the server again")

    def _kill_the_crowning(self) -> None:
        """After the last trial: the champion is measured, written and recorded in these seconds."""
        if not self.sweep.running():
            self.sweep.start()
        until(lambda: _finished(self.sweep) >= self.sweep.trials or not self.sweep.running(), 300, "the last trial")
        time.sleep(self.chance.uniform(0, 2.5))
        if self.sweep.running():
            self.sweep.send(signal.SIGKILL)
            self.killed["driver"] += 1
        self.sweep.ended()
        self._after_the_driver()

    def _strike(self, victim: str) -> bool:
        """Kill one at a random time from now on; False where the sweep ended before."""
        wait = self.chance.uniform(1, _LATEST_S[victim])
        if victim != "driver":
            until(lambda: self._living(victim) or not self.sweep.running(), _NOBODY_S, f"a {victim} to kill")
        end = time.monotonic() + wait
        while time.monotonic() < end and self.sweep.running():
            time.sleep(0.05)
        living = self._living(victim)
        if not living or not self.sweep.running():
            return False
        self.chance.choice(living).kill()
        if victim == "driver":
            self.sweep.ended()
        return True

    def _living(self, victim: str) -> list[psutil.Process]:
        alive = list(self.sweep.alive().values())
        if victim == "driver":
            return [psutil.Process(self.sweep.process.pid)] if self.sweep.process and self.sweep.running() else []
        if victim == "raylet":
            raylet = self.sweep.raylet()
            return [raylet] if raylet and alive else []
        return alive

    def _after_the_driver(self) -> None:
        """Nothing of it is left, and `status` tells what the study holds, before anything is repaired."""
        self.sweep.gone()
        done = self.sweep.run("status")
        if not self.sweep.folder.exists():
            check("no sweep has run" in done.stderr, f"status of nothing: {done.stdout}{done.stderr}")
            return
        self.truths += 1
        told, held = done.stdout, stores.standing(self.sweep)
        complete = self.sweep.folder.result.is_file()
        check(("complete;" if complete else "interrupted, the same command goes on") in told, f"status says {told}")
        check(f"; {held.total()} of {self.sweep.trials} trials" in told, f"{held} in the study, and status says {told}")
        counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (completed|interrupted)", told)}
        check(counts.get("completed", 0) == held["COMPLETE"], f"{held} in the study, and status says {told}")
        going_on = held["RUNNING"] + held["WAITING"]
        check(counts.get("interrupted", 0) == going_on, f"{held} in the study, and status says {told}")
        if self.repairs < _REPAIRS and held["RUNNING"] and self.begun():
            self._repair()

    def begun(self) -> bool:
        """Whether the sweep has its run in MLflow."""
        return self.sweep.folder.exists() and "parent_run" in self.sweep.folder.read()

    def _repair(self) -> None:
        with self.between:  # the server is up
            done = self.sweep.run("status", "--repair")
            check(done.returncode == 0, f"status --repair: {done.stderr}")
            stores.closed(self.sweep, self.server.uri)
            self.repairs += 1

    def _besiege(self) -> None:
        """Kill the server again and again, and start it again."""
        chance = random.Random(f"{self.seed}/server")
        while self.server_shots and not self.spent.wait(chance.uniform(1, 12)):
            with self.between:
                self.server.kill()
                self.killed["server"] += 1
                self.server_shots -= 1
                time.sleep(chance.uniform(0, 2))
                self.server.start()
                until(self.server.up, 120, "the server again")


def _finished(sweep: SweepUnderTest) -> int:
    return stores.standing(sweep)["COMPLETE"]


def campaigns(
    place: Path,
    model: Path,
    server: Server,
    mix: dict[str, int],
    sweeps: int,
    seed: int,
    first: int = 0,
    trials: int = TRIALS,
) -> list[Campaign]:
    """Sweeps that share out the kills of `mix`, each in an order of its own; `first` is the number of the first."""
    made = []
    for number in range(first, first + sweeps):
        share = {kind: count // sweeps + (number - first < count % sweeps) for kind, count in mix.items()}
        servers = share.pop("server", 0)
        shots = [kind for kind, count in share.items() for _ in range(count)]
        random.Random(f"{seed}/{number}").shuffle(shots)
        settings = (f"tracking.uri={server.uri}", f"tracking.experiment=kills-{number}")
        sweep = SweepUnderTest(place / f"kill{number}", model, settings, {"pace": 0.3}, trials=trials)
        made.append(Campaign(sweep, server, shots, servers, seed + number - first))
    return made


def survived(campaign: Campaign, reference: stores.Result) -> None:
    """Run a campaign and check all that is promised of it. Raises Broken."""
    sweep, uri = campaign.sweep, campaign.server.uri
    try:
        campaign.run()
        stores.agree(sweep, uri)
        stores.equal(stores.result(sweep, uri), reference)
        stores.tidy(sweep)
    except Broken as broken:
        raise Broken(f"campaign with seed {campaign.seed}: {broken}") from broken
    finally:
        sweep.end()
