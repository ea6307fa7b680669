"""A trial's checkpoints: whole whenever its process is killed, refused when they are damaged, few on disk."""

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.store import checkpoints
from orchestrator.store.checkpoints import CheckpointError, Latest, TrialFolder, remove_checkpoints


@pytest.fixture
def trial(tmp_path: Path) -> TrialFolder:
    return TrialFolder(tmp_path / "trials" / "abc")


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


def truncate(path: Path) -> str:
    file = path / "engines/explorer/x.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    return "engines/explorer/x.safetensors has 7 bytes instead of 10"


def flip(path: Path) -> str:
    file = path / "engines/explorer/x.safetensors"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    return "engines/explorer/x.safetensors: its digest differs"


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


def test_a_damaged_manifest_has_no_score(trial: TrialFolder) -> None:
    trial.save(1, content("x"), 9.0)
    change = trial.path / "checkpoint_00000001" / "manifest.json"
    change.write_text(change.read_text().replace("9.0", "9.5"))
    trial.save(2, content("x"), 0.5)
    for step in (3, 4):
        trial.save(step, content("x"), 0.1)
    assert names(trial) == [f"checkpoint_{step:08d}" for step in (2, 3, 4)], "of those that count, 2 is the best"


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


def test_a_writer_that_fails_leaves_nothing_behind(trial: TrialFolder) -> None:
    path = trial.save(100, content("first"))
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(folder: Path) -> None:
        content("second")(folder)
        raise full

    for step in (100, 110):
        with pytest.raises(OSError) as error:
            trial.save(step, write)
        assert error.value is full
    assert names(trial) == ["checkpoint_00000100"] and trial.latest() == Latest(path, 100, ())


@pytest.mark.parametrize(("renames", "stands"), [(0, "first"), (1, "first"), (2, "second")])
def test_a_kill_while_a_checkpoint_takes_the_place_of_another_loses_neither_and_leaves_nothing(
    trial: TrialFolder, monkeypatch: pytest.MonkeyPatch, renames: int, stands: str
) -> None:
    """After so many renames, of which there are two."""
    trial.save(100, content("first"))
    move, done = checkpoints._move, []

    def killed(path: Path, to: Path) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        move(path, to)
        done.append(to)
        if len(done) == renames:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(checkpoints, "_move", killed)
        with pytest.raises(KeyboardInterrupt):
            trial.save(100, content("second"))
    latest = trial.latest()
    assert latest.path is not None and latest.damaged == ()
    assert (latest.path / "seconds.json").read_text() == stands
    assert names(trial) == ["checkpoint_00000100"]


def test_a_kill_while_one_is_removed_does_not_look_like_damage(
    trial: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is out of sight before its first file goes."""
    for step in (1, 2):
        trial.save(step, content("x"))
    rmtree = checkpoints.shutil.rmtree

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.exists() and path.name.endswith(".gone"):
            (path / "seconds.json").unlink()
            raise KeyboardInterrupt
        rmtree(path, ignore_errors=ignore_errors)

    with monkeypatch.context() as broken:
        broken.setattr(checkpoints.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            trial.save(3, content("x"))
    assert names(trial) == [".checkpoint_00000001.gone", "checkpoint_00000002", "checkpoint_00000003"]
    assert trial.latest() == Latest(trial.path / "checkpoint_00000003", 3, ())
    assert names(trial) == ["checkpoint_00000002", "checkpoint_00000003"]


def test_what_killed_processes_left_is_cleared_away(trial: TrialFolder) -> None:
    trial.save(1, content("x"))
    for name in ("..checkpoint_00000002.new-abc", ".checkpoint_00000002.new", ".checkpoint_00000001.old", ".x.gone"):
        (trial.path / name).mkdir()
    trial.latest()
    assert names(trial) == ["checkpoint_00000001"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root mounts a disk, and not everywhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before(small_disk: Path) -> None:
    trial = TrialFolder(small_disk / "abc")
    path = trial.save(1, lambda folder: (folder / "x").write_bytes(b"x" * 20_000) and None)
    with pytest.raises(OSError) as error:
        trial.save(2, lambda folder: (folder / "x").write_bytes(b"x" * 60_000) and None)
    assert error.value.errno == errno.ENOSPC
    assert names(trial) == ["checkpoint_00000001"] and trial.latest() == Latest(path, 1, ())
    trial.save(2, lambda folder: (folder / "x").write_bytes(b"x" * 20_000) and None)
    assert trial.latest().step == 2


def test_an_engine_meets_a_full_disk_as_an_error_of_the_disk(small_disk: Path) -> None:
    import torch

    from orchestrator.store.state_file import write_state

    trial = TrialFolder(small_disk / "abc")
    with pytest.raises(OSError) as error:
        trial.save(1, lambda folder: write_state(folder / "engines", {"x": torch.zeros(50_000)}, {}))
    assert error.value.errno == errno.ENOSPC and names(trial) == []


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


# Every process here is a child of one that has imported all, so that hundreds of them may be killed.
KILLS = """
import os, pathlib, shutil, signal, sys, time
from orchestrator.store.checkpoints import TrialFolder, remove_checkpoints

root = pathlib.Path(sys.argv[1])

def content(text):
    def write(folder):
        (folder / "engines").mkdir()
        (folder / "directions").mkdir()
        for name in ("engines/x", "engines/y", "directions/z"):
            with open(folder / name, "w") as file:
                for _ in range(3):
                    file.write(text)
                    file.flush()
                    os.truncate(file.fileno(), file.tell())  # tells the counter below where it is
    return write

def before(trial):
    for step in (1, 2, 3):
        trial.save(step, content(str(step)), 1 / step)

def again(trial): trial.save(3, content("again"))
def next(trial): trial.save(4, content("next"))
def ended(trial): trial.keep_result_only()
def damaged(trial):
    trial.latest()
def emptied(trial): remove_checkpoints([trial])

def child(act, trial, last):
    pid = os.fork()
    if pid == 0:
        count = 0
        def hook(event, details):
            nonlocal count
            if event.startswith(("os.", "open", "shutil.")) and event != "os.fork":
                count += 1
                if count == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        act(trial)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def check(act, trial):
    latest = trial.latest()
    if act is not emptied:
        assert trial.damage_of(latest.path) is None
        assert latest.step >= (2 if act is damaged else 3), latest
        assert trial.result() == latest.path
    left = sorted(path.name for path in trial.path.iterdir())
    assert not [name for name in left if name.startswith(".")], left
    if act is not damaged:
        assert latest.damaged == () and not [name for name in left if name.startswith("damaged")], (latest, left)
    act(trial)  # it can be done after all
    if act is not emptied:
        assert trial.damage_of(trial.latest().path) is None

for act in (again, next, ended, damaged, emptied):
    last, status = 0, None
    while status != 0:
        last += 1
        trial = TrialFolder(root / act.__name__ / str(last))
        before(trial)
        if act is damaged:
            (trial.path / "damaged_00000000").mkdir()
            (trial.path / "checkpoint_00000003" / "engines" / "x").unlink()
        status = child(act, trial, last)
        assert status in (0, signal.SIGKILL), (act, last, status)
        check(act, trial)
        shutil.rmtree(trial.path)
    print("KILLED", act.__name__, last - 1)

for delay in range(10):  # and from outside, whenever
    trial = TrialFolder(root / f"outside{delay}")
    trial.save(1, content("first"))
    pid = os.fork()
    if pid == 0:
        for step in range(2, 1000):
            trial.save(step // 2, content(str(step) * 100_000), step)
        os._exit(0)
    time.sleep(0.013 * (1 + delay))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    latest = trial.latest()
    assert trial.damage_of(latest.path) is None and latest.damaged == ()
    assert not [path for path in trial.path.iterdir() if path.name.startswith(".")]
    print("OUTSIDE", latest.step)
"""


@pytest.mark.slow
def test_a_process_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    """Before every single thing that it asks of the disk, and at times of nobody's choosing."""
    done = subprocess.run([sys.executable, "-c", KILLS, str(tmp_path)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = {words[1]: int(words[2]) for line in done.stdout.splitlines() if (words := line.split())[0] == "KILLED"}
    assert list(kills) == ["again", "next", "ended", "damaged", "emptied"] and min(kills.values()) > 20, kills
    assert done.stdout.count("OUTSIDE") == 10
