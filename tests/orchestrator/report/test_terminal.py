"""What a sweep found, as a person reads it in a terminal."""

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from core.errors import UserError
from core.intervals import interval_of
from orchestrator.cli import main as cli
from orchestrator.report.findings import as_json, read
from orchestrator.report.page import page
from orchestrator.report.terminal import (
    comparison_table,
    failure_lines,
    methods_table,
    out_of_memory_lines,
    show,
    trials_table,
)
from orchestrator.search.comparison import compared
from orchestrator.search.ranking import Row, by_method, repeated
from orchestrator.spec import METRICS, Sweep, parse
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driving
from orchestrator.text import measured
from orchestrator.trial.outcome import TrialOutcome
from tests.orchestrator.fabricated import HOSTILE, completed, crowned, fabricated, mixed, started, with_intervals


@pytest.fixture
def sweep() -> Sweep:
    return parse(
        {
            "name": "compared",
            "model": "toyfaces",
            "method": {"choice": ["learned", "pca", "jacobian", "random"]},
            "search": {"seed": {"choice": [0, 1]}},
            "objectives": [{"identifiability": "max"}, {"fidelity_kid": "min"}],
        }
    )


def row(method: str, identifiability: float, kid: float, seconds: float | None, state: str = "completed") -> Row:
    metrics = {"identifiability": identifiability, "fidelity_kid": kid}
    return Row(f"{method}{seconds}", state, {"method": method, "seed": 0}, metrics, 4, False, seconds)


RANKED = [
    row("pca", 0.9, 0.2, 1.0),  # beaten in nothing
    row("learned", 0.8, 0.3, 10.0),  # once in each
    row("learned", 0.6, 0.4, 30.0),  # twice in each
    row("random", 0.1, 0.5, None),
    row("learned", 0.99, 0.1, 5.0, "pruned"),
    row("jacobian", 0.99, 0.1, None, "failed"),
]


def text_of(shown: RenderableType | SweepFolder, width: int = 100) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True, color_system=None)
    if isinstance(shown, SweepFolder):
        show(shown, console)
    else:
        console.print(shown)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_methods_are_ordered_by_the_mean_rank_of_completed_trials(sweep: Sweep) -> None:
    found = by_method(RANKED, sweep)
    assert [each.method for each in found] == ["pca", "learned", "random", "jacobian"]
    assert [(each.completed, each.trials) for each in found] == [(1, 1), (2, 3), (1, 1), (0, 1)]
    assert [each.seconds for each in found] == [1.0, 20.0, None, None]
    assert found[1].metrics["identifiability"] == pytest.approx(0.7)
    assert interval_of(found[1].metrics, "identifiability") == pytest.approx((0.7 - 1.2706, 0.7 + 1.2706), rel=1e-3)
    assert found[0].metrics == {"identifiability": 0.9, "fidelity_kid": 0.2} and found[3].metrics == {}


def test_the_table_of_methods(sweep: Sweep) -> None:
    more = replace(RANKED[0], metrics={**RANKED[0].metrics, "globality": 0.5})
    lines = text_of(methods_table(by_method([more, *RANKED[1:]], sweep)))
    assert lines[2].split() == ["pca", "learned", "random", "jacobian", "better"]
    assert [line.split("  ")[0] for line in lines[3:]] == [
        "completed",
        "identifiability",
        "fidelity kid",
        "globality",
        "seconds to find",
    ]
    assert lines[3].split() == "completed 1 of 1 2 of 3 1 of 1 0 of 1".split()
    assert lines[4].split() == "identifiability 0.9 0.7 ± 1.3 0.1 - more".split()
    assert lines[6].split() == "globality 0.5 - - - more".split()
    assert lines[7].split() == "seconds to find 1 20 - -".split()


def test_an_interval_over_runs_is_told_of_configurations_with_several_seeds_only(sweep: Sweep) -> None:
    again = replace(RANKED[2], parameters={"method": "learned", "seed": 1})
    [found] = repeated([RANKED[0], RANKED[1], again, RANKED[4]], sweep)
    assert (found.parameters, found.seeds) == ({"method": "learned"}, [0, 1])
    assert found.metrics["identifiability"] == pytest.approx(0.7)
    assert interval_of(found.metrics, "identifiability") == pytest.approx((0.7 - 1.2706, 0.7 + 1.2706), rel=1e-3)
    assert repeated(RANKED[:1], sweep) == []


@pytest.mark.slow
def test_repeats_are_ordered_by_the_mean_rank_of_their_trials(tmp_path: Path) -> None:
    search = {"seed": {"choice": [0, 1]}, "shift_scale": {"choice": [0.2, 0.4, 0.8]}, "directions": 8}
    folder = fabricated(tmp_path, 6, search=search, objectives=[{"fidelity_kid": "min"}])
    found = read(folder)
    assert [each.parameters for each in found.repeats] == [{"shift_scale": scale} for scale in (0.2, 0.4, 0.8)]
    assert any("0.17 ± 0.13" in line for line in text_of(folder, 160))


def test_a_trial_that_ran_out_of_memory_is_told() -> None:
    told = {"gradient": "full_graph", "micro_batch": 2, "sampler_batch": 64}
    undisturbed = replace(RANKED[0], memory={**told, "out_of_memory_retries": 0})
    shrunk = replace(RANKED[1], trial_id="b", memory={**told, "out_of_memory_retries": 2})
    assert out_of_memory_lines([undisturbed, shrunk, RANKED[2]]) == [
        "Trial b ran out of memory (retries: 2) and went on with full_graph, micro_batch 2, 64 samples drawn at a time."
    ]
    untrained = replace(RANKED[1], trial_id="c", memory={"sampler_batch": 16, "out_of_memory_retries": 2})
    assert out_of_memory_lines([untrained]) == [
        "Trial c ran out of memory (retries: 2) and went on with 16 samples drawn at a time."
    ]


def test_a_trial_that_is_over_without_a_result_is_told_with_its_reason() -> None:
    crashed = replace(RANKED[5], trial_id="b", reason="the mask is missing")
    exhausted = replace(RANKED[5], trial_id="c", state="out_of_memory", reason="")
    goes_on = replace(RANKED[5], trial_id="d", state="waiting", over=False, reason="its process was killed")
    assert failure_lines([*RANKED[:5], crashed, exhausted, goes_on]) == [
        "Trial b failed: the mask is missing.",
        "Trial c out of memory: no reason known.",
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    folder = fabricated(tmp_path_factory.mktemp("runs"), 12, mixed)
    crowned(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 80, 160])
def test_nothing_is_cut_at_any_width(width: int, finished: SweepFolder) -> None:
    lines = text_of(finished, width)
    address = str(finished.champion)  # one word, so that it can be copied
    assert all(len(line) <= width for line in lines if address not in line)
    words = " ".join(lines).split()
    assert "…" not in " ".join(words)
    for each in read(finished).rows:
        assert any(each.trial_id in word for word in words)
        assert any(f"{each.parameters['shift_scale']:.3g}" in word for word in words)
    assert HOSTILE in " ".join(words), "a reason is told as it is"


@pytest.mark.slow
def test_metrics_that_find_no_room_are_counted(tmp_path: Path) -> None:
    folder = fabricated(tmp_path, 2)
    found = read(folder)
    assert "globality" in " ".join(text_of(trials_table(found.sweep, found.rows, 160), 160))
    assert text_of(trials_table(found.sweep, found.rows, 40), 40)[-2:] == [
        "1 more metric on a wider terminal, with",
        "--json, and on the page",
    ]


AHEAD = (
    "Beside random directions, on seeds that trained and chose nothing, it is ahead of them in identifiability (0.90 ± "
    "0.04 against 0.40 ± 0.04; difference +0.500 ± 0.040) and behind them in fidelity kid (0.20 ± 0.04 against 0.10 ± "
    "0.04; difference +0.100 ± 0.040)."
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "objectives", "rule"),
    [
        (0.8, ["identifiability", "fidelity_kid"], "the first of 3 completed trials by identifiability"),
        (0.88, ["identifiability"], "the first of 3 completed trials by identifiability"),
        (
            0.88,
            ["identifiability", "fidelity_kid"],
            "of 3 completed trials by identifiability the one of least fidelity kid among the 2 that lie within the "
            "interval of the best (0.90 ± 0.04)",
        ),
        (
            0.88,
            ["identifiability", "globality"],
            "of 3 completed trials by identifiability the one of most globality among the 2 that lie within the "
            "interval of the best (0.90 ± 0.04)",
        ),
        (
            0.88,
            ["identifiability", "fidelity_kid", "globality"],
            "of 3 completed trials by identifiability the one of best mean rank in fidelity kid and globality among "
            "the 2 that lie within the interval of the best (0.90 ± 0.04)",
        ),
    ],
)
def test_the_conclusion(tmp_path: Path, second: float, objectives: list[str], rule: str) -> None:
    """Of three trials, the second best in identifiability is the best in all else; `second` is its identifiability."""
    tables = iter([(0.9, 0.3, 0.4), (second, 0.2, 0.5), (0.4, 0.4, 0.3)])
    names = ("identifiability", "fidelity_kid", "globality")
    folder = fabricated(
        tmp_path,
        3,
        measured=lambda _: with_intervals(dict(zip(names, next(tables), strict=True))),
        objectives=[{name: METRICS[name]} for name in objectives],
    )
    best = read(folder).rows[0]
    assert best.began == (1 if rule.startswith("the first") else 2)
    assert read(folder).conclusion == (
        f"There is no champion yet; of the completed trials, {best.trial_id} is first (identifiability "
        f"{measured(best.metrics, 'identifiability')} on the seeds that choose)."
    )
    crowned(folder)
    found = read(folder)
    assert found.conclusion.startswith(f"The champion is the set of trial {best.trial_id}, {rule}. Beside random ")
    if objectives == ["identifiability", "fidelity_kid"]:
        assert found.conclusion.endswith(AHEAD)
    assert [each.verdict for each in found.compared] == ["ahead", "behind", "not told apart"]
    assert [each.difference for each in found.compared] == pytest.approx([0.5, 0.1, 0.0])


@pytest.mark.slow
def test_a_result_without_differences_has_neither_intervals_nor_verdicts(tmp_path: Path) -> None:
    folder = fabricated(tmp_path, 1)
    trial = crowned(folder)
    tables = {"champion": {"identifiability": 0.9}, "random": {"identifiability": 0.4}}
    folder.result.write_text(json.dumps({"trial": trial} | tables))
    found = read(folder)
    assert found.conclusion.endswith("it is not judged in identifiability (0.9 against 0.4, without an interval).")
    lines = text_of(comparison_table(found.compared, 100))
    assert lines[3].split() == ["identifiability", "-", "0.9", "0.4", "+0.5", "more"]
    told = json.loads(as_json(found))["against_random"][0]
    assert (told["verdict"], told["low"], told["champion_interval"]) == (None, None, None)


def test_the_comparison_shows_intervals_and_verdicts_at_any_width() -> None:
    own, random = {"coverage": 0.9, "fidelity_kid": 0.2}, {"coverage": 0.4, "fidelity_kid": 0.3}
    tables = (with_intervals(own), with_intervals(random), with_intervals({"coverage": 0.03, "fidelity_kid": -0.1}))
    wide = text_of(comparison_table(compared(*tables), 100))
    assert wide[2].split() == "metric verdict champion random difference better is".split()
    rows = [line.split("  ") for line in wide[3:]]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        ["fidelity kid", "ahead", "0.20 ± 0.04", "0.30 ± 0.04", "-0.100 ± 0.040", "less"],
        ["coverage", "not told apart", "0.90 ± 0.04", "0.40 ± 0.04", "+0.030 ± 0.040", "more"],
    ]
    narrow = text_of(comparison_table(compared(*tables), 60), 60)
    assert narrow[2] == "fidelity kid: ahead" and "coverage: not told apart" in narrow
    assert "random 0.40 ± 0.04, difference +0.030 ± 0.040, better is more" in " ".join(" ".join(narrow).split())


def test_trials_have_intervals_beside_their_metrics_and_not_as_metrics(sweep: Sweep) -> None:
    lines = text_of(trials_table(sweep, [replace(RANKED[0], metrics=with_intervals(RANKED[0].metrics))], 120), 120)
    assert lines[2].split()[-3:] == ["identifiability", "fidelity", "kid"]
    assert lines[3].endswith("0.90 ± 0.04   0.20 ± 0.04")


def test_what_is_said_of_methods_follows_the_interval_of_their_difference(tmp_path: Path) -> None:
    method, seeds = {"choice": ["learned", "pca"]}, {"seed": {"choice": [0, 1, 2, 3]}}

    def measured_of(parameters: Mapping[str, Any]) -> dict[str, float]:
        seed = 0.01 * parameters["seed"]
        return {"identifiability": (0.9 if parameters["method"] == "pca" else 0.5) + seed, "fidelity_kid": 0.1 + seed}

    folder = fabricated(tmp_path, 8, method=method, search=seeds, measured=measured_of)
    found = read(folder)
    sentence = "pca is ahead of learned in identifiability and not told apart from learned in fidelity kid."
    assert found.first_method == sentence and sentence in text_of(folder, 200)
    assert sentence in page(found)


def test_a_sweep_without_trials_says_so(tmp_path: Path) -> None:
    folder, _ = started(tmp_path, "empty", 3)
    assert text_of(folder) == ["Sweep 'empty' has no trials yet."]
    assert read(folder).conclusion == "There are no trials yet."


@pytest.mark.slow
def test_a_sweep_that_runs_says_so_with_the_time(tmp_path: Path) -> None:
    folder = fabricated(tmp_path, 2)
    assert text_of(folder)[0].startswith("Sweep 'made' is interrupted, the same command goes on; 2 of 2")
    with driving(folder.lock, "it"):
        assert text_of(folder, 300)[0].startswith("Sweep 'made' is running (process ")


@pytest.mark.slow
def test_json_holds_everything_and_no_secret(tmp_path: Path) -> None:
    secret = "https://anna:hunter22@mlflow.example"
    folder = fabricated(tmp_path, 6, mixed, reason=f"no answer from {secret}", tracking={"uri": secret})
    trial = crowned(folder)
    text = as_json(read(folder))
    told = json.loads(text)
    assert "hunter22" not in text and "https://***@mlflow.example" in text
    assert told["champion"] == trial and len(told["trials"]) == 6
    shown = told["against_random"][0]
    intervals = shown.pop("champion_interval"), shown.pop("random_interval")
    assert intervals == (pytest.approx([0.86, 0.94]), pytest.approx([0.36, 0.44]))
    assert shown == {
        "metric": "identifiability",
        "mode": "max",
        "champion": 0.9,
        "random": 0.4,
        "difference": 0.5,
        "low": 0.46,
        "high": 0.54,
        "verdict": "ahead",
    }
    done = next(each["metrics"] for each in told["trials"] if each["state"] == "completed")
    assert done["globality/low"] < done["globality"] < done["globality/high"]
    assert parse(told["spec"] | {"tracking": {}}).name == "made"


@pytest.mark.slow
def test_a_sweep_of_which_no_trial_was_completed_has_failed_and_is_not_running(tmp_path: Path) -> None:
    """Its own driver says so too, which still holds the lock."""
    folder = fabricated(tmp_path, 2, lambda _: TrialOutcome.FAILED)
    console = Console(width=200, file=io.StringIO(), record=True)
    with driving(folder.lock, "sweep 'made'"):
        show(folder, console, ended=True)
    show(folder, console)
    said = [line for line in console.export_text().splitlines() if line.startswith("Sweep ")]
    assert said == ["Sweep 'made' is over: no trial was completed; 2 of 2 trials: 2 failed."] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("sweep.json", "{}", "sweep.json is damaged: it holds no 'id'"),
        ("sweep.json", "[]", "sweep.json is damaged: it holds no mapping"),
        ("result.json", "{}", "result.json is damaged: it does not say which trial is the champion, and its metrics"),
        ("result.json", '{"trial": "a", "champion": {"coverage": "x"}, "random": {}}', "a metric in it is no number"),
        ("result.json", '{"trial": "a", "champion": {}, "random": {}, "differences": 1}', "differences are no table"),
        ("study.db", "not a database", "study.db is damaged (file is not a database); restore it from a copy"),
    ],
)
def test_a_damaged_folder_gets_one_sentence(file: str, content: str, message: str, tmp_path: Path) -> None:
    folder = fabricated(tmp_path, 1)
    (folder.path / file).write_text(content)
    with pytest.raises(UserError) as raised:
        read(folder)
    assert message in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_a_damaged_specification_gets_one_sentence(tmp_path: Path) -> None:
    folder = fabricated(tmp_path, 1)
    content = folder.read()
    del content["spec"]["model"]
    (folder.path / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"sweep\.json is damaged, or another version wrote it: model: is missing"):
        read(folder)


def test_the_nearest_name_of_a_sweep(tmp_path: Path) -> None:
    fabricated(tmp_path, 1, name="toyfaces")
    with pytest.raises(UserError, match="sweeps there: toyfaces; did you mean 'toyfaces'?"):
        read(SweepFolder(tmp_path, "toyface"))


@pytest.mark.slow
def test_the_command_writes_a_page_or_prints_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fabricated(tmp_path, 2, completed)
    assert cli.main(["report", "made", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Page: {folder.report}"
    folder.report.unlink()
    assert cli.main(["report", "made", "--root", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sweep"] == "made" and not folder.report.exists()
    assert cli.main(["report", "made", "--root", str(tmp_path), "--to", str(tmp_path / "a.html")]) == 0
    assert (tmp_path / "a.html").is_file() and not folder.report.exists()
