"""What a predictor takes that a gradient goes through: counted without data, compared with a real pass."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.chain.step_memory import MemoryCounter
from core.predictors.attributes import Attributes
from core.predictors.embedded import embedded_predictor
from core.predictors.memory import scoring_bytes
from core.predictors.vision import open_vision


def real(attributes: Attributes, shape: tuple[int, int, int], count: int) -> int:
    assert attributes.score_through is not None
    images = torch.zeros(count, *shape, requires_grad=True)
    with MemoryCounter([images]) as counter:
        attributes.score_through(images).sum().backward()
    return int(counter.peak)


@pytest.mark.parametrize(("model", "shape"), [("toyfaces", (3, 32, 32)), ("mnist", (1, 32, 32))])
def test_it_is_what_a_real_pass_takes_for_each_further_image(model: str, shape: tuple[int, int, int]) -> None:
    attributes = embedded_predictor(model)
    assert attributes is not None
    counted = scoring_bytes(attributes.score_through, shape, 24) - scoring_bytes(attributes.score_through, shape, 16)
    assert counted == pytest.approx(real(attributes, shape, 24) - real(attributes, shape, 16), rel=0.02)
    assert counted > 8 * 4 * torch.Size(shape).numel()


def test_a_vision_model_of_transformers_is_counted(vision_folder: Path) -> None:
    """With its preprocessing, which resizes."""
    through, shape = open_vision(str(vision_folder), "look").embed_through, (3, 32, 32)
    assert through is not None
    counted = scoring_bytes(through, shape, 24) - scoring_bytes(through, shape, 16)
    of_vision = Attributes.of(("a",), through)
    assert counted == pytest.approx(real(of_vision, shape, 24) - real(of_vision, shape, 16), rel=0.05)


def test_a_predictor_that_looks_at_values_is_not_counted() -> None:
    def decides(images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return mean[:, None] if float(mean.detach().sum()) > 0 else -mean[:, None]

    shape = (3, 8, 8)
    assert scoring_bytes(decides, shape, 4) == 0
    assert scoring_bytes(None, shape, 4) == 0, "no gradient goes through it"
    assert scoring_bytes(lambda x: x.square().mean(dim=(2, 3)), shape, 4) > 4 * 4 * 3 * 64
