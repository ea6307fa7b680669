"""Records on disk: whole or absent, in order, with their files."""

import errno
import json
from pathlib import Path

import pytest

from orchestrator.store.spool import Spool, Unreadable, pending, refused


def test_records_keep_their_order_and_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("a")
    spool = Spool(tmp_path / "box")
    assert [spool.put({"n": 1}), spool.put({"n": 2}, folder), spool.put({"n": 3}, folder / "deep" / "a.txt")] == [
        1,
        2,
        3,
    ]
    (folder / "deep" / "a.txt").unlink()

    again = Spool(tmp_path / "box")
    assert again.numbers() == [1, 2, 3] and pending(tmp_path / "box") == 3
    assert again.read(2) == {"n": 2} and (again.files(2) / "deep" / "a.txt").read_text() == "a"
    assert (again.files(3) / "a.txt").read_text() == "a"
    again.remove(2)
    assert again.read(2) is None and not again.files(2).exists()
    assert again.put({"n": 4}) == 4


def test_what_is_set_aside_can_be_moved_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put({"n": 1}, Path(__file__))
    there = spool.set_aside(1, "why")
    assert (pending(tmp_path), refused(tmp_path)) == (0, 1)
    assert json.loads(there.read_text()) == {"n": 1} and there.with_suffix(".txt").read_text() == "why\n"
    assert Spool(tmp_path).put({"n": 2}) == 2, "its number is not given again"
    for path in (there, there.with_suffix("")):
        path.rename(tmp_path / path.name)
    assert Spool(tmp_path).numbers() == [1, 2] and (spool.files(1) / Path(__file__).name).is_file()


def test_what_a_killed_writer_leaves_is_swept_up(tmp_path: Path) -> None:
    Spool(tmp_path).put({"n": 1}, Path(__file__))
    for name in (".writing-x", ".00000002-y", "00000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("")
    Spool(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000001.json", "refused"]


@pytest.mark.parametrize("content", ["", '{"n"', "[1]", "\udcff"])
def test_a_damaged_record(tmp_path: Path, content: str) -> None:
    spool = Spool(tmp_path)
    spool.put({"n": 1})
    spool.file(1).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(Unreadable, match="it cannot be read"):
        spool.read(1)


def test_what_a_record_brings_is_linked_and_copied_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link takes no space and outlives what it was taken from; on another disk there is none."""
    (tmp_path / "set").mkdir()
    source = tmp_path / "set" / "a.json"
    source.write_text("whole")
    spool = Spool(tmp_path / "outbox")
    linked = spool.files(spool.put({"kind": "folder"}, tmp_path / "set")) / "a.json"
    assert linked.samefile(source)

    def across(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("orchestrator.store.spool.os.link", across)
    for brought in (tmp_path / "set", source):
        copied = spool.files(spool.put({"kind": "folder"}, brought)) / "a.json"
        assert copied.read_text() == "whole" and not copied.samefile(source)
        assert copied.stat().st_mtime == source.stat().st_mtime
