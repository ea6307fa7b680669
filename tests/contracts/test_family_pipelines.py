"""The contract of a family's pipeline: what diffusers draws end to end with a set applied is what our own chain draws.

The pipeline is called as a user calls it; watched are what its scheduler is given and what leaves its last step, in
float64. Its scheduler is the one that `core.model.pretrained.load_scheduler` makes of its own.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from core import Denoiser, DirectionSet, Schedule, noise, sample
from core.directions import apply_directions
from core.directions.provenance import provenance
from core.model.pretrained import find_model, load_scheduler
from core.model.schedulers import diffusion_levels, sampler_of
from core.randomness import step_noise
from orchestrator.bundle.card import card
from tests import families
from tests.contracts.conftest import QUIET, Folder

pytestmark = QUIET

STEPS = 4
SEED = 9
TEXT = {"prompts": ("a face",)}
# What our model is told, and what the pipeline is called with.
TOLD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pixel": ({}, {}),
    "latent": ({}, {}),
    "sd": (
        {**TEXT, "guidance": 7.5, "negative_prompt": "blurry"},
        {"guidance_scale": 7.5, "negative_prompt": "blurry"},
    ),
    "sd2": ({**TEXT, "guidance": 2.0}, {"guidance_scale": 2.0}),
    "sd2-zsnr": ({**TEXT, "guidance": 7.5}, {"guidance_scale": 7.5}),
    "sdxl": ({**TEXT, "guidance": 5.0}, {"guidance_scale": 5.0}),
    "sdxl-turbo": (TEXT, {"guidance_scale": 0.0}),
    "lcm": ({**TEXT, "guidance": 6.0}, {"guidance_scale": 6.0}),
    "dit": ({"classes": (1,), "guidance": 4.0}, {"class_labels": [1], "guidance_scale": 4.0}),
    "pixart": (
        {**TEXT, "guidance": 4.5, "negative_prompt": "dull"},
        {"guidance_scale": 4.5, "negative_prompt": "dull"},
    ),
    "sd3": ({**TEXT, "guidance": 7.0}, {"guidance_scale": 7.0}),
    "flux": ({**TEXT, "guidance": 2.5, "size": 32}, {"guidance_scale": 2.5}),
    "flux-schnell": ({**TEXT, "size": 32}, {"guidance_scale": 0.0}),
}
GUIDED = ("sd", "sd2", "sd2-zsnr", "sdxl", "dit", "pixart", "sd3")
# How far two states of a chain may be apart: schedulers of flows step in float32, that of LCM keeps two numbers in it.
FAR = {"sd3": 1e-5, "flux": 1e-5, "flux-schnell": 1e-5, "lcm": 1e-6}
Model = Callable[..., tuple[Denoiser, Any]]


@pytest.fixture(scope="session")
def model(folder: Folder) -> Model:
    """model(family, **use): our model, and the pipeline of the same folder."""
    pipeline = cache(lambda name: pipeline_of(name, folder(name)))

    @cache
    def loaded(name: str, use: tuple[Any, ...]) -> Denoiser:
        denoiser = Denoiser.from_pretrained(folder(name), torch.float64, **dict(use))
        denoiser.scheduler = evenly(denoiser.scheduler)
        return denoiser

    return lambda name, **use: (loaded(name, tuple({**TOLD[name][0], **use}.items())), pipeline(name))


def evenly(scheduler: Any) -> Any:
    """With timesteps at equal distances: where they are not ("linspace"), diffusers' DDIM goes to a noise level that is
    not the next timestep's.
    """
    if scheduler.config.get("timestep_spacing") != "linspace":
        return scheduler
    return type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")


def pipeline_of(name: str, folder: Path) -> Any:
    pipeline = families.loads(folder).to(torch.float64)
    scheduler = evenly(load_scheduler(find_model(folder)))
    if sampler_of(scheduler) == "DDIMScheduler":
        config = {**scheduler.config, "_use_default_values": []}
        scheduler = diffusers.DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=_ends(scheduler))
    if not isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    if name == "pixel":  # DDPM's own draws its noise in float32
        pipeline = diffusers.DDIMPipeline(pipeline.unet, scheduler)
        pipeline.set_progress_bar_config(disable=True)
    if name == "latent":  # and this one does
        pipeline.unet.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(), *inputs[1:]))
    pipeline.scheduler = scheduler
    return pipeline


def _ends(scheduler: Any) -> bool:
    """Whether a chain of a model's scheduler ends without noise."""
    return bool(diffusion_levels(scheduler, STEPS)[1][-1] == 1)


class Watched:
    """A pipeline, drawing once: what its scheduler was given and gave at every step, as samples of our model."""

    def __init__(self, pipeline: Any, name: str, monkeypatch: pytest.MonkeyPatch, count: int = 1, **more: Any) -> None:
        self.t: list[float] = []
        self.outputs: list[Tensor] = []
        self.states: list[Tensor] = []
        scheduler = pipeline.scheduler
        step = scheduler.step

        @wraps(step)
        def watched(output: Tensor, t: Any, x: Tensor, *rest: Any, **named: Any) -> Any:
            result = step(output, t, x, *rest, **named)
            self.t.append(float(t))
            self.outputs.append(_sample(output))
            self.states += [_sample(x), _sample(result[0])][len(self.states) > 0 :]
            return result

        def _sample(x: Tensor) -> Tensor:
            """DiT's pipeline has every sample twice, Flux's has it packed."""
            return FluxPipeline._unpack_latents(x, 8, 8, vae_scale_factor=1) if x.ndim == 3 else x[:count]

        with monkeypatch.context() as patch:
            patch.setattr(scheduler, "step", watched)
            if isinstance(scheduler, diffusers.LCMScheduler):
                drawn = iter(step_noise([SEED], (4, 8, 8), STEPS, torch.float64))
                patch.setattr(diffusers.schedulers.scheduling_lcm, "randn_tensor", lambda *_, **__: next(drawn))
            asked = {**families.asks(name, STEPS), **TOLD[name][1], **more}
            asked = {
                key: value for key, value in asked.items() if key not in ("max_sequence_length", "guidance_rescale")
            }
            self.images = torch.as_tensor(pipeline(**asked).images).permute(0, 3, 1, 2)

    @property
    def x_T(self) -> Tensor:
        return self.states[0].double()

    @property
    def x_0(self) -> Tensor:
        return self.states[-1]


def ours(
    denoiser: Denoiser, x_T: Tensor, found: DirectionSet | None = None, edit: Any = None, injection: str = "symmetric"
) -> Tensor:
    schedule = Schedule.ddim(denoiser, STEPS)
    z = step_noise([SEED], denoiser.sample_shape, STEPS, torch.float64) if schedule.stochastic else None
    with torch.no_grad():
        return sample(denoiser, schedule, x_T, found and found.shift(edit), injection, step_noise=z)


def set_of(denoiser: Denoiser, size: float = 2.0) -> DirectionSet:
    """Two directions, with a part of their own at every step, as a method would make them."""
    schedule = Schedule.ddim(denoiser, STEPS)
    table = noise([1, 2], (STEPS, *denoiser.h_shape))
    table /= table.flatten(2).norm(dim=2)[:, :, None, None, None]
    length = torch.full((2, STEPS), size * torch.Size(denoiser.h_shape).numel() ** 0.5)
    origin = provenance("random", denoiser, schedule, {})
    return DirectionSet(table, length, schedule.timesteps, ("smile", "yaw"), provenance=origin)


EDIT = {"smile": 0.5, "yaw": -0.3}


def close(name: str, found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).norm() / expected.norm()) < FAR.get(name, 1e-9)


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "unguided"])
@pytest.mark.parametrize("name", families.FAMILIES)
def test_our_chain_is_that_of_the_pipeline(
    model: Model, name: str, guided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same output at every step, guidance and all; the same states; the same images."""
    if not guided and name not in GUIDED:
        pytest.skip("has no second half")
    without = {} if guided else {"guidance": 1.0, "negative_prompt": ""}
    denoiser, pipeline = model(name, **without)
    watched = Watched(pipeline, name, monkeypatch, **({} if guided else {"guidance_scale": 1.0}))
    assert denoiser.condition.guided == (guided and name in GUIDED)
    assert Schedule.ddim(denoiser, STEPS).timesteps == tuple(watched.t)
    for t, x, output in zip(watched.t, watched.states, watched.outputs, strict=False):
        with torch.no_grad():
            found = denoiser(x.double(), t)
        assert torch.allclose(found, output.double(), rtol=1e-9, atol=1e-9)
    x_0 = ours(denoiser, watched.x_T)
    assert close(name, x_0, watched.x_0)
    shown = (denoiser.images(x_0) / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(shown.float(), watched.images.float(), atol=1e-5) and shown.std() > 1e-3


def check(
    model: Model, name: str, monkeypatch: pytest.MonkeyPatch, injection: str = "symmetric", **use: Any
) -> tuple[Tensor, Tensor]:
    """The pipeline with a set applied draws what our chain draws, and the pipeline is left as it was: (x_0, plain)."""
    denoiser, pipeline = model(name, **use)
    network, found = families.denoiser(pipeline), set_of(denoiser)
    asymmetric = pipeline.scheduler if injection == "asymmetric" else None
    with found.applied(network, EDIT, asymmetric=asymmetric):
        watched = Watched(pipeline, name, monkeypatch)
    expected = ours(denoiser, watched.x_T, found, EDIT, injection)
    assert close(name, watched.x_0, expected)
    plain = ours(denoiser, watched.x_T)
    assert float((expected - plain).norm() / plain.norm()) > 1e-3
    assert not any(module._forward_hooks for module in network.modules())
    return watched.x_0, plain


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_set_in_the_pipeline_draws_what_our_chain_draws(
    model: Model, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(model, name, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in families.FAMILIES if name != "lcm"])
def test_asymmetric_injection_in_the_pipeline(model: Model, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    once, _ = check(model, name, monkeypatch, "asymmetric")
    assert not torch.allclose(once, check(model, name, monkeypatch)[0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("injection", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", GUIDED)
def test_the_conditional_half_alone(model: Model, name: str, injection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, _ = check(model, name, monkeypatch, injection, shifted="conditional")
    assert not torch.allclose(alone, check(model, name, monkeypatch, injection)[0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shifted", ["both", "conditional"])
@pytest.mark.parametrize(("name", "two"), [("sd", {"num_images_per_prompt": 2}), ("dit", {"class_labels": [1, 1]})])
def test_two_images_at_a_time(
    model: Model, name: str, two: dict[str, Any], shifted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, pipeline = model(name, shifted=shifted)
    found = set_of(denoiser)
    with found.applied(families.denoiser(pipeline), EDIT):
        watched = Watched(pipeline, name, monkeypatch, 2, **two)
    assert len(watched.x_T) == 2 and not torch.equal(*watched.x_T)
    assert close(name, watched.x_0, ours(denoiser, watched.x_T, found, EDIT))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tokens", "pooled"])
@pytest.mark.parametrize("name", ["pixel", "sd", "dit", "pixart", "sd3", "flux"])
def test_every_form(model: Model, name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(model, name, monkeypatch, form=form)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tap"), [("dit", "blocks.0"), ("sd3", "blocks.0"), ("flux", "blocks.0"), ("flux", "blocks.3")]
)
def test_other_taps(model: Model, name: str, tap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flux has two kinds of blocks, of which the second begins at 2. SD3's last block and Flux's give no text."""
    there, _ = check(model, name, monkeypatch, tap=tap)
    assert not torch.allclose(there, check(model, name, monkeypatch)[0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "use"),
    [("sd", {"shifted": "conditional"}), ("dit", {"shifted": "conditional"}), ("flux", {"form": "pooled"})],
)
def test_the_file_beside_a_saved_set_does_the_same(
    model: Model, name: str, use: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, pipeline = model(name, **use)
    network, found = families.denoiser(pipeline), set_of(denoiser)
    found.save(tmp_path / "set")
    for asymmetric in (None, pipeline.scheduler):
        with DirectionSet.load(tmp_path / "set").applied(network, EDIT, 1.5, asymmetric=asymmetric):
            expected = Watched(pipeline, name, monkeypatch)
        with apply_directions.applied(network, tmp_path / "set", EDIT, 1.5, asymmetric=asymmetric):
            found = Watched(pipeline, name, monkeypatch).x_0
        assert float((found - expected.x_0).norm() / found.norm()) < 1e-5  # shifts are put together in float32


@pytest.mark.parametrize("name", ["pixart", "sdxl", "sd"])
def test_the_pipelines_own_sampler_may_be_another(model: Model, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PNDM, Euler and DPM step otherwise; a set is applied all the same, and its hooks go."""
    denoiser, pipeline = model(name)
    network, own = families.denoiser(pipeline), families.build(name).scheduler
    monkeypatch.setattr(pipeline, "scheduler", own)
    plain = Watched(pipeline, name, monkeypatch).x_0
    with set_of(denoiser).applied(network, EDIT):
        assert not torch.allclose(Watched(pipeline, name, monkeypatch).x_0, plain, atol=1e-4)
    assert torch.equal(Watched(pipeline, name, monkeypatch).x_0, plain)


# What a sweep says of its model, on whose cards the pipeline has to be told more than a prompt and a number of steps.
CARDS: dict[str, tuple[str, dict[str, Any]]] = {
    "clipped pixels": ("pixel", {}),
    "pixels of another size": ("pixel", {"size": 24}),
    "latents of another size": ("latent", {"size": 64}),
    "a negative prompt": ("sd", {**TEXT, "guidance": 7.5, "negative_prompt": "blurry", "size": 64}),
    "told its guidance by an embedding": ("lcm", TEXT),
    "classes": ("dit", {"classes": (1,), "guidance": 4.0, "size": 64}),
    "a size of no bin": ("pixart", {**TEXT, "guidance": 4.5, "negative_prompt": "dull", "size": 64}),
    "told its guidance": ("flux", {**TEXT, "size": 32}),
    "distilled to draw without": ("flux-schnell", {**TEXT, "size": 32}),
}


@pytest.mark.slow
@pytest.mark.parametrize("injection", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("case", CARDS)
def test_the_code_on_a_card_draws_what_our_chain_draws(
    folder: Folder, case: str, injection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a reader runs it, inside the set's folder: nothing of the pipeline is changed but by the card."""
    name, use = CARDS[case]
    if name == "lcm" and injection == "asymmetric":
        pytest.skip("a consistency model's steps have no second part")
    denoiser = Denoiser.from_pretrained(evenly_spaced(folder(name), tmp_path / "model"), **use)
    compare_with_card(denoiser, injection, tmp_path, monkeypatch)


@pytest.mark.slow
def test_the_code_on_a_card_heeds_no_option_that_is_left_over_of_another_scheduler(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Euler file with `set_alpha_to_one: false`: its own chain ends without noise."""
    model = Path(shutil.copytree(folder("sd"), tmp_path / "model"))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model)
    diffusers.EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="leading", steps_offset=1
    ).save_pretrained(model / "scheduler")
    told = json.loads((model / "scheduler/scheduler_config.json").read_text())
    (model / "scheduler/scheduler_config.json").write_text(json.dumps({**told, "set_alpha_to_one": False}))
    index = json.loads((model / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    (model / "model_index.json").write_text(json.dumps(index))
    compare_with_card(Denoiser.from_pretrained(model, **TEXT, size=64), "symmetric", tmp_path, monkeypatch)


def compare_with_card(denoiser: Denoiser, injection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code on the card of a set: it draws what our chain draws with the set, and not what it draws without."""
    found = set_of(denoiser)
    found = replace(found, provenance={**found.provenance, "injection": injection})
    found.save(tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "apply_directions", apply_directions)
    z = step_noise([SEED], denoiser.sample_shape, STEPS)
    states = states_of(getattr(diffusers, sampler_of(denoiser.scheduler)), z, monkeypatch)
    torch.manual_seed(SEED)
    exec(card(found).split("```python\n")[1].split("```")[0], {})
    x_T, x_0 = (_as_samples(each, denoiser.sample_shape) for each in (states[0], states[-1]))
    schedule = Schedule.ddim(denoiser, STEPS)
    with torch.no_grad():
        expected = sample(
            denoiser, schedule, x_T, found.shift("smile"), injection, step_noise=z if schedule.stochastic else None
        )
        plain = sample(denoiser, schedule, x_T, step_noise=z if schedule.stochastic else None)
    assert float((x_0 - expected).norm() / expected.norm()) < 1e-4
    assert float((plain - expected).norm() / expected.norm()) > 1e-2


def evenly_spaced(folder: Path, to: Path) -> Path:
    """The same model; for timesteps at equal distances, as in `evenly`, where they are not."""
    shutil.copytree(folder, to)
    file = to / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    if config.get("timestep_spacing") == "linspace":
        file.write_text(json.dumps({**config, "timestep_spacing": "trailing"}))
    return to


def states_of(kind: Any, z: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What schedulers of a kind are given first, and give at every step from now on; z: what LCM's adds."""
    states: list[Tensor] = []
    step = kind.step

    @wraps(step)
    def watched(scheduler: Any, output: Tensor, t: Any, x: Tensor, *rest: Any, **named: Any) -> Any:
        result = step(scheduler, output, t, x, *rest, **named)
        states.extend([x, result[0]][len(states) > 0 :])
        return result

    monkeypatch.setattr(kind, "step", watched)
    drawn = iter(z)
    monkeypatch.setattr(diffusers.schedulers.scheduling_lcm, "randn_tensor", lambda *_, **__: next(drawn))
    return states


def _as_samples(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return FluxPipeline._unpack_latents(x, *shape[1:], vae_scale_factor=1) if x.ndim == 3 else x[:1]
