"""The contract of a family's gradients: through every kind of chain they are exact, in the memory that is counted.

On tiny random pipelines of diffusers' own classes (tests/families.py), in float64.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import core.chain.sampling
import core.model.codec
from core import Denoiser, Schedule, noise
from core.chain.gradient import CheckpointBlocks, CheckpointSteps, FullGraph, GradientPolicy, KeepSteps, predict
from core.chain.step import one_step
from core.chain.step_memory import MemoryCounter, StepCost, costs
from core.execution.lean import lean
from tests.contracts.conftest import (
    LATENT,
    QUIET,
    TRANSFORMERS,
    UNETS,
    USES,
    Folder,
    Load,
    chain,
    random_shift,
    start,
)
from tests.families import FAMILIES

pytestmark = QUIET

STEPS = 3
# KeepSteps of nothing is CheckpointSteps, and of everything FullGraph: the same code.
POLICIES: tuple[GradientPolicy, ...] = (CheckpointSteps(), CheckpointBlocks(), KeepSteps(2))


def loss_of(denoiser: Denoiser, table: Tensor, injection: str, policy: GradientPolicy, pixels: bool = False) -> Tensor:
    x_0 = chain(denoiser, Schedule.ddim(denoiser, STEPS), start(denoiser), lambda i: table[i], injection, policy)
    seen = denoiser.images(x_0) if pixels else x_0
    return (seen * noise([7, 8], seen.shape[1:], torch.float64)).sum()


def table_of(denoiser: Denoiser) -> Tensor:
    return torch.stack([random_shift(denoiser, 1, 0.1 * (i + 1)) for i in range(STEPS)]).requires_grad_()


@pytest.mark.parametrize("injection", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_policy_gives_the_plain_graphs_gradient(
    load: Load, name: str, injection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = load(name)
    table = table_of(denoiser)
    monkeypatch.setattr(core.chain.sampling, "costs", lambda *_: [StepCost(1, 0, 1)] * STEPS)  # counting takes its time
    (plain,) = torch.autograd.grad(loss_of(denoiser, table, injection, FullGraph()), table)
    assert (plain.flatten(1).norm(dim=1) > 0).all()  # every step's shift is felt
    for policy in POLICIES:
        (found,) = torch.autograd.grad(loss_of(denoiser, table, injection, policy), table)
        assert float((found - plain).norm() / plain.norm()) < 1e-12
    assert not any(parameter.requires_grad for parameter in denoiser.network.parameters())


def slope(loss: Callable[[], Tensor], table: Tensor, index: tuple[int, ...], step: float = 1e-2) -> float:
    """Central differences in one entry, of fourth order."""
    found = {}
    with torch.no_grad():
        kept = table[index].clone()
        for k in (-2, -1, 1, 2):
            table[index] = kept + k * step
            found[k] = float(loss())
        table[index] = kept
    return (8 * (found[1] - found[-1]) - (found[2] - found[-2])) / (12 * step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("injection", "pixels"),
    [("symmetric", True), ("asymmetric", False)],
    ids=["symmetric-pixels", "asymmetric-latents"],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_is_that_of_finite_differences(load: Load, name: str, injection: str, pixels: bool) -> None:
    if pixels and name in ("pixel", "latent"):
        pytest.skip("no autoencoder, or one that rounds to a codebook: its gradient goes past that")
    denoiser = load(name)
    table = table_of(denoiser)

    def loss() -> Tensor:  # Flux turns its tokens in float32: a smaller step would find but that
        return loss_of(denoiser, table, injection, CheckpointSteps(), pixels)

    (gradient,) = torch.autograd.grad(loss(), table)
    for i in (0, STEPS - 1):
        place = divmod(int(gradient[i].abs().argmax()), gradient[i][0, 0].numel())
        index = (i, 0, place[0], *divmod(place[1], gradient.shape[-1]))
        assert slope(loss, table, index) == pytest.approx(float(gradient[index]), rel=2e-6)


@pytest.mark.parametrize("name", LATENT)
def test_images_are_decoded_part_by_part_with_the_gradient_of_the_whole(
    load: Load, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = load(name)
    vae, x, seen = denoiser.codec.network, start(denoiser, 3).requires_grad_(), []
    monkeypatch.setattr(core.model.codec, "_PIXELS", 1)
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z, **more: seen.append(len(z)) or decode(z, **more))
    images = denoiser.images(x)
    assert images.shape == (3, *denoiser.image_shape) and seen == [1, 1, 1]
    config = vae.config
    whole = decode(x / config["scaling_factor"] + (config.get("shift_factor") or 0)).sample
    assert torch.allclose(images, whole, rtol=1e-10, atol=1e-12)
    weight = noise(range(3), denoiser.image_shape, torch.float64)
    found, expected = (torch.autograd.grad((shown * weight).sum(), x)[0] for shown in (images, whole))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12) and expected.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_without_weights_the_gradient_is_counted_the_same(folder: Folder, name: str) -> None:
    empty, denoiser = (
        make(folder(name), **USES[name]) for make in (Denoiser.without_weights, Denoiser.from_pretrained)
    )
    ours, theirs = (predict(one, Schedule.ddim(one, STEPS), 2) for one in (denoiser, empty))
    assert ours.graphs == theirs.graphs > 0 and (ours.work, ours.states) == (theirs.work, theirs.states)
    assert ours.network == pytest.approx(theirs.network, rel=0.01)  # masks have another type


@pytest.mark.slow
@pytest.mark.parametrize(("injection", "leaner"), [("symmetric", False), ("asymmetric", True)], ids=["plain", "lean"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_graph_that_is_counted_is_the_graph_that_is_held(
    folder: Folder, name: str, leaner: bool, injection: str
) -> None:
    """With the whole text: the matrix of all places by all words, which attention does not keep, would show."""
    if leaner and name in TRANSFORMERS:
        pytest.skip("a transformer has nothing to make lean")
    denoiser = Denoiser.from_pretrained(folder(name), torch.float64, **USES[name])
    denoiser = lean(denoiser) if leaner else denoiser
    schedule, last = Schedule.ddim(denoiser, STEPS), STEPS - 1
    x, delta = start(denoiser).requires_grad_(), torch.zeros(2, *denoiser.h_shape, requires_grad=True)
    (counted,) = costs(denoiser, schedule, x, injection, [True] * STEPS, range(last, STEPS))
    denoiser(x, 0.0, delta)  # what a first call makes for good is not the graph's
    with MemoryCounter([*denoiser.tensors(), x, delta]) as counter:
        x_prev = one_step(denoiser, schedule, last, x, delta, injection)
        held = counter.live - x_prev.nbytes
    assert counted.graph == pytest.approx(held, rel=0.025)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNETS)
def test_the_lean_network_is_the_same_and_saves_bytes(load: Load, name: str) -> None:
    denoiser = load(name)
    leaner, x, delta = lean(denoiser), start(denoiser), random_shift(denoiser)
    with torch.no_grad():
        for t, shift in ((10.0, None), (900.0, delta)):
            expected = denoiser(x, t, shift)
            assert float((leaner(x, t, shift) - expected).norm() / expected.norm()) < 1e-10
    schedule, shifted = Schedule.ddim(denoiser, STEPS), [True] * STEPS
    plain, less = (costs(one, schedule, x, "symmetric", shifted, range(1))[0] for one in (denoiser, leaner))
    assert less.graph < plain.graph
