"""A network whose blocks are fetched when they run: the resident network to the last bit, in the memory of a block.

On tiny pipelines of several families (tests/families.py), in float64; partitioned over real processes that talk over
gloo.
"""

import multiprocessing
import weakref
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch
from torch import Tensor

import core.chain.step_memory
from core import Denoiser, Schedule, noise, sample
from core.chain.gradient import CheckpointBlocks, CheckpointSteps, FullGraph, GradientPolicy, predict
from core.chain.step import Injection
from core.chain.step_memory import MemoryCounter
from core.errors import UserError
from core.execution.lean import LeanUNet, lean
from core.execution.linearised import DecoderJacobian
from core.execution.streaming import Bytes, Streamed, _part, _Weights, offloaded, partitioned
from core.methods.training_memory import drawing_bytes
from core.model.cuts import Cut
from core.model.cuts.hooked import HookedCut
from core.randomness import step_noise
from tests.contracts.conftest import USES
from tests.families import saved

STEPS = 3
SMALL = 14_000  # bytes: a few of the tensors that a shift and a loss are made of; a block holds a hundred times as much
SLOW = ("sd", "sdxl", "lcm", "dit", "pixart", "sd3", "flux")
FAMILIES = ["pixel", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
POLICIES: tuple[GradientPolicy, ...] = (FullGraph(), CheckpointSteps(), CheckpointBlocks())


def _copied(part: Bytes) -> Bytes:
    """A gather of one process."""
    return lambda: part().clone()


WAYS: dict[str, Callable[[Denoiser], Denoiser]] = {
    "offloaded": lambda denoiser: offloaded(denoiser, "cpu"),
    "partitioned over one": lambda denoiser: partitioned(denoiser, "cpu", 0, 1, _copied),
    "partitioned, on the CPU": lambda denoiser: partitioned(denoiser, "cpu", 0, 1, _copied, cpu=True),
}
Load = Callable[[str], Denoiser]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    place = tmp_path_factory.mktemp("families")
    return cache(lambda name: Denoiser.from_pretrained(saved(name, place / name), torch.float64, **USES[name]))


def taken(
    denoiser: Denoiser, policy: GradientPolicy, injection: Injection = "symmetric", first: int = 0
) -> tuple[Tensor, Tensor]:
    """Samples of two seeds, and the gradient of something of them by every step's shift."""
    schedule, seeds = Schedule.ddim(denoiser, STEPS), range(first, first + 2)
    table = torch.stack([0.1 * noise([100 + i], denoiser.h_shape, torch.float64) for i in range(STEPS)])
    table.requires_grad_()
    z = step_noise(seeds, denoiser.sample_shape, STEPS, torch.float64) if schedule.stochastic else None
    x_T = noise(seeds, denoiser.sample_shape, torch.float64)
    x_0 = sample(denoiser, schedule, x_T, lambda i: table[i], injection, policy, step_noise=z)
    loss = (x_0 * noise([7, 8], denoiser.sample_shape, torch.float64)).sum()
    return x_0.detach(), torch.autograd.grad(loss, table)[0]


def block_bytes(denoiser: Denoiser) -> list[int]:
    """What each block's weights take where they are whole."""
    return [weights._places[last].end for weights in weights_of(denoiser) for last in [list(weights._places)[-1]]]


def weights_of(denoiser: Denoiser) -> list[_Weights]:
    assert isinstance(denoiser.cut, Streamed)
    return [block.weights for block in denoiser.cut._fetched._blocks.values()]


@pytest.mark.parametrize("injection", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", FAMILIES)
def test_samples_and_gradients_are_the_resident_networks(load: Load, name: str, injection: Injection) -> None:
    whole = load(name)
    x_0, gradient = taken(whole, FullGraph(), injection)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    other = offloaded(whole, "cpu")
    for policy in POLICIES:
        found, slope = taken(other, policy, injection)
        assert torch.equal(found, x_0) and torch.equal(slope, gradient)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_every_way_is_the_same_network(load: Load, name: str, way: str) -> None:
    expected, found = (taken(one, CheckpointSteps()) for one in (load(name), WAYS[way](load(name))))
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


class Alive:
    """Bytes of the blocks' weights that are fetched and not yet gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = self.fetches = 0
        fetch = _Weights.fetch

        def watched(weights: _Weights) -> dict[str, Tensor]:
            found = fetch(weights)
            storage = next(iter(found.values())).untyped_storage()
            if storage.device.type != "meta":
                self.fetches += 1
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
            return found

        monkeypatch.setattr(_Weights, "fetch", watched)

    def _gone(self, size: int) -> None:
        self.now -= size


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_no_more_than_one_block_is_there_at_a_time(
    load: Load, name: str, policy: GradientPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = offloaded(load(name), "cpu")
    alive, blocks = Alive(monkeypatch), block_bytes(denoiser)
    taken(denoiser, policy, "asymmetric")
    assert alive.most == max(blocks) < sum(blocks) and alive.now == 0
    alive.most = alive.fetches = 0
    with torch.no_grad():
        denoiser(noise([0], denoiser.sample_shape, torch.float64), 300.0)
    assert alive.most == max(blocks) and alive.fetches == len(blocks) and alive.now == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_told_to_be_resident_is_all_that_is_there(load: Load, name: str, way: str) -> None:
    whole = load(name)
    denoiser = WAYS[way](whole)
    blocks = sum(block_bytes(denoiser))
    on_device = "cpu" not in way.lower() and way != "offloaded"
    rest = whole.weight_bytes() - denoiser.weight_bytes()
    if on_device:
        assert -256 * sum(len(weights._places) for weights in weights_of(denoiser)) <= rest <= 0
    else:
        assert 0 < rest <= blocks
    assert all(tensor.device.type == "cpu" for tensor in denoiser.tensors())
    assert (denoiser.device.type, denoiser.dtype) == ("cpu", torch.float64)
    assert denoiser.digest == whole.digest and denoiser.h_shape == whole.h_shape


@pytest.mark.slow
def test_the_denoiser_that_is_given_is_left_as_it_is(load: Load) -> None:
    whole = load("sd")
    before = taken(whole, FullGraph())
    whole.listeners.append(lambda: None)
    assert offloaded(whole, "cpu").listeners == [] and whole.weight_bytes() > 0
    whole.listeners.clear()
    after = taken(whole, FullGraph())
    assert torch.equal(before[1], after[1])
    assert all(tensor.device.type == "cpu" for tensor in whole.network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_prediction_is_what_is_taken(load: Load, name: str, policy: GradientPolicy) -> None:
    """Beside what is resident: a fetched block, its graph, and what enters the blocks of steps that are kept."""
    denoiser = offloaded(load(name), "cpu")
    said = predict(denoiser, Schedule.ddim(denoiser, STEPS), 2, policy)
    assert said.peak - said.network == pytest.approx(held(denoiser, policy), abs=SMALL)
    assert said.network == pytest.approx(denoiser.weight_bytes(), rel=0.01)  # computed buffers have another type


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_prediction_of_a_resident_network_by_blocks(load: Load, name: str) -> None:
    denoiser, policy = load(name), CheckpointBlocks()
    said = predict(denoiser, Schedule.ddim(denoiser, STEPS), 2, policy)
    assert said.peak - said.network == pytest.approx(held(denoiser, policy), abs=SMALL)


def held(denoiser: Denoiser, policy: GradientPolicy) -> int:
    """Bytes at the most beside the weights, after a first call, which makes what is there for good."""
    with torch.no_grad():
        denoiser(noise(range(2), denoiser.sample_shape, torch.float64), 0.0)
    with MemoryCounter(denoiser.tensors()) as counter:
        taken(denoiser, policy)
    return int(counter.peak)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_the_fetched_block_is_in_the_prediction(load: Load, name: str) -> None:
    """Also where nothing is differentiated, and in another precision."""
    denoiser = offloaded(load(name), "cpu")
    half = denoiser.blueprint(torch.bfloat16)
    assert half.device.type == "meta" and isinstance(half.cut, Streamed)
    schedule = Schedule.ddim(denoiser, STEPS)
    assert predict(denoiser, schedule, 1, CheckpointBlocks(), torch.bfloat16).work > max(block_bytes(half))
    assert max(block_bytes(denoiser)) > 3 * max(block_bytes(half))
    assert drawing_bytes(denoiser.blueprint(), schedule, 1) > max(block_bytes(denoiser))


@pytest.mark.slow
def test_a_model_without_weights_is_planned_as_it_will_run(load: Load) -> None:
    denoiser = load("sd")
    here, planned = offloaded(denoiser, "cpu"), offloaded(denoiser.blueprint(), "meta")
    schedule = Schedule.ddim(denoiser, STEPS)
    for policy in POLICIES:
        assert predict(here, schedule, 2, policy) == predict(planned, schedule, 2, policy)


@pytest.mark.slow
def test_a_part_is_planned_as_a_part(load: Load) -> None:
    denoiser = load("flux")
    ways = [partitioned(denoiser.blueprint(), "meta", 0, world) for world in (1, 2, 4)]
    resident = [way.weight_bytes() for way in ways]
    rest = offloaded(denoiser.blueprint(), "meta").weight_bytes()
    assert resident[1] - rest == pytest.approx((resident[0] - rest) / 2, rel=0.05)
    assert resident[2] - rest == pytest.approx((resident[0] - rest) / 4, rel=0.1)
    peaks = [predict(way, Schedule.ddim(way, STEPS), 2, CheckpointBlocks()).peak for way in ways]
    assert peaks[2] < peaks[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_what_is_remembered_is_what_would_be_worked_out(load: Load, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule.ddim(load(name), STEPS)
    for kind in (lambda one: one, partial(offloaded, device="meta")):
        quick = [predict(kind(load(name).blueprint()), schedule, 2, policy) for policy in POLICIES]
        with monkeypatch.context() as patched:
            patched.setattr(core.chain.step_memory, "CachingMemoryCounter", MemoryCounter)
            core.chain.step_memory._cost.cache_clear()
            assert [predict(kind(load(name).blueprint()), schedule, 2, policy) for policy in POLICIES] == quick


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "millions", "blocks"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 860, 9),
        ("stabilityai/stable-diffusion-xl-base-1.0", 2567, 7),
        ("black-forest-labs/FLUX.1-dev", 11901, 57),
    ],
)
def test_large_models_stay_off_the_device(model: str, millions: int, blocks: int) -> None:
    """Their own architectures, without weights: all but a fiftieth of SD 1.5, and less of the others, is in blocks."""
    whole = Denoiser.without_weights(model, torch.bfloat16)
    assert round(sum(weight.numel() for weight in whole.network.parameters()) / 1e6) == millions
    denoiser = offloaded(whole, "meta")
    assert len(block_bytes(denoiser)) == blocks
    assert whole.weight_bytes() - denoiser.weight_bytes() > 0.98 * 2e6 * millions


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_parts_make_the_whole(world: int) -> None:
    buffer = torch.arange(4800).remainder(255).add(1).to(torch.uint8)
    parts = [_part(buffer, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert torch.equal(torch.cat(parts)[: len(buffer)], buffer) and not torch.cat(parts)[len(buffer) :].any()


def test_a_lean_denoiser_becomes_plain_and_stays_so(load: Load) -> None:
    leaner = lean(load("sd"))
    denoiser = offloaded(leaner, "cpu")
    assert isinstance(leaner.cut, LeanUNet) and not isinstance(denoiser.cut, LeanUNet)
    assert lean(denoiser) is denoiser and denoiser.by_blocks().cut is denoiser.cut
    expected, found = (taken(one, CheckpointSteps())[1] for one in (leaner, denoiser))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_the_decoders_derivative(load: Load) -> None:
    """Differentiated twice: what was fetched for the first way back is fetched again for the second."""
    whole = load("pixel")
    x_t = noise([0], whole.sample_shape, torch.float64)
    v, u = noise([1, 2], whole.h_shape, torch.float64), noise([3, 4], whole.sample_shape, torch.float64)
    expected, found = (DecoderJacobian(one, x_t, 300.0) for one in (whole, offloaded(whole, "cpu")))
    assert torch.allclose(found.jvp(v), expected.jvp(v), rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.vjp(u), expected.vjp(u), rtol=1e-9, atol=1e-12)


def test_a_network_that_runs_whole_is_refused(load: Load) -> None:
    whole = load("pixel")
    hooked: Cut = HookedCut(whole.network, "mid_block")
    with pytest.raises(UserError, match="^a UNet2DModel without a cut of its own is not run block by block$"):
        offloaded(whole.with_cut(hooked), "cpu")


def _gather(part: Bytes) -> Bytes:
    from torch import distributed

    def whole() -> Tensor:
        own = part()
        found = own.new_empty(distributed.get_world_size() * len(own))
        distributed.all_gather_into_tensor(found, own)
        return found

    return whole


def _process(rank: int, world: int, place: Path, names: tuple[str, ...], told: "Queue[Any]") -> None:
    """Other samples in every process, as in a trial that several share."""
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=world)
    for name in names:
        whole = Denoiser.from_pretrained(place / name, torch.float64, **USES[name])
        expected = taken(whole, FullGraph(), "asymmetric", 10 * rank)
        for cpu in (False, True):
            denoiser = partitioned(whole, "cpu", rank, world, _gather, cpu)
            found = [taken(denoiser, policy, "asymmetric", 10 * rank) for policy in POLICIES]
            same = [all(map(torch.equal, each, expected)) for each in found]
            held = sum(len(piece) for weights in weights_of(denoiser) for piece in weights._pieces)
            told.put((rank, name, cpu, same, held, sum(block_bytes(denoiser)), len(block_bytes(denoiser))))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Callable[[int, tuple[str, ...]], list[Any]]]:
    context = multiprocessing.get_context("spawn")
    told, started = context.Queue(), []

    def run(world: int, names: tuple[str, ...]) -> list[Any]:
        for name in names:
            saved(name, tmp_path / name)
        for rank in range(world):
            started.append(context.Process(target=_process, args=(rank, world, tmp_path, names, told), daemon=True))
            started[-1].start()
        found = [told.get(timeout=240) for _ in range(2 * world * len(names))]
        for process in started:
            process.join(60)
            assert process.exitcode == 0
        return found

    yield run
    told.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_hold_half_each(processes: Callable[[int, tuple[str, ...]], list[Any]]) -> None:
    names = ("sdxl", "flux")
    found = processes(2, names)
    assert {(rank, name) for rank, name, *_ in found} == {(rank, name) for rank in range(2) for name in names}
    for _, _, _, same, held, whole, blocks in found:
        assert same == [True] * len(POLICIES)
        assert whole / 2 <= held <= whole / 2 + 256 * blocks
