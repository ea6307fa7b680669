"""The gallery's page, without a browser: what it says, what it shows, and what a stranger's set cannot do to it."""

import ast
import base64
import hashlib
import io
import json
import re
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from core import Denoiser, DirectionSet, Schedule
from core.errors import DirectionSetError, UserError
from core.metrics import Traversals
from core.metrics.calibration import with_dials
from orchestrator.bundle.gallery import ShownSet, cosines, incomparable, matched, number, page
from orchestrator.bundle.gallery_pictures import colours, difference, frames, sheet
from tests.galleries import SCALES, colour, dial, directions, flat_images, measured, turned, unmeasured

HOSTILE = '</script><img src=x onerror="document.title=1">\'&\u202e'


class Page(HTMLParser):
    """What a browser would make of it: tags with their attributes, and the text of everything."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        (self.scripts if self.cdata_elem else self.texts).append(data)

    def all(self, tag: str, name: str) -> list[str]:
        return [attributes[name] or "" for found, attributes in self.tags if found == tag and name in attributes]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self) -> dict[str, dict[str, object]]:
        cards: dict[str, dict[str, object]] = json.loads(self.scripts[-1])["cards"]
        return cards


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_directions_are_ranked_by_score_and_say_who_named_them() -> None:
    read = Page(page([measured()]))
    assert read.all("article", "id") == ["a-2", "a-1", "a-0"]
    assert "0.80 = 0.80 consistency × 1.00 distinctness" in read.text
    assert "named after the attribute it moves, direction 2 of the set" in read.text
    assert "smile +2.00 age 0.00" in read.text and "age −1.50 smile +0.10" in read.text
    assert "Nobody has measured" not in read.text


def test_a_set_that_nobody_has_measured_says_so_and_keeps_its_order() -> None:
    read = Page(page([unmeasured()]))
    assert read.all("article", "id") == ["a-0", "a-1"]
    assert "Nobody has measured these directions" in read.text
    assert "consistency" not in read.text and "Faithful from" not in read.text
    assert 'value="score"' not in page([unmeasured()])


def test_a_long_profile_shows_its_strongest_attributes_first_and_the_others_on_demand() -> None:
    effects = {f"attribute {i}": (-1) ** i * i / 10 for i in range(1, 9)}
    shown = ShownSet(directions(("a",), dials=(dial(**effects),)), flat_images(2, 1), "A")
    text = Page(page([shown])).text
    profile = text[text.index("standard deviations") : text.index("Where it acts")]
    assert re.findall(r"attribute (\d)|(\d) more", profile) == [
        *((str(i), "") for i in (8, 7, 6, 5, 4, 3)), ("", "2"), ("2", ""), ("1", "")
    ]  # fmt: skip


def test_frames_outside_the_range_are_marked() -> None:
    read = Page(page([measured()]))
    assert read.data["a-0"]["outside"] == [True, False, False, False, False, False, True]
    assert not any(read.data["a-1"]["outside"])  # type: ignore[arg-type]
    marked = [attributes for tag, attributes in read.tags if tag == "span" and "title" in attributes]
    assert sum(each["title"] == "outside the range where images stay faithful" for each in marked) == 4
    assert "Faithful from −1.2 to +1.7" in read.text
    # 0.8 of the way from -1 to -2 is left, and 0.3 of the way from 2 to 1: the frames stand at equal distances.
    style = next(style for style in read.all("article", "style") if "--from:0.13" in style)
    assert re.search(r"--from:0.1333;--to:0.9500", style)


def test_the_sheet_holds_every_frame_a_row_for_each_sample() -> None:
    images = frames(flat_images(2, 3), 1)
    whole = picture(sheet(images))
    assert whole.size == (8 * 7, 8 * 2) and whole.format == "PNG"
    found = [[whole.convert("RGB").getpixel((8 * place + 4, 8 * m + 4)) for place in range(7)] for m in range(2)]
    assert found == [[colour(m, 1, place) for place in range(7)] for m in range(2)]


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 256, 256), (1, 100, 200), (1, 28, 28)])
def test_large_images_are_made_smaller_and_grey_ones_stay_grey(channels: int, height: int, width: int) -> None:
    images = torch.linspace(-1, 1, width).expand(2, 3, channels, height, width)
    whole = picture(sheet(images))
    shrink = min(1.0, 160 / max(height, width))
    assert whole.size == (3 * round(width * shrink), 2 * round(height * shrink))
    assert whole.format == ("PNG" if width <= 64 else "WEBP")
    red, green, blue = whole.convert("RGB").getpixel((round(width * shrink) - 1, 0))
    assert red == green == blue and red > 245


def test_the_map_shows_where_the_ends_of_the_range_differ() -> None:
    images = torch.zeros(2, 4, 3, 8, 8)
    images[:, 1, :, :, :4], images[:, 2, :, :, :4] = -0.5, 0.5
    images[0, 2, :, :, 4:] = 0.5  # of one sample in two
    images[:, 3] = 7.0  # outside of the range
    found = difference(images, 1, 2)
    assert found is not None and found.most == pytest.approx(0.5)
    seen = picture(found.uri).convert("RGB")
    assert seen.getpixel((0, 0)) == tuple(colours()[255])
    assert seen.getpixel((7, 7)) == tuple(colours()[64])
    assert difference(torch.full((1, 2, 1, 8, 8), torch.nan), 0, 1) is None


def test_the_map_is_of_the_widest_frames_inside_the_range_or_missing() -> None:
    shown = measured()
    narrow = replace(shown.directions, dials=(dial(low=-0.1, high=0.2), dial(low=-0.1, high=1.0), dial(low=-9, high=9)))
    text = Page(page([replace(shown, directions=narrow)])).text
    assert "between 0 and +1, the widest drawn inside the range" in text
    assert "between −2 and +2, the widest drawn inside the range" in text
    assert "of the frames drawn, no two inside the range can be compared" in text


def test_names_and_provenance_of_strangers_are_text() -> None:
    strange = directions(
        (HOSTILE, "b"),
        dials=(dial(**{HOSTILE: 1.0}), dial(**{HOSTILE: -1.0})),
        provenance={"model": HOSTILE, "method": [HOSTILE], "sweep": "\ud800"},
    )
    read = Page(page([ShownSet(strange, flat_images(1, 2), HOSTILE), unmeasured((HOSTILE, "c"))]))
    assert "onerror" not in {name for _, attributes in read.tags for name in attributes}
    assert [tag for tag, _ in read.tags].count("script") == 2
    assert {src[:11] for src in read.all("img", "src")} == {"data:image/"}
    assert HOSTILE in read.text and read.data["a-0"]["name"] == HOSTILE
    assert HOSTILE in read.texts  # the name, alone in its element


def test_the_page_asks_for_nothing_and_runs_its_own_script_alone() -> None:
    text = page([measured(), turned(measured(), "B")])
    read = Page(text)
    for tag, name in (("img", "src"), ("link", "href"), ("a", "href"), ("script", "src")):
        assert all(value.startswith(("data:", "#")) for value in read.all(tag, name))
    assert "@import" not in text and "url(" not in text
    script = text[text.index("<script>") + 8 : text.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [value for value in read.all("meta", "content") if "default-src" in value]
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("name", ["smile", 'say "ah"', "back\\slash", "笑 😀", "it's", "\u202etfel", "ابت"])
def test_the_line_to_copy_is_python_that_names_the_direction(name: str) -> None:
    (cards,) = Page(page([unmeasured((name,))])).data.values()
    snippet = cast(list[str], cards["snippet"])
    lines = [ast.parse(line, mode="eval").body for line in snippet]
    assert all(isinstance(line, ast.Call) and ast.unparse(line.func) == "directions.applied" for line in lines)
    assert all(line.isprintable() for line in snippet)
    turning = {unicodedata.bidirectional(c) for line in snippet for c in line}
    assert not turning & {"R", "AL"}  # they would change places with the scale
    assert [ast.literal_eval(line.args[1]) for line in lines] == [name] * 7
    assert [ast.literal_eval(line.args[2]) for line in lines] == [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]


def test_a_set_for_asymmetric_injection_needs_the_pipelines_scheduler_too() -> None:
    shown = unmeasured(("smile",))
    asymmetric = replace(shown.directions, provenance={"injection": "asymmetric"})
    assert (
        'applied(pipeline.unet, "smile", 1.0, asymmetric=pipeline.scheduler)'
        in Page(page([replace(shown, directions=asymmetric)])).text
    )


def test_two_sets_are_matched_by_cosine_whatever_their_order_and_sign() -> None:
    a = measured()
    b = turned(a, "B")
    assert torch.allclose(cosines(a.directions, b.directions).flip(1).diagonal(), torch.tensor(-1.0))
    read = Page(page([a, b]))
    assert {card: facts["alike"] for card, facts in read.data.items()} == {
        "a-0": "b-2", "a-1": "b-1", "a-2": "b-0", "b-0": "a-2", "b-1": "a-1", "b-2": "a-0",
    }  # fmt: skip
    assert "most like it: smile again , |cos| 1.00, opposite sign" in read.text


def test_each_direction_is_matched_once_and_only_with_what_is_like_it() -> None:
    assert matched(torch.tensor([[0.9, 0.8], [-0.8, 0.1]])) == {0: 1, 1: 0}  # rather than 0.9 and nothing
    assert matched(torch.tensor([[0.9, 0.6], [0.8, 0.1]])) == {0: 1, 1: 0}
    assert matched(torch.tensor([[0.49, -0.3], [0.2, -0.5]])) == {1: 1}
    assert matched(torch.zeros(3, 1)) == {}


def test_directions_that_are_alike_stand_in_a_row_and_the_others_alone() -> None:
    a = measured("A")
    others = directions(("b", "c", "d"), seed=1)
    assert cosines(a.directions, others).abs().max() < 0.5
    table = torch.stack([others.table[0], -a.directions.table[2], others.table[2]])
    dials = (dial(0.1), dial(0.2), dial(0.6))
    b = ShownSet(replace(others, table=table, dials=dials), flat_images(2, 3), "B")
    rows = [re.findall(r'<article[^>]* id="(.-.)"', row) for row in page([a, b]).split("<li>\n")[1:]]
    assert rows == [["a-2", "b-1"], ["b-2"], ["a-1"], ["a-0"], ["b-0"]]  # by the better score of each row
    assert Page(page([a, b])).text.count("Nothing of B is like it.") == 2
    c = replace(b, directions=replace(b.directions, timesteps=(7, 5)))
    assert "is like it" not in Page(page([a, c])).text and page([a, c]).count("<article") == 6


def test_cosines_are_over_the_steps_that_both_have_and_that_act() -> None:
    many = directions(("a", "b"), steps=3)  # timesteps 900, 600, 300
    shared = DirectionSet(many.table[:, 1:2], many.sigma[:, 1:2], many.timesteps)
    expected = torch.stack([(many.table[:, s].flatten(1) @ shared.table[:, 0].flatten(1).T) for s in range(3)])
    assert torch.allclose(cosines(many, shared), expected.mean(0))
    other = DirectionSet(many.table[:, 1:], many.sigma[:, 1:], (600, 123))
    assert torch.allclose(cosines(many, other).diagonal(), torch.tensor(1.0))  # step 600 alone
    sigma = many.sigma.clone()
    sigma[0, 0] = 0.0
    table = many.table.clone()
    table[0, 0] = -table[0, 0]
    assert torch.allclose(cosines(replace(many, table=table, sigma=sigma), many).diagonal(), torch.tensor(1.0))


def test_sets_that_cannot_be_matched_say_why() -> None:
    a = directions(("a",), provenance={"weight_digest": "1"})
    assert incomparable(a, a) == ""
    assert incomparable(a, replace(a, provenance={"weight_digest": "2"})) == "they are of different models"
    wide = DirectionSet(torch.ones(1, 1, 3, 2, 2) / 12**0.5, torch.ones(1, 1), (900,))
    assert incomparable(a, wide) == "one is for h of [2, 2, 2], the other of [3, 2, 2]"
    assert incomparable(a, replace(a, timesteps=(7, 5))) == "their chains have no timestep in common"
    b = ShownSet(replace(a, timesteps=(7, 5)), flat_images(1, 1), "B")
    read = Page(page([ShownSet(a, flat_images(1, 1), "A"), b]))
    assert "cannot be matched: their chains have no timestep in common." in read.text
    assert "most like it:" not in read.text


def test_what_cannot_be_shown_is_refused() -> None:
    with pytest.raises(UserError, match="a gallery shows one set, or two side by side; got 3"):
        page([measured()] * 3)
    with pytest.raises(DirectionSetError, match="'A set' has 3 directions, and images of 2"):
        page([replace(measured(), traversals=flat_images(1, 2))])


@pytest.mark.parametrize(("channels", "width"), [(2, 16), (4, 8), (5, 40)])
def test_images_of_any_number_of_channels_are_shown(channels: int, width: int) -> None:
    """A model whose images are no RGB pictures has a champion too, and so a gallery."""
    shifted = torch.zeros(1, 3, len(SCALES), channels, 8, 8)
    shifted[:, :, -1, -1, 2:4, 5] = 1  # the last channel alone is changed, in two places
    drawn = Traversals(torch.zeros(1, channels, 8, 8), shifted, SCALES)
    assert Page(page([replace(measured(), traversals=drawn)])).all("img", "src")
    seen = frames(drawn, 0)
    assert seen.shape == (1, len(SCALES) + 1, 3, 8, width)
    assert picture(sheet(seen)).size == ((len(SCALES) + 1) * width, 8)
    where = difference(seen, len(SCALES) // 2, len(SCALES))
    assert where is not None and picture(where.uri).size == (width, 8)
    assert np.argwhere(np.asarray(picture(where.uri))).tolist() == [[2, width - 3], [3, width - 3]]


def test_the_page_is_small_and_says_how_large_it_is() -> None:
    scales = (-3.0, -2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0, 3.0)
    noise = torch.rand(4, 17, 10, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1  # the worst there is
    shown = ShownSet(
        directions([str(k) for k in range(16)]), Traversals(noise[:, 16, 0], noise[:, :16], scales), "noise"
    )
    text = page([shown])
    size = len(text.encode())
    assert size < 3.1e6
    (said,) = re.findall(r"this file ([0-9.]+) MB", text)
    assert float(said) == pytest.approx(size / 1e6, abs=0.051)


def test_numbers_carry_their_sign() -> None:
    assert [number(value) for value in (-0.5, 0.0, 2.0, 1e9)] == ["−0.5", "0", "+2", "+1.0e+09"]
    assert [number(value, ".2f") for value in (-0.001, 1.239)] == ["0.00", "+1.24"]


@pytest.mark.slow
def test_what_calibration_makes_can_be_shown(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, 2)
    table = torch.nn.functional.normalize(torch.eye(2, 32, dtype=torch.float64), dim=1).reshape(2, 1, 8, 2, 2)
    found = DirectionSet(table, torch.ones(2, 1, dtype=torch.float64), schedule.timesteps)
    made = with_dials(tiny_denoiser, schedule, found)
    read = Page(page([ShownSet(made.directions, made.traversals, "tiny")]))
    assert sorted(read.all("article", "id")) == ["a-0", "a-1"]
    assert "Faithful from" in read.text
