"""Shift control: unit directions, linear in the magnitude, scaled by the measured spread of h."""

import pytest
import torch

from core.errors import UserError
from core.methods.trained.shift_control import ShiftControl
from core.methods.trained.starts import leading_components, spread_of

SHAPE, TIMESTEPS = (4, 2, 2), (600, 300, 0)
KINDS = ("shared", "per_step", "time")


def control(kind: str = "shared", count: int = 5, **changes: object) -> ShiftControl:
    return ShiftControl(count, SHAPE, torch.tensor([3.0, 2.0, 1.0]), TIMESTEPS, kind, **changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orthonormal", [True, False])
def test_directions_are_of_unit_length(kind: str, orthonormal: bool) -> None:
    table = control(kind, orthonormal=orthonormal)()
    assert table.shape == (5, 1 if kind == "shared" else 3, *SHAPE)
    assert torch.allclose(table.flatten(2).norm(dim=2), torch.ones(table.shape[:2]))
    products = torch.einsum("isd,jsd->sij", table.flatten(2), table.flatten(2))
    assert torch.allclose(products, torch.eye(5).expand_as(products), atol=1e-5) is orthonormal


@pytest.mark.parametrize("kind", KINDS)
def test_shift_is_linear_in_the_magnitude_and_scaled_by_the_spread(kind: str) -> None:
    shift = control(kind)
    k = torch.tensor([4, 4, 1])
    delta = shift.at(k, torch.tensor([0.5, -1.0, 2.0]))
    for i, spread in enumerate((3.0, 2.0, 1.0)):
        lengths = delta(i).flatten(1).norm(dim=1)
        assert torch.allclose(lengths, spread * torch.tensor([0.5, 1.0, 2.0]), rtol=1e-5)
        assert torch.allclose(delta(i)[1], -2 * delta(i)[0], atol=1e-6)


def test_orthonormal_directions_stay_where_their_coordinates_point() -> None:
    shift = control(count=2)
    first = shift.coordinates[0, 0]
    assert torch.allclose(shift()[0, 0].flatten(), first / first.norm(), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_orthonormal_directions_never_jump_to_the_other_side(kind: str, sign: float) -> None:
    """QR is unique up to signs: whichever it takes, every direction stays on the side of its own coordinates."""
    for seed in range(5):
        start = sign * torch.randn(5, 1, 16, generator=torch.Generator().manual_seed(seed))
        shift = control(kind, start=start)
        if kind == "time":
            shift.correction[-1].weight.data.zero_(), shift.correction[-1].bias.data.zero_()
        towards = (shift().flatten(2) * start).sum(dim=2)
        assert (towards > 0).all()


def test_the_spread_of_each_step_is_its_own() -> None:
    """Unit directions alone: delta_h of a magnitude 1 at step i is as long as the spread at step i."""
    delta = control(orthonormal=False).at(torch.tensor([0]), torch.ones(1))
    assert [delta(i).norm().item() for i in range(3)] == pytest.approx([3.0, 2.0, 1.0])


def test_coordinates_start_with_unit_variance() -> None:
    start = torch.randn(5, 1, 16) * 1e-3
    assert torch.allclose(control(start=start).coordinates.square().mean(dim=2), torch.ones(5, 1))


def test_spread_of_known_samples() -> None:
    """Two samples at distance 2 r from each other lie at distance r from their mean."""
    h = torch.zeros(2, 2, *SHAPE)
    h[0, 0, 0, 0, 0], h[1, 1, 2, 1, 1] = 6.0, 8.0
    assert torch.allclose(spread_of(h), torch.tensor([3.0, 4.0]))


def test_leading_components_are_those_of_an_svd() -> None:
    torch.manual_seed(0)
    h = torch.randn(3, 40, *SHAPE) * torch.linspace(3, 0.1, 16).reshape(SHAPE)
    centred = (h - h.mean(1, keepdim=True)).flatten(2)
    rows = (centred / spread_of(h)[:, None, None]).flatten(0, 1)
    expected = torch.linalg.svd(rows, full_matrices=False).Vh[:3]
    found = leading_components(h, 3, "shared")[:, 0]
    assert torch.allclose((found * expected).sum(1).abs(), torch.ones(3), atol=1e-4)
    joint = leading_components(h, 3, "per_step").reshape(3, -1)
    rows = (centred / spread_of(h)[:, None, None]).transpose(0, 1).flatten(1)
    expected = torch.linalg.svd(rows, full_matrices=False).Vh[:3]
    assert torch.allclose((joint * expected).sum(1).abs(), torch.ones(3), atol=1e-4)


def test_more_directions_than_samples_are_filled_up() -> None:
    start = leading_components(torch.randn(3, 4, *SHAPE), 6, "shared")
    assert start.shape == (6, 1, 16) and torch.isfinite(start).all() and (start.norm(dim=2) > 0.1).all()


def test_too_many_orthonormal_directions_are_refused() -> None:
    with pytest.raises(UserError, match="directions: got 17; h has 16 dimensions"):
        control(count=17)
    assert control(count=17, orthonormal=False)().shape[0] == 17


def test_directions_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = control("time", seed=3)()
    torch.manual_seed(2)
    assert torch.equal(control("time", seed=3)(), first)
    assert not torch.equal(control("time", seed=4)(), first)
