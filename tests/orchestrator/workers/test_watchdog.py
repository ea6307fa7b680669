"""A process that hangs ends, and says where."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.workers.process_record import Watchdog, place_of_hang

PROGRAM = """
import sys, threading, time
from pathlib import Path
from orchestrator.workers.process_record import Watchdog

def hang():
    time.sleep(60)  # the line that hangs

threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
watchdog = Watchdog(float(sys.argv[2]), Path(sys.argv[1]))
for _ in range(8):
    time.sleep(0.1)
    watchdog.step()
if sys.argv[3] == "hangs":
    hang()
watchdog.close()
time.sleep(0.6)
"""


def run(folder: Path, *arguments: object) -> tuple[int, float, Path]:
    (folder / "program.py").write_text(PROGRAM)
    began = time.monotonic()
    done = subprocess.run([sys.executable, folder / "program.py", folder / "steps", *map(str, arguments)], timeout=30)
    return done.returncode, time.monotonic() - began, folder / "steps"


def test_a_process_that_makes_no_step_is_ended_and_says_where_it_stood(tmp_path: Path) -> None:
    code, took, report = run(tmp_path, 0.5, "hangs")
    line = PROGRAM.splitlines().index("    time.sleep(60)  # the line that hangs") + 1
    assert code == 1 and took < 20
    assert place_of_hang(report) == f"{tmp_path}/program.py, line {line} in hang"


def test_one_that_makes_steps_or_has_ended_is_left_alone(tmp_path: Path) -> None:
    code, _, report = run(tmp_path, 0.5, "ends")
    assert code == 0 and report.read_text() == "" and place_of_hang(report) is None


def test_the_time_of_the_last_step_can_be_seen_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog = Watchdog(60, tmp_path / "steps")
    try:
        before = (tmp_path / "steps").stat().st_mtime_ns
        watchdog.step()
        assert (tmp_path / "steps").stat().st_mtime_ns == before, "wound up once a second at most"
        watchdog.last -= 2
        time.sleep(0.02)
        watchdog.step()
        assert (tmp_path / "steps").stat().st_mtime_ns > before
    finally:
        watchdog.close()


@pytest.mark.parametrize("text", ["", "Fatal Python error: Segmentation fault\n  File 'x', line 1 in y\n"])
def test_nothing_stood_where_no_time_ran_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "steps").write_text(text)
    assert place_of_hang(tmp_path / "steps") is None and place_of_hang(tmp_path / "missing") is None


def test_a_report_that_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("Timeout (0:00:01)!\nThread 0x1 (most recent")
    assert place_of_hang(tmp_path / "steps") == "an unknown place"
