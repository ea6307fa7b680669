"""The network that tells directions apart: in units of its own, down to few features."""

import pytest
import torch
from torch import Tensor, nn

from core.methods.learned.reconstructor import Reconstructor, convolutional_body
from core.randomness import noise

SHAPE = (3, 8, 8)


def reconstructor() -> Reconstructor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Reconstructor(SHAPE, 5, width=16)


def images(first: int, count: int = 4) -> Tensor:
    return noise(range(first, first + count), SHAPE)


def test_the_units_are_root_mean_squares_of_images_and_of_differences() -> None:
    network, x_0 = reconstructor(), torch.full((2, *SHAPE), 0.5)
    shifted = x_0.clone()
    shifted[0] += 0.3  # half of the differences are 0.3
    network.calibrate(x_0, shifted)
    assert float(network.image_rms) == pytest.approx(0.5)
    assert float(network.difference_rms) == pytest.approx(0.3 / 2**0.5)


def test_the_answer_does_not_depend_on_how_bright_images_and_how_large_shifts_are() -> None:
    """Each in its own unit: images five times as bright, with shifts a hundredth as large, are the same to it."""
    plain, faint = reconstructor().eval(), reconstructor().eval()
    x_0, change = images(0), images(10)
    plain.calibrate(x_0, x_0 + change)
    faint.calibrate(5 * x_0, 5 * x_0 + change / 100)
    expected, found = plain(x_0, x_0 + change), faint(5 * x_0, 5 * x_0 + change / 100)
    assert expected[0].shape == (4, 5) and expected[1].shape == (4,)
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, atol=1e-3)
    assert not torch.allclose(plain(x_0, x_0 - change)[0], expected[0], atol=1e-3)
    assert not torch.allclose(plain(images(20), images(20) + change)[0], expected[0], atol=1e-3), "it sees the image"


def test_the_first_batch_that_is_trained_on_fixes_the_units_for_good() -> None:
    network = reconstructor()
    network.eval()(images(0), images(10))
    assert float(network.difference_rms) == 0, "not a batch that is looked at"
    network.train()(images(0), images(10))
    fixed = float(network.difference_rms)
    assert fixed == pytest.approx(float((images(10) - images(0)).square().mean().sqrt()))
    network(images(0), images(10) * 7)
    assert float(network.difference_rms) == fixed


@pytest.mark.parametrize(("size", "stages"), [(4, 1), (8, 1), (28, 3), (32, 3), (64, 4), (256, 6)])
def test_images_of_every_size_come_down_to_four_by_four(size: int, stages: int) -> None:
    body, features = convolutional_body(3, size, 8, widest=16)
    strided = [layer for layer in body if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    assert len(strided) == stages and max(layer.out_channels for layer in strided) <= 16
    assert body(torch.zeros(1, 3, size, size)).shape == (1, features) == (1, 512)
