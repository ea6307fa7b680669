"""The gradient through the whole chain: finite differences, the plain graph, and the memory it takes."""

import itertools

import pytest
import torch
from torch import Tensor

from core import ShiftControl, noise, sample
from core.denoiser import Denoiser
from core.gradient import CheckpointSteps, FullGraph, GradientPolicy
from core.randomness import step_noise
from core.schedule import Schedule


def control(denoiser: Denoiser, schedule: Schedule, kind: str = "shared") -> ShiftControl:
    spread = torch.linspace(2.0, 1.0, len(schedule))
    return ShiftControl(3, denoiser.h_shape, spread, schedule.timesteps, kind, seed=1).double()


def loss_of(
    denoiser: Denoiser,
    schedule: Schedule,
    shift: ShiftControl,
    policy: GradientPolicy,
    injection: str,
    window: tuple[int, int] | None = None,
) -> Tensor:
    x = noise(range(2), denoiser.sample_shape, torch.float64)
    z = step_noise(range(2), denoiser.sample_shape, len(schedule), torch.float64) if schedule.eta else None
    delta = shift(torch.tensor([0, 2]), torch.tensor([0.7, -0.4], dtype=torch.float64))
    x_0 = sample(denoiser, schedule, x, delta, injection, policy, window, z)
    return (x_0 * noise([7, 8], denoiser.sample_shape, torch.float64)).sum()


def gradient_of(shift: ShiftControl, loss: Tensor) -> Tensor:
    shift.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in shift.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("injection", "eta", "window"),
    list(itertools.product(["symmetric", "asymmetric"], [0.0, 1.0], [None, (700, 300)])),
)
def test_every_policy_gives_the_plain_graphs_gradient(
    tiny_denoiser: Denoiser, injection: str, eta: float, window: tuple[int, int] | None
) -> None:
    schedule = Schedule.ddim(tiny_denoiser, 5, eta)
    shift = control(tiny_denoiser, schedule)
    plain = gradient_of(shift, loss_of(tiny_denoiser, schedule, shift, FullGraph(), injection, window))
    checkpointed = gradient_of(shift, loss_of(tiny_denoiser, schedule, shift, CheckpointSteps(), injection, window))
    assert plain.abs().max() > 0
    assert torch.allclose(checkpointed, plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize("injection", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("kind", ["shared", "per_step", "time"])
def test_finite_differences_through_all_steps(tiny_denoiser: Denoiser, injection: str, kind: str) -> None:
    """Central differences along a random direction of parameter space, in float64."""
    schedule = Schedule.ddim(tiny_denoiser, 3)
    shift = control(tiny_denoiser, schedule, kind)

    def loss() -> Tensor:
        return loss_of(tiny_denoiser, schedule, shift, CheckpointSteps(), injection)

    shift.zero_grad()
    loss().backward()
    parameter = shift.coordinates
    ray = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-5
    with torch.no_grad():
        parameter += step * ray
        above = loss()
        parameter -= 2 * step * ray
        below = loss()
    assert float((above - below) / (2 * step)) == pytest.approx(float((parameter.grad * ray).sum()), rel=1e-6)


def test_no_gradient_reaches_the_denoiser(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, 2)
    shift = control(tiny_denoiser, schedule)
    loss_of(tiny_denoiser, schedule, shift, FullGraph(), "symmetric").backward()
    assert all(p.grad is None for p in tiny_denoiser.unet.parameters())


def saved_bytes(denoiser: Denoiser, steps: int, policy: GradientPolicy) -> int:
    """The most bytes of distinct storages that the graph holds, counted by the hooks through which it saves them."""
    schedule = Schedule.ddim(denoiser, steps)
    shift = control(denoiser, schedule)
    held: dict[int, int] = {}
    peak = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal peak
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        peak = max(peak, sum(held.values()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(denoiser, schedule, shift, policy, "symmetric")
    return peak


def test_memory_is_flat_in_the_number_of_steps(tiny_denoiser: Denoiser) -> None:
    """Checkpointed, four times the steps keep only the x_t more; the plain graph keeps four times the activations."""
    image = 2 * torch.Size(tiny_denoiser.sample_shape).numel() * 8
    short, long = (saved_bytes(tiny_denoiser, steps, CheckpointSteps()) for steps in (10, 40))
    assert long - short <= 30 * image * 1.05
    plain_short, plain_long = (saved_bytes(tiny_denoiser, steps, FullGraph()) for steps in (10, 40))
    assert plain_long / plain_short > 3.5
    assert plain_long / long > 20
