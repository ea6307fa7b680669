"""The gradient through the whole chain: finite differences, the plain graph, and the memory it takes."""

import psutil
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from core import ShiftControl, noise, sample
from core.chain.gradient import (
    CheckpointBlocks,
    CheckpointSteps,
    FullGraph,
    GradientPolicy,
    KeepSteps,
    count_fitting,
    free_memory,
    predict,
)
from core.chain.schedule import Schedule
from core.chain.step import one_step
from core.chain.step_memory import MemoryCounter, StepCost
from core.errors import UserError
from core.execution.lean import lean
from core.model.denoiser import Denoiser
from core.randomness import step_noise


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
    delta = shift.at(torch.tensor([0, 2]), torch.tensor([0.7, -0.4], dtype=torch.float64))
    x_0 = sample(denoiser, schedule, x, delta, injection, policy, window, z)
    return (x_0 * noise([7, 8], denoiser.sample_shape, torch.float64)).sum()


def gradient_of(shift: ShiftControl, loss: Tensor) -> Tensor:
    shift.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in shift.parameters() if p.grad is not None])


# KeepSteps of nothing is CheckpointSteps, and of everything FullGraph: the same code.
POLICIES: dict[str, GradientPolicy] = {
    "CheckpointSteps": CheckpointSteps(),
    "CheckpointBlocks": CheckpointBlocks(),
    "KeepSteps": KeepSteps(300_000),
}


@pytest.mark.parametrize(
    ("injection", "eta", "window"),
    [
        ("symmetric", 0.0, None),
        ("asymmetric", 1.0, None),
        ("symmetric", 1.0, (700, 300)),
        ("asymmetric", 0.0, (700, 300)),
    ],
)
@pytest.mark.parametrize("leaner", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "lean"])
def test_every_policy_gives_the_plain_graphs_gradient(
    tiny_denoiser: Denoiser, injection: str, eta: float, window: tuple[int, int] | None, leaner: bool
) -> None:
    schedule = Schedule.ddim(tiny_denoiser, 5, eta)
    shift = control(tiny_denoiser, schedule)
    plain = gradient_of(shift, loss_of(tiny_denoiser, schedule, shift, FullGraph(), injection, window))
    assert plain.abs().max() > 0
    denoiser = lean(tiny_denoiser) if leaner else tiny_denoiser
    for policy in POLICIES.values():
        found = gradient_of(shift, loss_of(denoiser, schedule, shift, policy, injection, window))
        assert float((found - plain).norm() / plain.norm()) < 1e-12
        assert leaner or torch.allclose(found, plain, rtol=1e-12, atol=0)  # in the same order of sums, every entry


@pytest.mark.slow
@pytest.mark.parametrize("injection", ["symmetric", "asymmetric"])
def test_single_precision(injection: str) -> None:
    """On the embedded model: rounding, and no more, stands between the lean chain and the plain graph."""
    plain = Denoiser.from_pretrained("toyfaces")
    schedule = Schedule.ddim(plain, 6)
    x, random = noise(range(2), plain.sample_shape), torch.Generator().manual_seed(0)
    delta = torch.randn(2, *plain.h_shape, generator=random).requires_grad_()
    found = []
    for denoiser, policy in ((plain, FullGraph()), (lean(plain), CheckpointSteps())):
        loss = sample(denoiser, schedule, x, lambda i: delta, injection, policy).square().mean()
        found.append(torch.autograd.grad(loss, delta)[0])
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 1e-5


def test_steps_that_are_kept_are_not_run_again(tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of the encoder, forward and on the way back: more memory, never more of them."""
    schedule = Schedule.ddim(tiny_denoiser, 6)
    shift, calls = control(tiny_denoiser, schedule), 0
    encode = Denoiser.encode

    def counted(self: Denoiser, x_t: Tensor, t: int) -> object:
        nonlocal calls
        calls += x_t.device.type != "meta"
        return encode(self, x_t, t)

    monkeypatch.setattr(Denoiser, "encode", counted)
    one = predict(tiny_denoiser, schedule, 2, CheckpointSteps(), torch.float64, "symmetric").graphs
    made = []
    for memory in (0, one, 3 * one, 100 * one):
        calls = 0
        loss_of(tiny_denoiser, schedule, shift, KeepSteps(memory), "symmetric").backward()
        made.append(calls)
    assert made == [11, 11, 9, 6]


def test_steps_before_the_window_are_run_once_and_nothing_of_them_is_kept(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, 5)
    window = (schedule.timesteps[3], 0)
    with FlopCount() as late:
        loss_of(
            tiny_denoiser, schedule, control(tiny_denoiser, schedule), CheckpointSteps(), "symmetric", window
        ).backward()
    with FlopCount() as plain, torch.no_grad():
        loss_of(tiny_denoiser, schedule, control(tiny_denoiser, schedule), FullGraph(), "symmetric", window)
    one = plain.total / 5
    # 5 steps forward, the first shifted one again, and two backward, the first of these through the decoder only.
    assert 6.5 * one < late.total < 8 * one


def test_starting_late_is_the_same_chain(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, 5)
    x = noise(range(2), tiny_denoiser.sample_shape, torch.float64)
    with torch.no_grad():
        whole = sample(tiny_denoiser, schedule, x)
        early = x
        for i in range(2):
            early = one_step(tiny_denoiser, schedule, i, early, None, "symmetric")
        assert torch.equal(sample(tiny_denoiser, schedule, early, first=2), whole)


def test_how_many_graphs_fit() -> None:
    assert [count_fitting([7, 5, 5], memory) for memory in (0, 4, 5, 9, 10, 16, 17, 99)] == [1, 1, 1, 1, 2, 2, 3, 3]
    assert count_fitting([], 10) == 0


@pytest.mark.parametrize(
    ("free", "kept"),
    [(0, 1), (1011, 1), (1012, 2), (1233, 2), (1234, 3), (1344, 3), (1345, 4), (10_000, 4)],
)
def test_what_is_free_is_kept_but_for_a_tenth_and_the_work_of_a_step(
    monkeypatch: pytest.MonkeyPatch, free: int, kept: int
) -> None:
    """Graphs of 100, 200, 300, 400 bytes: 0.9 free - 210 of work holds so many of the last ones."""
    costs = [StepCost(graph, work, 0) for graph, work in ((100, 210), (200, 10), (300, 0), (400, 20))]
    asked: list[torch.device] = []
    monkeypatch.setattr("core.chain.gradient.free_memory", lambda device: asked.append(device) or free)
    assert KeepSteps("auto").kept_steps(lambda: costs, 4, torch.device("meta")) == kept
    assert asked == [torch.device("meta")]


def test_what_is_free_of_this_machine() -> None:
    free = free_memory(torch.device("cpu"))
    assert free == pytest.approx(psutil.virtual_memory().available, rel=0.2) and free > 1 << 26


def test_impossible_memory_is_refused() -> None:
    with pytest.raises(UserError, match="^memory: got -1; allowed: bytes, 0 or more, or 'auto'$"):
        KeepSteps(-1)


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
    assert all(p.grad is None for p in tiny_denoiser.network.parameters())


def taken(denoiser: Denoiser, steps: int, policy: GradientPolicy, injection: str) -> tuple[int, int]:
    """Bytes held when the way back begins and at the most, weights aside, followed storage by storage."""
    schedule = Schedule.ddim(denoiser, steps)
    shift = control(denoiser, schedule)
    with MemoryCounter([*denoiser.tensors(), *shift.parameters(), *shift.buffers()]) as counter:
        loss = loss_of(denoiser, schedule, shift, policy, injection)
        held = counter.live
        loss.backward()
    return held, counter.peak


@pytest.mark.slow
@pytest.mark.parametrize(("injection", "leaner"), [("symmetric", False), ("asymmetric", True)], ids=["plain", "lean"])
def test_memory_is_flat_in_the_number_of_steps(tiny_denoiser: Denoiser, injection: str, leaner: bool) -> None:
    """Checkpointed, four times the steps keep only the x_t more; the plain graph keeps four times the activations."""
    denoiser = lean(tiny_denoiser) if leaner else tiny_denoiser
    image = 2 * torch.Size(denoiser.sample_shape).numel() * 8
    short, long = (taken(denoiser, steps, CheckpointSteps(), injection) for steps in (3, 12))
    table = 12 * 2 * torch.Size(denoiser.h_shape).numel() * 8  # the shift of every step
    assert long[1] - short[1] <= 9 * image * 1.05 + table
    plain_short, plain_long = (taken(denoiser, steps, FullGraph(), injection) for steps in (3, 12))
    assert plain_long[1] / plain_short[1] > 3.5
    assert plain_long[1] / long[1] > 5


@pytest.mark.slow
@pytest.mark.parametrize(("injection", "leaner"), [("symmetric", False), ("asymmetric", True)], ids=["plain", "lean"])
@pytest.mark.parametrize("policy", ["FullGraph", "CheckpointSteps", "CheckpointBlocks", "KeepSteps"])
def test_the_prediction_is_what_is_taken(tiny_denoiser: Denoiser, policy: str, injection: str, leaner: bool) -> None:
    denoiser, steps = lean(tiny_denoiser) if leaner else tiny_denoiser, 5
    schedule = Schedule.ddim(denoiser, steps)
    one = predict(denoiser, schedule, 2, CheckpointSteps(), torch.float64, injection).graphs
    chosen = {**POLICIES, "FullGraph": FullGraph(), "KeepSteps": KeepSteps(int(3.5 * one))}[policy]
    said = predict(denoiser, schedule, 2, chosen, torch.float64, injection)
    _, peak = taken(denoiser, steps, chosen, injection)
    assert said.peak - said.network == pytest.approx(peak, rel=0.1)
    assert said.network == sum(tensor.nbytes for tensor in denoiser.tensors())
    assert said.kept == {"FullGraph": 5, "CheckpointSteps": 1, "CheckpointBlocks": 0, "KeepSteps": 3}[policy]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "dtype"), [("CheckpointSteps", torch.bfloat16), ("FullGraph", torch.float32)], ids=str
)
def test_the_prediction_for_a_model_that_is_mostly_attention(policy: str, dtype: torch.dtype) -> None:
    """No fused kernel keeps the matrix of all tokens by all, which would be most of what is held."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=32,
            block_out_channels=(32, 64),
            down_block_types=("AttnDownBlock2D",) * 2,
            up_block_types=("AttnUpBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=8,
        )
    torch.nn.Module.to(unet, dtype=dtype)
    denoiser, chosen = (
        lean(Denoiser(unet, DDIMScheduler(clip_sample=False), "attentive")),
        {**POLICIES, "FullGraph": FullGraph()}[policy],
    )
    schedule = Schedule.ddim(denoiser, 3)
    x = noise(range(2), denoiser.sample_shape)
    delta = torch.zeros(2, *denoiser.h_shape, requires_grad=True)
    with MemoryCounter([*denoiser.tensors(), x, delta]) as counter:
        sample(denoiser, schedule, x, lambda i: delta, "asymmetric", chosen).sum().backward()
    said = predict(denoiser, schedule, 2, chosen, None, "asymmetric")
    assert said.peak - said.network == pytest.approx(counter.peak, rel=0.1)


def test_the_noise_of_a_stochastic_chain_counts(tiny_denoiser: Denoiser) -> None:
    still, drawn = (predict(tiny_denoiser, Schedule.ddim(tiny_denoiser, 5, eta), 2) for eta in (0.0, 1.0))
    assert drawn.states - still.states == 5 * 2 * torch.Size(tiny_denoiser.sample_shape).numel() * 8


@pytest.mark.slow
def test_the_prediction_for_a_large_model() -> None:
    """google/ddpm-celebahq-256 without its weights: how memory is spent, and how many steps a device can keep."""
    denoiser = lean(Denoiser.without_weights("google/ddpm-celebahq-256"))
    schedule = Schedule.ddim(denoiser, 40)
    said = predict(denoiser, schedule, 1, CheckpointSteps(), None, "asymmetric")
    assert said.states == 41 * 3 * 256 * 256 * 4
    half = predict(denoiser, schedule, 1, CheckpointSteps(), torch.bfloat16, "asymmetric")
    assert said.network == 2 * half.network
    assert said.graphs / half.graphs == pytest.approx(2, rel=0.02)  # eps is put into single precision
    long, short = (predict(denoiser, Schedule.ddim(denoiser, steps), 1, CheckpointSteps()) for steps in (40, 10))
    assert (long.states + long.graphs) / (short.states + short.graphs) <= 1.05
    kept = [
        predict(denoiser, schedule, 4, KeepSteps(), torch.bfloat16, "asymmetric", memory=g << 30).kept
        for g in (8, 24, 80, 141)
    ]
    assert kept == sorted(kept) and kept[0] < kept[-1] == 40
    fits = predict(denoiser, schedule, 4, KeepSteps(), torch.bfloat16, "asymmetric", memory=24 << 30)
    assert fits.peak <= 24 << 30


class FlopCount:
    """Operations counted, forward and backward."""

    def __enter__(self) -> "FlopCount":
        self.mode = FlopCounterMode(display=False)
        self.mode.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.mode.__exit__(*exception)
        self.total = self.mode.get_total_flops()
