"""The names of precisions: what a network is kept in, and whether TF32 may stand in for float32.

    fp32   float32, strictly
    tf32   float32, whose products a GPU may take with 10 bits of mantissa instead of 23: several times as fast
    bf16   the network in bfloat16; what stays in float32 (the chain's arithmetic, the trained parts) is strict
    fp16   the network in float16, of small numbers and much detail; nothing scales its gradients

A GPU's convolutions and its other products have a switch each in torch, of which the first allows TF32 by default. Here
they are one.
"""

from typing import NamedTuple

import torch


class Precision(NamedTuple):
    """What a network is kept in, and whether float32 may be TF32 where it is multiplied."""

    dtype: torch.dtype
    tf32: bool


PRECISIONS = {
    "fp32": Precision(torch.float32, False),
    "tf32": Precision(torch.float32, True),
    "bf16": Precision(torch.bfloat16, False),
    "fp16": Precision(torch.float16, False),
}


def use_precision(name: str) -> torch.dtype:
    """Set torch's switches for the whole process; returns what the network is to be loaded in."""
    dtype, tf32 = PRECISIONS[name]
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    return dtype
