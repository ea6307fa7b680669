"""`make cluster-test`: real sweeps on real Ray clusters of this machine; prints what held, and keeps it in results.md.

    python -m tests.cluster                       both kinds of cluster, one after the other
    python -m tests.cluster --only hosts          one kind
    python -m tests.cluster --rows drain,cut      of the faults that strike shared trials only these; nothing is kept

Network namespaces need root, and are left out without. Exits with 1 where a promise does not hold; the files of such a
run are kept. Nothing that was started is left, however it ends.
"""

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from tests.cluster import flows
from tests.cluster.flows import Row, Stage
from tests.cluster.machines import Cluster, Hosts
from tests.cluster.sweeps import environment
from tests.faults import stores
from tests.faults.machine import facts, short_folder, tiny_model
from tests.faults.rows import Scenario, failed

_PACE_S = 1.5  # an iteration takes at least that, so that there is time to strike
_KINDS = {"one-host": Cluster, "hosts": Hosts}
_FLOWS = ("undisturbed", "struck", "stopped", "single")


def scenarios(stage: Stage, given: argparse.Namespace) -> list[Scenario]:
    """What is played on one cluster, in order."""
    reference: Future[stores.Result] = Future()
    wanted = set(given.rows.split(",")) if given.rows else set(flows.STRUCK) - {"all"}
    if not isinstance(stage.cluster, Hosts):
        wanted.discard("cut")

    def undisturbed(scenario: Scenario) -> None:
        reference.set_result(flows.undisturbed(scenario, stage))

    plays: dict[str, tuple[dict[str, Row], Callable[[Scenario], None]]] = {
        "undisturbed": (flows.UNDISTURBED, undisturbed),
        "struck": (flows.STRUCK, lambda scenario: flows.struck(scenario, stage, lambda: reference.result(5), wanted)),
        "stopped": (flows.STOPPED, lambda scenario: flows.stopped(scenario, stage)),
        "single": (flows.SINGLE, lambda scenario: flows.single(scenario, stage)),
    }
    asked = given.flows.split(",") if given.flows else _FLOWS
    made = [
        Scenario(play, {name: replace(row) for name, row in rows.items()}) for rows, play in (plays[n] for n in asked)
    ]
    for scenario in made:
        for name, row in scenario.rows.items():
            if name in flows.STRUCK and name not in wanted | {"all"}:
                row.why = "not asked for" if given.rows else "needs hosts of their own"
            if name == "alone_cut" and not isinstance(stage.cluster, Hosts):
                row.why = "needs hosts of their own"
    return made


def play(kind: str, place: Path, model: Path, given: argparse.Namespace) -> list[Scenario]:
    """All on one kind of cluster."""
    cluster = _KINDS[kind](place / "c", environment(place / "watch", _PACE_S))
    played = scenarios(Stage(place, model, cluster), given)
    if (missing := Hosts.missing() if kind == "hosts" else None) is not None:
        for scenario in played:
            scenario.skip(missing)
        return played
    with cluster.up("n1", "n2"):
        for scenario in played:
            scenario.run()
            for row in scenario.rows.values():
                print(f"{row.verdict:12}{row.done}  {row.why or scenario.broke or row.measured}", flush=True)
    return played


def table(found: dict[str, list[Scenario]]) -> str:
    """What held, and what was measured, in Markdown."""
    lines = []
    for kind, played in found.items():
        lines += ["", f"## {_KINDS[kind].kind.capitalize()}", ""]
        lines += ["| what was done | what was promised | | what was measured | s |", "|---|---|---|---|---|"]
        for scenario in played:
            for row in scenario.rows.values():
                why = row.why or (scenario.broke if row.held is None else "")
                verdict = row.verdict + (f": {' '.join(why.split())[:300]}" if why else "")
                told = getattr(row, "measured", "") or "-"
                lines.append(f"| {row.done} | {row.promised} | {verdict} | {told} | {row.seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(_KINDS))
    parser.add_argument("--rows", help=f"by commas: {', '.join(flows.STRUCK)}")
    parser.add_argument("--flows", help=f"by commas: {', '.join(_FLOWS)}")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # whatever ends this, the cluster ends first
        signal.signal(number, signal.default_int_handler)
    place, began = short_folder(), time.monotonic()
    model = tiny_model(place / "model")
    kinds = [given.only] if given.only else list(_KINDS)
    found = {kind: play(kind, place / kind[:1], model, given) for kind in kinds}
    told, minutes = table(found), (time.monotonic() - began) / 60
    print(told, f"\n{minutes:.1f} minutes", sep="\n")
    if not (given.rows or given.flows):
        (Path(__file__).parent / "results.md").write_text(_head(minutes) + told + "\n")
    if any(failed(played) for played in found.values()):
        print(f"NOT all held; everything is kept in {place}", file=sys.stderr)
        return 1
    shutil.rmtree(place)
    return 0


def _head(minutes: float) -> str:
    machine = facts(minutes, 0, "").partition("Machine: ")[2].strip()
    return f"""# What sweeps go through on a cluster

Written by `make cluster-test` on {time.strftime("%Y-%m-%d")}, in {minutes:.1f} minutes: real Ray clusters on one
machine, a head without a CPU and machines of one CPU each, sweeps of {flows.TRIALS} small learned trials, a checkpoint
after every iteration. "Equal" is to the last digit, against the same sweep undisturbed. Ray was told to ask every
second whether machines are there; "told" is when the sweep said that an attempt had ended, "at work again" when the
next one began its first iteration, most of which is the start of its processes.

Machine: {machine}
"""


if __name__ == "__main__":
    sys.exit(main())
