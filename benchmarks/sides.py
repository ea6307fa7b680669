"""Both sides of the benchmark of the chain: the straightforward gradient and ours, on the same weights and noise."""

import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from core import Denoiser, Schedule, noise, sample
from core.chain.gradient import GradientPolicy
from core.chain.step_memory import MemoryCounter
from core.execution.lean import lean
from core.model.catalogue import architecture_folder

CELEBA = "google/ddpm-celebahq-256"


@dataclass(frozen=True)
class Case:
    """A model, a chain, a batch. `shift` is differentiated: standard normal, about half a spread of h on toyfaces."""

    denoiser: Denoiser
    schedule: Schedule
    x_T: Tensor  # [N, *sample_shape]
    shift: Tensor  # [N, *h_shape]

    @classmethod
    def of(cls, denoiser: Denoiser, steps: int, batch: int) -> "Case":
        device = denoiser.device
        dtype = torch.promote_types(denoiser.dtype, torch.float32)
        if device.type == "meta":
            x_T = torch.empty(batch, *denoiser.sample_shape, device=device)
            shift = torch.empty(batch, *denoiser.h_shape, device=device)
        else:
            x_T = noise(range(batch), denoiser.sample_shape, dtype, device)
            shift = noise(range(batch, 2 * batch), denoiser.h_shape, dtype, device)
        return cls(denoiser, Schedule.ddim(denoiser, steps), x_T, shift.requires_grad_())


Run = Callable[[], Tensor]  # one training step of the shift: forward and backward; its gradient


def straightforward(case: Case, frozen: bool) -> Run:
    """Two UNets a step, each checkpointed, on a copy of the weights that gets gradients unless it is frozen."""
    unet = copy.deepcopy(case.denoiser.network)
    plain = Denoiser(unet, case.denoiser.scheduler, "straightforward", "copy")
    unet.requires_grad_(not frozen)

    def call(x: Tensor, t: int, delta_h: Tensor | None) -> Tensor:
        return plain(x, t, delta_h).to(x.dtype)

    def chain(x: Tensor, delta_h: Tensor | None) -> Tensor:
        for i, t in enumerate(case.schedule.timesteps):
            eps = checkpoint(call, x, t, delta_h, use_reentrant=False)
            plain_eps = checkpoint(call, x, t, None, use_reentrant=False) if delta_h is not None else eps
            x = case.schedule.step(i, x, eps, plain_eps)
        return x

    def run() -> Tensor:
        with torch.no_grad():
            x_0 = chain(case.x_T, None)
        unet.zero_grad(set_to_none=True)
        return _gradient(case, (chain(case.x_T, case.shift) - x_0).square().mean())

    return run


def ours(case: Case, policy: GradientPolicy, denoiser: Denoiser | None = None) -> Run:
    """The lean chain under a policy. Its unshifted sample is drawn once, here, as it is once for a whole sweep."""
    denoiser = denoiser or lean(case.denoiser)
    with torch.no_grad():
        x_0 = sample(denoiser, case.schedule, case.x_T)

    def run() -> Tensor:
        shifted = sample(denoiser, case.schedule, case.x_T, lambda i: case.shift, "asymmetric", policy)
        return _gradient(case, (shifted - x_0).square().mean())

    return run


def _gradient(case: Case, loss: Tensor) -> Tensor:
    case.shift.grad = None
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own stub
    assert case.shift.grad is not None
    return case.shift.grad


def chain_flops(run_of: Callable[[Case], Run], denoiser: Denoiser, steps: int) -> int:
    """Operations of a training step over a chain, counted on two short ones: every further step costs the same."""
    short, longer = (flops(run_of(Case.of(denoiser, count, 1))) for count in (3, 4))
    return short + (steps - 3) * (longer - short)


def flops(run: Callable[[], Any]) -> int:
    """Exact, as torch counts them: matrix products and convolutions, forward, run again and backward."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def held(case: Case, denoiser: Denoiser, policy: GradientPolicy) -> int:
    """Peak bytes of a training step beside the weights."""
    known = [*denoiser.tensors(), case.x_T, case.shift]
    run = ours(case, policy, denoiser)
    with MemoryCounter(known) as counter:
        run()
    return int(counter.peak)


def seconds(runs: Sequence[Run], repeats: int) -> list[float]:
    """The median time of each, taken in turns so that what else the machine does meets all alike."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(repeats):
        for taken, run in zip(times, runs, strict=True):
            _synchronise()
            started = time.perf_counter()
            run()
            _synchronise()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def celeba(width: int = 1, size: int = 256, device: str = "meta", dtype: torch.dtype = torch.float32) -> Denoiser:
    """The architecture of google/ddpm-celebahq-256, `width` times narrower, at random weights or (on meta) without."""
    config = json.loads((architecture_folder(CELEBA) / "unet" / "config.json").read_text())
    channels = [c // width for c in config["block_out_channels"]]
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DModel.from_config(
            {**config, "block_out_channels": channels, "sample_size": size, "norm_num_groups": 32 // width}
        )
    torch.nn.Module.to(unet, dtype=dtype)
    return Denoiser(unet, DDIMScheduler(), f"celebahq / {width}", "random")
