"""What a precision is called, and that both of torch's switches follow it."""

from collections.abc import Iterator

import pytest
import torch

from core.precision import use_precision


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    ("name", "dtype", "tf32"),
    [("fp32", torch.float32, False), ("tf32", torch.float32, True), ("bf16", torch.bfloat16, False)],
)
def test_a_precision_sets_both_switches(name: str, dtype: torch.dtype, tf32: bool) -> None:
    for before in ("highest", "high"):
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = before == "high"
        assert use_precision(name) is dtype
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)
