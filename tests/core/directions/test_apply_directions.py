"""`applied` on real, unmodified diffusers pipelines of every kind: the mid block is shifted, and left as it was."""

import json
import math
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch import Tensor, nn

from core import Denoiser, DirectionSet, Schedule, noise, sample
from core.chain.step import Injection
from core.directions import apply_directions
from core.errors import DirectionSetError
from core.methods import random
from core.model.cuts.hooked import HookedCut

STEPS = 4


@pytest.fixture(autouse=True)
def _quiet() -> None:
    from diffusers.utils import logging

    logging.disable_progress_bar()


def unet(channels: int = 3, size: int = 8) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    ).eval()


def directions(h_shape: tuple[int, int, int], timesteps: tuple[int, ...]) -> DirectionSet:
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(2, len(timesteps), *h_shape, generator=generator)
    table /= table.flatten(2).norm(dim=2)[:, :, None, None, None]
    return DirectionSet(table, torch.full((2, len(timesteps)), 20.0), timesteps, ("smile", "yaw"))


def timesteps_of(scheduler: Any, steps: int) -> tuple[int, ...]:
    scheduler.set_timesteps(steps)
    return tuple(int(t) for t in scheduler.timesteps)


def untouched(net: torch.nn.Module) -> bool:
    return not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def draw(pipeline: Any, steps: int = STEPS, **more: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    images = pipeline(generator=generator, num_inference_steps=steps, output_type="np", **more).images
    return np.asarray(images)


def ddim() -> Any:
    return DDIMPipeline(unet(), DDIMScheduler(clip_sample=False))


def ddpm() -> Any:
    return DDPMPipeline(unet(), DDPMScheduler(num_train_timesteps=20))


def latent() -> Any:
    from diffusers import LDMPipeline

    torch.manual_seed(1)
    decoder = VQModel(
        block_out_channels=(4,), norm_num_groups=2, layers_per_block=1, latent_channels=3, num_vq_embeddings=8
    )
    return LDMPipeline(decoder, unet(), DDIMScheduler(clip_sample=False))


def stable() -> Any:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(2)
    net = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
    ).eval()
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, layers_per_block=1, latent_channels=4).eval()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=60, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes)).eval()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    return StableDiffusionPipeline(vae, text, tokenizer, net, scheduler, None, None, requires_safety_checker=False)


PIPELINES = {
    "DDIM": (ddim, STEPS, {}),
    "DDPM": (ddpm, 20, {}),
    "latent diffusion": (latent, STEPS, {}),
    "Stable Diffusion": (stable, STEPS, {"prompt": "a face", "guidance_scale": 3.0, "height": 8, "width": 8}),
    "Stable Diffusion without guidance": (stable, STEPS, {"prompt": "a face", "guidance_scale": 1.0}),
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_pipeline_is_edited_and_left_as_it_was(kind: str) -> None:
    make, steps, more = PIPELINES[kind]
    pipeline = make()
    size = pipeline.unet.config.sample_size // 2
    found = directions((8, size, size), timesteps_of(pipeline.scheduler, steps))
    plain = draw(pipeline, steps, **more)
    with found.applied(pipeline.unet, "smile", scale=1.0):
        edited = draw(pipeline, steps, **more)
    with found.applied(pipeline.unet, "smile", scale=0.0):
        assert np.array_equal(draw(pipeline, steps, **more), plain)
    assert np.abs(edited - plain).max() > 1e-3
    assert untouched(pipeline.unet)
    assert np.array_equal(draw(pipeline, steps, **more), plain)


def test_both_halves_under_guidance_are_shifted_alike() -> None:
    """The same as shifting h by hand in a wrapper of the mid block."""
    pipeline = stable()
    found = directions((8, 4, 4), timesteps_of(pipeline.scheduler, STEPS))
    seen: list[torch.Tensor] = []
    spy = pipeline.unet.mid_block.register_forward_hook(lambda _m, _i, h: seen.append(h.clone()))
    with found.applied(pipeline.unet, "yaw", 0.5):
        added = pipeline.unet.mid_block.register_forward_hook(lambda _m, _i, h: seen.append(h.clone()))
        draw(pipeline, prompt="a face", guidance_scale=3.0)
        added.remove()
    spy.remove()
    for i in range(STEPS):
        before, after = seen[2 * i], seen[2 * i + 1]
        assert len(before) == 2  # unconditional and conditional
        expected = 0.5 * found.sigma[1, i] * found.table[1, i]
        assert torch.allclose(after - before, expected.expand_as(before), atol=1e-4)


@pytest.mark.parametrize("injection", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("as_tuple", [False, True])
def test_the_pipelines_sampler_draws_what_our_chain_draws(injection: Injection, as_tuple: bool) -> None:
    pipeline = ddim()
    denoiser = Denoiser(pipeline.unet.double(), DDIMScheduler(clip_sample=False), "tiny")
    schedule = Schedule.ddim(denoiser, STEPS)
    found = directions(denoiser.h_shape, schedule.timesteps)
    x_T = noise([7], denoiser.sample_shape, torch.float64)
    ours = sample(denoiser, schedule, x_T, shift=found.shift("smile", 1.0), injection=injection)
    x, scheduler = x_T, pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    asymmetric = scheduler if injection == "asymmetric" else None
    with torch.no_grad(), found.applied(pipeline.unet, "smile", 1.0, asymmetric=asymmetric):
        for t in scheduler.timesteps:
            output = pipeline.unet(x, t, return_dict=not as_tuple)
            x = scheduler.step(output[0] if as_tuple else output.sample, t, x).prev_sample
    assert torch.allclose(x, ours, atol=1e-5)
    assert untouched(pipeline.unet)


def test_asymmetric_injection_needs_ddims_steps() -> None:
    pipeline = ddpm()
    found = directions((8, 4, 4), timesteps_of(pipeline.scheduler, 20))
    with (
        pytest.raises(
            DirectionSetError,
            match="asymmetric: got a DDPMScheduler; allowed: DDIMScheduler, FlowMatchEulerDiscreteScheduler",
        ),
        found.applied(pipeline.unet, 0, asymmetric=pipeline.scheduler),
    ):
        pass


@pytest.mark.parametrize(
    ("config", "on"),
    [
        ({"clip_sample": True}, "clip_sample"),
        ({"clip_sample": False, "thresholding": True}, "thresholding"),
        ({"clip_sample": True, "thresholding": True}, "clip_sample and thresholding"),
    ],
)
def test_asymmetric_injection_needs_steps_that_clip_nothing(config: dict[str, bool], on: str) -> None:
    pipeline = DDIMPipeline(unet(), DDIMScheduler(**config))
    found = directions((8, 4, 4), timesteps_of(pipeline.scheduler, STEPS))
    with pytest.raises(DirectionSetError) as error, found.applied(pipeline.unet, 0, asymmetric=pipeline.scheduler):
        pass
    assert str(error.value) == (
        f"asymmetric: the scheduler has {on} on, with which a step is no sum to be mixed: set pipeline.scheduler = "
        "DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, thresholding=False)"
    )
    assert untouched(pipeline.unet)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, thresholding=False)
    with found.applied(pipeline.unet, 0, asymmetric=pipeline.scheduler):
        assert np.isfinite(draw(pipeline)).all()


def test_a_set_of_other_size_is_refused_with_the_hooks_gone() -> None:
    pipeline = ddim()
    wrong = directions((8, 2, 2), (900, 500, 100))
    with pytest.raises(DirectionSetError, match=r"for h of shape \[8, 2, 2\]; this model has \[8, 4, 4\]"):
        with wrong.applied(pipeline.unet, 0):
            draw(pipeline)
    assert untouched(pipeline.unet)


@pytest.mark.parametrize(
    ("direction", "sentence"),
    [
        ("smlie", "the set has no direction named 'smlie'; did you mean 'smile'?"),
        ({"smile": 1.0, "older": 1.0}, "the set has no direction named 'older'; it has: smile, yaw"),
        (2, "direction 2 is outside the set: it has 0 to 1"),
        ({}, "an edit of several directions needs at least one, as in {'smile': 1.0}"),
    ],
)
def test_a_direction_that_is_not_in_the_set_is_one_sentence(tmp_path: Path, direction: Any, sentence: str) -> None:
    pipeline = ddim()
    directions((8, 4, 4), (500, 0)).save(tmp_path / "set")
    for apply in (apply_directions.applied, lambda net, _, k: DirectionSet.load(tmp_path / "set").applied(net, k)):
        with pytest.raises(ValueError) as caught, apply(pipeline.unet, tmp_path / "set", direction):
            pass
        assert str(caught.value) == sentence and untouched(pipeline.unet)


@pytest.mark.parametrize(
    ("taken", "steps", "told"),
    [
        (10, None, "the pipeline took 10 steps, and the shifts are those of 4, so that the edit was 2.5 times as"),
        (10, 8, "the pipeline took 10 steps, and the shifts are those of 8, so that the edit was 1.2 times as"),
        (4, 10, "the pipeline took 4 steps, and the shifts are those of 10, so that the edit was 0.4 times as"),
        (10, 10, None),
        (4, None, None),
    ],
)
def test_another_number_of_steps_is_warned_of(tmp_path: Path, taken: int, steps: int | None, told: str | None) -> None:
    pipeline = ddim()
    found = directions((8, 4, 4), timesteps_of(pipeline.scheduler, STEPS))
    found.save(tmp_path / "set")
    for way in (
        found.applied(pipeline.unet, "smile", 1.0, steps),
        apply_directions.applied(pipeline.unet, tmp_path / "set", "smile", 1.0, steps),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with way:
                draw(pipeline, STEPS)  # the last image counts
                draw(pipeline, taken)
        sentences = [str(warning.message) for warning in caught]
        assert [sentence.split(" strong")[0] for sentence in sentences] == ([told] if told else [])
        assert all(warning.filename == __file__ for warning in caught)
        assert all(f": give applied(..., steps={taken}), unless its sampler" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("taken", "steps", "count"),
    [
        ((500, 250, 0), 4, 4),  # of an image that was noised half way
        ((400, 300, 200, 100, 0), 4, 10),
        ((400, 300, 200, 100, 0), 10, 10),
        ((490, 241), 4, 4),  # spaced a little differently
        ((250,), 4, 4),  # one step tells nothing
        ((999, 666, 333, 0), 4, 4),
        ((), 4, 4),
    ],
)
def test_steps_are_counted_from_where_a_pipeline_begins(taken: tuple[int, ...], steps: int, count: int) -> None:
    assert apply_directions._steps_taken(taken, (750, 500, 250, 0), steps) == count


class FluxLike(torch.nn.Module):
    """Told its timestep in thousandths."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("passed", "warned"),
    [
        ((0.75, 0.5, 0.25, 0.0), False),
        ((0.75, 0.7, 0.5, 0.4, 0.25, 0.1, 0.0), False),  # a sampler of second order: calls between the steps, too
        ((0.0, 0.25, 0.5, 0.75), False),  # an inversion
        ((0.75, 0.6, 0.45, 0.3, 0.15, 0.0), True),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_steps_are_counted_in_compiled_networks_of_any_sampler(
    passed: tuple[float, ...], warned: bool, wrapped: bool
) -> None:
    network = FluxLike()
    called: Any = torch.compile(network, backend="eager") if wrapped else network
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with apply_directions.steps_watched(called, (750, 500, 250, 0), None, apply_directions.ShiftSite()):
            for t in passed:
                called(torch.zeros(1), timestep=torch.tensor(t))
    assert [f"took {len(passed)} steps" in str(each.message) for each in caught] == [True] * warned


@pytest.mark.slow
def test_the_copy_in_a_bundle_does_the_same_without_this_package(tmp_path: Path) -> None:
    """In a process where `core` and `orchestrator` cannot be imported."""
    pipeline = ddim()
    found = directions((8, 4, 4), timesteps_of(pipeline.scheduler, STEPS))
    found.save(tmp_path / "set")
    pipeline.save_pretrained(tmp_path / "model")
    shutil.copy(apply_directions.__file__, tmp_path / "set" / "apply_directions.py")
    script = tmp_path / "set" / "use.py"
    script.write_text(
        "import sys, numpy as np, torch\n"
        "sys.modules['core'] = sys.modules['orchestrator'] = None\n"
        "from diffusers import DDIMPipeline\n"
        "from apply_directions import applied\n"
        "pipeline = DDIMPipeline.from_pretrained('../model')\n"
        "with applied(pipeline.unet, '.', {'smile': 1.0, 'yaw': -0.5}, scale=2.0, steps=8):\n"
        "    seed = torch.Generator().manual_seed(5)\n"
        "    images = pipeline(generator=seed, num_inference_steps=8, output_type='np').images\n"
        "np.save('out.npy', images)\n"
    )
    done = subprocess.run([sys.executable, "use.py"], cwd=script.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with found.applied(pipeline.unet, {"smile": 1.0, "yaw": -0.5}, scale=2.0, steps=8):
        expected = draw(pipeline, 8)
    assert np.allclose(np.load(script.parent / "out.npy"), expected, atol=1e-5)


class Joint(nn.Module):
    """A transformer's block that gives image tokens and text tokens, in this order."""

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return image + text.mean(1, keepdim=True), text * 2


class Clocked(nn.Module):
    """A network of two such blocks, which is told a t + b in place of t."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Joint(), Joint()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        tokens = x.flatten(2).mT * self.weight
        image, text = self.second(*self.first(tokens, tokens[:, :2] + timestep.reshape(-1, 1, 1)))
        return (image + text.mean(1, keepdim=True)).mT.reshape(x.shape)


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("clock", [(0.001, 0.0), (-0.001, 1.0)])
def test_a_set_is_applied_where_and_when_its_hook_was(output: int, clock: tuple[float, float]) -> None:
    """A pipeline that tells its network a t + b, and blocks of several outputs: the set says which of them."""
    a, b = clock
    network = Clocked()
    cut = HookedCut(network, "first", call=lambda net, x, t, given: net(x, a * t + b), output=output, clock=clock)
    denoiser = Denoiser(network, DDIMScheduler(clip_sample=False), "clocked", cut=cut, sample_shape=(3, 2, 4))
    schedule = Schedule.ddim(denoiser, STEPS)
    found = random.find(denoiser, schedule, random.Settings(1), 4)
    assert (found.provenance["output"], found.provenance["clock"]) == (output, list(clock))
    # A length of its own for every step, so that a shift of another step is another image.
    found = replace(found, sigma=torch.arange(1.0, STEPS + 1)[None])
    x_T = noise([0], denoiser.sample_shape)
    expected, x = sample(denoiser, schedule, x_T, found.shift(0)), x_T
    with torch.no_grad(), found.applied(network, 0):
        for i, t in enumerate(schedule.timesteps):
            told = network(x, timestep=torch.tensor(a * t + b))
            x = schedule.step(i, x, told, told)
    assert torch.allclose(x, expected, rtol=1e-5, atol=1e-5) and (x - sample(denoiser, schedule, x_T)).norm() > 0.1


@pytest.mark.parametrize(
    ("origin", "sentence"),
    [
        ({"output": "a"}, "output: got 'a'; allowed: the number of an output of the tap"),
        ({"output": True}, "output: got True; allowed: the number of an output of the tap"),
        ({"clock": [0, 1]}, "clock: got [0, 1]; allowed: (a, b) of a t + b, with an a other than 0"),
        ({"clock": [math.nan, 1]}, "clock: got [nan, 1]; allowed: (a, b) of a t + b, with an a other than 0"),
        ({"clock": 3}, "clock: got 3; allowed: (a, b) of a t + b, with an a other than 0"),
    ],
)
def test_a_place_that_cannot_be_is_refused(origin: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DirectionSetError) as caught:
        apply_directions.place_of(origin, DirectionSetError)
    assert str(caught.value) == sentence


def test_a_pipeline_in_place_of_its_network_is_refused() -> None:
    network = unet()
    pipeline = DDIMPipeline(network, DDIMScheduler())
    found = directions((8, 4, 4), (500, 0))
    with (
        pytest.raises(
            DirectionSetError, match="^a DDIMPipeline has no mid_block to shift: give the pipeline's unet, or"
        ),
        found.applied(pipeline, 0),
    ):
        pass


class Middle(nn.Module):
    """The smallest network with a mid block, which torch.compile compiles in a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.mid_block = nn.Flatten(2, 3)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return 2.0 * self.mid_block(x).reshape(x.shape)


@pytest.mark.parametrize("how", ["wrapped", "in place", "unwrapped again"])
def test_a_network_that_was_compiled_before_is_shifted(how: str) -> None:
    """Compiled code leaves out hooks that are registered after it was made."""
    torch.compiler.reset()
    called = torch.compile(Middle(), backend="eager") if how != "in place" else Middle()
    if how == "in place":
        called.compile(backend="eager")
    given = called._orig_mod if how == "unwrapped again" else called
    x, t = torch.zeros(1, 3, 2, 2), torch.tensor(7)
    called(x, t)
    with apply_directions.shifted(given, lambda _: torch.ones(1, 4, 1, 1), (7,)):
        shifted = called(x, t)
    assert torch.equal(shifted, x + 2.0) and torch.equal(called(x, t), x) and untouched(given)
