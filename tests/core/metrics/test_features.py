"""What images are judged by: features of the denoiser, in deviations of the reference."""

import math

import torch

from core.metrics.features import denoiser_features, standardise
from core.model.denoiser import Denoiser
from tests.core.metrics.test_traversals import normal


def test_features_are_grid_means_of_h_and_of_the_deepest_skips(tiny_denoiser: Denoiser) -> None:
    images = normal(3, *tiny_denoiser.sample_shape)
    t = 50
    encoded = tiny_denoiser.encode(math.sqrt(float(tiny_denoiser.scheduler.alphas_cumprod[t])) * images, t)
    # At 2x2 the grid is the feature map itself; two of the skips are that small.
    expected = torch.cat([encoded.h, encoded.skips[-2], encoded.skips[-1]], dim=1).flatten(1)

    found = denoiser_features(tiny_denoiser, images, batch=2)
    assert found.shape == (3, 24 * 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_standardised_features_are_in_deviations_of_the_reference() -> None:
    reference = torch.tensor([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]])  # means 2 and 5, deviations 2 and 0
    found = standardise(torch.tensor([[4.0, 5.0], [0.0, 5.02]]), reference)
    # The feature that does not vary is divided by 1 % of the average deviation, (2 + 0) / 2.
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [-1.0, 2.0]]), rtol=1e-4, atol=1e-4)
