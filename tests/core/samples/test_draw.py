"""Unshifted samples: the same to the last bit wherever they come from, drawn once, read only where they are meant."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core import Denoiser, Schedule, sample
from core.chain.sampling import trajectory
from core.methods import METHODS, guided, jacobian, learned, pca, random, semantic, supervised
from core.methods.learned.training import Learner
from core.metrics import calibrate, evaluate
from core.model.condition import Condition
from core.model.cuts import Cut
from core.model.cuts.unet import UNetCut
from core.predictors.attributes import Attributes
from core.progress import listening
from core.randomness import SELECT_SEEDS, noise, step_noise
from core.samples import draw as unshifted
from core.samples.cache import SampleCache
from core.samples.draw import IMAGES, H, Sampling, before_step, draw, draw_h, draw_images, weighted_h
from core.samples.training import draw_pool, measured_spread, training_seeds

NAMES = (before_step(1), IMAGES, H)
SEEDS = training_seeds(10)


@pytest.fixture(scope="module")
def denoiser(single_denoiser: Denoiser) -> Denoiser:
    return single_denoiser


@pytest.fixture(scope="module")
def schedule(denoiser: Denoiser) -> Schedule:
    return Schedule.ddim(denoiser, 3)


@pytest.fixture
def cache(tmp_path: Path) -> SampleCache:
    return SampleCache(tmp_path, block=4)


def test_whoever_listens_hears_how_many_samples_there_are(
    denoiser: Denoiser, schedule: Schedule, cache: SampleCache
) -> None:
    def heard(seeds: list[int], cache: SampleCache | None) -> list[tuple[str, int, int]]:
        told: list[tuple[str, int, int]] = []
        with listening(lambda *each: told.append(each)):
            list(draw_images(denoiser, schedule, seeds, 2, cache))
        return list(dict.fromkeys(told))

    assert heard(SEEDS[:5], None) == [("samples", done, 5) for done in (2, 4, 5)]
    list(draw_images(denoiser, schedule, SEEDS[4:8], 2, cache))
    assert heard(SEEDS, cache) == [("samples", done, 10) for done in (2, 4, 6, 8, 10)]
    assert heard(SEEDS, cache) == [("samples", done, 10) for done in (4, 8, 10)], "read and not drawn"
    list(draw_images(denoiser, schedule, SEEDS, 2, None))  # and nobody has to listen


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of samples in each unshifted chain that is really run, from now on."""
    run, sizes = unshifted._chain, []

    def counted(denoiser: Denoiser, schedule: Schedule, seeds: Any, names: Any) -> Any:
        sizes.append(len(seeds))
        return run(denoiser, schedule, seeds, names)

    monkeypatch.setattr(unshifted, "_chain", counted)
    return sizes


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_chain_gives_its_images_its_h_and_its_states(tiny_denoiser: Denoiser, eta: float) -> None:
    schedule = Schedule.ddim(tiny_denoiser, 3, eta)
    x_T = noise(SEEDS, tiny_denoiser.sample_shape, torch.float64)
    z = step_noise(SEEDS, tiny_denoiser.sample_shape, 3, torch.float64) if eta else None
    [drawn] = draw(tiny_denoiser, schedule, SEEDS, (*NAMES, before_step(0)))
    x_0, h = trajectory(tiny_denoiser, schedule, x_T, z)
    assert torch.equal(drawn[IMAGES], x_0) and torch.equal(drawn[H], h)
    assert torch.equal(drawn[before_step(0)], x_T)
    assert torch.equal(sample(tiny_denoiser, schedule, drawn[before_step(1)], step_noise=z, first=1), x_0)
    assert torch.equal(sample(tiny_denoiser, schedule, x_T, step_noise=z), x_0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_read_is_what_is_drawn(tiny_denoiser: Denoiser, cache: SampleCache, dtype: torch.dtype) -> None:
    unet = tiny_denoiser.network.__class__.from_config(tiny_denoiser.network.config)
    unet.load_state_dict(tiny_denoiser.network.state_dict())
    denoiser = Denoiser(unet.to(dtype).eval(), tiny_denoiser.scheduler, "tiny")
    schedule = Schedule.ddim(denoiser, 3, eta=0.5)
    plain = list(draw(denoiser, schedule, SEEDS, NAMES, batch=4))
    assert plain[0][H].dtype == dtype and [len(part[IMAGES]) for part in plain] == [4, 4, 2]
    for _ in range(2):
        for part, expected in zip(draw(denoiser, schedule, SEEDS, NAMES, 4, cache), plain, strict=True):
            assert part.keys() == expected.keys()
            assert all(torch.equal(part[name], value) for name, value in expected.items())


def test_the_second_time_nothing_is_drawn(
    denoiser: Denoiser, schedule: Schedule, cache: SampleCache, chains: list[int]
) -> None:
    list(draw(denoiser, schedule, SEEDS, NAMES, 4, cache))
    assert chains == [4, 4, 2]
    list(draw(denoiser, schedule, SEEDS, NAMES, 4, cache))
    list(draw_h(denoiser, schedule, SEEDS, 4, cache))  # of what was drawn with more
    list(draw_images(denoiser, schedule, SEEDS[:8], 4, cache))  # a smaller pool is the beginning of a larger
    assert chains == [4, 4, 2]
    list(draw_images(denoiser, schedule, SEEDS[:9], 4, cache))
    assert chains == [4, 4, 2, 1]


def test_another_batch_reads_the_same_samples(
    denoiser: Denoiser, schedule: Schedule, cache: SampleCache, chains: list[int]
) -> None:
    """A trial that draws fewer at a time shares what the others drew, and the other way round."""
    whole = {
        name: torch.cat([part[name] for part in draw(denoiser, schedule, SEEDS, NAMES)], 1 if name == H else 0)
        for name in NAMES
    }
    chains.clear()
    for batch, drawn, given in ((3, [3, 1, 3, 1, 2], [3, 1, 3, 1, 2]), (64, [], [4, 4, 2]), (1, [], [1] * 10)):
        found = list(draw(denoiser, schedule, SEEDS, NAMES, batch, cache))
        assert chains == drawn and [len(part[IMAGES]) for part in found] == given
        for name in NAMES:
            joined = torch.cat([part[name] for part in found], 1 if name == H else 0)
            assert torch.allclose(joined, whole[name], rtol=1e-4, atol=1e-5)
        chains.clear()


def changed(denoiser: Denoiser, **changes: Any) -> Denoiser:
    """The same denoiser but for some attributes, or for its configuration."""
    twin = object.__new__(changes.pop("kind", Denoiser))
    twin.__dict__.update(denoiser.__dict__ | changes)
    return twin


def told(denoiser: Denoiser, **changes: Any) -> Denoiser:
    """A twin that is told something else."""
    given = {"unconditional": {"class_labels": torch.tensor([0])}, "given": {"class_labels": torch.tensor([0])}}
    return changed(denoiser, condition=Condition(**{**given, **changes}))


def pooled(denoiser: Denoiser) -> Cut:
    cut = UNetCut(denoiser.network, form="pooled")
    cut.tap = replace(denoiser.cut.tap, form="pooled")
    return cut


def test_everything_that_samples_depend_on_is_in_the_key(
    denoiser: Denoiser, schedule: Schedule, tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OtherCut(type(denoiser.cut)):  # type: ignore[misc]
        """Other arithmetic, the same weights."""

    class OtherConfig:
        config = {**denoiser.network.config, "norm_eps": 1e-3}
        parameters = denoiser.network.parameters

    class Elsewhere(Denoiser):
        device = torch.device("meta")

    Elsewhere.__name__ = "Denoiser"
    seeds = SEEDS[:4]
    keys = [
        unshifted._key(denoiser, schedule, seeds),
        unshifted._key(changed(denoiser, digest="0"), schedule, seeds),
        unshifted._key(denoiser.with_cut(OtherCut(denoiser.network)), schedule, seeds),
        unshifted._key(told(denoiser, guidance=2.0), schedule, seeds),
        unshifted._key(told(denoiser, given={"class_labels": torch.tensor([1])}), schedule, seeds),
        unshifted._key(denoiser.with_cut(pooled(denoiser)), schedule, seeds),
        unshifted._key(changed(denoiser, network=OtherConfig()), schedule, seeds),
        unshifted._key(changed(denoiser, kind=Elsewhere), schedule, seeds),
        unshifted._key(changed(tiny_denoiser, digest=denoiser.digest), schedule, seeds),  # float64
        unshifted._key(denoiser, Schedule.ddim(denoiser, 4), seeds),
        unshifted._key(denoiser, Schedule.ddim(denoiser, 3, eta=0.1), seeds),
        unshifted._key(denoiser, replace(schedule, signal=(*schedule.signal[:3], 0.99)), seeds),
        unshifted._key(denoiser, replace(schedule, noise=(0.1, *schedule.noise[1:])), seeds),
        unshifted._key(denoiser, replace(schedule, prediction="v_prediction"), seeds),
        unshifted._key(denoiser, replace(schedule, timesteps=(999, *schedule.timesteps[1:])), seeds),
        unshifted._key(denoiser, schedule, seeds[:3]),
        unshifted._key(denoiser, schedule, SEEDS[1:5]),
        unshifted._key(denoiser, schedule, list(reversed(seeds))),
    ]
    monkeypatch.setattr(unshifted, "_FORMAT", 0)
    keys.append(unshifted._key(denoiser, schedule, seeds))
    monkeypatch.undo()
    monkeypatch.setattr(Denoiser, "chain_dtype", torch.float64)
    keys.append(unshifted._key(denoiser, schedule, seeds))
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "0")
    keys.append(unshifted._key(denoiser, schedule, seeds))
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    keys.append(unshifted._key(denoiser, schedule, seeds))
    monkeypatch.undo()
    assert len(set(keys)) == len(keys)
    assert unshifted._key(changed(denoiser, name="copy"), schedule, list(seeds)) == keys[0]


@pytest.mark.slow
def test_what_would_fill_the_cache_is_not_kept(
    denoiser: Denoiser, schedule: Schedule, tmp_path: Path, chains: list[int]
) -> None:
    entries = [unshifted._entry(denoiser, schedule, SEEDS[n : n + 2], (H,)) for n in range(0, 10, 2)]
    cache = SampleCache(tmp_path, 4 * sum(entry.nbytes for entry in entries[:2]), block=2)
    list(draw_h(denoiser, schedule, SEEDS[:4], 2, cache))
    plain = [h.clone() for h in draw_h(denoiser, schedule, range(100, 120), 2, cache)]  # ten batches: streamed
    assert [entry in cache for entry in entries] == [True, True, False, False, False]
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 and len(plain) == 10
    assert chains == [2] * 12
    again = list(draw_h(denoiser, schedule, [*SEEDS[:2], *range(100, 120)], 2, cache))  # what is there is read
    assert chains == [2] * 22 and torch.equal(again[1], plain[0])


def test_a_damaged_batch_is_drawn_again(
    denoiser: Denoiser, schedule: Schedule, cache: SampleCache, chains: list[int]
) -> None:
    plain = torch.cat(list(draw_images(denoiser, schedule, SEEDS, 4)))
    list(draw_images(denoiser, schedule, SEEDS, 4, cache))
    chains.clear()
    damaged = sorted(cache.folder.glob("*.safetensors"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert torch.equal(torch.cat(list(draw_images(denoiser, schedule, SEEDS, 4, cache))), plain) and len(chains) == 1
    assert torch.equal(torch.cat(list(draw_images(denoiser, schedule, SEEDS, 4, cache))), plain) and len(chains) == 1


def test_what_another_process_is_drawing_is_left_for_last(
    denoiser: Denoiser, schedule: Schedule, cache: SampleCache, chains: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unshifted, "_key", lambda _denoiser, _schedule, seeds: f"{seeds[0]:02x}")
    drawn: list[torch.Tensor] = []
    trial = threading.Thread(target=lambda: drawn.extend(draw_images(denoiser, schedule, range(9), 4, cache)))
    with cache._locked("00") as held:  # the other one is at the batch of the seeds 0 to 3
        assert held
        trial.start()
        deadline = time.monotonic() + 30
        while len(chains) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert chains == [4, 1] and not drawn
    trial.join(30)
    assert chains == [4, 1, 4] and [len(images) for images in drawn] == [4, 4, 1]


def _brightness(images: torch.Tensor) -> torch.Tensor:
    return images.float().mean(dim=(2, 3))


SETTINGS: dict[str, Any] = {
    "learned": learned.Settings(directions=3, batch=4, pool=32, iterations=2, shift_scale=2.0, window=(400, 0)),
    "guided": guided.Settings(batch=4, pool=32, iterations=2),
    "pca": pca.Settings(directions=3, samples=16),
    "jacobian": jacobian.Settings(directions=3),
    "semantic": semantic.Settings(directions=3, samples=16),
    "supervised": supervised.Settings(samples=32, extremes=8),
    "random": random.Settings(directions=3),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS)
def test_a_method_finds_the_same_set_with_a_cache_and_draws_once(
    method: str, denoiser: Denoiser, schedule: Schedule, cache: SampleCache, chains: list[int]
) -> None:
    module, brightness = METHODS[method], Attributes.of(("red", "green", "blue"), _brightness)
    more = {"attributes": brightness} if method in ("guided", "supervised") else {}
    plain, cache = module.find(denoiser, schedule, SETTINGS[method], **more), replace(cache, block=64)
    for drawn in (True, False):
        chains.clear()
        found = module.find(denoiser, schedule, SETTINGS[method], cache=cache, **more)
        assert torch.equal(found.table, plain.table) and torch.equal(found.sigma, plain.sigma)
        assert bool(chains) == drawn


@pytest.mark.slow
def test_metrics_are_the_same_with_a_cache_and_their_samples_are_drawn_once(
    denoiser: Denoiser, schedule: Schedule, cache: SampleCache, chains: list[int]
) -> None:
    directions, cache = random.find(denoiser, schedule, SETTINGS["random"]), replace(cache, block=64)
    seeds, reference = SELECT_SEEDS[:4], SELECT_SEEDS[4:12]
    plain = evaluate(denoiser, schedule, directions, seeds, reference)
    calibrated = calibrate(denoiser, schedule, directions, 0.1)
    for drawn in (True, False):
        chains.clear()
        measured = evaluate(denoiser, schedule, directions, seeds, reference, sampling=Sampling(cache=cache))
        assert measured.metrics == plain.metrics
        assert torch.equal(
            calibrate(denoiser, schedule, directions, 0.1, Sampling(cache=cache)).sigma, calibrated.sigma
        )
        assert bool(chains) == drawn


def test_the_pool_starts_where_the_window_does(tiny_denoiser: Denoiser) -> None:
    """x_0 and the gradient of the directions are those of the whole chain from x_T."""
    schedule = Schedule.ddim(tiny_denoiser, 4, eta=0.5)
    window = (schedule.timesteps[2], schedule.timesteps[3])
    pool, h = draw_pool(tiny_denoiser, schedule, training_seeds(6, 0), first=2)
    assert pool.first_step == 2 and h.shape[:2] == (4, 6)
    x_T = noise(pool.seeds, tiny_denoiser.sample_shape, torch.float64)
    z = step_noise(pool.seeds, tiny_denoiser.sample_shape, 4, torch.float64)
    assert torch.equal(sample(tiny_denoiser, schedule, x_T, step_noise=z), pool.x_0)
    delta_h = torch.randn(4, 6, *tiny_denoiser.h_shape, generator=torch.Generator().manual_seed(0)).double()
    ends, gradients = [], []
    for start, first in ((x_T, 0), (pool.x_t, 2)):
        shift = delta_h.clone().requires_grad_()
        end = sample(tiny_denoiser, schedule, start, lambda i, s=shift: s[i], window=window, step_noise=z, first=first)
        end.square().sum().backward()
        ends.append(end.detach())
        gradients.append(shift.grad)
    assert torch.equal(*ends) and torch.equal(*gradients)
    assert gradients[0][:2].abs().sum() == 0 < gradients[0][2:].abs().sum()


def test_a_learner_never_runs_the_steps_before_its_window(
    denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps, which are made of finished samples, are left out."""
    none = {"start": "random", "discriminator_weight": 0.0, "purity_weight": 0.0}
    learner = Learner(denoiser, schedule, replace(SETTINGS["learned"], **none))
    seen: list[int] = []
    encode = Denoiser.encode
    monkeypatch.setattr(Denoiser, "encode", lambda self, x, t: (seen.append(t), encode(self, x, t))[1])
    learner.iterate(0)
    assert learner.pool.first_step == 1 and set(seen) == set(schedule.timesteps[1:])


def test_the_spread_is_the_same_with_a_cache(denoiser: Denoiser, schedule: Schedule, cache: SampleCache) -> None:
    plain = measured_spread(denoiser, schedule, SEEDS, 4)
    assert all(torch.equal(measured_spread(denoiser, schedule, SEEDS, 4, cache), plain) for _ in range(2))


TRIAL = """
import sys
from pathlib import Path
from core import Denoiser, Schedule
from core.samples import draw as unshifted
from core.model.condition import Condition
from core.model.cuts import Cut
from core.model.cuts.unet import UNetCut
from core.samples.cache import SampleCache
from core.samples.training import draw_pool, training_seeds
run, count = unshifted._chain, 0
def counted(*arguments):
    global count
    count += 1
    return run(*arguments)
unshifted._chain = counted
denoiser = Denoiser.from_pretrained("mnist")
print("ready", flush=True)
sys.stdin.readline()
cache = SampleCache(Path(sys.argv[1]), block=8)
pool, h = draw_pool(denoiser, Schedule.ddim(denoiser, 2), training_seeds(96, 0), batch=8, cache=cache)
print(count, float(h.double().sum()), float(pool.x_0.double().sum()), flush=True)
"""


@pytest.fixture
def trials(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes, ready to draw the same pool."""
    command = [sys.executable, "-c", TRIAL, str(tmp_path)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    yield started
    for trial in started:
        trial.kill()
        trial.communicate()


@pytest.mark.slow
def test_two_trials_at_once_draw_every_sample_once(trials: list[subprocess.Popen[str]]) -> None:
    for trial in trials:
        assert trial.stdout is not None and trial.stdout.readline() == "ready\n"
    for trial in trials:
        assert trial.stdin is not None
        trial.stdin.write("\n")
        trial.stdin.flush()
    told = [trial.communicate()[0].split() for trial in trials]
    assert sum(int(count) for count, *_ in told) == 12
    assert told[0][1:] == told[1][1:]


def test_weighted_h_draws_only_what_has_a_weight(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, 3)
    weights = torch.tensor([[0.5, 0.0, -1.0, 0.0], [0.0, 0.0, 2.0, 0.0]])
    seeds = [5, 3, 9, 1]
    _, h = trajectory(tiny_denoiser, schedule, noise(seeds, tiny_denoiser.sample_shape, torch.float64))
    expected = torch.einsum("an,tnchw->atchw", weights.double(), h)
    # A seed that cannot be drawn stands where no row has a weight.
    total = weighted_h(tiny_denoiser, schedule, [5, "none", 9, "none"], weights, batch=1)  # type: ignore[list-item]
    assert torch.allclose(total, expected, rtol=1e-9, atol=1e-12)
