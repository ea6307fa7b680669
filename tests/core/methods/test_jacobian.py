"""Jacobian directions against the explicit Jacobian, finite differences, and power iteration."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor

from core.chain.sampling import sample
from core.chain.schedule import Schedule
from core.errors import NonFiniteError, UserError
from core.execution.linearised import DecoderJacobian
from core.methods import jacobian as jacobian_module
from core.methods.jacobian import Settings, Spectrum, aligned_to, find, spectrum
from core.model.denoiser import Denoiser
from core.pictures.masks import find_mask
from core.randomness import generator, noise, step_noise
from core.samples.training import measured_spread, training_seeds

T = 600  # a training timestep
BOX = (2, 1, 6, 5)
STEPS = 3


def attentive(dtype: torch.dtype = torch.float64, **changes: object) -> Denoiser:
    """A denoiser with attention on the way up; h of 8x4x4."""
    options = {"attention_head_dim": 4, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            **options,
        )
    return Denoiser(torch.nn.Module.to(unet, dtype=dtype), DDIMScheduler(clip_sample=False), "attentive")


UNUSUAL = {
    "attention": {},
    "one head": {"attention_head_dim": None},  # h lies across memory
    "scaled by time": {"resnet_time_scale_shift": "scale_shift"},  # blocks that core.execution.lean leaves as they are
}


@pytest.fixture(scope="module", params=["plain", *UNUSUAL])
def denoiser(request: pytest.FixtureRequest, tiny_denoiser: Denoiser) -> Denoiser:
    return tiny_denoiser if request.param == "plain" else attentive(**UNUSUAL[request.param])


@pytest.fixture(params=["everywhere", "masked"])
def mask(request: pytest.FixtureRequest, denoiser: Denoiser) -> Tensor | None:
    return find_mask(denoiser, box=BOX) if request.param == "masked" else None


def normal(*shape: int, purpose: str = "test") -> Tensor:
    return torch.randn(shape, generator=generator(purpose), dtype=torch.float64)


def image(denoiser: Denoiser, seed: int = 0) -> Tensor:
    return noise([seed], denoiser.sample_shape, torch.float64)


def explicit(denoiser: Denoiser, x_t: Tensor, mask: Tensor | None = None) -> Tensor:
    """J [pixels, D], one row after another by plain reverse mode."""
    with torch.no_grad():
        features = denoiser.encode(x_t, T)

    def eps(delta_h: Tensor) -> Tensor:
        seen = denoiser.decode(features, delta_h)
        return seen if mask is None else seen * mask

    origin = torch.zeros_like(features.h)
    rows: Tensor = torch.autograd.functional.jacobian(eps, origin)
    return rows.reshape(-1, origin.numel())


def power_iteration(jacobian: Tensor, count: int, tolerance: float) -> int:
    """Products with J^T J that finding one vector after another takes, deflated by those before (Haas et al.)."""
    found = jacobian.new_zeros(jacobian.shape[1], 0)
    products = 0
    for k in range(count):
        v, residual = normal(jacobian.shape[1], purpose=f"start {k}"), 1.0
        while residual > tolerance:
            v = v - found @ (found.T @ v)
            v = v / v.norm()
            returned = jacobian.T @ (jacobian @ v)
            returned = returned - found @ (found.T @ returned)
            products += 1
            square = v @ returned
            residual = float((returned - square * v).norm() / square)
            v, before = returned, v
        found = torch.cat([found, before[:, None]], dim=1)
    return products


# --- products with J --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_products_are_those_of_the_explicit_jacobian(denoiser: Denoiser, mask: Tensor | None) -> None:
    x_t = image(denoiser)
    expected = explicit(denoiser, x_t, mask)
    jacobian = DecoderJacobian(denoiser, x_t, T, mask)
    v, u = normal(5, *denoiser.h_shape), normal(5, *denoiser.sample_shape, purpose="u")
    assert torch.allclose(jacobian.jvp(v).flatten(1), v.flatten(1) @ expected.T, rtol=1e-10, atol=1e-12)
    assert torch.allclose(jacobian.vjp(u).flatten(1), u.flatten(1) @ expected, rtol=1e-10, atol=1e-12)


def test_forward_and_reverse_mode_are_transposes(denoiser: Denoiser, mask: Tensor | None) -> None:
    """<u, J v> = <J^T u, v>"""
    jacobian = DecoderJacobian(denoiser, image(denoiser), T, mask)
    v, u = normal(4, *denoiser.h_shape), normal(4, *denoiser.sample_shape, purpose="u")
    forward, reverse = (u * jacobian.jvp(v)).flatten(1).sum(1), (jacobian.vjp(u) * v).flatten(1).sum(1)
    assert torch.allclose(forward, reverse, rtol=1e-10, atol=0)


def test_central_finite_differences(denoiser: Denoiser, mask: Tensor | None) -> None:
    x_t, step = image(denoiser), 1e-5
    v, u = normal(1, *denoiser.h_shape), normal(1, *denoiser.sample_shape, purpose="u")
    with torch.no_grad():
        difference = (denoiser(x_t, T, step * v) - denoiser(x_t, T, -step * v)) / (2 * step)
    difference = difference if mask is None else difference * mask
    jacobian = DecoderJacobian(denoiser, x_t, T, mask)
    assert torch.allclose(jacobian.jvp(v), difference, rtol=1e-6, atol=1e-8)
    assert float((jacobian.vjp(u) * v).sum()) == pytest.approx(float((u * difference).sum()), rel=1e-6)


# --- the spectrum -----------------------------------------------------------------------------------------------------


def test_the_spectrum_is_that_of_the_explicit_jacobian(denoiser: Denoiser, mask: Tensor | None) -> None:
    x_t, count = image(denoiser), 6
    jacobian = explicit(denoiser, x_t, mask)
    _, values, vectors = torch.linalg.svd(jacobian, full_matrices=False)
    found = spectrum(denoiser, x_t, T, count, mask)
    rows = found.vectors.flatten(1)
    assert torch.allclose(found.values, values[:count], rtol=1e-6, atol=0)
    assert torch.allclose(rows @ rows.T, torch.eye(count, dtype=torch.float64), atol=1e-12)
    gap = torch.minimum(values[:count] - values[1 : count + 1], values.roll(1)[:count] - values[:count])
    gap[0] = values[0] - values[1]
    apart = gap / values[:count] > 0.01
    assert apart.sum() >= 4
    assert ((rows * vectors[:count]).sum(1).abs()[apart] >= 0.9999).all()
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


@pytest.mark.slow
def test_the_residual_is_what_it_says(denoiser: Denoiser, mask: Tensor | None) -> None:
    """||J^T u - s v|| / s with u = J v / s, before and after convergence."""
    x_t = image(denoiser)
    jacobian = explicit(denoiser, x_t, mask)
    for max_passes in (1, 300):
        found = spectrum(denoiser, x_t, T, 4, mask, max_passes=max_passes)
        v = found.vectors.flatten(1).T
        u = jacobian @ v / found.values
        residuals = (jacobian.T @ u - found.values * v).norm(dim=0) / found.values
        assert torch.allclose(found.residuals, residuals, rtol=1e-6, atol=1e-12)
        assert (found.residuals.max() <= 1e-4) == (max_passes == 300)


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, 32])
@pytest.mark.parametrize("block", [1, 5])
def test_nothing_is_left_to_find_in_all_of_h(tiny_denoiser: Denoiser, count: int, block: int) -> None:
    """h has 32 dimensions: a block that would go beyond them is cut, and the answer is then exact."""
    x_t = image(tiny_denoiser)
    values = torch.linalg.svdvals(explicit(tiny_denoiser, x_t))
    found = spectrum(tiny_denoiser, x_t, T, count, block=block, tolerance=1e-30)
    assert torch.allclose(found.values, values[:count], rtol=0, atol=1e-7 * float(values[0]))
    assert found.passes == -(-32 // block) and found.products == 32


class Stretched:
    """A given J in place of a decoder's."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def jvp(self, v: Tensor) -> Tensor:
        return v.flatten(1) @ self.matrix.T

    def vjp(self, u: Tensor) -> Tensor:
        return u @ self.matrix


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("lengths", [[4.0, 3.0, 2.0], [0.0, 0.0, 0.0], [1.0] * 32])
def test_a_space_that_goes_no_further_takes_a_new_start(
    tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, block: int, lengths: list[float]
) -> None:
    """Singular values that are few, zero, or all the same: what grows from one vector stops growing."""
    matrix = torch.zeros(32, 32, dtype=torch.float64)
    matrix[range(len(lengths)), range(len(lengths))] = torch.tensor(lengths, dtype=torch.float64)
    monkeypatch.setattr(jacobian_module, "DecoderJacobian", lambda *_: Stretched(matrix))
    found = spectrum(tiny_denoiser, image(tiny_denoiser), T, 5, block=block)
    rows = found.vectors.flatten(1)
    assert torch.allclose(found.values, torch.tensor([*lengths, 0.0, 0.0])[:5].double(), atol=1e-6)
    assert torch.allclose(rows @ rows.T, torch.eye(5, dtype=torch.float64), atol=1e-12)


def test_equal_singular_values_are_told_apart_by_a_block_as_wide(
    tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = torch.diag(torch.linspace(0.5, 0.1, 32, dtype=torch.float64))
    matrix[0, 0] = matrix[1, 1] = 1.0
    monkeypatch.setattr(jacobian_module, "DecoderJacobian", lambda *_: Stretched(matrix))
    found = spectrum(tiny_denoiser, image(tiny_denoiser), T, 2, block=2)
    assert torch.allclose(found.values, torch.ones(2, dtype=torch.float64), atol=1e-8)


def test_a_guess_from_nearby_needs_fewer_products(denoiser: Denoiser) -> None:
    x_t = image(denoiser)
    near = x_t + 0.001 * normal(*x_t.shape)
    cold = spectrum(denoiser, x_t, T, 4)
    warm = spectrum(denoiser, x_t, T, 4, start=spectrum(denoiser, near, T, 4).vectors)
    assert warm.products < cold.products
    assert torch.allclose(warm.values, cold.values, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_a_wrong_guess_is_left_behind(denoiser: Denoiser) -> None:
    """Started from the vectors that change eps the least, the largest are found all the same."""
    x_t = image(denoiser)
    _, values, vectors = torch.linalg.svd(explicit(denoiser, x_t))
    least = vectors[-4:].reshape(4, *denoiser.h_shape)
    found = spectrum(denoiser, x_t, T, 4, start=least)
    assert torch.allclose(found.values, values[:4], rtol=1e-6, atol=0)


@pytest.mark.slow
def test_blocks_and_random_vectors_do_not_matter(denoiser: Denoiser) -> None:
    x_t = image(denoiser)
    exact = spectrum(denoiser, x_t, T, 5, tolerance=1e-7)
    for block, seed in ((1, 1), (2, 0), (7, 0)):
        other = spectrum(denoiser, x_t, T, 5, seed=seed, block=block, tolerance=1e-7)
        assert not torch.equal(other.vectors, exact.vectors)
        assert torch.allclose(other.vectors, exact.vectors, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 16])
def test_fewer_products_than_power_iteration_at_equal_residual(count: int) -> None:
    """Counted, not timed; at least seven times fewer."""
    denoiser = attentive()
    x_t = image(denoiser)
    one_by_one = power_iteration(explicit(denoiser, x_t), count, 1e-4)
    found = spectrum(denoiser, x_t, T, count, tolerance=1e-4)
    assert found.residuals.max() <= 1e-4
    assert one_by_one >= 7 * found.products


def test_a_mask_turns_the_directions_to_what_it_shows(denoiser: Denoiser) -> None:
    x_t, mask = image(denoiser), find_mask(denoiser, box=(0, 0, 2, 2))
    assert mask is not None
    jacobian = DecoderJacobian(denoiser, x_t, T)

    def share_inside(vectors: Tensor) -> Tensor:
        change = jacobian.jvp(vectors).square()
        return (change * mask).flatten(1).sum(1) / change.flatten(1).sum(1)

    masked, unmasked = spectrum(denoiser, x_t, T, 1, mask), spectrum(denoiser, x_t, T, 1)
    assert float(share_inside(masked.vectors)) > 2 * float(share_inside(unmasked.vectors))


@pytest.mark.slow
def test_a_coarse_network_is_not_asked_for_more_than_it_has() -> None:
    denoiser = attentive(torch.bfloat16)
    found = spectrum(denoiser, image(denoiser), T, 3, max_passes=40)
    assert found.passes < 20
    exact = torch.linalg.svdvals(explicit(attentive(), image(denoiser)))[:3]
    assert torch.allclose(found.values, exact, rtol=0.05)


def test_numbers_that_are_not_finite_are_reported(tiny_denoiser: Denoiser) -> None:
    with pytest.raises(NonFiniteError) as error:
        spectrum(tiny_denoiser, image(tiny_denoiser) * torch.nan, T, 3)
    assert str(error.value) == f"the Jacobian of eps at timestep {T} holds NaN or infinite numbers"


# --- directions -------------------------------------------------------------------------------------------------------


def x_at(denoiser: Denoiser, schedule: Schedule, step: int, seed: int) -> Tensor:
    """x_t of the unshifted chain: a chain that ends there."""
    end = Schedule(schedule.timesteps[:step], schedule.signal[: step + 1], schedule.noise[: step + 1], eta=schedule.eta)
    x_T = image(denoiser, seed)
    z = step_noise([seed], denoiser.sample_shape, step, torch.float64) if schedule.eta > 0 and step else None
    with torch.no_grad():
        return sample(denoiser, end, x_T, step_noise=z) if step else x_T


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("step", "index"), [("middle", 1), (2, 2), (0, 0)])
def test_one_step_gives_the_directions_of_all(tiny_denoiser: Denoiser, eta: float, step: int | str, index: int) -> None:
    schedule = Schedule.ddim(tiny_denoiser, STEPS, eta)
    settings = Settings(directions=3, shift_scale=2.0, step=step, image=5, seed=1)  # type: ignore[arg-type]
    found = find(tiny_denoiser, schedule, settings)
    seed = training_seeds(256, 1)[5]
    alone = spectrum(
        tiny_denoiser, x_at(tiny_denoiser, schedule, index, seed), schedule.timesteps[index], 3, seed=settings.seed
    )
    assert found.table.shape == (3, STEPS, *tiny_denoiser.h_shape)
    for s in range(STEPS):
        assert torch.allclose(found.table[:, s], alone.vectors.float(), rtol=0, atol=1e-6)
    spread = measured_spread(tiny_denoiser, schedule, training_seeds(256, 1))
    assert torch.allclose(found.sigma, 2 * spread.float().expand(3, STEPS))
    assert found.provenance["image_seed"] == seed
    assert found.provenance["jacobian_steps"] == [index]
    assert found.provenance["singular_values"] == [pytest.approx(alone.values.tolist(), rel=1e-9)]
    assert found.provenance["converged"] is True


@pytest.mark.slow
def test_every_step_has_its_own_directions_followed_along_the_chain(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, STEPS)
    found = find(tiny_denoiser, schedule, Settings(directions=4, step=None))
    rows = found.table.flatten(2).double()
    for s in range(STEPS):
        own = spectrum(tiny_denoiser, x_at(tiny_denoiser, schedule, s, training_seeds(1)[0]), schedule.timesteps[s], 4)
        cosines = (rows[:, s] @ own.vectors.flatten(1).T).abs()
        assert torch.allclose(cosines.max(dim=1).values, torch.ones(4, dtype=torch.float64), atol=1e-3)
        assert sorted(cosines.argmax(dim=1).tolist()) == [0, 1, 2, 3]
    assert ((rows[:, 1:] * rows[:, :-1]).sum(2) > 0).all()
    assert not torch.allclose(rows[:, 0], rows[:, 2], atol=1e-3)
    assert found.provenance["jacobian_steps"] == [0, 1, 2]
    passes = found.provenance["passes"]
    assert max(passes[1:]) <= passes[0] and len(passes) == STEPS


def test_following_undoes_exchanged_numbers_and_turned_signs() -> None:
    before = torch.linalg.qr(normal(6, 3)).Q.T.reshape(3, 6, 1, 1)
    numbers = torch.arange(3).double()
    turned = torch.stack([before[2], -before[0], -before[1]])
    again = aligned_to(Spectrum(numbers, turned, numbers, True, 1, 1), before)
    assert torch.equal(again.vectors, before)
    assert again.values.tolist() == again.residuals.tolist() == [1.0, 2.0, 0.0]


def test_following_loses_no_vector() -> None:
    basis = torch.eye(4, dtype=torch.float64).reshape(4, 4, 1, 1)
    # The first new vector leans to both old ones, the second is nearly the first old one, the third is like none.
    mixed = torch.stack([0.7 * basis[0] + 0.6 * basis[1], -0.9 * basis[0], basis[3]])
    numbers = torch.arange(3).double()
    again = aligned_to(Spectrum(numbers, mixed, numbers, True, 1, 1), basis[:3])
    assert again.values.tolist() == [1.0, 0.0, 2.0]
    assert torch.equal(again.vectors, torch.stack([0.9 * basis[0], mixed[0], basis[3]]))


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_that_is_given_is_looked_at_in_place_of_a_training_sample(tiny_denoiser: Denoiser, eta: float) -> None:
    schedule = Schedule.ddim(tiny_denoiser, STEPS, eta)
    settings = Settings(directions=2, step=None)
    drawn = find(tiny_denoiser, schedule, Settings(directions=2, step=None, image=7))
    seed = training_seeds(8)[7]
    z = step_noise([seed], tiny_denoiser.sample_shape, STEPS, torch.float64) if eta else None
    given = find(tiny_denoiser, schedule, settings, x_T=image(tiny_denoiser, seed), step_noise=z)
    assert torch.equal(given.table, drawn.table)
    assert given.provenance["image_seed"] is None and drawn.provenance["image_seed"] == seed
    assert not torch.allclose(find(tiny_denoiser, schedule, settings).table, drawn.table, atol=1e-3)


def test_what_did_not_converge_says_so_and_is_saved(tiny_denoiser: Denoiser, tmp_path: Path) -> None:
    found = find(tiny_denoiser, Schedule.ddim(tiny_denoiser, STEPS), Settings(directions=3, max_passes=1))
    assert found.provenance["converged"] is False
    assert found.provenance["passes"] == [3] and max(found.provenance["residuals"][0]) > 1e-4
    found.save(tmp_path / "set")
    assert type(found).load(tmp_path / "set").provenance["residuals"] == found.provenance["residuals"]


def test_a_box_reaches_the_directions(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, STEPS)
    found = find(tiny_denoiser, schedule, Settings(directions=2, step=0, box=BOX))
    x_T = image(tiny_denoiser, training_seeds(1)[0])
    alone = spectrum(tiny_denoiser, x_T, schedule.timesteps[0], 2, find_mask(tiny_denoiser, BOX))
    assert torch.allclose(found.table[:, 0], alone.vectors.float(), rtol=0, atol=1e-6)
    assert found.provenance["settings"]["box"] == BOX


def test_each_step_is_asked_as_the_settings_say_and_all_of_them_must_converge(
    tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule.ddim(tiny_denoiser, STEPS)
    rows = torch.linalg.qr(normal(32, 2)).Q.T.reshape(2, *tiny_denoiser.h_shape)
    numbers = torch.tensor([2.0, 1.0], dtype=torch.float64)
    first = Spectrum(numbers, rows, numbers / 100, True, 4, 12)
    turned = replace(first, values=numbers + 10, vectors=-rows.flip(0), residuals=numbers / 50, passes=5, products=15)
    asked = create_autospec(spectrum, side_effect=[first, replace(turned, converged=False), first])
    monkeypatch.setattr(jacobian_module, "spectrum", asked)
    settings = Settings(directions=2, step=None, tolerance=0.5, max_passes=9, block=3, seed=2, box=BOX)
    found = find(tiny_denoiser, schedule, settings)
    for s, call in enumerate(asked.call_args_list):
        assert call.args[2:4] == (schedule.timesteps[s], 2) and call.args[6:] == (2, 3, 0.5, 9)
        assert torch.equal(call.args[4], find_mask(tiny_denoiser, BOX))
        assert (call.args[5] is None) == (s == 0) and (s == 0 or torch.equal(call.args[5], rows)), "what was followed"
    assert found.provenance["converged"] is False
    assert found.provenance["passes"] == [4, 5, 4] and found.provenance["products"] == [12, 15, 12]
    assert found.provenance["singular_values"] == [[2.0, 1.0], [11.0, 12.0], [2.0, 1.0]]
    assert found.provenance["residuals"] == [[0.02, 0.01], [0.02, 0.04], [0.02, 0.01]]
    assert torch.allclose(found.table, rows.float()[:, None].expand_as(found.table))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("directions", 0, "allowed: 1 or more"),
        ("max_passes", 0, "allowed: 1 or more"),
        ("block", 0, "allowed: 1 or more"),
        ("image", -1, "allowed: 0 or more"),
        ("seed", -1, "allowed: 0 or more"),
        ("image", 256, "allowed: 0 to 255, and another seed has others"),
        ("tolerance", 0.0, "allowed: more than 0"),
    ],
)
def test_a_setting_that_cannot_be(name: str, value: float, rule: str) -> None:
    with pytest.raises(UserError) as error:
        Settings(**{name: value})  # type: ignore[arg-type]
    assert str(error.value) == f"{name}: got {value}; {rule}"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            Settings(directions=33),
            "directions: got 33; h has 32 dimensions, which is the most that can be orthonormal",
        ),
        (
            Settings(directions=7, box=(0, 0, 2, 1)),
            "directions: got 7; only 6 values of eps are looked at, and each gives one at most",
        ),
        (Settings(step=3), "jacobian step: got 3; a chain of 3 steps has steps 0 to 2"),
        (Settings(step=-1), "jacobian step: got -1; a chain of 3 steps has steps 0 to 2"),
        (Settings(box=BOX, mask="mask.png"), "mask and box are both given; give one of them"),
        (Settings(mask="nowhere.png"), "mask: nowhere.png is not there"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(
    tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, settings: Settings, sentence: str
) -> None:
    schedule = Schedule.ddim(tiny_denoiser, STEPS)
    monkeypatch.setattr(tiny_denoiser, "encode", None)
    with pytest.raises(UserError) as error:
        find(tiny_denoiser, schedule, settings)
    assert str(error.value) == sentence


def test_a_start_that_does_not_fit_the_chain(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, STEPS, eta=1.0)
    x_T = image(tiny_denoiser)
    for given, z, sentence in (
        (x_T[0], None, "x_T has shape [3, 8, 8]; an image of model 'tiny' has [1, 3, 8, 8]"),
        (x_T, None, "a chain with eta 1.0 needs step_noise (core.randomness.step_noise)"),
        (x_T, x_T[None], "step_noise has shape [1, 1, 3, 8, 8]; this chain needs [3, 1, 3, 8, 8]"),
    ):
        with pytest.raises(UserError) as error:
            find(tiny_denoiser, schedule, Settings(directions=2), x_T=given, step_noise=z)
        assert str(error.value) == sentence
