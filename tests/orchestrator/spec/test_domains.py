"""The ends of what a value may be."""

import pytest

from orchestrator.spec.domains import LARGEST, Whole, Window
from orchestrator.spec.problems import Refused
from tests.orchestrator.spec.test_sweep import sweep_of


@pytest.mark.parametrize(
    ("memory", "text", "size"),
    [("auto", "auto", None), ("null", "auto", None), ("1.5 GiB", "1.5GiB", 3 << 29), ("500MB", "500MB", 500_000_000)],
)
def test_sizes_of_memory(memory: str, text: str, size: int | None) -> None:
    gradient = sweep_of(f"{{gradient: {{memory: {memory}}}}}").gradient
    assert (gradient.memory, gradient.bytes) == (text, size)


@pytest.mark.parametrize(
    ("window", "allowed"),
    [
        ([1000, 0], True),
        ([1, 0], True),
        ([9, 9], False),
        ([4000, 2000], True),
        ([LARGEST, 0], True),
        ([LARGEST + 1, 0], False),
        ([5, -1], False),
        ([0, 1], False),
    ],
)
def test_the_ends_of_a_window(window: list[int], allowed: bool) -> None:
    if allowed:
        assert Window().check(window) == tuple(window)
    else:
        with pytest.raises(Refused, match="is not a window of timesteps"):
            Window().check(window)


def test_the_ends_of_whole_numbers() -> None:
    assert [Whole(2, 5).check(value) for value in (2, 5)] == [2, 5] and Whole(0).check(LARGEST) == LARGEST
    for value in (1, 6):
        with pytest.raises(Refused, match="is out of range"):
            Whole(2, 5).check(value)
    with pytest.raises(Refused, match=f"is more than {LARGEST}"):
        Whole(0).check(LARGEST + 1)
