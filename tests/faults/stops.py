"""Sweeps that are stopped from outside, damaged while they lie still, and made to go on: one sweep after the other."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

from tests.faults import damage, stores
from tests.faults.rows import Row, Scenario
from tests.faults.sweep_under_test import Server, SweepUnderTest, check, until

_GRACE_S = 70.0  # the 60 s that are stated, and what Python and Ray take to end

ROWS = {
    "second": Row(
        "the same command while the sweep runs", "refused in one sentence that names the process, exit 2, at once"
    ),
    "once": Row("Ctrl-C, once", "trials save; exit 130 within the stated 60 s; nothing RUNNING in either store"),
    "corrupt": Row(
        "study database overwritten with noise: at its start, in its middle",
        "refused, the file named, exit 2; not a byte changed",
    ),
    "missing": Row("study database missing", "refused, the file named, exit 2; nothing made in its place"),
    "truncated": Row(
        "newest checkpoint of an interrupted trial truncated", "falls back to the one before, says so; result equal"
    ),
    "flipped": Row("one bit of it flipped", "falls back to the one before, says so; result equal"),
    "deleted": Row("one of its files deleted", "falls back to the one before, says so; result equal"),
    "all": Row("all checkpoints of a trial damaged", "the trial fails with the reason, the others finish"),
    "twice": Row("Ctrl-C, twice", "ends at once; the next start repairs and goes on"),
    "run": Row("a trial's MLflow run deleted in mid-sweep", "the sweep finishes; what was refused is told"),
    "terminated": Row("SIGTERM of the driver", "as Ctrl-C: trials save, exit 130, nothing RUNNING"),
}


def play(scenario: Scenario, sweep: SweepUnderTest, server: Server, reference: stores.Reference) -> None:
    """Four starts of one sweep, and what lies between them."""
    sweep.start()
    until(lambda: len(sweep.alive()) == 2, 200, "two trials")
    with scenario.row("second"):
        second(sweep)
    first, other = until(lambda: len(sweep.training()) == 2 and sweep.training(), 200, "two trials with checkpoints")
    with scenario.row("once"):
        interrupt(sweep, signal.SIGINT, server.uri)
    with scenario.row("corrupt", 2):
        damage.refused_study(sweep, "is damaged", damage.noise_at_start)
        damage.refused_study(sweep, "is damaged", damage.noise_in_the_middle)
    with scenario.row("missing"):
        damage.refused_study(sweep, "is missing", Path.unlink)
    damage.truncate(damage.newest(first))
    damage.flip(damage.newest(other))
    sweep.start()
    with scenario.row("truncated"):
        damage.told(sweep, first, 1)
    with scenario.row("flipped"):
        damage.told(sweep, other, 1)
    until(lambda: len(sweep.training()) == 2, 100, "two trials with checkpoints")
    with scenario.row("twice"):
        interrupt_twice(sweep)
    damage.delete_one(damage.newest(first))
    for checkpoint in other.glob("checkpoint_*"):
        damage.flip(checkpoint)
    sweep.start()
    with scenario.row("deleted"):
        damage.told(sweep, first, 2)
    with scenario.row("all"):
        sweep.says(f"trial {other.name} failed")
    third = until(lambda: [path for path in sweep.training(1) if path not in (first, other)], 150, "a third trial")[0]
    with scenario.row("run"):
        runs = stores.Runs(sweep, server.uri)
        runs.client.delete_run(runs.children()[third.name].info.run_id)
        sweep.says("was refused and set aside", 60)
    with scenario.row("terminated"):
        interrupt(sweep, signal.SIGTERM, server.uri)
    sweep.start()
    sweep.finish()
    _after(scenario, sweep, server, reference, first, other, third)


def _after(
    scenario: Scenario,
    sweep: SweepUnderTest,
    server: Server,
    reference: stores.Reference,
    first: Path,
    other: Path,
    third: Path,
) -> None:
    found, told = stores.result(sweep, server.uri), stores.outcomes(sweep)
    with scenario.row("run", 0):
        check(told[third.name][0] == "completed", f"its trial ended {told[third.name]}")
        check(found.metrics[third.name] == reference().metrics[third.name], "its trial came to something else")
    with scenario.row("all", 0):
        check(told[other.name][0] == "failed", f"it ended {told[other.name]}")
        check("no checkpoint in" in told[other.name][1], f"its reason: {told[other.name][1]}")
        check(all(told[each][0] == "completed" for each in told if each != other.name), f"the others: {told}")
    for name in ("truncated", "deleted", "once", "terminated", "twice"):
        with scenario.row(name, 0):
            stores.equal(found, reference(), set(told) - {other.name, third.name})
    with scenario.row("twice", 0):
        check(not stores.open_rows(sweep), f"rows that are open: {stores.open_rows(sweep)}")
        stores.tidy(sweep)


def second(sweep: SweepUnderTest) -> None:
    """The same command once more."""
    assert sweep.process is not None
    done = sweep.run()
    check(done.returncode == 2, f"exit {done.returncode}")
    wanted = f"sweep '{sweep.name}' is being run by process {sweep.process.pid} on "
    check(done.stderr.startswith(wanted) and done.stderr.count("\n") == 1, f"it said {done.stderr}")


def interrupt(sweep: SweepUnderTest, number: int, uri: str | None = None) -> None:
    """Ask for an end, and see one in time with nothing left open."""
    sweep.send(number)
    code = sweep.ended(_GRACE_S)
    check(code == 130, f"exit {code}: {sweep.said()[-300:]}")
    sweep.gone()
    stores.closed(sweep, uri)


def interrupt_twice(sweep: SweepUnderTest) -> None:
    """The second Ctrl-C a moment after the first."""
    sweep.send(signal.SIGINT)
    sweep.says("Stopping: trials save and end", 10)
    time.sleep(0.3)
    sweep.send(signal.SIGINT)
    code = sweep.ended(5)
    check(code == 130, f"exit {code}")
    sweep.gone()


# --- a disk that is full ---------------------------------------------------------------------------------------------

DISK = {
    "full": Row(
        "the disk of the root filled to the last byte for 15 s, then freed",
        "the sweep says so and pauses, then ends; result equal to the uninterrupted one's",
    )
}


def play_disk(scenario: Scenario, sweep: SweepUnderTest, reference: stores.Reference) -> None:
    """A root on a small file system of its own, which only root may mount."""
    mount = shutil.which("mount")
    mounted = mount and os.system(f"{mount} -t tmpfs -o size=300m tmpfs '{sweep.root}' 2>/dev/null") == 0
    if not mounted:
        scenario.skip("this user may not mount a file system")
        return
    try:
        with scenario.row("full"):
            sweep.start()
            until(lambda: len(sweep.training(1)) == 2, 200, "two trials with checkpoints")
            _fill(sweep.root / "filler")
            sweep.says("Disk: only ", 60)
            time.sleep(15)
            check(sweep.running(), f"the sweep ended on the full disk: {sweep.said()[-300:]}")
            check(len(re.findall(r"trial \w{10} starts ", sweep.said())) == 2, "a trial began on the full disk")
            (sweep.root / "filler").unlink()
            sweep.finish()
            stores.agree(sweep)
            stores.equal(stores.result(sweep), reference())
            stores.tidy(sweep)
    finally:
        sweep.end()
        time.sleep(1)
        os.system(f"umount '{sweep.root}' 2>/dev/null || umount -l '{sweep.root}'")


def _fill(file: Path) -> None:
    with open(file, "wb") as filler:
        try:
            while True:
                filler.write(bytes(1 << 20))
                filler.flush()
        except OSError:
            pass
