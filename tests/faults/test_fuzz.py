"""A few thousand hostile inputs for each reader; `python -m tests.faults.fuzz` runs the hundred thousand."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from core.directions import direction_set
from core.directions import reading as set_reading
from orchestrator.spec import domains
from tests.faults.fuzz import TARGETS, Tally, fuzz_direction_set, fuzz_spec

Fuzz = Callable[[int, int], Tally]


@pytest.mark.slow
@pytest.mark.parametrize("fuzz", TARGETS.values(), ids=TARGETS)
def test_hostile_inputs_are_read_or_refused_in_a_sentence(fuzz: Fuzz) -> None:
    tally = fuzz(2_000, 0)
    assert tally.inputs == 2_000
    assert tally.accepted > 100 and tally.refused > 100


def caught(fuzz: Fuzz, examples: int = 2_000) -> str:
    """What the fuzzer says of a reader that has lost a check."""
    with pytest.raises(BaseException) as found:
        fuzz(examples, 0)
    return f"{type(found.value).__name__}: {found.value}"


@pytest.mark.slow
def test_a_link_that_is_followed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_reading, "open_regular", lambda path, follow: os.fdopen(os.open(path, os.O_RDONLY), "rb"))
    monkeypatch.setattr("tests.faults.fuzz.os.mkfifo", Path.touch)  # else it waits for the pipe, as it should not
    assert "a link was followed" in caught(fuzz_direction_set)


@pytest.mark.slow
def test_a_file_opened_outside_of_the_folder_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direction_set, "read_names", lambda _: tuple(Path("/etc/hostname").read_text()))
    assert caught(fuzz_direction_set) == "Escaped: opened /etc/hostname"


def test_an_allocation_over_the_limit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_reading, "_check_shapes", lambda *_: bytearray(1 << 30))
    assert "MemoryError" in caught(fuzz_direction_set)


@pytest.mark.slow
def test_another_error_than_the_documented_one_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    check = domains.Whole.check

    def faulty(domain: domains.Whole, value: object) -> object:
        if value == 0:
            raise ZeroDivisionError("a fault")
        return check(domain, value)

    monkeypatch.setattr(domains.Whole, "check", faulty)
    assert "ZeroDivisionError: a fault" in caught(fuzz_spec, 20_000)
