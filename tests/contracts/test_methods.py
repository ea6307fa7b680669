"""The contract of a method: whatever way a direction set is found, it is the same kind of object.

One suite over every entry of METHODS. A new method adds one line to `SETTINGS`.
"""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor

from core import Denoiser, DirectionSet, Schedule, noise, sample
from core.chain.gradient import CheckpointSteps
from core.errors import DirectionSetError, UserError
from core.methods import METHODS, guided, jacobian, learned, pca, random, sae, semantic, supervised
from core.metrics import METRICS, calibrate, evaluate
from core.predictors.attributes import Attributes
from core.randomness import REPORT_SEEDS

STEPS = 3
SETTINGS: dict[str, Any] = {
    "learned": learned.Settings(directions=3, batch=4, pool=32, iterations=2),
    "guided": guided.Settings(batch=4, pool=32, iterations=2),
    "pca": pca.Settings(directions=3, samples=16),
    "jacobian": jacobian.Settings(directions=3),
    "semantic": semantic.Settings(directions=3, samples=16),
    "sae": sae.Settings(directions=3, width=12, active=2, samples=16, iterations=5),
    "supervised": supervised.Settings(samples=32, extremes=8),
    "random": random.Settings(directions=3),
}


def _brightness(images: Tensor) -> Tensor:
    """Three attributes that any image has: the mean of each channel."""
    return images.float().mean(dim=(2, 3))


BRIGHTNESS = Attributes.of(("red", "green", "blue"), _brightness)
LED = ("guided", "supervised")  # by the attributes of a predictor, of which each has its direction


def find(method: str, denoiser: Denoiser, schedule: Schedule, settings: Any = None) -> DirectionSet:
    more = {"attributes": BRIGHTNESS} if method in LED else {}
    found: DirectionSet = METHODS[method].find(denoiser, schedule, settings or SETTINGS[method], **more)
    return found


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """In the precision and with the attention that real models have."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
        )
    return Denoiser(unet, DDIMScheduler(clip_sample=False), "contract")


@pytest.fixture(scope="module")
def schedule(denoiser: Denoiser) -> Schedule:
    return Schedule.ddim(denoiser, STEPS)


@pytest.fixture(scope="module", params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def found(method: str, denoiser: Denoiser, schedule: Schedule) -> DirectionSet:
    return find(method, denoiser, schedule)


def test_every_method_is_under_contract() -> None:
    assert SETTINGS.keys() == METHODS.keys()


def test_the_set_fits_its_model_and_chain(found: DirectionSet, denoiser: Denoiser, schedule: Schedule) -> None:
    assert len(found) == 3
    assert found.table.shape[1] in (1, STEPS)
    assert found.h_shape == denoiser.h_shape
    assert found.timesteps == schedule.timesteps
    assert found.table.dtype == found.sigma.dtype == torch.float32
    assert found.table.device.type == "cpu"


def test_directions_have_unit_length_and_sigma_is_theirs(found: DirectionSet) -> None:
    lengths = found.table.flatten(2).norm(dim=2)
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-4)
    assert (found.sigma >= 0).all() and (found.sigma.sum(dim=1) > 0).all()


def test_the_set_says_where_it_comes_from(method: str, found: DirectionSet, denoiser: Denoiser) -> None:
    origin = found.provenance
    assert origin["method"] == method
    assert origin["model"] == "contract" and origin["weight_digest"] == denoiser.digest
    assert origin["steps"] == STEPS and origin["eta"] == 0
    assert origin["settings"].keys() == {field.name for field in fields(SETTINGS[method])}


def test_the_same_seed_finds_the_same_set(
    method: str, found: DirectionSet, denoiser: Denoiser, schedule: Schedule
) -> None:
    torch.manual_seed(5)  # torch's own generator is nobody's source of randomness
    again = find(method, denoiser, schedule)
    assert torch.equal(again.table, found.table) and torch.equal(again.sigma, found.sigma)


def test_another_seed_finds_another_set(
    method: str, found: DirectionSet, denoiser: Denoiser, schedule: Schedule
) -> None:
    other = find(method, denoiser, schedule, replace(SETTINGS[method], seed=1))
    assert not torch.allclose(other.table, found.table, atol=1e-3)


def test_the_global_generator_is_left_alone(method: str, denoiser: Denoiser, schedule: Schedule) -> None:
    before = torch.random.get_rng_state()
    find(method, denoiser, schedule)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
def test_it_shifts_samples_and_the_opposite_shift_is_another(
    found: DirectionSet, denoiser: Denoiser, schedule: Schedule
) -> None:
    x_T = noise([0, 1], denoiser.sample_shape)
    plain = sample(denoiser, schedule, x_T)
    for k in range(len(found)):
        up, down = (sample(denoiser, schedule, x_T, found.shift(k, scale)) for scale in (1.0, -1.0))
        assert (up - plain).abs().max() > 1e-4 and (down - plain).abs().max() > 1e-4
        assert not torch.allclose(up, down)
        assert torch.equal(sample(denoiser, schedule, x_T, found.shift(k, 0.0)), plain)


def test_several_directions_at_once_add_up(found: DirectionSet) -> None:
    both = found.shift({found.names[0]: 1.0, 1: -0.5}, scale=2.0)
    for i in range(STEPS):
        assert torch.allclose(both(i), found.shift(0, 2.0)(i) + found.shift(1, -1.0)(i), atol=1e-6)


def test_it_works_in_an_unchanged_pipeline(found: DirectionSet, denoiser: Denoiser, schedule: Schedule) -> None:
    """The pipeline's picture is that of our own chain."""
    pipeline = DDIMPipeline(denoiser.network, DDIMScheduler.from_config(denoiser.scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    edit = {found.names[0]: 1.0, found.names[1]: 0.5}
    with found.applied(pipeline.unet, edit):
        drawn = pipeline(num_inference_steps=STEPS, generator=torch.Generator().manual_seed(3), output_type="np").images
    x_T = torch.randn(1, *denoiser.sample_shape, generator=torch.Generator().manual_seed(3))
    ours = (sample(denoiser, schedule, x_T, found.shift(edit)) / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(torch.from_numpy(drawn).permute(0, 3, 1, 2).float(), ours, atol=2e-3)


def test_gradients_flow_through_its_shift(found: DirectionSet, denoiser: Denoiser, schedule: Schedule) -> None:
    scale = torch.tensor([0.5], requires_grad=True)
    x_T = noise([0], denoiser.sample_shape)
    sample(denoiser, schedule, x_T, found.shift(0, scale), gradient=CheckpointSteps()).sum().backward()
    assert scale.grad is not None and scale.grad.abs() > 0


def test_a_direction_without_another_is_orthogonal_to_it(found: DirectionSet) -> None:
    def full(directions: DirectionSet) -> Tensor:
        return (directions.table * directions.sigma[:, :, None, None, None]).double().flatten(1)

    left = found.without(0, others=[1, 2])
    c, n = full(found)[1:], full(left)[0]
    assert (c @ n).abs().max() < 1e-4 * n.norm() * c.norm(dim=1).max()
    assert torch.equal(left.table[1:], found.table[1:])


def test_it_is_saved_whole_and_read_back(found: DirectionSet, tmp_path: Path) -> None:
    found.save(tmp_path / "set")
    again = DirectionSet.load(tmp_path / "set")
    assert torch.equal(again.table, found.table) and torch.equal(again.sigma, found.sigma)
    assert again.names == found.names and again.timesteps == found.timesteps
    assert again.provenance == json.loads(json.dumps(found.provenance))  # JSON has lists where Python has tuples


@pytest.mark.slow
def test_it_is_measured_by_the_same_metrics(found: DirectionSet, denoiser: Denoiser, schedule: Schedule) -> None:
    measured = evaluate(denoiser, schedule, found, REPORT_SEEDS[:4], REPORT_SEEDS[4:12], BRIGHTNESS)
    asked_of_others = {"fid", "inception_kid", "lpips", "identity", "second_disentanglement", "second_coverage"}
    assert measured.figures.keys() == METRICS.keys() - asked_of_others


@pytest.mark.slow
def test_it_can_be_calibrated(found: DirectionSet, denoiser: Denoiser, schedule: Schedule) -> None:
    calibrated = calibrate(denoiser, schedule, found, 0.05)
    assert torch.equal(calibrated.table, found.table)
    assert {**calibrated.provenance, **found.provenance} == calibrated.provenance


def test_it_is_refused_on_a_chain_of_other_timesteps(found: DirectionSet, denoiser: Denoiser) -> None:
    if found.table.shape[1] == 1:
        pytest.skip("shared by all steps: fits every chain")
    other = Schedule.ddim(denoiser, STEPS + 1)
    with pytest.raises(DirectionSetError, match="one direction for each of the timesteps"):
        evaluate(denoiser, other, found, REPORT_SEEDS[:4], REPORT_SEEDS[4:12])


def test_more_directions_than_h_has_dimensions_are_refused(method: str, denoiser: Denoiser, schedule: Schedule) -> None:
    if method in LED:
        pytest.skip("has as many directions as attributes")
    if method == "sae":
        pytest.skip("has a dictionary of more entries than dimensions")
    size = torch.Size(denoiser.h_shape).numel()
    many = {"samples": 10 * size}
    more = {"pca": {**many, "joint": False}, "semantic": many, "learned": {"orthonormal": True}}.get(method, {})
    settings = replace(SETTINGS[method], directions=size + 1, **more)
    with pytest.raises(UserError, match=rf"directions: got {size + 1}; h .*{size} dimensions"):
        find(method, denoiser, schedule, settings)
