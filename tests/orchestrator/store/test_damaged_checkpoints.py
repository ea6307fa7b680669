"""A checkpoint that is damaged is refused and set aside, and the one before it is taken."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.store import checkpoints
from orchestrator.store.checkpoints import CheckpointError, Latest, TrialFolder
from tests.orchestrator.store.test_checkpoints import content, flip, names


def truncate(path: Path) -> str:
    file = path / "engines/explorer/x.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    return "engines/explorer/x.safetensors has 7 bytes instead of 10"


def delete(path: Path) -> str:
    (path / "seconds.json").unlink()
    return "seconds.json is missing"


def add(path: Path) -> str:
    (path / "directions" / "more").touch()
    return "directions/more is not in its manifest"


def delete_manifest(path: Path) -> str:
    (path / "manifest.json").unlink()
    return "manifest.json is missing"


def break_manifest(path: Path) -> str:
    (path / "manifest.json").write_text('{"format": 1,')
    return "manifest.json is not a manifest"


def another_manifest(path: Path) -> str:
    (path / "manifest.json").write_text("[1]")
    return "manifest.json is not a manifest"


def change_score(path: Path) -> str:
    told = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(told.replace('"score": 0.5', '"score": 0.7'))
    return "manifest.json: its digest differs"


def folder_for_a_file(path: Path) -> str:
    (path / "seconds.json").unlink()
    (path / "seconds.json").mkdir()
    return "seconds.json has"


DAMAGE = [
    truncate,
    flip,
    delete,
    add,
    delete_manifest,
    break_manifest,
    another_manifest,
    change_score,
    folder_for_a_file,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_set_aside(trial: TrialFolder, damage: Callable[[Path], str]) -> None:
    before = trial.save(90, content("1234"))
    path = trial.save(100, content("567"), score=0.5)
    assert trial.damage_of(path) is None
    reason = damage(path)
    assert (trial.damage_of(path) or "").startswith(reason)
    latest = trial.latest()
    assert (latest.path, latest.step) == (before, 90)
    [said] = latest.damaged
    assert said.startswith(f"checkpoint_00000100 is damaged ({reason}")
    assert said.endswith("); the one before it is taken")
    assert names(trial) == ["checkpoint_00000090", "damaged_00000100"]
    assert trial.latest() == Latest(before, 90, ())


def test_no_bit_of_a_manifest_can_flip(trial: TrialFolder) -> None:
    """Save for those of white space that stays white space."""
    path = trial.save(100, content("x"), score=0.5)
    told = (path / "manifest.json").read_bytes()
    for place, byte in enumerate(told):
        for bit in range(8):
            changed = bytes([*told[:place], byte ^ (1 << bit), *told[place + 1 :]])
            (path / "manifest.json").write_bytes(changed)
            assert trial.damage_of(path) is not None or (byte in b" \n" and chr(byte ^ (1 << bit)).isspace())


def test_a_manifest_of_another_format_is_refused(trial: TrialFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = trial.save(100, content("x"))
    monkeypatch.setattr("orchestrator.store.checkpoints._FORMAT", 2)
    assert trial.damage_of(path) == "manifest.json is of format 1, not 2"


def test_one_damaged_checkpoint_is_kept(trial: TrialFolder) -> None:
    for step in (10, 20, 30, 40):
        trial.save(step, content("x"), score=-float(step))
    truncate(trial.path / "checkpoint_00000040")
    assert trial.latest().step == 30
    trial.save(50, content("x"))
    for step in (50, 30):
        truncate(trial.path / f"checkpoint_{step:08d}")
    latest = trial.latest()
    assert latest.step == 10
    assert [said.split()[0] for said in latest.damaged] == ["checkpoint_00000050", "checkpoint_00000030"]
    assert names(trial) == ["checkpoint_00000010", "damaged_00000050"]


def test_what_the_disk_does_not_give_is_damage(trial: TrialFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before, path = trial.save(90, content("x")), trial.save(100, content("x"))
    entry = checkpoints._entry

    def broken(file: Path) -> dict[str, object]:
        if file.is_relative_to(path):
            raise OSError(errno.EIO, "Input/output error")
        return entry(file)

    monkeypatch.setattr(checkpoints, "_entry", broken)
    assert (trial.damage_of(path) or "").endswith(" cannot be read: Input/output error")
    assert trial.latest().path == before


def test_where_none_is_sound_nothing_is_made_up(trial: TrialFolder) -> None:
    for step in (90, 100):
        truncate(trial.save(step, content("x")))
    for _ in range(2):
        with pytest.raises(CheckpointError) as error:
            trial.latest()
        assert str(error.value).startswith(f"no checkpoint in {trial.path} is sound (checkpoint_00000100: engines/expl")
        assert "; checkpoint_00000090: engines/" in str(error.value)
    with pytest.raises(CheckpointError, match="no sound checkpoint in .* holds directions"):
        trial.result()
    assert names(trial) == ["checkpoint_00000090", "checkpoint_00000100"]


def test_a_trial_with_a_damaged_checkpoint_alone_is_not_new(trial: TrialFolder) -> None:
    trial.save(90, content("x"))
    truncate(trial.save(100, content("x")))
    trial.latest()
    (trial.path / "checkpoint_00000090").rename(trial.path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is sound \(damaged_00000100: set aside before\)$"):
        trial.latest()


def test_a_damaged_manifest_has_no_score(trial: TrialFolder) -> None:
    trial.save(1, content("x"), 9.0)
    change = trial.path / "checkpoint_00000001" / "manifest.json"
    change.write_text(change.read_text().replace("9.0", "9.5"))
    trial.save(2, content("x"), 0.5)
    for step in (3, 4):
        trial.save(step, content("x"), 0.1)
    assert names(trial) == [f"checkpoint_{step:08d}" for step in (2, 3, 4)], "of those that count, 2 is the best"
