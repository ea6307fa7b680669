"""The page of a sweep: whole without a network, and never led astray by what a sweep's names and reasons hold."""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from core.errors import UserError
from core.intervals import without_intervals
from orchestrator.report.charts import sections
from orchestrator.report.findings import read
from orchestrator.report.page import page, write_report
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driving
from orchestrator.trial.outcome import TrialOutcome
from tests.orchestrator.fabricated import HOSTILE, completed, copied, crowned, fabricated, metrics_of, mixed, started

THREE = [{"identifiability": "max"}, {"fidelity_kid": "min"}, {"globality": "max"}]
FIVE = {"choice": ["learned", "pca", "jacobian", "supervised", "random"]}
NAMES = {"supervised.attribute": {"choice": ["<b>é</b>", "ключ & замок", "' onload='x", "{{ 7 * 7 }}"]}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A sweep to look at."""
    folder = fabricated(tmp_path_factory.mktemp("runs"), 14, mixed)
    crowned(folder)
    return folder


MADE: dict[str, Callable[[Path], SweepFolder]] = {
    "some of everything": lambda root: fabricated(root, 9, mixed),
    "without trials": lambda root: started(root, "empty", 3)[0],
    "all run": lambda root: fabricated(root, 3, lambda _: None),
    "all failed": lambda root: fabricated(root, 3, lambda _: TrialOutcome.FAILED),
    "one objective": lambda root: fabricated(root, 10, objectives=[{"identifiability": "max"}]),
    "three objectives": lambda root: fabricated(root, 4, objectives=THREE),
    "five methods": lambda root: fabricated(root, 10, method=FIVE, search={"seed": {"choice": [0, 1]}}),
    "hostile names": lambda root: fabricated(root, 4, method="supervised", search=NAMES),
    "one configuration": lambda root: fabricated(root, 1, search={"directions": 8}),
}


class Read(HTMLParser):
    """What a browser would see: texts, addresses, handlers, and the elements in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.elements: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] != ["script"]:
            self.texts.append(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MADE)
def test_a_page_of_every_kind_of_sweep_needs_nothing_else(kind: str, tmp_path: Path) -> None:
    folder = MADE[kind](tmp_path)
    html = write_report(folder, folder.report).read_text()
    seen = Read(html)
    assert all(address.startswith(("data:image/", "#")) for address in seen.addresses)
    assert seen.handlers == [] and {"iframe", "link", "object", "embed", "base", "form"}.isdisjoint(seen.elements)
    assert seen.elements.count("script") in (0, 3), "the figures, plotly.js and ours"
    assert read(folder).conclusion in "".join(seen.texts)


@pytest.mark.slow
def test_only_our_own_scripts_may_run(finished: SweepFolder) -> None:
    html = page(read(finished))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy and "default-src 'none'" in policy[1] and "unsafe-eval" not in policy[1]
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == 2 and [f"'sha256-{each}'" in policy[1] for each in hashes] == [True, True]


@pytest.mark.slow
def test_a_hostile_reason_is_text(finished: SweepFolder) -> None:
    html = page(read(finished))
    assert HOSTILE in "".join(Read(html).texts)
    assert "<script>alert" not in html and "49" not in Read(html).texts


@pytest.mark.slow
def test_hostile_values_are_text_for_plotly_too(tmp_path: Path) -> None:
    folder = MADE["hostile names"](tmp_path)
    figures = "".join(chart.figure.to_json() for each in sections(read(folder)) for chart in each.charts)
    assert "&lt;b&gt;" in figures and "<b>" not in figures
    assert "</script" not in page(read(folder)).split('id="figures">')[1].split("</script>")[0]


@pytest.mark.slow
def test_a_password_that_is_a_word_of_the_page_spoils_none(tmp_path: Path) -> None:
    pages = []
    for word in ("geheim99", "learned", "toyfaces", "identifiability"):
        uri = f"postgresql://mlflow:{word}@host/db"
        found = read(fabricated(tmp_path / word, 3, tracking={"uri": uri, "experiment": "e"}))
        pages.append(({**found.facts, "identity": ""}, found.resolved))
        assert "postgresql://***@host/db" in found.resolved
    assert all(page == pages[0] for page in pages)


@pytest.mark.slow
def test_every_chart_has_its_numbers_as_a_table(finished: SweepFolder) -> None:
    shown = sections(read(finished))
    assert [each.anchor for each in shown] == ["front", "importance", "slices", "history", "curves"]
    for each in shown:
        assert bool(each.charts) == (each.table is not None), each.anchor
    by_anchor = {each.anchor: each for each in shown}
    assert [len(by_anchor[name].charts) for name in ("front", "slices", "history", "curves")] == [1, 6, 2, 1]


@pytest.mark.slow
def test_three_objectives_are_three_pairs(tmp_path: Path) -> None:
    [front, *_] = sections(read(MADE["three objectives"](tmp_path)))
    assert [chart.title for chart in front.charts] == [
        "fidelity kid (less is better) against identifiability (more is better)",
        "globality (more is better) against identifiability (more is better)",
        "globality (more is better) against fidelity kid (less is better)",
    ]


def test_points_are_where_the_trials_are(finished: SweepFolder) -> None:
    found = read(finished)
    [front, *_] = sections(found)
    traces = {trace.name: trace for trace in front.charts[0].figure.data}
    done = {row.trial_id: row.metrics for row in found.rows if row.state == "completed"}
    for trace in traces.values():
        for x, y, trial in zip(trace.x, trace.y, trace.customdata, strict=True):
            assert (x, y) == (done[trial]["identifiability"], done[trial]["fidelity_kid"])
    assert set(traces["completed"].customdata) == set(done)
    assert set(traces["Pareto front"].customdata) == {row.trial_id for row in found.front}
    assert list(traces["champion"].customdata) == [found.champion]


def test_points_have_their_intervals_as_error_bars(finished: SweepFolder) -> None:
    by_anchor = {each.anchor: each for each in sections(read(finished))}
    [front] = by_anchor["front"].charts
    bars = {trace.name: trace for trace in front.figure.data}
    for axis in (bars["completed"].error_x, bars["completed"].error_y):
        assert list(axis.array) == pytest.approx([0.04] * len(axis.array)) == list(axis.arrayminus)
        assert axis.color == "var(--interval)"
    assert bars["champion"].error_y.array is None, "its trial is among the completed ones"
    for anchor in ("slices", "history"):
        for chart in by_anchor[anchor].charts:
            assert any(trace.error_y.array is not None and trace.error_x.array is None for trace in chart.figure.data)


def test_a_point_without_an_interval_has_no_error_bar(tmp_path: Path) -> None:
    folder = fabricated(tmp_path, 2, measured=lambda parameters: without_intervals(metrics_of(parameters)))
    [front, *_] = sections(read(folder))
    assert list(front.charts[0].figure.data[0].error_y.array) == [0.0, 0.0]


def test_figures_show_their_intervals_and_the_champion_its_verdicts(finished: SweepFolder) -> None:
    html = page(read(finished))
    nbsp = "\N{NO-BREAK SPACE}"
    assert f'<td title="95 % interval 0.86 to 0.94">0.90 ±{nbsp}0.04</td>' in html
    assert f'<td title="95 % interval +0.46 to +0.54">+0.500 ±{nbsp}0.040</td>' in html
    assert re.findall(r'<td class="(verdict[ a-z]*)">([^<]*)</td>', html) == [
        ("verdict ahead", "ahead"),
        ("verdict behind", "behind"),
        ("verdict", "not told apart"),
    ]
    row = html[html.index('<tr data-trial="') :].partition("</tr>")[0]
    assert row.count('title="95 % interval') == 3 and "/low" not in html


@pytest.mark.slow
def test_a_result_without_differences_is_shown_without_verdicts(finished: SweepFolder, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path)
    result = {"trial": "a", "champion": {"identifiability": 0.9}, "random": {"identifiability": 0.4}}
    folder.result.write_text(json.dumps(result))
    html = page(read(folder))
    assert '<td>0.9</td><td>0.4</td><td>+0.5</td><td class="verdict">-</td>' in html


def test_the_best_so_far_is_the_best_in_the_objectives_own_direction(finished: SweepFolder) -> None:
    found = read(finished)
    history = next(each for each in sections(found) if each.anchor == "history")
    more, less = (list(chart.figure.data[0].y) for chart in history.charts)
    assert more == sorted(more) and less == sorted(less, reverse=True)
    assert more[-1] == max(row.metrics["identifiability"] for row in found.rows if row.state == "completed")


@pytest.mark.slow
def test_the_same_sweep_gives_the_same_page(finished: SweepFolder) -> None:
    found = read(finished)
    assert page(found) == page(found)


@pytest.mark.slow
def test_the_champions_picture_is_in_it_unless_it_is_none(finished: SweepFolder, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path)
    picture = base64.b64encode((folder.champion / "traversal.png").read_bytes()).decode()
    assert f"data:image/png;base64,{picture}" in page(read(folder))
    (folder.champion / "traversal.png").write_text("no picture")
    assert "<img" not in page(read(folder))
    (folder.champion / "traversal.png").unlink()
    (folder.champion / "traversal.png").symlink_to("/etc/hostname")
    assert "<img" not in page(read(folder))


def test_a_large_picture_is_made_smaller(
    finished: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(finished, tmp_path)
    monkeypatch.setattr("orchestrator.report.page._LARGEST", 10)
    assert "data:image/webp;base64," in page(read(folder))


@pytest.mark.slow
def test_a_sweep_that_runs_and_a_copied_folder_are_said_to_be_so(finished: SweepFolder, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path)
    shutil.copytree(folder.path, tmp_path / "copied")
    assert "Its folder is named copied: a copy, or renamed." in page(read(SweepFolder(tmp_path, "copied")))
    with driving(folder.lock, "it"):
        assert "The sweep is complete" in page(read(folder)), "what is left to do is MLflow's"
        folder.result.unlink()
        assert re.search(r"The sweep is running \(process \d+ on .*, since ", page(read(folder)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("sweep.yaml", "sweep.yaml is no page; name a file that ends in .html"),
        ("there.html", "there.html is a folder; name a file such as "),
        ("nowhere/report.html", "nowhere is not there; make it first, or name a file elsewhere"),
    ],
)
def test_where_no_page_can_go_nothing_is_written(to: str, message: str, tmp_path: Path) -> None:
    folder = fabricated(tmp_path / "runs", 1, completed)
    (tmp_path / "there.html").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=re.escape(message)):
        write_report(folder, tmp_path / to)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_folder_that_is_not_ours_gets_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fabricated(tmp_path, 1, completed)

    def refused(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("core.files.tempfile.mkdtemp", refused)
    with pytest.raises(UserError, match=r"cannot be written to; name a file elsewhere with --to FILE\.html"):
        write_report(folder, folder.report)
