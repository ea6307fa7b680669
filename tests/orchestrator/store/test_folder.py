"""A sweep's folder knows its own sweep again, however its numbers are computed."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from orchestrator.spec import SCHEMA_VERSION, Sweep, parse
from orchestrator.store.folder import SweepFolder

DATA: dict[str, Any] = {"name": "a", "model": "toyfaces", "search": {}, "budget": {"trials": 1}, "train": {"batch": 8}}
WITHOUT_EFFECT = {
    "gradient": {"policy": "checkpoint_blocks", "lean": False},
    "sampler": {"batch": 4},
    "recovery": {"crashes": 9},
}


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path, "a")
    folder.create(parse(DATA), "weights")
    return folder


def test_a_sweep_goes_on_with_other_means(folder: SweepFolder) -> None:
    """After running out of memory, say, or on another device."""
    folder.refuse_changed(parse(DATA))
    folder.refuse_changed(parse(DATA | WITHOUT_EFFECT | {"train": {"batch": 8, "micro_batch": 2}}))


def test_and_only_what_decides_its_results_is_told_as_changed(folder: SweepFolder) -> None:
    with pytest.raises(UserError) as caught:
        folder.refuse_changed(parse(DATA | WITHOUT_EFFECT | {"seed": 3, "train": {"batch": 16, "micro_batch": 2}}))
    assert str(caught.value) == (
        "sweep 'a' has already been started with other settings; changed since: seed, train.batch; start a new one "
        f"that learns from it with --fork, give it another name, or remove {folder.path}"
    )


def test_a_sweep_of_an_earlier_version_does_not_go_on(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trials were measured otherwise, whether or not the file has changed."""
    assert not folder.of_earlier_version
    monkeypatch.setattr("orchestrator.spec.sweep.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    assert folder.of_earlier_version
    for sweep in (parse(DATA), parse(DATA | {"seed": 3})):
        with pytest.raises(UserError) as caught:
            folder.refuse_changed(sweep)
        assert str(caught.value) == (
            "sweep 'a' was started by an earlier version, whose metrics meant something else, so it cannot go on; "
            "start a new one that tries its best configurations first with --fork, give it another name, or remove "
            f"{folder.path}"
        )


def test_a_folder_keeps_the_sweep_that_it_was_made_for(folder: SweepFolder) -> None:
    before = folder.read()
    folder.create(parse(DATA | {"seed": 5}), "other weights")
    assert folder.read() == before and folder.sweep() == parse(parse(DATA).resolved())
    assert len(before["id"]) == 32 and before["weights"] == "weights"
    assert {"torch", "ray", "optuna"} <= before["versions"].keys()


def test_facts_are_added_to_those_there(folder: SweepFolder) -> None:
    folder.add(parent_run="1")
    content = folder.add(study="study.db", parent_run="2")
    assert content == folder.read() and (content["parent_run"], content["study"]) == ("2", "study.db")
    assert content["identity"] == parse(DATA).identity()


@pytest.mark.parametrize(
    ("uri", "mode"), [(None, 0o644), ("http://host:5000", 0o644), ("postgresql://me:secret@host/mlflow", 0o600)]
)
def test_a_file_that_holds_a_password_is_its_owners_alone(tmp_path: Path, uri: str | None, mode: int) -> None:
    folder = SweepFolder(tmp_path, "a")
    folder.create(parse(DATA | {"tracking": {"uri": uri}}), "weights")
    file = folder.path / "sweep.json"
    assert file.stat().st_mode & 0o777 == mode
    folder.add(more=1)
    assert file.stat().st_mode & 0o777 == mode and list(folder.path.iterdir()) == [file]


def test_weights_that_have_changed_are_refused(folder: SweepFolder, tmp_path: Path) -> None:
    folder.refuse_other_weights("weights")
    SweepFolder(tmp_path, "new").refuse_other_weights("any")
    with pytest.raises(UserError, match="^model: the weights of 'toyfaces' have changed since sweep 'a' was started; "):
        folder.refuse_other_weights("other weights")


@pytest.mark.parametrize("name", ["..", ".", "../b", "a/b", "/etc", "", ".hidden", "a\nb", "x" * 101, "a b"])
def test_a_name_that_would_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="^sweep: ") as caught:
        SweepFolder(tmp_path, name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_damaged_or_not_there(folder: SweepFolder) -> None:
    spec = {key: {} for key in ("id", "identity", "spec", "weights", "versions")}
    for content in ("{", "[1]", "[" * 100_000, "{}", '{"id": 1}'):
        (folder.path / "sweep.json").write_text(content)
        with pytest.raises(UserError, match="sweep.json is damaged: "):
            folder.sweep()
    for unreadable in ({}, {"name": "a", "model": "b", "search": {"start": "flattest"}}):
        (folder.path / "sweep.json").write_text(json.dumps(spec | {"spec": unreadable}))
        with pytest.raises(UserError, match="sweep.json is damaged, or another version wrote it: "):
            folder.sweep()
    with pytest.raises(UserError, match="no sweep.json of a sweep 'other' in .*; sweeps there: a"):
        SweepFolder(folder.root, "other").read()


def test_nothing_stays_of_a_sweep_that_was_refused(folder: SweepFolder, tmp_path: Path) -> None:
    new = SweepFolder(tmp_path, "new")
    new.path.mkdir()
    new.lock.touch()
    new.remove_if_empty()
    folder.lock.touch()
    folder.remove_if_empty()
    assert not new.path.exists() and folder.lock.exists()


def test_a_sweep_is_stored_as_a_sweep_file(folder: SweepFolder) -> None:
    stored: Sweep = parse(json.loads((folder.path / "sweep.json").read_text())["spec"])
    assert stored.identity() == folder.read()["identity"]
