"""A trial's checkpoints: the newest is the latest, few stay on disk, and a result is kept."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.store.checkpoints import Latest, TrialFolder, remove_checkpoints


def content(text: str, *, directions: bool = True) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "engines" / "explorer").mkdir(parents=True)
        (folder / "engines" / "explorer" / "x.safetensors").write_text(f"engine {text}")
        (folder / "seconds.json").write_text(text)
        if directions:
            (folder / "directions").mkdir()
            (folder / "directions" / "table").write_text(text)

    return write


def names(trial: TrialFolder) -> list[str]:
    """Everything that is in the folder, hidden or not."""
    return sorted(path.name for path in trial.path.iterdir())


def test_a_new_trial_starts_from_nothing(trial: TrialFolder) -> None:
    assert trial.latest() == Latest(None, 0, ())
    trial.keep_result_only()
    remove_checkpoints([trial])


def test_the_newest_checkpoint_is_the_latest(trial: TrialFolder) -> None:
    first = trial.save(90, content("first"))
    second = trial.save(100, content("second"), score=0.5)
    assert trial.latest() == Latest(second, 100, ())
    assert second == trial.path / "checkpoint_00000100" and first.exists()
    manifest = json.loads((second / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"], manifest["score"]) == (1, 100, 0.5)
    digest = "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4"
    assert manifest["files"]["seconds.json"] == {"bytes": 6, "sha256": digest}
    assert sorted(manifest["files"]) == ["directions/table", "engines/explorer/x.safetensors", "seconds.json"]


def test_steps_are_ordered_as_numbers(trial: TrialFolder) -> None:
    for step in (99_999_999, 100_000_000):
        trial.save(step, content("x"))
    assert trial.latest().step == 100_000_000


def flip(path: Path) -> str:
    file = path / "engines/explorer/x.safetensors"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    return "engines/explorer/x.safetensors: its digest differs"


def test_the_same_step_again_takes_the_place_of_the_first(trial: TrialFolder) -> None:
    trial.save(100, content("first"), score=1.0)
    path = trial.save(100, content("second"))
    assert trial.latest() == Latest(path, 100, ())
    assert (path / "seconds.json").read_text() == "second"
    assert names(trial) == ["checkpoint_00000100"]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_none(trial: TrialFolder, score: float) -> None:
    path = trial.save(1, content("x"), score)
    assert json.loads((path / "manifest.json").read_text())["score"] is None
    for step in (2, 3):
        trial.save(step, content("x"), -float(step))
    assert names(trial) == ["checkpoint_00000002", "checkpoint_00000003"]


def test_the_last_two_and_the_best_are_kept(trial: TrialFolder) -> None:
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.9), (4, math.nan), (5, None), (6, math.inf), (7, -1.0)):
        trial.save(step, content("x"), score)
    assert names(trial) == [f"checkpoint_{step:08d}" for step in (3, 6, 7)]
    trial.save(8, content("x"), 1.0)
    trial.save(9, content("x"))
    assert names(trial) == [f"checkpoint_{step:08d}" for step in (8, 9)]


def test_the_last_that_was_measured_is_kept_however_many_follow(trial: TrialFolder) -> None:
    """It has the trial's report and set; those after it are of a trial on its way to the next report."""
    trial.save(1, content("x"), 0.9)
    trial.save(2, content("x"), 0.5)
    for step in (3, 4, 5, 6):
        trial.save(step, content("x"))
    assert names(trial) == [f"checkpoint_{step:08d}" for step in (1, 2, 5, 6)]
    trial.save(7, content("x"), 0.7)
    assert names(trial) == [f"checkpoint_{step:08d}" for step in (1, 6, 7)]


def test_a_trial_that_has_ended_keeps_its_result(trial: TrialFolder) -> None:
    for step in (90, 100):
        trial.save(step, content(str(step)), score=-step)
    (trial.path / "process.json").write_text("{}")
    for _ in range(2):
        trial.keep_result_only()
        assert names(trial) == ["checkpoint_00000100", "process.json"]
        path = trial.result()
        assert trial.latest() == Latest(path, 100, ()) and trial.damage_of(path) is None
        assert sorted(file.name for file in path.iterdir()) == ["directions", "manifest.json", "seconds.json"]
        assert json.loads((path / "manifest.json").read_text())["score"] == -100


def test_what_only_going_on_needs_is_there_until_the_trial_has_ended(trial: TrialFolder) -> None:
    assert not trial.resumable()
    trial.save(90, content("90"))
    assert trial.resumable()
    trial.keep_result_only()
    assert not trial.resumable()


def test_a_trial_that_fails_keeps_the_directions_it_had(trial: TrialFolder) -> None:
    trial.save(90, content("90"), score=1.0)
    for step in (100, 110):
        trial.save(step, content("later", directions=False))
    assert trial.result().name == "checkpoint_00000090"
    trial.keep_result_only()
    assert names(trial) == ["checkpoint_00000090"] and trial.result().name == "checkpoint_00000090"


def test_the_result_is_the_newest_sound_one_with_directions(trial: TrialFolder) -> None:
    trial.save(90, content("x"))
    flip(trial.save(100, content("x")))
    assert trial.result().name == "checkpoint_00000090"
    assert names(trial) == ["checkpoint_00000090", "checkpoint_00000100"], "looking changes nothing"


def test_beyond_the_best_trials_checkpoints_go(tmp_path: Path) -> None:
    trials = [TrialFolder(tmp_path / name) for name in "abcd"]
    for trial in trials:
        trial.save(90, content("x"))
        flip(trial.save(100, content("x")))
        trial.latest()
        (trial.path / "ended.json").write_text("{}")
    trials[3].save(100, content("x"))
    trials[3].keep_result_only()
    remove_checkpoints(trials[2:])
    assert [names(trial) for trial in trials] == [["checkpoint_00000090", "damaged_00000100", "ended.json"]] * 2 + [
        ["ended.json"]
    ] * 2


def test_litter_of_others_is_left_alone(trial: TrialFolder) -> None:
    trial.save(1, content("x"))
    for name in (".writing-abc", "checkpoints", "checkpoint_new"):
        (trial.path / name).mkdir()
    trial.latest()
    assert names(trial) == [".writing-abc", "checkpoint_00000001", "checkpoint_new", "checkpoints"]
