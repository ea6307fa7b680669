"""The page of a sweep, in a browser: as a file, in a frame as MLflow shows it, on a phone, in the dark, on paper."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest
from playwright.sync_api import Frame, Page, expect

from orchestrator.report.page import write_report
from tests.orchestrator.fabricated import crowned, fabricated, mixed

CHARTS = 12  # Pareto front, importance, three slices and the history for each of two objectives, curves
_TICK = ".plot .xtick text"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = fabricated(tmp_path_factory.mktemp("runs"), 14, mixed)
    crowned(folder)
    return write_report(folder, folder.report)


def drawn(page: Page | Frame) -> None:
    """Wait for all charts; by locators, for the page's policy refuses a script to wait with."""
    expect(page.locator(".plot .cartesianlayer .subplot")).to_have_count(CHARTS, timeout=30_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_it_asks_no_network_and_fits(
    width: int, scheme: str, page: Page, report: Path, screenshot: Callable[[str], Path]
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(report.as_uri())
    drawn(page)
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink = "rgb(232, 235, 239)" if scheme == "dark" else "rgb(28, 31, 36)"
    expect(page.locator(_TICK).first).to_have_css("fill", ink)
    assert "<script>alert(1)</script>" in page.inner_text("#failures")
    screenshot(f"report-{width}-{scheme}")


def test_charts_follow_the_scheme_and_the_paper(page: Page, report: Path) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto(report.as_uri())
    drawn(page)
    for media, ink in (({"color_scheme": "light"}, "rgb(28, 31, 36)"), ({"media": "print"}, "rgb(0, 0, 0)")):
        page.emulate_media(**media)  # type: ignore[arg-type]  # words as a dict
        expect(page.locator(_TICK).first).to_have_css("fill", ink)


def test_a_point_leads_to_its_trial(page: Page, report: Path) -> None:
    page.goto(report.as_uri())
    drawn(page)
    page.evaluate(
        "document.querySelector('#front .plot').emit('plotly_click', {points: [{customdata:"
        " document.querySelector('tr[data-trial]:nth-child(3)').dataset.trial}]})"
    )
    assert page.locator("tr.pointed").count() == 1
    assert page.locator("tr[data-trial]:nth-child(3)").get_attribute("class") == "pointed"
    assert page.evaluate("document.querySelector('tr.pointed').getBoundingClientRect().top < innerHeight")


def test_it_works_in_the_frame_that_mlflow_puts_it_in(page: Page, report: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer.html"
    frame = f'<iframe sandbox="allow-scripts" width="800" height="600" srcdoc="{escape(report.read_text())}"></iframe>'
    outer.write_text(f"<!doctype html><meta charset=utf-8>{frame}")
    page.goto(outer.as_uri())
    inner = page.frames[1]
    drawn(inner)
    assert "champion" in inner.inner_text("#result")


def test_it_makes_sense_without_scripts_and_with_the_keyboard_alone(page: Page, report: Path) -> None:
    browser = page.context.browser
    assert browser is not None
    with browser.new_context(java_script_enabled=False) as context:
        plain = context.new_page()
        plain.goto(report.as_uri())
        assert "Charts need scripts" in plain.inner_text("#slices")
        plain.keyboard.press("Tab")
        assert plain.locator(":focus").inner_text() == "To the result"
        for _ in range(40):
            plain.keyboard.press("Tab")
            if plain.locator("summary:focus").count() and "Each parameter" in plain.locator(":focus").inner_text():
                break
        plain.keyboard.press("Enter")
        assert plain.locator("#slices details[open] tbody tr").count() == 10
