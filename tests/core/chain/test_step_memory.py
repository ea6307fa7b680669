"""Counting memory on tensors without data."""

import torch
from torch import Tensor

from core.chain.step_memory import CachingMemoryCounter, counting_memory

KIB = 1024


def empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def test_the_second_counter_counts_what_the_first_did() -> None:
    """Counters share what they remember of an operation; a result that is dropped does not count any more."""
    weight = empty(16, 16)

    def peak_of_two_products() -> tuple[int, int]:
        with counting_memory([weight]) as counter:
            rows = empty(16, 16) @ weight
            kept = (rows @ weight).relu()
            del rows
        assert kept.shape == (16, 16)
        return counter.live, counter.peak

    CachingMemoryCounter._results.clear()
    first = peak_of_two_products()
    assert CachingMemoryCounter._results
    assert peak_of_two_products() == first == (KIB, 3 * KIB)


def test_a_view_of_what_was_made_before_is_never_taken_for_something_new() -> None:
    CachingMemoryCounter._results.clear()
    made_before = empty(256)
    with counting_memory([]) as counter:
        made_before.view(16, 16)  # seen for the first time
        assert counter.peak == KIB
    with counting_memory([]) as counter:
        made_here = empty(256) * 2
        held = counter.live
        view = made_here.view(16, 16)
        assert counter.live == held and view.untyped_storage() is made_here.untyped_storage()
