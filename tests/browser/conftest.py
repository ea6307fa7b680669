"""`orchestrate ui` on the finished sweep (tests/conftest.py), and a browser to look at both.

page        a tab of its own, which fails its test for an error in a page of ours
ui          where MLflow serves, and the links that the verb prints
screenshot  keeps what was seen, in $HSO_SCREENSHOTS or tests/browser/screenshots
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from benchmarks.servers import Server, free_port
from orchestrator.store.folder import SweepFolder

WIDE, PHONE = {"width": 1440, "height": 1000}, {"width": 375, "height": 800}
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
_PATIENCE_MS = 30_000

Screenshot = Callable[[str], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(1200))  # the first of them waits for the sweep
            if chromium() is None:
                item.add_marker(pytest.mark.skip(reason="no browser here: install chromium, or name one in $CHROMIUM"))


def chromium() -> str | None:
    """The browser to look with; None where there is none."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@dataclass(frozen=True)
class Ui:
    """`orchestrate ui`, serving. links: what it prints, by the words before each."""

    address: str
    links: dict[str, str]


@pytest.fixture(scope="session")
def ui(finished_sweep: SweepFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    port, log = free_port(), tmp_path_factory.mktemp("ui") / "log"
    command = [sys.executable, "-u", "-m", "orchestrator.cli", "ui", "--no-browser", "--port", str(port)]
    server = Server([*command, "--root", str(finished_sweep.root)], port, log)
    try:
        server.start()
        lines = (line.strip().rpartition("  ") for line in log.read_text().splitlines() if "/#/" in line)
        yield Ui(f"http://127.0.0.1:{port}", {words.strip(): link for words, _, link in lines})
    finally:
        server.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=_PATIENCE_MS)
        started = playwright.chromium.launch(executable_path=chromium(), args=_FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab; its test fails where a page of ours threw an error, or the console of one had one to tell."""
    with browser.new_context(viewport=WIDE) as context:
        tab, amiss = context.new_page(), list[str]()
        tab.set_default_timeout(_PATIENCE_MS)
        tab.on("console", lambda message: amiss.extend(_complaint(message)))
        tab.on("pageerror", lambda error: amiss.append(str(error)))
        yield tab
    assert not amiss, "errors in the page: " + "; ".join(amiss)


def _complaint(message: ConsoleMessage) -> list[str]:
    """An error of a page of ours; MLflow's own pages have some, of which we are not the masters."""
    whence = message.location.get("url", "")
    theirs = "/static-files/" in whence or "/ajax-api/" in whence
    return [f"{message.text} ({whence})"] if message.type == "error" and not theirs else []


@pytest.fixture
def screenshot(page: Page) -> Screenshot:
    folder = Path(os.environ.get("HSO_SCREENSHOTS") or Path(__file__).parent / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> Path:
        path = folder / f"{name}.png"
        page.screenshot(path=path)
        return path

    return take
