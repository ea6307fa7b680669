"""`make faults`: real sweeps under real faults; prints what held, and keeps it in results.md.

    python -m tests.faults                 the whole matrix, about a quarter of an hour on 2 cores
    python -m tests.faults --long          twice the kills, outages of a minute
    python -m tests.faults --only faults   one lane; results.md stays as it is

Exits with 1 where a promise does not hold. Two lanes of sweeps run beside each other, and the fuzzing beside them,
behind both; the files of a run that does not hold are kept.
"""

import argparse
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tests.faults import kills, stops, stores, within
from tests.faults.machine import facts, readers, short_folder, tiny_model
from tests.faults.rows import Row, Scenario, failed, table
from tests.faults.sweep_under_test import Server, SweepUnderTest, check

MIX = {"driver": 8, "trial": 8, "raylet": 5, "server": 20}
LONG_MIX = {"driver": 20, "trial": 20, "raylet": 12, "server": 34}
_SWEEPS, _LONG_SWEEPS = 2, 5
_EXAMPLES = 100_000

KILLS = {
    "kills": Row(
        "SIGKILL at random points",
        "as many trials as asked, none finished twice, nothing RUNNING, results to the last digit, nothing left over",
    ),
    **{kind: Row(f"... of which of the {name}", "the same") for kind, name in kills.NAMES.items()},
    "truth": Row("`status` after a kill of the driver", "says interrupted, and counts what the study holds"),
    "repair": Row("`status --repair` after one", "0 RUNNING rows, 0 RUNNING runs"),
}


@dataclass
class Matrix:
    """All of the run: its place, what it was asked for, the reference when it is there."""

    place: Path
    given: argparse.Namespace
    killed: Counter[str] = field(default_factory=Counter)
    reference: "Future[stores.Result]" = field(default_factory=Future)
    starts: str = ""  # what a start of the driver and of a trial takes

    def __post_init__(self) -> None:
        self.model = tiny_model(self.place / "model")

    def result(self) -> stores.Result:
        return self.reference.result(600)

    def lanes(self) -> dict[str, list[Scenario]]:
        """What runs one after the other, by lane."""
        copies = {kind: {name: replace(row) for name, row in rows.items()} for kind, rows in _ROWS.items()}
        lanes = {
            "kills": [Scenario(self._together, copies["together"]), Scenario(self._kills, copies["kills"])],
            "faults": [
                Scenario(self._within, copies["within"]),
                Scenario(self._stops, copies["stops"]),
                Scenario(self._disk, copies["disk"]),
            ],
            "fuzz": [Scenario(self._fuzz, copies["fuzz"])],
        }
        return lanes if self.given.only is None else {name: lanes[name] for name in self.given.only.split(",")}

    def sweep(self, name: str, server: Server | None = None, pace: float = 0.3) -> SweepUnderTest:
        tracking = (f"tracking.uri={server.uri}", f"tracking.experiment={name}") if server else ()
        return SweepUnderTest(self.place / name, self.model, tracking, {"pace": pace})

    def _together(self, scenario: Scenario) -> None:
        sweep = self.sweep("ref")
        other = SweepUnderTest(sweep.place, self.model, ("seed=7",), sweep.plan, "other", trials=1)
        try:
            within.play_together(scenario, sweep, other)
            self.reference.set_result(stores.result(sweep))
            self.starts = _starts(sweep)
        except Exception as error:
            self.reference.set_exception(error)
            raise
        finally:
            sweep.end()

    def _kills(self, scenario: Scenario) -> None:
        long, seed = self.given.long, self.given.seed
        server, left, number = Server(self.place / "server-k"), Counter(LONG_MIX if long else MIX), 0
        try:
            while left.total() - left["server"] > 0:
                sweeps = (_LONG_SWEEPS if long else _SWEEPS) if number == 0 else 1
                made = kills.campaigns(self.place, self.model, server, dict(left), sweeps, seed + number, number)
                number, left = number + sweeps, Counter()
                for campaign in made:
                    self._survive(scenario, campaign)
                    left += Counter(campaign.shots)
        finally:
            server.kill()
        with scenario.row("kills", 0):
            check(sum(self.killed.values()) >= (80 if long else 40), f"only {self.killed}")

    def _survive(self, scenario: Scenario, campaign: kills.Campaign) -> None:
        try:
            with scenario.row("kills", 0):
                kills.survived(campaign, self.result())
        finally:
            self.killed += campaign.killed
            counts = {**campaign.killed, "kills": campaign.killed.total()}
            for name, row in scenario.rows.items():
                row.times += {**counts, "truth": campaign.truths, "repair": campaign.repairs}.get(name, 0)
                row.held = scenario.rows["kills"].held

    def _stops(self, scenario: Scenario) -> None:
        server = Server(self.place / "server-s")
        sweep = self.sweep("stop", server, 1.5)
        try:
            stops.play(scenario, sweep, server, self.result)
        finally:
            sweep.end()
            server.kill()

    def _disk(self, scenario: Scenario) -> None:
        stops.play_disk(scenario, self.sweep("disk"), self.result)

    def _within(self, scenario: Scenario) -> None:
        server = Server(self.place / "server-w")
        tracking = (f"tracking.uri={server.uri}", *within.SETTINGS)
        sweep = SweepUnderTest(self.place / "within", self.model, tracking, within.PLAN, trials=within.TRIALS)
        try:
            within.play(scenario, sweep, server, self.result, 60.0 if self.given.long else 20.0)
        finally:
            sweep.end()
            server.kill()

    def _fuzz(self, scenario: Scenario) -> None:
        readers(scenario, self.given.fuzz)


_ROWS = {
    "kills": KILLS,
    "together": within.TOGETHER,
    "stops": stops.ROWS,
    "disk": stops.DISK,
    "within": within.ROWS,
    "fuzz": {
        name: Row(f"hostile input for the reader of {what}", "read, or refused with the documented error; bounded")
        for name, what in (("spec", "sweep files"), ("directions", "direction sets"), ("export", "exports"))
    },
}


def _starts(sweep: SweepUnderTest) -> str:
    """How long starts took, beside all that ran."""
    driver = sweep.took
    said = re.search(r"0:(\d\d) trial (\w+) starts .*? 0:(\d\d) trial \2 iteration", sweep.said())
    trial = f", of a trial until its first report {int(said[3]) - int(said[1])} s" if said else ""
    return f"Beside all else that ran, a start of the driver took {driver:.0f} s{trial}."


def main() -> int:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", help="lanes, by commas: kills, faults, fuzz")
    parser.add_argument("--fuzz", type=int, default=_EXAMPLES, help="inputs for each reader")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where it was ignored, sweeps would ignore it, too
    place, began = short_folder(), time.monotonic()
    matrix = Matrix(place, given)
    lanes = matrix.lanes()
    if "kills" not in lanes and "faults" in lanes:
        lanes["reference"] = [Scenario(matrix._together, dict(_ROWS["together"]))]
    threads = [threading.Thread(target=partial(_play, lane), daemon=True) for lane in lanes.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scenarios = [scenario for lane in lanes.values() for scenario in lane]
    told = f"{table(scenarios)}\n"
    print(told)
    minutes = (time.monotonic() - began) / 60
    print(f"{minutes:.1f} minutes; seed {given.seed}; {dict(matrix.killed)}")
    if given.only is None:
        page = facts(minutes, given.seed, matrix.starts) + told
        (Path(__file__).parent / "results.md").write_text(page)
    if failed(scenarios):
        print(f"NOT all held; everything is kept in {place}", file=sys.stderr)
        return 1
    shutil.rmtree(place)
    return 0


def _play(lane: list[Scenario]) -> None:
    for scenario in lane:
        scenario.run()
        for row in scenario.rows.values():
            print(f"{row.verdict:12}{row.done}  {row.why or scenario.broke}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
