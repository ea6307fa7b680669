"""Count the memory of a predictor that a gradient goes through, by running it on tensors that have no data."""

from functools import lru_cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from core.chain.step_memory import MemoryCounter
from core.predictors.attributes import Attributes


@lru_cache(maxsize=64)
def scoring_bytes(attributes: Attributes, image_shape: tuple[int, int, int], count: int, device: str = "cpu") -> int:
    """Return the peak bytes of scoring `count` images and of the gradient back to them, beside the predictor's weights.

    device: where the predictor is. 0 for a predictor that cannot be run without data, such as one that decides by the
    values of an image, and for one without a gradient.
    """
    if attributes.score_through is None:
        return 0
    try:
        few, more = (_peak(attributes, image_shape, each, device) for each in (2, 4))
    except Exception:  # a predictor is anybody's function, and torch says in many ways that data is missing
        return 0
    return count * (more - few) // 2  # the difference leaves out copies of the weights


def _peak(attributes: Attributes, image_shape: tuple[int, int, int], count: int, device: str) -> int:
    assert attributes.score_through is not None
    with FakeTensorMode(allow_non_fake_inputs=True):  # its weights have data
        images = torch.empty(count, *image_shape, device=device, requires_grad=True)
        with torch.enable_grad(), MemoryCounter([images]) as counter:
            attributes.score_through(images).sum().backward()  # type: ignore[no-untyped-call]  # torch's own stub
        return int(counter.peak)
