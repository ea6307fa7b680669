"""What a sweep found, as a person reads it in a terminal."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from core.errors import UserError
from orchestrator.cli import main as cli
from orchestrator.report.findings import as_json, read
from orchestrator.report.terminal import failure_lines, methods_table, out_of_memory_lines, show, trials_table
from orchestrator.search import ranking
from orchestrator.search.ranking import Row, by_method, repeated
from orchestrator.spec import Sweep, parse
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driving
from orchestrator.trial.outcome import TrialOutcome
from tests.orchestrator.fabricated import HOSTILE, completed, crowned, fabricated, mixed, started


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
    mean, deviation = found[1].metrics["identifiability"]
    assert mean == pytest.approx(0.7) and deviation == pytest.approx(0.02**0.5)
    assert found[0].metrics["fidelity_kid"] == (0.2, None) and found[3].metrics == {}


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
    assert lines[4].split() == "identifiability 0.900 0.700 ± 0.141 0.100 - more".split()
    assert lines[6].split() == "globality 0.500 - - - more".split()
    assert lines[7].split() == "seconds to find 1 20 - -".split()


def test_a_spread_is_told_of_configurations_with_several_seeds_only(sweep: Sweep) -> None:
    again = replace(RANKED[2], parameters={"method": "learned", "seed": 1})
    [found] = repeated([RANKED[0], RANKED[1], again, RANKED[4]], sweep)
    assert (found.parameters, found.seeds) == ({"method": "learned"}, [0, 1])
    mean, deviation = found.metrics["identifiability"]
    assert mean == pytest.approx(0.7) and deviation == pytest.approx(0.02**0.5)
    assert repeated(RANKED[:1], sweep) == []


@pytest.mark.slow
def test_repeats_are_ordered_by_the_mean_rank_of_their_trials(tmp_path: Path) -> None:
    search = {"seed": {"choice": [0, 1]}, "shift_scale": {"choice": [0.2, 0.4, 0.8]}, "directions": 8}
    folder = fabricated(tmp_path, 6, search=search, objectives=[{"fidelity_kid": "min"}])
    found = read(folder)
    assert [each.parameters for each in found.repeats] == [{"shift_scale": scale} for scale in (0.2, 0.4, 0.8)]
    assert any("0.170 ± 0.014" in line for line in text_of(folder, 160))


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


@pytest.mark.slow
def test_the_conclusion(tmp_path: Path) -> None:
    folder = fabricated(tmp_path, 3)
    best = read(folder).rows[0]
    assert read(folder).conclusion == (
        f"There is no champion yet; of the completed trials, {best.trial_id} is ahead (identifiability "
        f"{best.metrics['identifiability']:.3g} on the seeds that choose)."
    )
    crowned(folder)
    found = read(folder)
    places = ranking.places(best, found.rows, found.sweep)
    assert found.conclusion == (
        f"The champion is the set of trial {best.trial_id}, the first of 3 completed by the mean of the ranks in the "
        f"objectives: place {places['identifiability']} in identifiability, place {places['fidelity_kid']} in fidelity "
        "kid. Beside random directions, on seeds that trained and chose nothing: identifiability 0.9 against 0.4, "
        "fidelity kid 0.2 against 0.1; one measurement of each, without an interval."
    )
    assert [each.difference for each in found.compared] == pytest.approx([0.5, 0.1, 0.0])


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
    assert told["against_random"][0] == {
        "metric": "identifiability",
        "mode": "max",
        "champion": 0.9,
        "random": 0.4,
        "difference": 0.5,
    }
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
    with pytest.raises(UserError, match=r"sweep\.json is damaged: model: is missing"):
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
