"""Networks as shapes."""

import pytest
import torch
from diffusers import DDIMScheduler

from core.errors import ModelError, UserError
from core.model.architecture import empty_network, own_shape
from core.model.denoiser import Denoiser
from core.model.use import Use
from tests.core.model.test_denoiser import tiny_unet


def test_a_network_of_ones_own_is_emptied_without_a_copy_of_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    network[2].weight = network[0].weight  # tied

    def copied(*_: object) -> None:
        raise AssertionError("a tensor is copied")

    monkeypatch.setattr(torch.Tensor, "__deepcopy__", copied)
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", copied)
    empty = empty_network(network, torch.float64)
    assert {tensor.device.type for tensor in (*empty.parameters(), *empty.buffers())} == {"meta"}
    assert empty[2].weight is empty[0].weight and isinstance(empty[0].weight, torch.nn.Parameter)
    assert (empty[0].weight.dtype, empty[1].num_batches_tracked.dtype) == (torch.float64, torch.int64)
    assert not empty.training and not any(weight.requires_grad for weight in empty.parameters())
    assert network.training and network[0].weight.device.type == "cpu" and network[0].weight.requires_grad


def test_a_network_that_names_no_size_is_used_at_one_that_is_given() -> None:
    network = tiny_unet(sample_size=None)
    assert own_shape(network, 12) == (3, 12, 12)
    assert Denoiser(network, DDIMScheduler(), "tiny", use=Use(size=12)).sample_shape == (3, 12, 12)
    with pytest.raises(UserError) as caught:
        Denoiser(network, DDIMScheduler(), "tiny")
    assert str(caught.value) == "size: the model's configuration names none: give the side of its images in pixels"


@pytest.mark.parametrize(("told", "shape"), [(16, (3, 16, 16)), ((16, 24), (3, 16, 24))])
def test_a_size_is_one_number_or_two(told: object, shape: tuple[int, int, int]) -> None:
    assert own_shape(tiny_unet(sample_size=told)) == shape


@pytest.mark.parametrize("told", ["64", 0, [8], [8, "8"], True])
def test_a_size_that_is_none_is_refused(told: object) -> None:
    with pytest.raises(ModelError) as caught:
        own_shape(tiny_unet(sample_size=told))
    assert str(caught.value) == (
        f"the model's configuration has the sample_size {told!r}; allowed: a whole number, or two"
    )
