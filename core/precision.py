"""The names of precisions: the type of a network's weights, and whether TF32 may replace float32.

    fp32   float32, strictly
    tf32   float32, but a GPU may multiply with 10 bits of mantissa instead of 23: several times as fast
    bf16   the network in bfloat16; the float32 parts (the chain's arithmetic, the trained parts) are strict
    fp16   the network in float16: a small range of numbers, but finer detail; gradients are not scaled

torch has one switch for a GPU's convolutions, where TF32 is allowed by default, and one for its other products. This
module sets both alike.
"""

from typing import NamedTuple

import torch


class Precision(NamedTuple):
    """The type of a network's weights, and whether a GPU may multiply float32 as TF32."""

    dtype: torch.dtype
    tf32: bool


PRECISIONS = {
    "fp32": Precision(torch.float32, False),
    "tf32": Precision(torch.float32, True),
    "bf16": Precision(torch.bfloat16, False),
    "fp16": Precision(torch.float16, False),
}


def use_precision(name: str) -> torch.dtype:
    """Set torch's TF32 switches for the whole process, and return the type in which to load the network."""
    dtype, tf32 = PRECISIONS[name]
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    return dtype
