"""A bundle opened for use: what fits together is drawn, what does not is refused in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from core.chain.sampling import sample
from core.chain.schedule import Schedule
from core.errors import ModelError, UserError
from core.execution.streaming import Streamed
from core.model.denoiser import Denoiser
from core.precision import PRECISIONS
from core.randomness import noise
from orchestrator.edit.request import ModelOptions
from orchestrator.edit.session import REACH, Edit, EditSession, StartingSamples, recovered
from orchestrator.trial.attempt import halving_batch
from orchestrator.trial.loading import WEIGHTS, advice_on_memory
from tests.orchestrator.bundles import tiny_bundle, tiny_set


@pytest.fixture(scope="module")
def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> EditSession:
    return EditSession.open(
        tiny_bundle(tiny_model, tmp_path_factory.mktemp("bundles") / "tiny set"), ModelOptions(device="cpu")
    )


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.allclose(a, b, atol=1e-4))


@pytest.mark.slow
def test_what_is_drawn_is_what_the_chain_draws(tiny: EditSession, tiny_model: Path) -> None:
    denoiser = Denoiser.from_pretrained(tiny_model)
    schedule = Schedule.ddim(denoiser, 3)
    directions = tiny_set(tiny_model)
    x_T = noise([4, 9], denoiser.sample_shape)
    drawn = tiny.draw(tiny.from_seeds([4, 9]), Edit({"yaw": 1.5, "smile": -0.5}, "asymmetric"), (0.0, 1.0, 2.0))
    assert drawn.shape == (2, 3, *denoiser.sample_shape)
    for a, factor in enumerate((0.0, 1.0, 2.0)):
        shift = directions.shift({"yaw": 1.5, "smile": -0.5}, factor)
        assert close(drawn[:, a], sample(denoiser, schedule, x_T, shift, "asymmetric"))
    assert (drawn[:, 0] - drawn[:, 1]).abs().max() > 0.01


def test_an_edit_of_nothing_is_the_unshifted_sample(tiny: EditSession) -> None:
    begun = tiny.from_seeds([1])
    for scales in ({}, {"yaw": 0.0}):
        assert close(tiny.draw(begun, Edit(scales))[:, 0], begun.plain)


def test_a_window_begins_from_the_unshifted_chain_that_is_kept(
    tiny: EditSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, middle = tiny.from_seeds([1, 2]), tiny.schedule.timesteps[1]
    edit = Edit({"yaw": 2.0}, "symmetric", (middle, middle))
    whole = sample(tiny.denoiser, tiny.schedule, begun.x_T, tiny.directions.shift("yaw", 2.0), window=(middle, middle))
    assert close(tiny.draw(begun, edit)[:, 0], whole)
    monkeypatch.setattr(
        "orchestrator.edit.session.one_step", lambda *_: pytest.fail("that part of the chain was drawn already")
    )
    tiny.draw(begun, edit)
    with pytest.raises(UserError, match=r"window \[3, 1\] holds none of the chain's timesteps \["):
        tiny.draw(begun, Edit({"yaw": 1.0}, "symmetric", (3, 1)))


def test_a_sample_is_the_same_in_every_batch(tiny: EditSession) -> None:
    told: list[int] = []
    edit = tiny.edit({"yaw": 1.0})
    alone = torch.cat([tiny.draw(tiny.from_seeds([seed]), edit, (1.0, 2.0)) for seed in range(5)])
    together = tiny.draw(tiny.from_seeds(range(5)), edit, (1.0, 2.0), batch=3, drawn=told.append)
    assert close(alone, together) and told == [3, 3, 3, 1]


@pytest.mark.slow
def test_a_noisy_chain_draws_its_noise_from_the_seed(tiny_model: Path, tmp_path: Path) -> None:
    noisy = EditSession.open(tiny_bundle(tiny_model, tmp_path / "set", eta=0.5), ModelOptions(device="cpu"))
    edit = noisy.edit({"yaw": 1.0})
    alone, together = noisy.draw(noisy.from_seeds([7]), edit), noisy.draw(noisy.from_seeds([3, 7]), edit, batch=1)
    assert close(alone[0], together[1])
    with pytest.raises(UserError) as error:
        noisy.from_images(torch.zeros(1, *noisy.denoiser.sample_shape))
    assert str(error.value) == (
        "images need a chain without noise (eta 0) to be inverted; this set was made with eta 0.5: use seeds"
    )


@pytest.mark.slow
def test_images_are_inverted_and_how_well_is_told(tiny: EditSession) -> None:
    images = tiny.from_seeds([5]).plain.clamp(-1, 1)
    begun = tiny.from_images(images)
    assert close(begun.plain, tiny.draw(begun, Edit({}))[:, 0])
    exact = StartingSamples(tiny.denoiser, tiny.schedule, tiny.from_seeds([5]).x_T)
    assert recovered(exact, images)[0] < 0.01
    assert recovered(exact, (images + 10 / 127.5))[0] == pytest.approx(10, abs=0.1)


def test_images_of_another_size_are_told_of(tiny: EditSession, tmp_path: Path) -> None:
    for name, size in (("wide.png", (40, 16)), ("small.png", (4, 4)), ("right.png", (8, 8)), ("large.png", (16, 16))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    images, notes = tiny.load([tmp_path / name for name in ("wide.png", "small.png", "right.png", "large.png")])
    assert images.shape == (4, 3, 8, 8)
    assert notes == [
        "wide.png is 40 x 16 pixels; the model draws 8 x 8: cropped around its centre and made smaller",
        "small.png is 4 x 4 pixels; the model draws 8 x 8: enlarged",
        "large.png is 16 x 16 pixels; the model draws 8 x 8: made smaller",
    ]


@pytest.mark.slow
def test_other_steps_take_the_nearest_shift_in_proportion(tiny_model: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_model, tmp_path / "set")
    other = EditSession.open(bundle, ModelOptions(device="cpu", steps=6))
    (warning,) = other.warnings
    assert warning.startswith("the set was made with 3 steps: with 6 its shifts are scaled in proportion")
    shift = other._shift({"yaw": 1.0}, torch.ones(1))
    assert shift is not None
    delta_h, own = shift(0), other.directions.shift("yaw", 0.5)(0)
    assert delta_h is not None and own is not None and close(delta_h, own)


def test_the_reach_of_an_edit_is_that_of_its_narrowest_direction(tiny: EditSession) -> None:
    assert tiny.range_of("yaw") == (-1.5, 2.5)
    assert tiny.common_range({"yaw": 1.0}) == (-1.5, 2.5)
    assert tiny.common_range({"yaw": 1.0, "smile": -1.0}) == (-1.5, 1.5)
    assert tiny.common_range({"yaw": 2.0}) == (-0.75, 1.25)
    assert tiny.common_range({}) == REACH
    assert tiny.range_warnings({"yaw": 2.5, "smile": -1.5}) == []
    assert tiny.range_warnings({"yaw": 2.6, "smile": -1.6}) == [
        "yaw +2.6 is outside -1.5 to +2.5, where its images were measured to stay faithful",
        "smile -1.6 is outside -1.5 to +2.5, where its images were measured to stay faithful",
    ]


@pytest.mark.slow
def test_without_dials_the_range_is_a_guess_and_nothing_is_beyond(tiny_model: Path, tmp_path: Path) -> None:
    plain = EditSession.open(tiny_bundle(tiny_model, tmp_path / "set", dials=False), ModelOptions(device="cpu"))
    assert (
        plain.range_of("yaw") == plain.common_range({"yaw": 1.0}) == REACH and plain.range_warnings({"yaw": 99.0}) == []
    )


Change = Callable[[dict[str, object]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told.pop("model"), "the set does not say which model it is for; name it with --model"),
        (
            lambda told: told.update(model="./nowhere"),
            "model './nowhere' is not there: .*; another place of it can be given with --model$",
        ),
        (lambda told: told.update(model="toyfaces"), r"the set is for h of shape \[8, 2, 2\]; model 'toyfaces' has \["),
        (
            lambda told: told.update(weight_digest="0123456789abcdef"),
            r"^the set was made for weights '0123456789ab', model '.*' has '[0-9a-f]{12}': "
            "give the right one with --model, or --any-model to use it all the same$",
        ),
        (lambda told: told.pop("weight_digest"), "the set was made for weights that it does not name, model "),
        (lambda told: told.update(injection="sideways"), "injection is 'sideways'; allowed: symmetric, asymmetric"),
        (lambda told: told.update(eta="much"), "eta is 'much'; allowed: 0 to 1"),
        (lambda told: told.update(eta=2), "eta is 2; allowed: 0 to 1"),
        (lambda told: told.update(window=[5]), "window is a list; allowed: two timesteps, or null"),
        (lambda told: told.update(precision="half"), "precision is 'half'; allowed: fp32, tf32, bf16, fp16"),
        (lambda told: told.update(precision=["bf16"]), "precision is a list; allowed: fp32, tf32, bf16, fp16"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    tiny_model: Path, tmp_path: Path, change: Change, message: str
) -> None:
    bundle = tiny_bundle(tiny_model, tmp_path / "set")
    description = json.loads((bundle / "directions.json").read_text())
    change(description["provenance"])
    (bundle / "directions.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=message):
        EditSession.open(bundle, ModelOptions(device="cpu"))


@pytest.mark.slow
def test_other_weights_may_be_used_where_one_asks_for_it(tiny_model: Path, tmp_path: Path) -> None:
    other = EditSession.open(
        tiny_bundle(tiny_model, tmp_path / "set", weight_digest="f" * 64), ModelOptions(any_model=True, device="cpu")
    )
    (warning,) = other.warnings
    assert warning.startswith("the set was made for weights 'ffffffffffff', model ")
    assert other.draw(other.from_seeds([0]), other.edit({"yaw": 1.0})).isfinite().all()


@pytest.mark.slow
def test_the_model_may_have_moved(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "moved")
    bundle = tiny_bundle(tiny_model, tmp_path / "set", model="gone/away/long")
    assert EditSession.open(bundle, ModelOptions(model=str(tmp_path / "moved"), device="cpu")).warnings == ()


def test_a_bundle_that_is_not_there_and_scales_that_are_none(tiny: EditSession, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none is not a direction set: directions.json is missing"):
        EditSession.open(tmp_path / "none")
    with pytest.raises(UserError, match="no direction named 'smlie'; did you mean 'smile'?"):
        tiny.draw(tiny.from_seeds([0]), Edit({"smlie": 1.0}))
    for scale in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="the scale of 'yaw' is (nan|inf); allowed: a finite number"):
            tiny.draw(tiny.from_seeds([0]), Edit({"yaw": scale}))


@pytest.mark.slow
def test_a_set_is_opened_in_the_precision_that_it_was_found_in(
    tiny: EditSession, tiny_model: Path, tmp_path: Path
) -> None:
    """An older set does not say: float32, as it was opened before."""
    assert (tiny.precision, tiny.denoiser.dtype) == ("fp32", torch.float32)
    bundle = tiny_bundle(tiny_model, tmp_path / "set", precision="bf16")
    half, whole = (
        EditSession.open(bundle, ModelOptions(device="cpu")),
        EditSession.open(bundle, ModelOptions(device="cpu", precision="fp32")),
    )
    assert (half.precision, half.denoiser.dtype, half.warnings) == ("bf16", torch.bfloat16, ())
    assert (whole.precision, whole.denoiser.dtype) == ("fp32", torch.float32)
    edit = half.edit({"yaw": 1.0})
    drawn, exact = (session.draw(session.from_seeds([1]), edit) for session in (half, whole))
    assert drawn.dtype == torch.float32 and not torch.equal(drawn, exact)
    assert float((drawn - exact).norm() / exact.norm()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_in_the_cpus_memory_draw_the_same(tiny_model: Path, tmp_path: Path, precision: str) -> None:
    bundle = tiny_bundle(tiny_model, tmp_path / "set", precision=precision)
    resident, away = (EditSession.open(bundle, ModelOptions(device="cpu", weights=weights)) for weights in WEIGHTS)
    assert isinstance(away.denoiser.cut, Streamed) and not isinstance(resident.denoiser.cut, Streamed)
    edit = away.edit({"yaw": 1.0})
    drawn, expected = (session.draw(session.from_seeds([1]), edit) for session in (away, resident))
    far = 1e-4 if precision in ("fp32", "tf32") else 0.05
    assert float((drawn - expected).norm() / expected.norm()) < far
    inverted = away.from_images(torch.zeros(1, *away.denoiser.image_shape))
    assert torch.isfinite(away.draw(inverted, edit)).all()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"precision": "half"}, "precision: got 'half'; allowed: fp32, tf32, bf16, fp16"),
        ({"weights": "disk"}, "weights: got 'disk'; allowed: device, cpu"),
    ],
)
def test_a_precision_and_a_place_that_there_are_not(
    tiny_model: Path, tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as error:
        EditSession.open(tiny_bundle(tiny_model, tmp_path / "set"), ModelOptions(device="cpu", **given))
    assert str(error.value) == told


def no_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of ...")


def test_where_memory_runs_out_what_takes_less_is_told() -> None:
    with pytest.raises(UserError) as error, advice_on_memory("a smaller --batch", "--weights cpu"):
        no_memory()
    assert str(error.value) == "memory ran out; these take less of it: a smaller --batch, --weights cpu"
    with pytest.raises(RuntimeError, match="^another$"), advice_on_memory("--weights cpu"):
        raise RuntimeError("another")


def test_a_model_that_could_not_be_read_for_want_of_memory(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    """As text encoders are, and models of other packages: what ran out stands behind what is told of it."""

    def unread(*_: object, **__: object) -> None:
        try:
            no_memory()
        except RuntimeError as error:
            raise ModelError("model 'x' cannot read its prompts: CUDA out of memory.") from error

    bundle = tiny_bundle(tiny_model, tmp_path / "set")
    monkeypatch.setattr(Denoiser, "from_pretrained", unread)
    with pytest.raises(UserError, match=r"^memory ran out; these take less of it: --weights cpu$"):
        with advice_on_memory("--weights cpu"):
            EditSession.open(bundle)


@pytest.mark.slow
def test_half_as_many_at_a_time_until_they_fit() -> None:
    tried: list[int] = []

    def draw(batch: int) -> str:
        tried.append(batch)
        if batch > 16:
            no_memory()
        return "drawn"

    assert halving_batch(draw, 64) == "drawn" and tried == [64, 32, 16]
    with pytest.raises(torch.OutOfMemoryError):
        halving_batch(no_memory, 2)
