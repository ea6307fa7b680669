"""The sampling chain: draw samples in T DDIM steps with an optional shift of h, and invert it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from core.chain.gradient import FullGraph, GradientPolicy, run
from core.chain.schedule import Schedule
from core.chain.step import INJECTIONS, Injection, one_step
from core.chain.step_memory import costs
from core.errors import UserError
from core.model.denoiser import Denoiser
from core.randomness import noise, step_noise

Shift = Callable[[int], Tensor | None]  # step index 0..T-1 -> delta_h [N, C, H, W], or None: no shift at this step


class Start(NamedTuple):
    """The samples of some seeds where their chains begin.

    denoiser: with each sample's prompt or class; x_T: [N, *sample_shape]; step_noise: z [T, N, *sample_shape], or None
    where the steps add no noise.
    """

    denoiser: Denoiser
    x_T: Tensor
    step_noise: Tensor | None = None


def start_of(denoiser: Denoiser, schedule: Schedule, seeds: Sequence[int]) -> Start:
    """Return the samples of these seeds at the start of their chains, in the precision of the chain's arithmetic."""
    shape, dtype, device = denoiser.sample_shape, denoiser.chain_dtype, denoiser.device
    z = step_noise(seeds, shape, len(schedule), dtype, device) if schedule.stochastic else None
    return Start(denoiser.for_samples(seeds), noise(seeds, shape, dtype, device), z)


def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    x_T: Tensor,
    shift: Shift | None = None,
    injection: Injection = "symmetric",
    gradient: GradientPolicy | None = None,
    window: tuple[int, int] | None = None,
    step_noise: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Draw x_0 [N, *sample_shape] from x_T [N, *sample_shape].

    shift: returns the delta_h that is added to h at a step.
    window: the range [high, low] of training timesteps in which `shift` is applied; None applies it at every step.
    gradient: the policy that limits memory when x_0 is differentiated (default FullGraph()).
    step_noise: z [T, N, *sample_shape], needed when steps add noise (eta > 0, or a consistency model of several steps).
    first: index of the first step to run; x_T is then the state x_t before that step.

    Raises UserError where the shapes, the devices, the injection or the noise do not fit the chain.
    """
    _check(denoiser, schedule, x_T, injection, step_noise)
    shifted = schedule.steps_in_window(window)

    def step(i: int, x_t: Tensor) -> Tensor:
        delta_h = shift(i) if shift is not None and shifted[i] else None
        z = None if step_noise is None else step_noise[i]
        return one_step(denoiser, schedule, i, x_t, delta_h, injection, z)

    policy, steps = gradient or FullGraph(), range(first, len(schedule))
    if policy.by_blocks:
        denoiser = denoiser.by_blocks()
    return run(policy, step, x_T, steps, lambda: costs(denoiser, schedule, x_T, injection, shifted, steps))


@torch.no_grad()
def trajectory(
    denoiser: Denoiser, schedule: Schedule, x_T: Tensor, step_noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the unshifted chain and return (x_0 [N, *sample_shape], h of every step [T, N, *h_shape])."""
    _check(denoiser, schedule, x_T, "symmetric", step_noise)
    x, states = x_T, []
    for i in range(len(schedule)):
        features = denoiser.encode(x, schedule.timesteps[i])
        states.append(features.h)
        output = denoiser.decode(features).to(x.dtype)
        x = schedule.step(i, x, output, output, None if step_noise is None else step_noise[i])
    return x, torch.stack(states)


@torch.no_grad()
def invert(denoiser: Denoiser, schedule: Schedule, x_0: Tensor, refinements: int = 3) -> Tensor:
    """Return the x_T from which the deterministic chain draws x_0.

    Each step solves x_prev = step(x_t) for x_t by fixed-point iteration. The first guess is that of DDIM inversion,
    eps(x_prev, t); `refinements` 0 is plain DDIM inversion.
    Raises UserError for a chain that adds noise or is a consistency model's, and where x_0 does not fit the model.
    """
    if schedule.stochastic or schedule.consistency:
        what = "is of a consistency model" if schedule.consistency else f"has eta {schedule.eta}"
        raise UserError(f"invert needs a deterministic chain (eta 0); this schedule {what}")
    _check(denoiser, schedule, x_0, "symmetric", None)
    x = x_0
    for i in reversed(range(len(schedule))):
        x_prev = x
        for _ in range(refinements + 1):
            x = schedule.inverse_step(i, x_prev, x, denoiser(x, schedule.timesteps[i]).to(x_0.dtype))
    return x


def _check(denoiser: Denoiser, schedule: Schedule, x: Tensor, injection: str, step_noise: Tensor | None) -> None:
    if tuple(x.shape[1:]) != denoiser.sample_shape:
        raise UserError(
            f"x has shape {list(x.shape)}; model '{denoiser.name}' draws [N, {str(denoiser.sample_shape)[1:-1]}]"
        )
    for what, tensor in (("x", x), ("step_noise", step_noise)):
        if tensor is not None and tensor.device != denoiser.device:
            raise UserError(f"{what} is on {tensor.device}; model '{denoiser.name}' is on {denoiser.device}")
    if injection not in INJECTIONS:
        raise UserError(f"injection: got '{injection}'; allowed: {', '.join(INJECTIONS)}")
    if schedule.stochastic and step_noise is None:
        raise UserError(f"{schedule} needs step_noise (core.randomness.step_noise)")
    if step_noise is not None and tuple(step_noise.shape) != (len(schedule), *x.shape):
        raise UserError(f"step_noise has shape {list(step_noise.shape)}; this chain needs {[len(schedule), *x.shape]}")
