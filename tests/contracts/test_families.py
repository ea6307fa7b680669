"""The contract of a family of models: whichever network denoises, its two halves are the network.

On tiny random pipelines of diffusers' own classes (tests/families.py), in float64. A family whose network is called in
a way of its own adds a line to CALLS. Gradients and their size: test_family_gradients.py; pipelines:
test_family_pipelines.py; methods: test_family_methods.py.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from core import Denoiser, Schedule, invert, noise, sample
from core.chain.sampling import trajectory
from core.chain.step import one_step
from core.errors import UserError
from core.execution.lean import lean
from core.model.cuts import NetworkInputs
from core.model.cuts.hooked import HookedCut
from core.randomness import step_noise
from core.samples.draw import draw_h
from tests.contracts.conftest import LATENT, QUIET, TRANSFORMERS, UNETS, USES, Folder, Load, random_shift, start
from tests.families import FAMILIES

pytestmark = QUIET

STEPS = 3
DETERMINISTIC = [name for name in FAMILIES if name != "lcm"]


def _unet(network: Any, x: Tensor, t: Tensor, given: NetworkInputs) -> Tensor:
    added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}
    told = {name: rows for name, rows in given.items() if name not in added}
    return network(x, t, **told, **({"added_cond_kwargs": added} if added else {})).sample


def _dit(network: Any, x: Tensor, t: Tensor, given: NetworkInputs) -> Tensor:
    return network(x, timestep=t, **given).sample.chunk(2, dim=1)[0]  # the variance comes second


def _pixart(network: Any, x: Tensor, t: Tensor, given: NetworkInputs) -> Tensor:
    none = {"resolution": None, "aspect_ratio": None}
    return network(x, timestep=t, added_cond_kwargs=none, **given).sample.chunk(2, dim=1)[0]


def _sd3(network: Any, x: Tensor, t: Tensor, given: NetworkInputs) -> Tensor:
    return network(x, timestep=t, **given).sample


def _flux(network: Any, x: Tensor, t: Tensor, given: NetworkInputs) -> Tensor:
    n, c, h, w = x.shape
    where = {
        "img_ids": FluxPipeline._prepare_latent_image_ids(n, h // 2, w // 2, x.device, x.dtype),
        "txt_ids": torch.zeros(given["encoder_hidden_states"].shape[1], 3).to(x),
    }
    packed = FluxPipeline._pack_latents(x, n, c, h, w)
    output = network(hidden_states=packed, timestep=t.to(x.dtype) / 1000, **where, **given).sample
    return FluxPipeline._unpack_latents(output, h, w, vae_scale_factor=1)


CALLS: dict[str, Callable[..., Tensor]] = dict.fromkeys(UNETS, _unet) | {
    "dit": _dit,
    "pixart": _pixart,
    "sd3": _sd3,
    "flux": _flux,
    "flux-schnell": _flux,
}


def whole(name: str, denoiser: Denoiser, x: Tensor, t: float | Tensor) -> Tensor:
    """What diffusers' own network gives, without guidance."""
    given = {
        key: rows.to(x.dtype) if rows.is_floating_point() else rows
        for key, rows in denoiser.condition.plain().rows(len(x)).items()
    }
    with torch.no_grad():
        return CALLS[name](denoiser.network, x, torch.as_tensor(t).reshape(-1).expand(len(x)), given)


def without_guidance(denoiser: Denoiser) -> Denoiser:
    """The same model, asked for its conditional output alone."""
    twin = denoiser.with_cut(denoiser.cut)
    twin.condition = denoiser.condition.plain()
    return twin


def test_every_family_is_under_contract() -> None:
    assert USES.keys() == CALLS.keys() == set(FAMILIES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_what_was_encoded_is_the_networks_output_to_the_last_bit(
    load: Load, name: str, dtype: torch.dtype
) -> None:
    denoiser = load(name, dtype)
    plain, x = without_guidance(denoiser), start(denoiser, 3).to(dtype)
    with torch.no_grad():
        for t in (0.0, 17.0, 999.0, 978.5, torch.tensor([1.0, 500.0, 900.0])):
            expected = whole(name, denoiser, x, t)
            assert torch.equal(plain(x, t), expected)
            assert expected.shape == x.shape and expected.std() > 1e-3
        assert not torch.allclose(plain(x, 999.0), plain(x, 0.0), atol=1e-4)


@pytest.mark.parametrize("name", [name for name, use in USES.items() if use.get("guidance", 1) != 1 and name != "lcm"])
def test_guidance_leads_away_from_the_unconditional_output(load: Load, name: str) -> None:
    denoiser = load(name)
    x, guidance = start(denoiser), USES[name]["guidance"]
    assert denoiser.condition.guided
    other = replace(denoiser.condition.plain(), given=denoiser.condition.unconditional)
    halves = []
    for told in (other, denoiser.condition):
        twin = denoiser.with_cut(denoiser.cut)
        twin.condition = told
        halves.append(whole(name, twin, x, 300.0))
    unconditional, conditional = halves
    assert not torch.allclose(unconditional, conditional, atol=1e-4)
    with torch.no_grad():
        found = denoiser(x, 300.0)
    assert torch.allclose(found, unconditional + guidance * (conditional - unconditional), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_hook_on_the_very_same_network_shifts_it_alike(load: Load, name: str) -> None:
    denoiser = load(name)
    grid = denoiser.cut.grid if name in TRANSFORMERS else None
    hooked = HookedCut(denoiser.network, denoiser.cut.module(), denoiser.cut.form, CALLS[name], grid)
    hooked.tap = denoiser.cut.tap
    other, x, t = denoiser.with_cut(hooked), start(denoiser), 400.0
    with torch.no_grad():
        for delta in (None, random_shift(denoiser), random_shift(denoiser, 1)):
            assert torch.allclose(other(x, t, delta), denoiser(x, t, delta), rtol=1e-11, atol=1e-11)
        assert torch.allclose(other.encode(x, t).h, denoiser.encode(x, t).h, rtol=1e-12, atol=0)
        assert (denoiser(x, t, random_shift(denoiser)) - denoiser(x, t)).abs().max() > 1e-3


@pytest.mark.parametrize(("injection", "passes"), [("symmetric", 1), ("asymmetric", 2)])
@pytest.mark.parametrize("shifted", ["both", "conditional"])
def test_a_hooked_step_takes_as_many_passes_as_outputs(load: Load, shifted: str, injection: str, passes: int) -> None:
    """Under guidance too."""
    denoiser, calls = load("sd", shifted=shifted), []

    def call(*arguments: Any) -> Tensor:
        calls.append(len(arguments[1]))
        return _unet(*arguments)

    hooked = HookedCut(denoiser.network, "mid_block", None, call)
    hooked.tap = denoiser.cut.tap
    schedule, x, delta = Schedule.ddim(denoiser, STEPS), start(denoiser), random_shift(denoiser, 1)
    found = one_step(denoiser.with_cut(hooked), schedule, 1, x, delta, injection)
    assert calls == [4] * passes
    assert torch.allclose(found, one_step(denoiser, schedule, 1, x, delta, injection), rtol=1e-11, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tokens", "pooled"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_forms_are_one_tap(load: Load, name: str, form: str) -> None:
    """What is shifted everywhere alike, or token by token, is a shift of every place."""
    denoiser, other = load(name), load(name, form=form)
    x, t, (channels, rows, columns) = start(denoiser), 400.0, denoiser.h_shape
    delta = random_shift(other)
    everywhere = delta if form == "pooled" else delta.reshape(2, channels, rows, columns)
    with torch.no_grad():
        found, expected = other(x, t, delta), denoiser(x, t, everywhere.expand(-1, -1, rows, columns))
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
        h = denoiser.encode(x, t).h.flatten(2)
        assert torch.allclose(other.encode(x, t).h[..., 0].squeeze(2), h.mean(2) if form == "pooled" else h)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_block_of_a_transformer_is_a_tap(load: Load, name: str) -> None:
    x, outputs = start(load(name)), []
    for number in range(len(load(name).cut.blocks)):
        denoiser = load(name, tap=f"blocks.{number}")
        delta = random_shift(denoiser, 1)
        hooked = HookedCut(denoiser.network, denoiser.cut.module(), None, CALLS[name], denoiser.cut.grid)
        hooked.tap = denoiser.cut.tap
        with torch.no_grad():
            assert torch.equal(denoiser(x, 400.0), load(name)(x, 400.0))
            outputs.append(denoiser(x, 400.0, delta))
            assert torch.allclose(denoiser.with_cut(hooked)(x, 400.0, delta), outputs[-1], rtol=1e-11, atol=1e-11)
    assert all(not torch.allclose(one, other) for one, other in zip(outputs, outputs[1:], strict=False))


@pytest.mark.parametrize("name", LATENT)
def test_images_become_the_latents_of_their_mean(load: Load, name: str) -> None:
    denoiser = load(name)
    vae, images = denoiser.codec.network, noise([3], denoiser.image_shape, torch.float64).clamp(-1, 1)
    encoded = vae.encode(images)
    mean = encoded.latents if name == "latent" else encoded.latent_dist.mode()
    config = vae.config
    expected = (mean - (config.get("shift_factor") or 0)) * config["scaling_factor"]
    assert torch.equal(denoiser.x_0(images), expected) and denoiser.sample_shape == expected.shape[1:]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_inversion_comes_back(load: Load, name: str) -> None:
    """With the last layer at a tenth of its weights: random networks are steeper than any that was trained."""
    denoiser = load(name)
    network = denoiser.network
    last = next(getattr(network, part) for part in ("conv_out", "proj_out_2", "proj_out") if hasattr(network, part))
    schedule, x = Schedule.ddim(denoiser, 8), start(denoiser, 1)
    kept = [parameter.clone() for parameter in last.parameters()]
    try:
        for parameter in last.parameters():
            parameter.mul_(0.1)
        with torch.no_grad():
            x_0 = sample(denoiser, schedule, x)
        once, often = (float((invert(denoiser, schedule, x_0, k) - x).norm() / x.norm()) for k in (0, 8))
    finally:
        for parameter, before in zip(last.parameters(), kept, strict=True):
            parameter.copy_(before)
    assert often < 1e-6 and often < once / 10


MANY = {"prompts": ("a face", "a blue dog", "x")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "sdxl", "lcm", "dit", "pixart", "sd3", "flux"])
def test_a_sample_depends_on_its_seed_alone_and_so_does_its_prompt(load: Load, name: str) -> None:
    many = {"classes": (1, 5, 7)} if name == "dit" else MANY
    denoiser = load(name, **many)
    schedule, seeds = Schedule.ddim(denoiser, STEPS), [4, 11, 3, 8]

    def drawn(model: Denoiser, seeds: list[int]) -> Tensor:
        told = model.for_samples(seeds)
        x = noise(seeds, model.sample_shape, torch.float64)
        z = step_noise(seeds, model.sample_shape, STEPS, torch.float64) if schedule.stochastic else None
        return trajectory(told, schedule, x, z)[0]

    together = drawn(denoiser, seeds)
    for n, seed in enumerate(seeds):
        ((key, values),) = many.items()
        alone = drawn(load(name, **{key: values[seed % 3 : seed % 3 + 1]}), [seed])
        assert torch.allclose(together[n : n + 1], drawn(denoiser, [seed]), rtol=1e-8, atol=1e-8)
        assert torch.allclose(together[n : n + 1], alone, rtol=1e-8, atol=1e-8)
    swapped = drawn(denoiser.for_samples([3] * 4), seeds[:1])
    assert torch.allclose(swapped, together[:1])  # what was chosen before does not matter
    ones, fours = (torch.cat(list(draw_h(denoiser, schedule, seeds, batch)), dim=1) for batch in (1, 4))
    assert torch.allclose(ones, fours, rtol=1e-8, atol=1e-8)
    with pytest.raises(UserError, match="^a batch of 2 samples; their prompts were chosen for 4$"):
        denoiser.for_samples(seeds)(start(denoiser), 100.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_without_weights_every_shape_is_the_same(folder: Folder, name: str) -> None:
    empty, denoiser = (
        make(folder(name), **USES[name]) for make in (Denoiser.without_weights, Denoiser.from_pretrained)
    )
    for shape in ("sample_shape", "image_shape", "h_shape", "judged_shape", "tokens", "even_sigmas"):
        assert getattr(empty, shape) == getattr(denoiser, shape)
    assert empty.cut.tap == denoiser.cut.tap and empty.device.type == "meta"
    assert Schedule.ddim(empty, STEPS) == Schedule.ddim(denoiser, STEPS)
    for side in ("given", "unconditional"):
        ours, theirs = getattr(denoiser.condition, side), getattr(empty.condition, side)
        assert {k: rows.shape for k, rows in ours.items()} == {k: rows.shape for k, rows in theirs.items()}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_has_nothing_to_make_lean(load: Load, name: str) -> None:
    assert lean(load(name)) is load(name)
