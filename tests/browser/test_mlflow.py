"""What a person sees of a sweep in MLflow's own pages, each reached by a link that `orchestrate ui` prints."""

import json
import re
from urllib.parse import quote, urlencode

import mlflow
import pytest
from mlflow.entities import Run
from playwright.sync_api import Frame, Locator, Page, expect

from orchestrator.store.folder import SweepFolder
from orchestrator.tracking.client import Tracking
from tests.browser.conftest import Screenshot, Ui

_PICTURE = "img[src*='images%2Ftraversal']"


@pytest.fixture(scope="session")
def trials(finished_sweep: SweepFolder) -> list[Run]:
    state = finished_sweep.read()
    return Tracking(None, finished_sweep.root).children(state["experiment_id"], state["parent_run"])


@pytest.fixture(scope="session")
def champion(finished_sweep: SweepFolder) -> str:
    return str(finished_sweep.read("result.json")["trial"])


def test_the_run_of_the_sweep(
    page: Page, ui: Ui, finished_sweep: SweepFolder, champion: str, screenshot: Screenshot
) -> None:
    page.goto(ui.links["faces: result"])
    page.get_by_text("Show more").first.click()
    expect(page.get_by_text("Champion: trial")).to_contain_text(champion)
    expect(page.get_by_role("table").filter(has_text="random directions")).to_contain_text("identifiability")
    expect(page.get_by_text("orchestrate export faces --to out")).to_be_visible()
    expect(page.get_by_text("champion/identifiability", exact=True)).to_be_visible()
    screenshot("run")
    for text in ("Datasets", "toyfaces (", "Registered models", "faces-directions"):
        page.get_by_text(text).last.scroll_into_view_if_needed()
        expect(page.get_by_text(text).last).to_be_visible()
    screenshot("run-about")


def test_what_it_has_worked_on(page: Page, ui: Ui, screenshot: Screenshot) -> None:
    page.goto(ui.links["faces: result"])
    page.get_by_text("toyfaces (").click()
    drawer = page.get_by_role("dialog")
    expect(drawer).to_contain_text("samples of toyfaces")
    screenshot("datasets")


def test_pictures_of_a_trial(page: Page, ui: Ui, trials: list[Run], screenshot: Screenshot) -> None:
    """Below the charts of its page, at the step that its slider is moved to; MLflow puts it at 0 first."""
    learned = next(run for run in trials if run.data.tags["method"] == "learned")
    page.goto(_run_page(ui, learned, "model-metrics"))
    page.get_by_text("Add section").scroll_into_view_if_needed()
    slider = page.get_by_role("slider").last
    expect(slider).to_have_attribute("aria-valuemin", "2")  # it knows the steps of the pictures
    slider.press("ArrowRight")
    _shown(page.locator(_PICTURE).first)
    screenshot("trial-pictures")


def test_system_metrics_of_a_trial(page: Page, ui: Ui, trials: list[Run], screenshot: Screenshot) -> None:
    page.goto(_run_page(ui, trials[0], "system-metrics"))
    expect(page.get_by_text("process_memory_usage_megabytes").first).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    screenshot("trial-system-metrics")


def test_trials_in_charts_and_pictures(page: Page, ui: Ui, trials: list[Run], screenshot: Screenshot) -> None:
    """The page that `ui` marks, with a picture of every trial, also of one that was stopped early."""
    assert ui.links["Start here:"] == ui.links["faces: trials, charts and pictures"]
    page.goto(ui.links["Start here:"])
    pictures = page.locator("img[src*='images%2Fresult']")
    expect(pictures).to_have_count(len(trials))
    for k in range(len(trials)):
        _shown(pictures.nth(k))
    screenshot("trials-pictures")
    page.get_by_role("figure").filter(has_text=re.compile("^Objectives")).scroll_into_view_if_needed()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    screenshot("trials-charts")


def test_trials_compared(page: Page, ui: Ui, trials: list[Run], screenshot: Screenshot) -> None:
    page.goto(ui.links["faces: compare"])
    expect(page.get_by_text(f"Comparing {len(trials)} Runs from 1 Experiment")).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    screenshot("compare")


def test_a_comparison_opens_on_the_first_objective(page: Page, ui: Ui, trials: list[Run]) -> None:
    """Of trials that were trained too, which have losses as well."""
    learned = next(run for run in trials if run.data.tags["method"] == "learned")
    chosen = {"runs": json.dumps([learned.info.run_id]), "experiments": json.dumps([learned.info.experiment_id])}
    page.goto(f"{ui.address}/#/compare-runs?{urlencode(chosen, quote_via=quote)}&workflowType=machine_learning")
    selected = page.locator("[class*=select-selection-item]")
    expect(selected.filter(has_text="identifiability").first).to_be_visible()
    expect(selected.filter(has_text="training/")).to_have_count(0)


def test_the_gallery_inside_mlflow(page: Page, ui: Ui, screenshot: Screenshot) -> None:
    """It is one file: its script runs and its pictures show in the frame that MLflow gives it."""
    page.goto(ui.links["faces: gallery"])
    gallery = _frame(page)
    dial = gallery.locator("input[type=range]").first
    expect(dial).to_be_visible()
    _shown(gallery.locator("img, canvas").first)
    before = gallery.locator("body").inner_html()
    dial.focus()
    dial.press("ArrowRight")
    page.wait_for_timeout(300)
    assert gallery.locator("body").inner_html() != before, "its script does nothing"
    screenshot("gallery")


def test_the_registered_model(page: Page, ui: Ui, screenshot: Screenshot) -> None:
    page.goto(ui.links["faces: model"])
    expect(page.get_by_text("champion").first).to_be_visible()
    page.get_by_text("Version 1").first.click()
    expect(page.get_by_text("mlflow.pyfunc.load_model").first).to_be_visible()
    screenshot("model")


@pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # MLflow's, of its own
def test_the_champion_loads_as_its_page_says(ui: Ui, finished_sweep: SweepFolder) -> None:
    """Through the server that the page belongs to."""
    mlflow.set_tracking_uri(ui.address)
    try:
        model = mlflow.pyfunc.load_model("models:/faces-directions@champion")
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # None: as it was
    images = model.predict({"seed": [0, 0], "direction": [0, 0], "scale": [-1.0, 1.0]})
    assert images.shape == (2, 32, 32, 3) and (images[0] != images[1]).any()


def _run_page(ui: Ui, run: Run, tab: str) -> str:
    page = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}/{tab}"
    return f"{ui.address}/#/{page}?workflowType=machine_learning"


def _shown(picture: Locator) -> None:
    """A picture is there, and was decoded."""
    expect(picture).to_be_visible()
    size = "e => e.naturalWidth === undefined ? e.width : e.naturalWidth"
    assert picture.evaluate(size) > 0


def _frame(page: Page) -> Frame:
    """The frame in which MLflow shows an artifact."""
    page.wait_for_selector("iframe")
    handle = page.query_selector("iframe")
    frame = handle and handle.content_frame()
    assert frame is not None
    return frame
