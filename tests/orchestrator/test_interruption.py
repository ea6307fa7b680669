"""Requests to end reach every wait of the main thread."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from orchestrator import interruption


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    interruption.forget()


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.02)


@pytest.mark.usefixtures("hangup_counts")
@pytest.mark.parametrize("number", interruption.ENDING)
def test_each_of_them_is_handled_for_the_duration_of_a_block(number: int) -> None:
    before, asked = signal.getsignal(number), []
    with interruption.handled(lambda: asked.append(True)):
        send(number)
    assert asked == [True] and signal.getsignal(number) == before


@pytest.mark.usefixtures("hangup_counts")
def test_signals_that_come_together_are_one_request_and_each_ctrl_c_is_its_own() -> None:
    asked: list[bool] = []
    with interruption.handled(lambda: asked.append(True)):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            send(number)
        assert len(asked) == 1
        send(signal.SIGINT)
        send(signal.SIGINT)
    assert len(asked) == 3


_BESIDE_A_TERMINAL = """
import os, time
from orchestrator import interruption
asked = []
with interruption.handled(lambda: asked.append(True)):
    print("begun", flush=True)
    while not asked:
        time.sleep(0.01)
    print("to nowhere", flush=True)
os._exit(7)
"""


def test_a_process_whose_terminal_has_closed_goes_on_printing() -> None:
    own, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _BESIDE_A_TERMINAL], stdout=its, stderr=its, start_new_session=True
    )
    os.close(its)
    assert os.read(own, 100).startswith(b"begun")
    os.close(own)
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 7


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption.handled(lambda: pytest.fail("nohup was given")):
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_wait_ends_soon_after_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_PATIENCE_S", 0.05)
    interruption.pause(0.01)
    interruption.ask_to_end()
    interruption.pause(0.01)  # what ends soon by itself is waited for
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interruption.pause(60)
    assert time.monotonic() - began < 5


def test_a_wait_of_another_thread_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_PATIENCE_S", 0.0)
    interruption.ask_to_end()
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: (interruption.pause(0.01), ended.append(True)))
    thread.start()
    thread.join(5)
    assert ended == [True]
