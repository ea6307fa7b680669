"""What a full disk is, and that whoever writes waits for it."""

import errno
from collections.abc import Callable

import pytest

from orchestrator.store import disk
from orchestrator.store.disk import is_full, with_space
from orchestrator.trial.outcome import Preempted

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("inline_container.cc: No space left on device"), True),  # torch's own
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("x"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_full(error) == expected


def writing(tries: list[Exception]) -> Callable[[], str]:
    """A write that fails with each of these in turn, and then does not."""

    def write() -> str:
        if tries:
            raise tries.pop(0)
        return "written"

    return write


def test_what_does_not_fit_is_written_when_there_is_space(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[object] = []
    monkeypatch.setattr(disk, "pause", lambda seconds: happened.append(seconds))
    tries: list[Exception] = [FULL, FULL]
    assert with_space(writing(tries), lambda: happened.append("waits")) == "written"
    assert happened == ["waits", 2.0] * 2
    assert with_space(writing([])) == "written" and len(happened) == 4


def test_another_error_is_not_waited_out() -> None:
    with pytest.raises(ValueError, match="^x$"):
        with_space(writing([ValueError("x")]), lambda: pytest.fail("it waits"))


def test_who_waits_for_space_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "pause", lambda _: pytest.fail("it waits"))
    waited: list[str] = []
    tries: list[Exception] = [FULL, FULL]

    def told_to_end() -> None:
        waited.append("waits")
        raise Preempted

    with pytest.raises(Preempted):
        with_space(writing(tries), told_to_end)
    assert waited == ["waits"] and len(tries) == 1
    assert with_space(writing([]), told_to_end) == "written", "what fits is not stopped"
