"""What is read on the MLflow pages of a sweep: notes that say what happened, and nothing that a name could add."""

import json
import subprocess
import zlib
from base64 import b64decode
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from orchestrator.search.ranking import Row
from orchestrator.spec import Sweep, parse
from orchestrator.tracking import lineage, views
from orchestrator.tracking.notes import counts, sweep_note, sweep_tags, trial_note
from orchestrator.trial.state import Report
from tests.orchestrator.fabricated import with_intervals


def sweep_of(**sections: object) -> Sweep:
    search = {"shift_scale": {"float": [0.5, 2.0]}, "pca.samples": 128}
    base = {"name": "faces", "model": "toyfaces", "method": {"choice": ["learned", "pca"]}, "search": search}
    objectives = [{"identifiability": "max"}, {"fidelity_kid": "min"}]
    return parse(base | {"objectives": objectives, "export": {"register": "faces-directions"}} | sections)


def row(number: int, state: str = "completed") -> Row:
    metrics = {"identifiability": 1 - number / 10, "fidelity_kid": number / 10}
    parameters = {"method": "learned", "shift_scale": 0.5}
    return Row(f"t{number}", state, parameters, with_intervals(metrics), 400, number == 1)


def test_the_note_of_a_sweep() -> None:
    ranked = [*(row(n) for n in range(1, 8)), row(8, "out_of_memory")]
    champion, random = with_intervals({"identifiability": 0.9}), with_intervals({"identifiability": 0.25})
    note = sweep_note(sweep_of(), ranked, champion, random, with_intervals({"identifiability": 0.65}), 5400)
    assert "**Champion: trial `t1`**" in note and "8 trials (7 completed, 1 out of memory) in 1.5 hours" in note
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in note.splitlines() if line.startswith("|")]
    assert ["identifiability", "0.90 ± 0.04", "0.25 ± 0.04", "+0.650 ± 0.040", "ahead", "more"] in cells
    assert ["1 *", "`t1`", "learned", "0.5", "0.90 ± 0.04", "0.10 ± 0.04"] in cells
    assert ["5", "`t5`", "learned", "0.5", "0.50 ± 0.04", "0.50 ± 0.04"] in cells
    assert "95 % interval over samples. Ahead or behind" in note
    assert "`t6`" not in note, "the five best"
    assert "orchestrate export faces --to out" in note
    assert 'mlflow.pyfunc.load_model("models:/faces-directions@champion")' in note
    assert len(note) < 8000, "what MLflow keeps of a tag"
    assert counts(ranked) == {"trials/completed": 7.0, "trials/out_of_memory": 1.0}


def test_the_note_of_a_sweep_that_measured_no_differences() -> None:
    note = sweep_note(sweep_of(), [row(1)], {"identifiability": 0.9, "fid": 30.0}, {"identifiability": 0.25}, {}, 60)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in note.splitlines() if line.startswith("|")]
    assert ["identifiability", "0.9", "0.25", "+0.65", "-", "more"] in cells
    assert ["fid", "30", "-", "-", "-", "less"] in cells


def test_the_note_of_a_trial() -> None:
    report = Report(50, 0.0, with_intervals({"identifiability": 0.5}))
    note = trial_note(sweep_of(), "t1", {"method": "pca"}, "pruned", "others were ahead", report)
    assert "method `pca`: **pruned** at iteration 50 of 400" in note and "--run t1" in note and "ahead" not in note
    assert "0.50 ± 0.04" in note and "/low" not in note and "95 % interval" in note
    failed = trial_note(sweep_of(), "t1", {}, "out_of_memory", "no more", None)
    assert "method `learned`: **out of memory** at iteration 0 of 400" in failed and "> no more" in failed
    assert "export" not in failed, "there is nothing to take away"


def test_what_a_stranger_wrote_stays_text() -> None:
    note = trial_note(
        sweep_of(), "t", {}, "failed", "<img src=x onerror=alert(1)> [a](javascript:b) `c` | d\n# e", None
    )
    line = next(line for line in note.splitlines() if line.startswith(">"))
    assert "<img" not in line and "\\[a\\]" in line and "\\`c\\`" in line and line.endswith("\\# e")
    named = sweep_note(sweep_of(model="a`b|<c>"), [row(1)], {}, {}, {}, 1.0)
    assert "on `a'b/<c>`" in named


def test_tags_to_find_a_sweep_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = sweep_tags(sweep_of(), "id")
    assert (told["sweep"], told["sweep_id"], told["model"], told["methods"]) == (
        "faces",
        "id",
        "toyfaces",
        "learned, pca",
    )
    assert "mlflow.source.git.commit" not in told
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a", "--allow-empty"],
    ):
        subprocess.run(["git", *command], check=True)
    assert len(sweep_tags(sweep_of(), "id")["mlflow.source.git.commit"]) == 40


def test_a_view_of_the_trials_as_the_page_saves_one() -> None:
    [(name, value)] = views.tag(sweep_of(), "run", 1000).items()
    assert name == "mlflow.sharedViewState.sweep-run"
    state = json.loads(zlib.decompress(b64decode(json.loads(value)["state"].removeprefix("deflate;"))))
    assert state["searchFilter"] == "tags.sweep_run = 'run'" and not state["orderByAsc"]
    pictures, parallel, *lines = state["compareRunCharts"]
    assert (pictures["imageKeys"], pictures["step"]) == (["result"], 0)
    assert parallel["selectedParams"] == ["method", "shift_scale"]
    assert [line["metricKey"] for line in lines] == ["identifiability", "fidelity_kid"]
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
    assert parse_qs(views.query("run", {name: value}))["viewStateShareKey"] == ["sweep-run"]
    assert parse_qs(views.query("run", {}))["searchFilter"] == ["tags.sweep_run = 'run'"], "an older sweep has no view"


def test_what_a_trial_has_worked_on() -> None:
    weights = "ab" * 32
    found = lineage.of_trial(sweep_of(), weights, {"method": "pca", "pca.samples": 128})
    assert [(each["name"], each["context"]) for each in found] == [
        ("toyfaces", "model"),
        ("samples of toyfaces", "training"),
        ("samples of toyfaces", "evaluation"),
    ]
    assert found[0]["digest"] == weights[:16] and json.loads(found[1]["source"])["samples"] == 128
    assert all(len(each["digest"]) <= 36 for each in found), "what MLflow keeps of one"
    other = lineage.of_trial(sweep_of(sampler={"eta": 1.0}), weights, {"method": "pca", "pca.samples": 128})
    assert found[1]["digest"] != other[1]["digest"] and found[0] == other[0]
    all_of_it = lineage.of_result(sweep_of(), weights, [{"method": "pca"}, {"method": "pca"}, {"method": "random"}])
    assert [each["context"] for each in all_of_it] == ["model", "training", "evaluation", "training", "report"]


def test_a_model_s_way_on_this_disk_is_no_part_of_what_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "sd.safetensors").touch()
    models = (str(tmp_path / "faces"), str(tmp_path / "sd.safetensors"), "google/ddpm-celebahq-256")
    found = [lineage.of_model(sweep_of(model=model), "w")[0]["name"] for model in models]
    assert found == ["faces", "sd.safetensors", "google/ddpm-celebahq-256"]


def test_real_images_are_known_by_what_they_hold(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs" / "smile" / "positive"
    pairs.mkdir(parents=True)
    (pairs / "a.png").write_text("picture")
    search = {"supervised.pairs": str(tmp_path / "pairs")}
    sweep = sweep_of(method="supervised", search=search, budget={"trials": 1})
    parameters = {"method": "supervised", "supervised.pairs": str(tmp_path / "pairs")}
    [_, images, _] = lineage.of_trial(sweep, "w", parameters)
    assert images["source_type"] == "local" and json.loads(images["source"])["uri"] == str(tmp_path / "pairs")
    (pairs / "a.png").write_text("another")
    lineage._of_folder.cache_clear()
    assert lineage.of_trial(sweep, "w", parameters)[1]["digest"] != images["digest"]
    (pairs / "a.png").unlink()
    (pairs / "a.png").symlink_to(tmp_path)  # what cannot be read stops no sweep
    lineage._of_folder.cache_clear()
    assert lineage.of_trial(sweep, "w", parameters)
