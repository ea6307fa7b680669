"""Models and methods on a device that is not the CPU: nothing is left behind, nothing asked of it that a GPU refuses.

CI has no GPU. tests/far.py is a device beside the CPU on any machine, in a process of its own here.
"""

import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core import Denoiser, Schedule, invert, noise, sample
from core.chain.gradient import CheckpointBlocks, FullGraph, GradientPolicy
from core.execution.lean import lean
from core.execution.streaming import offloaded
from core.methods import guided, jacobian, learned, pca, semantic, supervised
from core.pictures.traversal_grid import traversal, traversal_grid
from core.predictors.attributes import Attributes
from core.randomness import step_noise
from core.samples.cache import SampleCache
from core.samples.draw import Sampling
from tests.contracts.conftest import USES
from tests.families import saved

FAMILIES = ("pixel", "sd", "lcm", "dit", "sd3", "flux")
WHOLE = ("sd", "flux")  # a UNet and a transformer are tried in every way, the others as they are
METHODS_ON = "sd"
STEPS = 2
BRIGHT = Attributes.of(("bright", "red"), lambda x: torch.stack([x.mean((1, 2, 3)), x[:, 0].mean((1, 2))], 1).cpu())


def drawn(denoiser: Denoiser, policy: GradientPolicy) -> tuple[Tensor, Tensor]:
    """Images of two seeds, and the gradient of something of them by every step's shift; on the CPU."""
    schedule, device = Schedule.ddim(denoiser, STEPS), denoiser.device
    table = 0.1 * torch.stack([noise([i], denoiser.h_shape) for i in range(STEPS)])
    table = table.to(device).requires_grad_()
    z = step_noise([0, 1], denoiser.sample_shape, STEPS, torch.float32, device) if schedule.stochastic else None
    x_T = noise([0, 1], denoiser.sample_shape, torch.float32, device)
    x_0 = sample(denoiser.for_samples([0, 1]), schedule, x_T, lambda i: table[i], "asymmetric", policy, step_noise=z)
    loss = denoiser.images(x_0).square().sum()
    return x_0.detach().cpu(), torch.autograd.grad(loss, table)[0].cpu()


def work(folder: Path, name: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is done with a model there, by what it is called."""

    def load(device: str) -> Denoiser:
        return Denoiser.from_pretrained(folder, torch.float32, device, **USES[name])

    expected, there = drawn(load("cpu"), FullGraph()), load("far")
    kinds = {"plain": there, "lean": lean(there), "offloaded": offloaded(load("cpu"), "far")}
    yield "plain", partial(same, there, FullGraph(), expected)
    if name not in WHOLE:
        return
    for kind in ("lean", "offloaded"):
        yield kind, partial(same, kinds[kind], FullGraph(), expected)
    yield "by blocks", partial(same, kinds["lean"], CheckpointBlocks(), expected)
    if name == METHODS_ON:
        yield from methods(kinds["lean"], SampleCache(folder / "cache"))


def same(denoiser: Denoiser, policy: GradientPolicy, expected: tuple[Tensor, Tensor]) -> bool:
    return all(
        (a - b).abs().max() < 1e-4 * b.abs().max() for a, b in zip(drawn(denoiser, policy), expected, strict=True)
    )


def methods(denoiser: Denoiser, cache: SampleCache) -> Iterator[tuple[str, Callable[[], Any]]]:
    schedule = Schedule.ddim(denoiser, STEPS)
    found = pca.find(denoiser, schedule, pca.Settings(2, samples=8), 4, cache)
    settings = learned.Settings(directions=2, iterations=1, batch=2, micro_batch=2, pool=4)
    yield "learned", lambda: learned.find(denoiser, schedule, settings, 4, cache=cache)
    own = guided.Settings(iterations=1, batch=2, micro_batch=2, pool=4)
    yield "guided", lambda: guided.find(denoiser, schedule, own, BRIGHT, 4, cache=cache)
    yield (
        "jacobian",
        lambda: jacobian.find(denoiser, schedule, jacobian.Settings(2, tolerance=0.5, max_passes=4), batch=4),
    )
    yield "semantic", lambda: semantic.find(denoiser, schedule, semantic.Settings(2, samples=8), 4, cache)
    few = supervised.Settings(samples=8, extremes=2)
    yield "supervised", lambda: supervised.find(denoiser, schedule, few, batch=4, cache=cache, attributes=BRIGHT)
    yield "pictures", lambda: traversal_grid(traversal(denoiser, schedule, found, sampling=Sampling(batch=4)), found)
    images = torch.zeros(1, *denoiser.image_shape, device="far:0")
    yield "inversion", lambda: invert(denoiser, schedule, denoiser.x_0(images))


def process(place: Path, told: Any) -> None:
    from tests import far

    torch.set_num_threads(1)
    far.register()
    jacobian.SPREAD_SAMPLES = 8  # of its own process
    for name in FAMILIES:
        folder = saved(name, place / name)
        with far.Elsewhere():
            for what, do in work(folder, name):
                try:
                    wrong = "other numbers" if do() is False else ""
                except Exception:
                    wrong = traceback.format_exc()
                told.put((name, what, wrong))
    told.put(None)


@pytest.mark.slow
def test_nothing_is_left_on_the_cpu(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    there = context.Process(target=process, args=(tmp_path, told), daemon=True)
    there.start()
    found = list(iter(lambda: told.get(timeout=300), None))
    there.join(60)
    assert there.exitcode == 0 and {name for name, _, _ in found} == set(FAMILIES)
    assert [each for each in found if each[2]] == []
