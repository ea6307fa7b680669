"""The explore page in a real browser: sliders, own images, downloads, mistakes; nothing is fetched from elsewhere."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import pytest
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from benchmarks.servers import free_port
from orchestrator.cli import main as cli
from tests.orchestrator.bundles import tiny_bundle

HOSTILE = '<img src=x onerror="document.title=1"> [a](http://example.com)'
NAMES = ("smile", "yaw", HOSTILE, *(f"direction_{k}" for k in range(7)))
_PATIENCE_MS = 60_000

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle("toyfaces", tmp_path_factory.mktemp("bundles") / "a <b>set", steps=6, names=NAMES)


@pytest.fixture(scope="module")
def address(bundle: Path) -> Iterator[str]:
    with served(bundle) as address:
        yield address


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    """The page, served by the verb."""
    port = free_port()
    command = [sys.executable, "-u", "-m", "orchestrator.cli", "explore", str(bundle)]
    with subprocess.Popen(
        [*command, "--port", str(port), "--no-browser"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("Explore: ")
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Open]:
    """Opens the page; in the end nothing may have been fetched from elsewhere, and no error complained of."""
    asked: list[str] = []
    origins: set[str] = set()
    complaints: list[str] = []
    contexts = []

    def open_(
        width: int = 1280, height: int = 900, scheme: Literal["light", "dark"] = "light", at: str = address
    ) -> Page:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        view = contexts[-1].new_page()
        view.set_default_timeout(_PATIENCE_MS)
        expect.set_options(timeout=_PATIENCE_MS)
        view.on("request", lambda request: asked.append(request.url))
        view.on("console", lambda message: complaints.extend([message.text] if message.type == "error" else []))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        origins.add(at)
        view.goto(at)
        view.locator("#edited img").wait_for()
        return view

    yield open_
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith((*origins, "data:", "blob:"))] == []
    assert complaints == []


def shot(view: Page, name: str) -> None:
    """Keeps what was seen where $HSO_SCREENSHOTS says."""
    if folder := os.environ.get("HSO_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        view.screenshot(path=Path(folder) / f"explore_{name}.png")


def source(view: Page, which: str) -> str:
    return view.locator(f"#{which} img").get_attribute("src") or ""


def changed(view: Page, which: str, was: str) -> str:
    expect(view.locator(f"#{which} img")).not_to_have_attribute("src", was)
    return source(view, which)


def press(view: Page, name: str, key: str, times: int = 1) -> None:
    view.get_by_label(f"range slider for {name}", exact=True).focus()
    for _ in range(times):
        view.keyboard.press(key)


def saved(view: Page, button: str, to: Path) -> Path:
    with view.expect_download() as download:
        view.get_by_role("button", name=button).click()
    download.value.save_as(to / download.value.suggested_filename)
    return to / download.value.suggested_filename


def test_a_slider_edits_and_what_is_seen_can_be_taken_away(opened: Open, bundle: Path, tmp_path: Path) -> None:
    view = opened()
    plain, edited = source(view, "original"), source(view, "edited")
    press(view, "yaw", "ArrowRight", times=20)
    expect(view.locator("#edited img")).to_have_attribute(
        "src", re.compile(r"seed_0__yaw%2B1\.png|seed_0__yaw\+1\.png")
    )
    assert source(view, "original") == plain and source(view, "edited") != edited
    shot(view, "desktop_light")
    settings = saved(view, "Download the settings", tmp_path)
    picture = saved(view, "Download the image", tmp_path)
    assert json.loads(settings.read_text())["directions"] == {"yaw": 1.0}
    assert cli.main(["edit", str(bundle), "--settings", str(settings), "--to", str(tmp_path / "again.png")]) == 0
    with Image.open(picture) as taken, Image.open(tmp_path / "again.png") as again:
        assert taken.size == (32, 32)
        apart = [abs(a - b) for a, b in zip(taken.tobytes(), again.tobytes(), strict=True)]
        assert max(apart) <= 1


def test_dragging_leaves_the_last_picture_and_queues_nothing(opened: Open) -> None:
    view, begun = opened(), list[str]()
    view.on("request", lambda request: begun.extend([request.url] if "queue/join" in request.url else []))
    press(view, "smile", "ArrowRight", times=30)
    press(view, "smile", "ArrowLeft", times=10)
    expect(view.locator("#edited img")).to_have_attribute("src", re.compile(r"seed_0__smile(%2B|\+)1\.png"))
    view.wait_for_timeout(1500)
    assert re.search(r"smile(%2B|\+)1\.png", source(view, "edited")) and 0 < len(begun) < 30
    view.get_by_role("button", name="Reset the sliders").click()
    expect(view.locator("#edited img")).to_have_attribute("src", re.compile(r"seed_0\.png"))


def test_seeds_and_own_images(opened: Open, tmp_path: Path) -> None:
    view = opened()
    first = source(view, "original")
    view.get_by_label("Seed", exact=True).fill("5")
    view.keyboard.press("Enter")
    second = changed(view, "original", first)
    view.get_by_role("button", name="Random seed").click()
    third = changed(view, "original", second)
    Image.new("RGB", (64, 40), "teal").save(tmp_path / "me.png")
    view.get_by_role("button", name="Your own image, instead of the seed").click()
    view.locator("#own input[type=file]").set_input_files(tmp_path / "me.png")
    expect(view.locator("#original img")).to_have_attribute("src", re.compile(r"/me\.png"))
    expect(view.locator("#notes")).to_contain_text("me.png is 64 x 40 pixels; the model draws 32 x 32: cropped around")
    expect(view.locator("#notes")).to_contain_text(re.compile(r"me.png is redrawn, .* a mean error of [0-9.]+ of 255"))
    shot(view, "own_image")
    view.get_by_role("button", name="Random seed").click()
    expect(view.locator("#original img")).to_have_attribute("src", re.compile(r"seed_\d+\.png"))
    assert source(view, "original") not in (first, second, third)


def test_a_mistake_is_one_sentence_and_the_picture_stays(opened: Open, tmp_path: Path) -> None:
    view = opened()
    before = source(view, "edited")
    (tmp_path / "text.png").write_text("hello")
    view.get_by_role("button", name="Your own image, instead of the seed").click()
    view.locator("#own input[type=file]").set_input_files(tmp_path / "text.png")
    expect(view.get_by_role("alert")).to_have_text(
        "images: text.png cannot be read as a picture (it is no BMP, JPEG, PNG, TIFF or WEBP)"
    )
    assert source(view, "edited") == before
    shot(view, "mistake")


def test_injection_and_window_change_the_picture(opened: Open) -> None:
    view = opened()
    press(view, "yaw", "End")
    symmetric = changed(view, "edited", source(view, "edited"))
    view.wait_for_timeout(1500)
    symmetric = source(view, "edited")
    view.get_by_role("button", name="How it is edited").click()
    view.get_by_label("asymmetric").check()
    asymmetric = changed(view, "edited", symmetric)
    view.get_by_label("Edited from timestep").click()
    view.get_by_role("option", name="166", exact=True).click()
    changed(view, "edited", asymmetric)


def test_names_of_a_stranger_are_text(opened: Open) -> None:
    view = opened()
    expect(view.get_by_label(f"range slider for {HOSTILE}", exact=True)).to_be_visible()
    assert view.title() == "explore a <b>set" and view.locator("h1 b").count() == 0
    assert view.locator("a[href*=example]").count() == 0
    press(view, HOSTILE, "End")
    changed(view, "edited", source(view, "original"))


@pytest.mark.parametrize("size", [(8, 12), (12, 8)])
def test_images_keep_their_aspect_ratio_and_names_their_alphabet(
    opened: Open, tmp_path: Path, size: tuple[int, int]
) -> None:
    height, width = size
    network = UNet2DModel(
        sample_size=size,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    DDIMPipeline(network, DDIMScheduler(clip_sample=False)).save_pretrained(tmp_path / "model")
    with served(tiny_bundle(tmp_path / "model", tmp_path / "größe", names=("улыбка", "微笑", "ابتسامة"))) as address:
        for page_width in (1280, 375):
            view = opened(page_width, at=address)
            assert view.title() == "explore größe"
            press(view, "улыбка", "End")
            expect(view.locator("#edited img")).to_have_attribute("src", re.compile(re.escape(quote("улыбка"))))
            for which in ("original", "edited", "difference"):
                box = view.locator(f"#{which} img").bounding_box()
                assert box is not None and box["width"] / box["height"] == pytest.approx(width / height, rel=0.02)
            assert saved(view, "Download the image", tmp_path).name == "seed_0__улыбка+2.5.png"
            shot(view, f"{height}x{width}_{page_width}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off_and_the_pictures_stay_in_sight(opened: Open, scheme: str) -> None:
    view = opened(375, 812, scheme)
    assert view.evaluate("document.documentElement.scrollWidth") == 375
    assert view.locator("input[type=range]:visible").count() == 8
    more = view.get_by_role("button", name="2 more directions")
    more.scroll_into_view_if_needed()
    expect(view.locator("#edited img")).to_be_in_viewport()
    box = view.locator("#original img").bounding_box()
    assert box is not None
    for part in (0.1, 0.5, 0.9):  # nothing that scrolls shines through
        place = [box["x"] + 0.2 * box["width"], box["y"] + part * box["height"]]
        assert view.evaluate("([x, y]) => document.elementFromPoint(x, y).closest('#original') !== null", place)
    more.click()
    expect(view.locator("input[type=range]:visible")).to_have_count(10)
    paper = re.findall(r"\d+", view.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (sum(map(int, paper[:3])) < 3 * 128) == (scheme == "dark")
    assert view.locator("footer:visible").count() == 0 and view.get_by_text("Use via API").count() == 0
    shot(view, f"phone_{scheme}")


def test_every_control_has_a_name(opened: Open) -> None:
    view = opened()
    nameless = view.evaluate(
        """() => [...document.querySelectorAll('input, button, select')]
            .filter(one => one.offsetParent && !(one.ariaLabel || one.labels?.length || one.innerText.trim()
                || one.title || one.querySelector('img[alt]')))
            .map(one => one.outerHTML)"""
    )
    assert nameless == []
