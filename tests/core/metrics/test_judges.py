"""What networks beside the denoiser say of images: what each of them sees."""

import pytest
import torch
from torch import Tensor

from core.metrics import Traversals
from core.metrics.fidelity import fid
from core.metrics.judges import Judges
from core.metrics.networks import Extractor, Lpips
from tests.core.metrics.test_traversals import normal


def pixels(purpose: str) -> Extractor:
    """A network whose features are some pixels."""
    return Extractor(purpose, lambda images: images.flatten(1)[:, :6].float())


class Brightness(torch.nn.Module):
    """A distance of images [N, C, H, W]: of their means."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.mean(dim=(1, 2, 3)) - b.mean(dim=(1, 2, 3))).abs()


def judges() -> Judges:
    return Judges(None, pixels("inception"), Lpips("lpips", 1, Brightness(), "cpu"), pixels("identity"))


def test_judges_say_what_their_networks_see() -> None:
    """Samples of one brightness each, which every direction adds as much to."""
    plain = normal(3, 1, 2, 3).float()
    shifted = torch.stack([plain + add for add in (-2.0, 2.0)], dim=1)[:, None].expand(-1, 2, -1, -1, -1, -1)
    found = judges().measure(Traversals(plain, shifted, (-1.0, 1.0)), plain, 2)
    assert found["lpips"] == pytest.approx(2.0, abs=1e-5)
    alike = torch.cosine_similarity((plain + 2).flatten(1), plain.flatten(1)).mean()
    assert found["identity"] == pytest.approx(float(alike), abs=1e-5)
    ends = torch.cat([plain - 2, plain - 2, plain + 2, plain + 2]).flatten(1)
    assert found["fid"] == pytest.approx(fid(ends, plain.flatten(1)), rel=1e-4)
    assert judges().names == {"inception": "inception", "lpips": "lpips", "identity": "identity"}
