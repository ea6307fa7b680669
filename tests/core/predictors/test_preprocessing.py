"""Preprocessing done with torch comes to what the processor comes to, but for rounding, and lets a gradient through."""

from typing import Any

import pytest
import torch
from PIL.Image import Resampling
from torch import Tensor

from core.pictures.traversal_grid import to_picture
from core.predictors.attributes import Attributes
from core.predictors.preprocessing import behind_processor, differentiable

transformers = pytest.importorskip("transformers")

KNOWN: dict[str, Any] = {
    "vit": transformers.ViTImageProcessorPil(),
    "not square": transformers.ViTImageProcessorPil(size={"height": 40, "width": 30}),
    "not normalised": transformers.ViTImageProcessorPil(do_normalize=False),
    "not resized": transformers.ViTImageProcessorPil(do_resize=False),
    "clip": transformers.CLIPImageProcessorPil(),
    "deit": transformers.DeiTImageProcessorPil(),
    "convnext, cropped": transformers.ConvNextImageProcessorPil(size={"shortest_edge": 32}),
    "convnext, warped": transformers.ConvNextImageProcessorPil(),
}
# Black around a crop, colours in another order, another offset, another rule for the shortest edge, other filters.
UNKNOWN: dict[str, Any] = {
    "padded": transformers.CLIPImageProcessorPil(size={"shortest_edge": 20}),
    "flipped": transformers.MobileViTImageProcessorPil(crop_size={"height": 224, "width": 224}),
    "offset": transformers.EfficientNetImageProcessorPil(rescale_offset=True),
    "levit": transformers.LevitImageProcessorPil(),
    "nearest": transformers.ViTImageProcessorPil(resample=Resampling.NEAREST),
    "lanczos": transformers.ViTImageProcessorPil(resample=Resampling.LANCZOS),
}


def pictures(channels: int, height: int, width: int) -> Tensor:
    """Noise beyond [-1, 1], where pictures are clipped."""
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(height)) * 0.8


def levels_apart(processor: Any, found: Tensor, images: Tensor) -> float:
    """How far apart both are at most, in the 255 levels of a picture."""
    expected = processor(images=[to_picture(image) for image in images], return_tensors="pt")["pixel_values"]
    settings = processor.to_dict()
    deviation = torch.tensor(settings["image_std"])[:, None, None] if settings["do_normalize"] else 1.0
    assert found.shape == expected.shape
    return float(((found - expected) * deviation).abs().max() / settings["rescale_factor"])


@pytest.mark.parametrize("name", KNOWN)
def test_it_comes_to_what_the_processor_comes_to(name: str) -> None:
    pixels_of = differentiable(KNOWN[name])
    assert pixels_of is not None
    for channels, height, width in ((3, 8, 8), (1, 64, 48), (3, 300, 500), (4, 250, 250)):
        images = pictures(channels, height, width)
        assert levels_apart(KNOWN[name], pixels_of(images), images) < 2.5


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_it_does_not_know_it_does_not_do(name: str) -> None:
    assert differentiable(UNKNOWN[name]) is None


@pytest.mark.parametrize("name", ["vit", "clip", "convnext, cropped"])
def test_a_gradient_comes_back(name: str) -> None:
    """Along a small change of the images it is the difference that the change makes."""
    pixels_of = differentiable(KNOWN[name])
    assert pixels_of is not None
    images = (pictures(3, 32, 32) / 4).requires_grad_()
    weights = torch.randn(pixels_of(images).shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((pixels_of(images) * weights).sum(), images)
    step = 0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        difference = (pixels_of(images + step) - pixels_of(images - step)).double().mul(weights).sum() / 2
    assert abs(float(difference)) > 0.1
    assert float((gradient.double() * step).sum()) == pytest.approx(float(difference), rel=1e-2)


def test_a_predictor_behind_a_processor_is_as_differentiable_as_that() -> None:
    def scores_of(pixel_values: Tensor) -> Tensor:
        return pixel_values.mean(dim=(2, 3))

    images = pictures(3, 32, 32)
    known = Attributes(("r", "g", "b"), *behind_processor(KNOWN["clip"], scores_of, "cpu"))
    assert known.differentiable and known.score_through is not None
    assert torch.allclose(known.score(images), known.score_through(images), atol=5e-3)
    assert known.score_through(images.requires_grad_()).requires_grad and not known.score(images).requires_grad
    unknown = Attributes(("r", "g", "b"), *behind_processor(UNKNOWN["levit"], scores_of, "cpu"))
    assert not unknown.differentiable and unknown.score_through is None
    assert unknown.score(images.detach()).shape == (2, 3)
