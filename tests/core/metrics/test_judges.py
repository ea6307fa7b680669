"""What networks beside the denoiser say of images: what each of them sees."""

import pytest
import torch
from torch import Tensor

from core.metrics import Traversals
from core.metrics.fidelity import fid, kid
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


def of(plain: Tensor, shifted: Tensor) -> Traversals:
    return Traversals(plain, shifted, (-1.0, 1.0))


def test_judges_say_what_their_networks_see() -> None:
    """Samples of one brightness each, which every direction adds as much to."""
    plain, reference = normal(4, 1, 2, 3).float(), normal(9, 1, 2, 3, purpose="reference").float()
    shifted = torch.stack([plain + add for add in (-2.0, 2.0)], dim=1)[:, None].expand(-1, 2, -1, -1, -1, -1)
    found = judges().measure(of(plain, shifted), reference, 2)
    assert found["lpips"].interval == pytest.approx((2.0, 2.0), abs=1e-5)
    alike = torch.cosine_similarity((plain + 2).flatten(1), plain.flatten(1))
    assert found["identity"].value == pytest.approx(float(alike.mean()), abs=1e-5)
    assert found["identity"].error == pytest.approx(float(alike.std()) / 2, rel=0.12), "the two directions are equal"
    ends = torch.stack([plain - 2, plain - 2, plain + 2, plain + 2], dim=1).flatten(2)
    assert found["fid"].value == pytest.approx(fid(ends.flatten(0, 1), reference.flatten(1)), rel=1e-4)
    assert found["inception_kid"].value == pytest.approx(
        kid(ends, plain.flatten(1), reference.flatten(1)).value, rel=1e-4
    )
    assert {figure.samples for figure in found.values()} == {4}
    assert judges().names == {"inception": "inception", "lpips": "lpips", "identity": "identity"}


def test_lpips_and_identity_of_directions_that_differ_by_hand() -> None:
    """lpips is over all scales, identity at the largest alone."""
    plain = torch.tensor([1.0, 0, 0, 0, 0, 0]).expand(3, 6).reshape(3, 1, 2, 3)
    shifted = plain[:, None, None].repeat(1, 2, 2, 1, 1, 1)
    shifted[:, 0, 0] -= 0.3  # of direction 0 at the smallest scale: distances 0.3 and 0
    shifted[:, 1, 1, 0, 1, 0] += 1.0  # of direction 1 at the largest: distances 0 and 1/6, an angle of 45 degrees
    found = judges().measure(of(plain, shifted), normal(3, 1, 2, 3).float(), 4)
    assert found["lpips"].value == pytest.approx((0.3 + 1 / 6) / 4, rel=1e-5)
    assert found["identity"].value == pytest.approx((1 + 0.5**0.5) / 2, rel=1e-5)


def test_nothing_shifted_is_as_it_was() -> None:
    plain, reference = normal(4, 1, 2, 3).float(), normal(9, 1, 2, 3, purpose="reference").float()
    still = judges().measure(of(plain, plain[:, None, None].expand(4, 3, 2, 1, 2, 3)), reference, 8)
    assert still["lpips"].interval == (0.0, 0.0)
    assert still["identity"].interval == pytest.approx((1.0, 1.0))
    assert still["inception_kid"].value == pytest.approx(0, abs=1e-9)
    weak, strong = (
        judges().measure(of(plain, (plain + add)[:, None, None].expand(4, 3, 2, 1, 2, 3)), reference, 8)
        for add in (0.02, 2.0)
    )
    for name in ("lpips", "fid", "inception_kid"):
        assert strong[name].value > 10 * abs(weak[name].value - (still[name].value if name == "fid" else 0))
    assert strong["identity"].value < weak["identity"].value < 1


@pytest.mark.parametrize("directions", [2, 8, 32])
def test_directions_of_one_kind_have_the_same_figures_however_many_there_are(directions: int) -> None:
    plain, reference = normal(4, 1, 2, 3).float(), normal(9, 1, 2, 3, purpose="reference").float()
    change = normal(4, 1, 2, 1, 2, 3, purpose="change").float()
    one, many = (
        judges().measure(of(plain, (plain[:, None, None] + change).expand(4, count, 2, 1, 2, 3)), reference, 16)
        for count in (1, directions)
    )
    for name in ("lpips", "identity", "inception_kid"):
        assert many[name].value == pytest.approx(one[name].value, rel=1e-5)
        assert many[name].error == pytest.approx(one[name].error, rel=1e-4)


def test_fid_is_left_out_where_images_are_too_few_for_it() -> None:
    """Of six features: two images of each of three samples, or a reference of six, are not enough."""
    plain = normal(4, 1, 2, 3).float()
    shifted = plain[:, None, None].expand(4, 1, 2, 1, 2, 3)
    named = {
        (samples, others): "fid" in judges().measure(of(plain[:samples], shifted[:samples]), normal(others, 1, 2, 3), 8)
        for samples, others in ((3, 9), (4, 6), (4, 7))
    }
    assert named == {(3, 9): False, (4, 6): False, (4, 7): True}


def test_judges_see_images_and_are_absent_where_their_network_is() -> None:
    plain, reference = normal(4, 1, 2, 3).float(), normal(9, 1, 2, 3).float()
    shifted = plain[:, None, None].expand(4, 1, 2, 1, 2, 3) + torch.tensor([-1.0, 1.0])[:, None, None, None]
    decoded = Traversals(plain, shifted, (-1.0, 1.0), lambda samples: 3 * samples)
    found = Judges(lpips=judges().lpips).measure(decoded, reference, 8)
    assert found.keys() == {"lpips"}
    assert found["lpips"].value == pytest.approx(3.0, rel=1e-5)
    assert not Judges().measure(decoded, reference, 8)
