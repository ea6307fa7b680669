"""Drop skip connections while a UNet is trained, so that it has to draw through h, and h steers it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def dropped_skips(
    unet: nn.Module, dropped: Tensor, input_only: bool = False, drop_all: Tensor | None = None
) -> Iterator[None]:
    """Zero skips of the samples where `dropped` [N] is True, inside the `with` block.

    These are the skips below full resolution, or with `input_only` all but the output of the first convolution. Where
    `drop_all` [N] is True as well, all skips are zero. Works for diffusers' `UNet2DModel` and `UNet2DConditionModel`.
    """
    blocks: Any = unet.up_blocks
    keep = (~dropped)[:, None, None, None]
    seen = None if drop_all is None else ~(dropped & drop_all)[:, None, None, None]

    def passed(skips: tuple[Tensor, ...], last: bool) -> tuple[Tensor, ...]:
        """Return an up block's skips, some zeroed. skips: in the order in which the encoder made them."""
        whole = (last and i == 0 if input_only else last for i in range(len(skips)))
        factors = (seen if kept else keep for kept in whole)
        return tuple(skip if factor is None else skip * factor for skip, factor in zip(skips, factors, strict=True))

    def before(block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        last = block is blocks[-1]  # the one at full resolution
        if "res_hidden_states_tuple" in named:
            return inputs, {**named, "res_hidden_states_tuple": passed(named["res_hidden_states_tuple"], last)}
        sample, skips, *rest = inputs
        return (sample, passed(skips, last), *rest), named

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield
