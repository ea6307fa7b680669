"""Count the memory of a network of images that a gradient goes through, by running it on tensors without data."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from core.chain.step_memory import MemoryCounter

Through = Callable[[Tensor], Tensor]  # images [N, C, H, W] -> scores or features [N, ...], differentiable


@lru_cache(maxsize=64)
def scoring_bytes(through: Through | None, image_shape: tuple[int, int, int], count: int, device: str = "cpu") -> int:
    """Return the peak bytes of running `count` images through a network and of the gradient back, beside its weights.

    device: where the network is. 0 for one that cannot be run without data, such as one that decides by the values of
    an image, and for one without a gradient.
    """
    if through is None:
        return 0
    try:
        few, more = (_peak(through, image_shape, each, device) for each in (2, 4))
    except Exception:  # it is anybody's function, and torch says in many ways that data is missing
        return 0
    return count * (more - few) // 2  # the difference leaves out copies of the weights


def _peak(through: Through, image_shape: tuple[int, int, int], count: int, device: str) -> int:
    with FakeTensorMode(allow_non_fake_inputs=True):  # its weights have data
        images = torch.empty(count, *image_shape, device=device, requires_grad=True)
        with torch.enable_grad(), MemoryCounter([images]) as counter:
            through(images).sum().backward()  # type: ignore[no-untyped-call]  # torch's own stub
        return int(counter.peak)
