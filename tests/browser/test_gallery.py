"""The gallery in a real browser: what a person turns, sorts, reads and copies, and what must never happen."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from orchestrator.bundle.gallery import ShownSet, page
from tests.galleries import SCALES, colour, dial, directions, flat_images, measured, turned, unmeasured

HOSTILE = '</script><img src=x onerror="document.title=1"><b>'

Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens sets as a file; in the end, nothing may have been fetched, and nothing complained of."""
    asked: list[str] = []
    complaints: list[str] = []
    contexts = []

    def open_(
        *sets: ShownSet, width: int = 1280, html: str = "", fragment: str = "", script: bool = True, **context: str
    ) -> Page:
        contexts.append(
            browser.new_context(
                viewport={"width": width, "height": 800}, reduced_motion="reduce", java_script_enabled=script, **context
            )
        )
        view = contexts[-1].new_page()
        view.on("request", lambda request: asked.append(request.url))
        view.on("console", lambda message: complaints.append(message.text))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        file = tmp_path / f"{len(contexts)}.html"
        file.write_text(html or page(sets))
        view.goto(file.as_uri() + fragment)
        return view

    yield open_
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:", "blob:"))] == []
    assert complaints == []


def slider(view: Page, card: str) -> Locator:
    return view.locator(f"#{card} input[type=range]")


def pixel(view: Page, card: str, x: float, y: float) -> tuple[int, ...]:
    """The stage's colour at a place given in parts of its width and height."""
    view.locator(f"#{card}").scroll_into_view_if_needed()
    found = view.wait_for_function(
        """([card, x, y]) => {
            const canvas = document.querySelector(`#${card} canvas`);
            const copy = new OffscreenCanvas(1, 1).getContext('2d');
            copy.drawImage(canvas, -Math.floor(x * canvas.width), -Math.floor(y * canvas.height));
            const [red, green, blue, opacity] = copy.getImageData(0, 0, 1, 1).data;
            return opacity ? [red, green, blue] : null;  // nothing drawn yet
        }""",
        arg=[card, x, y],
    )
    return tuple(found.json_value())


def order(view: Page) -> list[str]:
    return [card.get_attribute("id") or "" for card in view.locator("article:visible").all()]


def test_the_slider_shows_the_frames_of_all_samples_by_keyboard(opened: Open) -> None:
    view = opened(measured())
    slider(view, "a-2").focus()
    assert pixel(view, "a-2", 0.2, 0.5) == colour(0, 2, 5)  # at first, as near to scale 1 as there is
    assert pixel(view, "a-2", 0.8, 0.5) == colour(1, 2, 5)
    view.keyboard.press("ArrowRight")
    assert pixel(view, "a-2", 0.2, 0.5) == colour(0, 2, 6)
    expect(view.locator("#a-2 .scale")).to_have_text("scale +2")
    expect(slider(view, "a-2")).to_have_attribute(
        "aria-valuetext", "scale +2, outside the range where images stay faithful"
    )
    expect(view.locator("#a-2 .beyond")).to_be_visible()
    expect(view.locator("#a-2 code")).to_have_text('directions.applied(pipeline.unet, "smile", 2.0)')
    for _ in range(3):
        view.keyboard.press("ArrowLeft")
    assert pixel(view, "a-2", 0.2, 0.5) == colour(0, 2, 3)
    expect(view.locator("#a-2 .scale")).to_have_text("scale 0, unshifted")
    expect(view.locator("#a-2 .beyond")).to_be_hidden()
    assert pixel(view, "a-1", 0.2, 0.5) == colour(0, 1, 5)  # its own slider alone


def test_the_slider_stands_above_the_frame_it_shows_and_follows_the_pointer(opened: Open) -> None:
    view = opened(measured())
    strip, track = view.locator("#a-2 .strip").bounding_box(), slider(view, "a-2").bounding_box()
    assert strip and track
    for place in (0, 2, 6):
        x = strip["x"] + strip["width"] * (place + 0.5) / 7
        view.mouse.click(x, track["y"] + track["height"] / 2)
        assert slider(view, "a-2").input_value() == str(place)
        assert pixel(view, "a-2", 0.2, 0.5) == colour(0, 2, place)
        column = view.locator("#a-2 .veils .at").bounding_box()
        assert column and column["x"] < x < column["x"] + column["width"]
    view.mouse.click(strip["x"] + strip["width"] * 1.5 / 7, strip["y"] + 10)  # on a frame itself
    assert slider(view, "a-2").input_value() == "1"


def test_frames_fade_into_each_other_where_motion_is_welcome(browser: Browser, tmp_path: Path) -> None:
    context = browser.new_context(reduced_motion="no-preference")
    view = context.new_page()
    (tmp_path / "page.html").write_text(page([measured()]))
    view.goto((tmp_path / "page.html").as_uri())
    assert pixel(view, "a-2", 0.2, 0.5) == colour(0, 2, 5)
    reds = view.evaluate("""async () => {
        const card = document.getElementById('a-2'), slider = card.querySelector('input'), reds = [];
        slider.value = 0;
        slider.dispatchEvent(new Event('input'));
        for (let frame = 0; frame < 60; frame++) {
            await new Promise(requestAnimationFrame);
            const copy = new OffscreenCanvas(1, 1).getContext('2d');
            copy.drawImage(card.querySelector('canvas'), -2, -2);
            reds.push(copy.getImageData(0, 0, 1, 1).data[0]);
        }
        return reds;
    }""")
    first, last = colour(0, 2, 5)[0], colour(0, 2, 0)[0]
    assert reds[-1] == last and any(last < red < first for red in reds)
    context.close()


def test_one_sample_can_be_chosen(opened: Open) -> None:
    view = opened(measured())
    tall = view.locator("#a-2 .strip").bounding_box()
    view.get_by_role("combobox", name="Sample").select_option("B")
    assert pixel(view, "a-2", 0.1, 0.5) == pixel(view, "a-2", 0.9, 0.5) == colour(1, 2, 5)
    low = view.locator("#a-2 .strip").bounding_box()
    assert tall and low and low["height"] == pytest.approx(tall["height"] / 2, abs=1)
    assert view.locator("#a-2 .seeds span:visible").all_text_contents() == ["B"]
    view.get_by_role("combobox", name="Sample").select_option("all")
    assert pixel(view, "a-2", 0.1, 0.5) == colour(0, 2, 5)


def test_sorting(opened: Open) -> None:
    view = opened(measured())
    assert order(view) == ["a-2", "a-1", "a-0"]
    expected = {
        "by index": ["a-0", "a-1", "a-2"],
        "by name": ["a-1", "a-0", "a-2"],  # direction_1, older, smile
        "by effect on age": ["a-0", "a-1", "a-2"],
        "by effect on smile": ["a-2", "a-1", "a-0"],
        "by score": ["a-2", "a-1", "a-0"],
    }
    for name, ids in expected.items():
        view.get_by_role("combobox", name="Sort").select_option(name)
        assert order(view) == ids, name


def test_filtering_by_name_and_by_what_a_direction_moves(opened: Open) -> None:
    view = opened(measured())
    view.get_by_label("Filter", exact=True).fill("OLD")
    assert order(view) == ["a-0"]
    expect(view.locator("#count")).to_have_text("1 of 3 directions")
    view.get_by_label("Filter", exact=True).fill("smile")
    assert order(view) == ["a-2", "a-1"]  # the latter by its effect; 0.1 standard deviations of the third do not count
    view.get_by_label("Filter", exact=True).fill("nothing like it")
    assert order(view) == []
    expect(view.get_by_text("No direction fits the filter.")).to_be_visible()
    view.get_by_label("Filter", exact=True).fill("")
    expect(view.locator("#count")).to_have_text("3 directions")


def test_a_link_leads_to_its_direction_even_when_it_is_filtered_out(opened: Open) -> None:
    view = opened(measured(), width=375)
    view.get_by_label("Filter", exact=True).fill("smile")
    view.evaluate("location.hash = 'a-0'")
    expect(view.locator("#a-0 h3")).to_be_in_viewport()
    arrived = opened(measured(), width=375, fragment="#a-0")
    top = "document.querySelector('#a-0').getBoundingClientRect().top"
    assert 0 <= arrived.evaluate(f"new Promise(then => setTimeout(() => then({top}), 300))") < 100


def test_picking_a_direction_highlights_its_match_in_the_other_set(opened: Open) -> None:
    a = measured("A")
    view = opened(a, turned(a, "B"))
    slider(view, "a-2").focus()
    expect(view.locator("#a-2")).to_have_class(re.compile("picked"))
    expect(view.locator(".matched")).to_have_attribute("id", "b-0")
    expect(view.locator("#b-0 h3")).to_be_in_viewport()
    expect(view.locator("#a-0 .alike")).to_have_text("most like it: older again, |cos| 1.00, opposite sign")
    view.locator("#b-1 h3").click()
    assert view.locator(".picked, .matched").evaluate_all("all => all.map(one => one.id)") == ["a-1", "b-1"]


def test_a_measured_and_an_unmeasured_set_stand_side_by_side(opened: Open) -> None:
    view = opened(measured(), unmeasured())
    expect(view.get_by_text("Nobody has measured the directions of Nobody's")).to_be_visible()
    assert order(view) == ["a-2", "a-1", "b-1", "a-0", "b-0"]
    assert side_by_side(view, "a-1", "b-1") and side_by_side(view, "a-0", "b-0")  # the same numbers
    expect(view.locator("li:has(#a-2)")).to_contain_text("Nothing of Nobody's is like it.")


def side_by_side(view: Page, left: str, right: str) -> bool:
    a, b = (view.locator(f"#{card}").bounding_box() for card in (left, right))
    assert a and b
    return a["x"] + a["width"] < b["x"] and a["y"] == b["y"]


def test_whatever_the_order_what_is_alike_stays_side_by_side(opened: Open) -> None:
    a = measured("A")
    view = opened(a, turned(a, "B"))
    for by in ("by name", "by index", "by effect on age", "by score"):
        view.get_by_role("combobox", name="Sort").select_option(by)
        assert all(side_by_side(view, f"a-{k}", f"b-{2 - k}") for k in range(3))
    view.get_by_label("Filter", exact=True).fill("older")
    assert order(view) == ["a-0", "b-2"]
    narrow = opened(a, turned(a, "B"), width=600)
    assert order(narrow) == ["a-2", "b-0", "a-0", "b-2", "a-1", "b-1"]
    expect(narrow.locator("li:has(#a-1) .of")).to_have_text(["A", "B"])


def test_in_a_narrow_frame_a_picture_is_there_as_soon_as_its_place_is_in_sight(opened: Open) -> None:
    """As MLflow's viewer shows it: the strip that the picture is cut from is far below."""
    text = json.dumps(page([measured()])).replace("<", "\\u003c")
    view = opened(
        html=f"""<!doctype html><meta charset="utf-8">
        <iframe sandbox="allow-scripts" width="360" height="260"></iframe>
        <script>const frame = document.querySelector('iframe');
        frame.src = URL.createObjectURL(new Blob([{text}], {{type: 'text/html'}}));</script>"""
    )
    frame = view.frames[1]
    frame.locator("#a-2 canvas").wait_for()
    frame.evaluate("() => document.querySelector('#a-2').scrollIntoView({behavior: 'instant'})")
    expect(frame.locator("#a-2 .strip")).not_to_be_in_viewport()
    assert frame.wait_for_function(
        "() => document.querySelector('#a-2 canvas').getContext('2d').getImageData(1, 1, 1, 1).data[3]", timeout=5000
    )


def test_hostile_names_are_text(opened: Open) -> None:
    strange = directions((HOSTILE, "b"), dials=(dial(**{HOSTILE: 1.0}), dial(**{HOSTILE: 0.0})))
    view = opened(ShownSet(strange, flat_images(2, 2), HOSTILE), ShownSet(strange, flat_images(2, 2), HOSTILE))
    expect(view.locator("#a-0 h3 bdi")).to_have_text(HOSTILE)
    view.get_by_role("combobox", name="Sort").select_option(f"by effect on {HOSTILE}")
    view.get_by_label("Filter", exact=True).fill("onerror")
    assert order(view) == ["a-0", "b-0"]
    assert view.evaluate("document.title") == f"{HOSTILE} and {HOSTILE}"
    assert view.locator("img[onerror], main b:not(.score b, .range b)").count() == 0


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
@pytest.mark.parametrize("sets", ["one", "two"])
def test_nothing_is_wider_than_the_window(opened: Open, width: int, sets: str) -> None:
    long = ShownSet(directions(("a" * 200, "b"), dials=(dial(), dial())), flat_images(2, 2), "a" * 200)
    view = opened(*((long,) if sets == "one" else (long, measured())), width=width)
    assert view.evaluate("document.documentElement.scrollWidth") <= width


def test_everything_can_be_reached_and_has_a_label(opened: Open) -> None:
    view = opened(measured(), turned(measured(), "B"))
    unlabelled = view.evaluate("""() => [...document.querySelectorAll('input, select, button, a, img, canvas')].filter(
        one => !(one.labels?.length || one.getAttribute('aria-label') || one.alt || one.textContent.trim()))
        .map(one => one.outerHTML)""")
    assert unlabelled == []
    assert view.evaluate("""() => {
        const ids = [...document.querySelectorAll('[id]')].map(one => one.id);
        return ids.length === new Set(ids).size && document.documentElement.lang === 'en'
            && document.querySelectorAll('h1').length === 1 && document.querySelectorAll('main').length === 1;
    }""")
    reached = []
    for _ in range(8):
        view.keyboard.press("Tab")
        reached.append(view.evaluate("document.activeElement.id || document.activeElement.classList[0]"))
        outline = view.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or reached[-1] is None  # a slider's ring is around its thumb
    assert reached[:5] == ["skip", "theme", "filter", "sort", "seed"]
    view.locator(".skip").focus()
    view.keyboard.press("Enter")
    assert view.evaluate("document.activeElement.id") == "directions"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_systems_until_it_is_chosen_and_text_stands_out(opened: Open, scheme: str) -> None:
    view = opened(measured(), color_scheme=scheme)
    contrast = """(selector) => {
        const light = (colour) => {
            const [r, g, b] = colour.match(/[0-9.]+/g).map(Number).map(
                (part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const one = document.querySelector(selector);
        const behind = getComputedStyle(one.closest('.card') ?? document.body).backgroundColor;
        const [dark, bright] = [light(getComputedStyle(one).color), light(behind)].sort((a, b) => a - b);
        return (bright + 0.05) / (dark + 0.05);
    }"""
    paper = view.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 3 * 128) == (scheme == "dark")
    button = view.get_by_role("button", name="Theme")
    for _ in range(3):
        for selector in (".lead", ".facts", ".formula", ".beyond", ".copy", ".value", ".range", "h3"):
            assert view.evaluate(contrast, selector) >= 4.5, selector
        button.click()
    assert view.evaluate("getComputedStyle(document.body).backgroundColor") == paper  # round once
    button.click()
    expect(button).to_have_text("Theme: dark")
    assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 24)"


def test_the_line_can_be_copied(opened: Open) -> None:
    view = opened(measured(), permissions=["clipboard-read", "clipboard-write"])  # type: ignore[arg-type]  # for the context
    view.get_by_label("Copy the line for smile").click()
    expect(view.locator("#a-2 .copy")).to_have_text("Copied")
    assert view.evaluate("navigator.clipboard.readText()") == 'directions.applied(pipeline.unet, "smile", 1.0)'


@pytest.mark.parametrize("source", ["text", "blob"])
def test_it_works_in_a_sandbox(opened: Open, source: str) -> None:
    """As MLflow shows an artifact: scripts, and nothing else, not even an origin."""
    text = json.dumps(page([measured("A"), turned(measured("A"), "B")])).replace("<", "\\u003c")
    shown = {"text": f"frame.srcdoc = {text}", "blob": f"frame.src = URL.createObjectURL(new Blob([{text}], html))"}
    view = opened(
        html=f"""<!doctype html><meta charset="utf-8">
        <iframe sandbox="allow-scripts" width="1200" height="700"></iframe>
        <script>const frame = document.querySelector('iframe'), html = {{type: 'text/html'}};
        {shown[source]}</script>"""
    )
    frame = view.frame_locator("iframe")
    frame.locator("#a-2 input[type=range]").focus()
    view.keyboard.press("Home")
    expect(frame.locator("#a-2 .scale")).to_have_text("scale −2")
    frame.get_by_role("combobox", name="Sort").select_option("by name")
    frame.get_by_role("button", name="Theme").click()
    frame.get_by_label("Copy the line for smile", exact=True).click()
    expect(frame.locator("#a-2 .copy")).to_have_text(re.compile("Copied|Selected"))
    frame.locator("#a-2 .alike").click()
    expect(frame.locator("#b-0")).to_be_in_viewport()
    expect(frame.locator("h1")).to_have_text("A beside B")  # still the page itself


def test_without_scripts_the_strips_and_all_numbers_are_there(opened: Open) -> None:
    view = opened(measured(), script=False)
    strip = view.locator("#a-2 .strip img")
    expect(strip).to_be_visible()
    assert view.locator(".strip img").count() == 3
    box = strip.bounding_box()
    assert box and box["width"] > 300
    expect(view.locator("#a-2 .scales")).to_be_visible()
    expect(view.locator("#a-2 .profile")).to_contain_text("+2.00")
    expect(view.get_by_label("Filter", exact=True)).to_be_hidden()
    expect(slider(view, "a-2")).to_be_hidden()


def test_the_range_lies_on_the_slider_where_its_scales_are(opened: Open) -> None:
    view = opened(measured())
    style = view.locator("#a-2").get_attribute("style") or ""
    found = [float(re.findall(rf"--{end}:([0-9.]+)", style)[0]) for end in ("from", "to")]
    places = dict(zip((*SCALES[:3], 0.0, *SCALES[3:]), range(7), strict=True))
    assert places[-2.0] / 6 < found[0] < places[-1.0] / 6 and places[1.0] / 6 < found[1] < places[2.0] / 6
