"""The discriminator, bounded in slope and in units of its own, and the losses of both sides, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu

from core import Denoiser
from core.chain.sample_maps import sample_maps
from core.methods.trained.discriminator import Discriminator, discriminator_loss, fidelity_loss, map_channels
from core.randomness import noise

SHAPE = (3, 8, 8)


def images(first: int, count: int = 4) -> Tensor:
    return noise(range(first, first + count), SHAPE)


def test_adversarial_losses_of_an_undecided_critic() -> None:
    undecided = torch.zeros(3)
    assert float(fidelity_loss(undecided)) == pytest.approx(math.log(2))
    assert float(discriminator_loss(undecided, undecided)) == pytest.approx(2 * math.log(2))


def test_adversarial_losses_of_a_critic_that_is_right_are_small() -> None:
    """softplus(-x) = log(1 + exp(-x)): of plain samples at 2 and -1, mean over samples, and of shifted ones at -3."""
    plain, shifted = torch.tensor([2.0, -1.0]), torch.tensor([-3.0])
    right = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert float(discriminator_loss(plain, shifted)) == pytest.approx(right + math.log(1 + math.exp(-3)))
    assert float(fidelity_loss(plain)) == pytest.approx(right)


def test_adversarial_losses_pull_in_opposite_directions() -> None:
    logit = torch.tensor([0.3], requires_grad=True)
    (up,) = torch.autograd.grad(fidelity_loss(logit), logit)
    (down,) = torch.autograd.grad(discriminator_loss(torch.zeros(1), logit), logit)
    assert up < 0 < down


def discriminator(side: int = 8) -> Discriminator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Discriminator((3, side, side), width=4, widest=8)


def test_a_logit_is_the_mean_over_patches_of_a_chain_of_convolutions() -> None:
    network, x = discriminator(32), noise(range(2), (3, 32, 32))
    convolutions = [layer for layer in network.body if isinstance(layer, nn.Conv2d)]
    assert [layer.weight.shape[:2] for layer in convolutions] == [(4, 3), (8, 4), (8, 8), (1, 8)]
    by_hand = x
    for layer in convolutions[:-1]:
        by_hand = leaky_relu(conv2d(by_hand, layer.weight, layer.bias, stride=2, padding=1), 0.2)
    by_hand = conv2d(by_hand, convolutions[-1].weight, convolutions[-1].bias, padding=1)
    assert by_hand.shape == (2, 1, 4, 4)
    assert torch.allclose(network(x), by_hand.mean(dim=(1, 2, 3)), atol=1e-6)


def test_every_layer_comes_to_a_slope_of_one_and_only_by_renormalising() -> None:
    network = discriminator()
    layers = [layer for layer in network.body if isinstance(layer, nn.Conv2d)]

    def slopes() -> list[float]:
        return [float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) for layer in layers]

    for layer in layers:  # as an optimiser's step would change them
        layer.parametrizations.weight.original.data.add_(torch.ones(layer.weight.shape[1:]))
    before = slopes()
    network(images(0))
    assert slopes() == before, "to look at images changes nothing"
    for _ in range(100):
        network.renormalise()
        assert not network.training
    assert max(before) > 1.05 and slopes() == pytest.approx([1.0] * len(layers), abs=1e-3)


def with_heads(*channels: int) -> Discriminator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Discriminator(SHAPE, channels, width=4, widest=8)


def maps(first: int, count: int = 6) -> tuple[Tensor, Tensor]:
    """Of two and of three channels, each with its own mean and deviation."""
    one, two = noise(range(first, first + count), (2, 4, 4)), noise(range(first, first + count), (3, 2, 2))
    return 100 + one * torch.tensor([2.0, 0.5])[:, None, None], two * torch.tensor([1.0, 7.0, 3.0])[:, None, None]


def test_units_are_mean_and_deviation_of_each_channel_of_each_map() -> None:
    """Over samples and positions; they are the part of the state that training does not change."""
    network, seen = with_heads(2, 3), maps(0)
    network.set_units(seen)
    units = network.units()
    assert set(units) == {f"heads.{i}.{name}" for i in (0, 1) for name in ("mean", "deviation")}
    for i, each in enumerate(seen):
        values = each.transpose(0, 1).flatten(1)
        assert torch.allclose(units[f"heads.{i}.mean"], values.mean(dim=1))
        assert torch.allclose(units[f"heads.{i}.deviation"], values.std(dim=1))
    other = with_heads(2, 3)
    other.load_state_dict(units, strict=False)
    assert all(torch.equal(each, units[name]) for name, each in other.units().items())
    assert not set(units) & {name for name, _ in network.named_parameters()}


def test_a_logit_is_the_images_plus_that_of_each_map_in_its_own_units() -> None:
    """A head looks at each position with its neighbours; a channel that hardly varies counts as a hundredth."""
    network, seen, x_0 = with_heads(2, 3), maps(0), images(0, 6)
    network.set_units(seen)
    network.heads[1].deviation[0] = 1e-9
    expected = network.body(x_0).mean(dim=(1, 2, 3))
    for head, each in zip(network.heads, seen, strict=True):
        first, last = head.layers[0], head.layers[2]
        deviation = head.deviation.clamp(min=0.01 * float(head.deviation.mean()))
        unit = (each - head.mean[:, None, None]) / deviation[:, None, None]
        hidden = leaky_relu(conv2d(unit, first.weight, first.bias, padding=1), 0.2)
        expected = expected + conv2d(hidden, last.weight, last.bias).mean(dim=(1, 2, 3))
    assert network(x_0, seen).shape == (6,)
    assert torch.allclose(network(x_0, seen), expected, atol=1e-4)
    with pytest.raises(ValueError, match="shorter"):
        network(x_0, seen[:1])


def test_the_answer_does_not_depend_on_the_units_of_the_maps() -> None:
    network, other = with_heads(2, 3), with_heads(2, 3)
    seen = maps(0)
    larger = tuple(50 * each + 3 for each in seen)
    network.set_units(seen)
    other.set_units(larger)
    assert torch.allclose(network(images(0, 6), seen), other(images(0, 6), larger), atol=1e-3)


def test_renormalising_bounds_the_first_layer_of_a_head_and_leaves_the_last_free() -> None:
    network = with_heads(2)
    first, last = network.heads[0].layers[0], network.heads[0].layers[2]

    def slope(layer: nn.Conv2d) -> float:
        return float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2))

    first.parametrizations.weight.original.data.mul_(torch.linspace(1, 9, 64)[:, None, None, None])
    last.weight.data.mul_(50)
    free = slope(last)
    for _ in range(100):
        network.renormalise()
    assert slope(first) == pytest.approx(1, abs=1e-3) and slope(last) == free > 5


def test_the_channels_of_the_maps_are_told_without_running_the_network(single_denoiser: Denoiser) -> None:
    expected = tuple(each.shape[1] for each in sample_maps(single_denoiser, images(0)))
    passes: list[int] = []
    single_denoiser.listeners.append(lambda: passes.append(1))
    try:
        assert map_channels(single_denoiser) == expected and len(expected) > 1
        assert passes == []
        sample_maps(single_denoiser, images(0))
        assert passes == [1], "a pass would have been heard"
    finally:
        single_denoiser.listeners.pop()
