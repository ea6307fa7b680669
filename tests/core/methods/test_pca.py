"""Principal components of h: exact where they can be, streamed in one pass, and the same component at every step."""

import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from core import Denoiser, Schedule
from core.errors import NonFiniteError, UserError
from core.methods import pca
from core.methods.pca import Settings, follow
from core.samples.draw import draw_h
from core.samples.training import training_seeds
from core.statistics.principal_components import (
    Components,
    RunningComponents,
    _leading,
    principal_components,
    store_height,
)

SETTINGS = Settings(directions=4, samples=60)
STREAMED = 40  # rows held at a time: far fewer than the rows there are


@pytest.fixture(scope="module")
def schedule(tiny_denoiser: Denoiser) -> Schedule:
    return Schedule.ddim(tiny_denoiser, 3)


@pytest.fixture(scope="module")
def codes(tiny_denoiser: Denoiser, schedule: Schedule) -> Tensor:
    """h of the samples that SETTINGS looks at: [T, N, D]."""
    drawn = draw_h(tiny_denoiser, schedule, training_seeds(SETTINGS.samples, SETTINGS.seed))
    return torch.cat(list(drawn), dim=1).flatten(2)


def random_basis(width: int, seed: int = 0) -> Tensor:
    """Orthonormal rows [width, width]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]


def planted(samples: int = 2000, width: int = 90) -> Tensor:
    """Rows [N, D] with six components that stand out and a mean far from zero."""
    generator = torch.Generator().manual_seed(1)
    deviations = torch.full((width,), 0.2, dtype=torch.float64)
    deviations[:6] = torch.tensor([8.0, 5.5, 4.0, 2.8, 2.0, 1.4])
    normal = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    # The mean drifts, so that early rows and late rows disagree about it.
    drift = torch.linspace(0, 3, samples, dtype=torch.float64)[:, None] * random_basis(width)[7]
    return normal * deviations @ random_basis(width) + drift + 5


def assert_components(found: Components, rows: Tensor, cosine: float = 0.999, relative: float = 1e-3) -> None:
    """The same vectors (up to sign), deviations and mean as scikit-learn's."""
    count = len(found.vectors)
    reference = PCA(count, svd_solver="full").fit(rows.double().numpy())
    cosines = (found.vectors * torch.as_tensor(reference.components_)).sum(1).abs()
    assert cosines.min() >= cosine
    assert found.deviations.tolist() == pytest.approx(reference.explained_variance_**0.5, rel=relative)
    assert found.mean.tolist() == pytest.approx(reference.mean_.tolist(), rel=1e-5)
    assert torch.allclose(found.vectors @ found.vectors.T, torch.eye(count).double(), atol=1e-10)
    assert torch.equal(found.vectors.amax(1), found.vectors.abs().amax(1))  # signs can be repeated


def test_components_are_exact_where_all_rows_fit() -> None:
    rows = planted(300)
    exact = principal_components(rows.split(64), 6, height=301)
    assert_components(exact, rows, cosine=1 - 1e-10, relative=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_components_of_a_stream_are_those_of_all_rows(dtype: torch.dtype) -> None:
    rows = planted().to(dtype)
    assert_components(principal_components(rows.split(64), 6, height=STREAMED), rows)


def test_a_stream_is_exact_where_no_column_is_lost() -> None:
    rows = planted(2000, 18)
    height = store_height(width=18, count=6, samples=2000)
    assert height < 60
    assert_components(principal_components(rows.split(64), 6, height), rows, cosine=1 - 1e-10, relative=1e-8)


@pytest.mark.parametrize("height", [STREAMED, 501])
def test_components_do_not_depend_on_how_rows_are_cut(height: int) -> None:
    rows = planted(500)
    whole = principal_components([rows], 6, height)
    for size in (1, 7, 64):
        cut = principal_components(rows.split(size), 6, height)
        assert torch.equal(whole.vectors, cut.vectors) and torch.equal(whole.deviations, cut.deviations)


@pytest.mark.parametrize("height", [STREAMED, 501])
def test_components_may_be_looked_at_on_the_way(height: int) -> None:
    rows = planted(500)
    running = RunningComponents(90, height, torch.float64)
    for part in rows.split(50):
        running.add(part)
        found = running.components(6)
    assert running.rows_added == 500
    assert_components(found, rows)
    again = running.components(6)
    assert torch.equal(again.vectors, found.vectors) and torch.equal(again.mean, found.mean)


@pytest.mark.parametrize("size", [3, 40, 700])
def test_the_gram_matrix_and_its_leading_eigenvectors(size: int) -> None:
    """Strips of rows, and LAPACK's selection, against whole products and all eigenvectors."""
    rows = planted(size)
    running = RunningComponents(90, size + 1, torch.float64)
    running.add(rows)
    running._centre()
    centred = rows - rows.mean(0)
    gram = running._gram()
    assert torch.allclose(gram, centred @ centred.T, rtol=1e-12, atol=1e-9)
    count = min(6, size - 1)
    expected = torch.linalg.eigh(centred @ centred.T)[1][:, -count:].T.flip(0)
    assert torch.allclose((_leading(gram, count) * expected).sum(1).abs(), torch.ones(count).double(), atol=1e-10)


def test_products_of_float32_rows_are_float32_only_where_torch_keeps_them_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = planted(700).float()
    found = {}
    for precision in ("highest", "high"):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda precision=precision: precision)
        running = RunningComponents(90, 701, torch.float32)
        assert running._precision() == (torch.float32 if precision == "highest" else torch.float64)
        running.add(rows)
        found[precision] = running.components(6)
        assert_components(found[precision], rows.double(), cosine=1 - 1e-10, relative=1e-6)
    assert torch.allclose(found["highest"].vectors, found["high"].vectors, rtol=0, atol=1e-6)


def test_rows_are_read_once_and_not_kept() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def once() -> Iterator[Tensor]:
        nonlocal most
        for part in planted().split(20):
            copy = part.clone()
            alive.append(weakref.ref(copy))
            yield copy
            del copy
            most = max(most, sum(one() is not None for one in alive))

    rows = once()
    principal_components(rows, 6, height=STREAMED)
    assert len(alive) == 100 and most <= 1
    assert next(rows, None) is None


def test_no_more_rows_are_held_than_the_store_is_high() -> None:
    running = RunningComponents(90, STREAMED, torch.float64)
    for part in planted().split(64):
        running.add(part)
        held = [value for value in vars(running).values() if isinstance(value, Tensor)]
        assert sum(tensor.numel() for tensor in held) == (STREAMED + 1) * 90
    assert running.rows_added == 2000


def test_half_precision_is_not_summed_in_half_precision() -> None:
    rows = planted(3000).to(torch.bfloat16)
    found = principal_components(rows.split(64), 4, height=STREAMED)
    assert_components(found, rows.double())
    assert RunningComponents(90, STREAMED, torch.bfloat16).store.dtype == torch.float32


def test_the_store_stays_in_bounds() -> None:
    width = 50 * 512 * 8 * 8  # the whole code of a 256-pixel model over 50 steps
    assert store_height(32, 4, samples=1024) == 2 * 32 + 2
    assert store_height(10_000, 16, samples=1024) == 1025
    assert store_height(10_000, 16, samples=50_000) == 256
    assert store_height(10_000, 1, samples=50_000) == 128
    assert store_height(width, 16, samples=1024) * width * 4 <= 2 << 30
    assert store_height(width // 50, 32, samples=1024, share=50) * width * 4 <= 2 << 30
    assert store_height(width, 200) == 402


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("height", [101, STREAMED])
def test_a_component_that_is_not_there_has_no_deviation(dtype: torch.dtype, height: int) -> None:
    rows = (planted(100)[:, :3] @ random_basis(12)[:3]).to(dtype)
    found = principal_components([rows], 5, height)
    assert (found.deviations[:3] > 0).all() and found.deviations[3:].tolist() == [0, 0]
    assert torch.allclose(found.vectors @ found.vectors.T, torch.eye(5).double(), atol=1e-10)


@pytest.mark.parametrize(
    ("rows", "count", "message"),
    [
        ([torch.randn(4, 9)], 4, "count: got 4; 4 rows of 9 columns give 1 to 3 components"),
        ([torch.randn(40, 3)], 4, "count: got 4; 40 rows of 3 columns give 1 to 3 components"),
        ([torch.randn(40, 3)], 0, "count: got 0; 40 rows of 3 columns give 1 to 3 components"),
        ([], 2, "count: got 2; there are no rows to take components of"),
    ],
)
def test_components_that_cannot_be(rows: list[Tensor], count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        principal_components(rows, count)


def test_a_store_too_low_to_merge() -> None:
    with pytest.raises(UserError, match="height: got 2; a store that takes more rows after a merge has at least 3"):
        RunningComponents(5, 2, torch.float32)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("height", [None, 30])
def test_directions_are_the_components_of_h(
    tiny_denoiser: Denoiser,
    schedule: Schedule,
    codes: Tensor,
    joint: bool,
    height: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """h varies along few directions here, so that the streamed ones (30 rows of 60) agree as well."""
    if height:
        monkeypatch.setattr(pca, "store_height", lambda *_: height)
    directions = pca.find(tiny_denoiser, schedule, replace(SETTINGS, joint=joint))
    scaled = (directions.table * directions.sigma[:, :, None, None, None]).flatten(2).double() / SETTINGS.sigmas
    samples = [codes.transpose(0, 1).flatten(1)] if joint else list(codes)
    found = [scaled.flatten(1)] if joint else list(scaled.transpose(0, 1))
    for rows, components in zip(samples, found, strict=True):
        reference = PCA(8, svd_solver="full").fit(rows.numpy())
        cosines = (components / components.norm(dim=1, keepdim=True)) @ torch.as_tensor(reference.components_).T
        best, which = cosines.abs().max(dim=1)
        assert best.min() >= 0.999 and len(set(which.tolist())) == 4
        assert which.tolist() == [0, 1, 2, 3] or not joint
        expected = torch.as_tensor(reference.explained_variance_**0.5)[which]
        assert components.norm(dim=1).tolist() == pytest.approx(expected.tolist(), rel=5e-3)


@pytest.mark.parametrize("joint", [True, False])
def test_sigma_is_in_deviations_of_h_along_the_direction(
    tiny_denoiser: Denoiser, schedule: Schedule, codes: Tensor, joint: bool
) -> None:
    directions = pca.find(tiny_denoiser, schedule, replace(SETTINGS, joint=joint, sigmas=2.0))
    table, sigma = directions.table.flatten(2).double(), directions.sigma.double()
    along = torch.einsum("ksd,snd->ksn", table, codes)
    if joint:  # one coordinate for the whole code: its parts weigh as they are long
        length = sigma.norm(dim=1, keepdim=True)
        along = torch.einsum("ks,ksn->kn", sigma / length, along)
        sigma = length[:, 0]
    assert torch.allclose(along.std(dim=-1), sigma / 2, rtol=1e-4)


@pytest.mark.parametrize("joint", [True, False])
def test_a_set_fits_its_model_and_says_where_it_comes_from(
    tiny_denoiser: Denoiser, schedule: Schedule, joint: bool
) -> None:
    settings = replace(SETTINGS, joint=joint)
    directions = pca.find(tiny_denoiser, schedule, settings)
    assert directions.table.shape == (4, 3, *tiny_denoiser.h_shape) and directions.table.dtype == torch.float32
    assert torch.allclose(directions.table.flatten(2).norm(dim=2), torch.ones(4, 3), atol=1e-5)
    total = directions.sigma.square().sum(1)
    assert (total.diff() < 0).all()
    assert directions.provenance["method"] == "pca"
    assert directions.provenance["settings"]["joint"] is joint
    again = pca.find(tiny_denoiser, schedule, settings, batch=7)
    assert torch.allclose(again.table, directions.table, atol=1e-5)
    assert not torch.allclose(
        pca.find(tiny_denoiser, schedule, replace(settings, seed=1)).table, directions.table, atol=1e-2
    )


def crossing_steps(steps: int = 11, width: int = 10) -> tuple[list[Components], Tensor, Tensor]:
    """Components of each step, largest first and with random signs; their true vectors [M, T, D], deviations [M, T].

    Components 0 and 1 change places on the way. All turn by 18 degrees a step, in planes (2j, 2j + 1), so that 90
    degrees from the middle step, the one of most variance, each has turned into its neighbour.
    """
    generator = torch.Generator().manual_seed(3)
    angles = (18.0 * torch.arange(steps, dtype=torch.float64)).deg2rad()[None, :, None]
    even, odd = random_basis(width)[0:4:2, None], random_basis(width)[1:4:2, None]
    turned = torch.stack([angles.cos() * even + angles.sin() * odd, angles.cos() * odd - angles.sin() * even], dim=1)
    vectors = turned.flatten(0, 1)
    deviations = torch.tensor([1.0, 1.0, 0.5, 0.25], dtype=torch.float64)[:, None].repeat(1, steps)
    deviations[0], deviations[1] = torch.linspace(4, 2, steps), torch.linspace(1.9, 4.5, steps)
    deviations[:, steps // 2] *= 2
    signs = torch.randint(0, 2, (4, steps, 1), generator=generator) * 2 - 1
    order = deviations.argsort(dim=0, descending=True)
    assert not torch.equal(order[:, 0], order[:, -1])
    found = [
        Components((vectors * signs)[order[:, s], s], deviations[order[:, s], s], torch.zeros(width))
        for s in range(steps)
    ]
    return found, vectors, deviations


def test_components_are_followed_through_crossings_turns_and_flips() -> None:
    found, true_vectors, true_deviations = crossing_steps()
    vectors, deviations = follow(found)
    middle = len(found) // 2
    assert torch.equal(vectors[:, middle], found[middle].vectors)  # the step of most variance sets order and side
    cosines = torch.einsum("itd,jtd->tij", vectors, true_vectors)
    assert torch.allclose(cosines, cosines[middle].expand_as(cosines), atol=1e-10)
    which = cosines[middle].abs().argmax(dim=1)
    assert sorted(which.tolist()) == [0, 1, 2, 3]
    assert torch.allclose(deviations, true_deviations[which])
    assert ((vectors[:, 1:] * vectors[:, :-1]).sum(2) > 0.9).all()


def planted_draw(h: Tensor) -> object:
    """A stand-in for core.samples.draw.draw_h that shows h [T, N, C, H, W] instead of the model's."""

    def draw(_denoiser: Denoiser, _schedule: Schedule, seeds: range, batch: int, _cache: None) -> Iterator[Tensor]:
        assert len(seeds) == h.shape[1]
        yield from h.split(batch, dim=1)

    return draw


def test_a_direction_that_is_weak_at_one_step_is_not_lost(
    tiny_denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the two directions of most variance, the second is but the third at the last step."""
    basis = random_basis(32)[:3]
    deviations = torch.tensor([[9.0, 3.0, 0.1], [9.0, 3.0, 0.1], [9.0, 0.3, 1.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(3, 400, 3, generator=generator, dtype=torch.float64)
    h = (normal * deviations[:, None] @ basis).reshape(3, 400, *tiny_denoiser.h_shape)
    monkeypatch.setattr(pca, "draw_h", planted_draw(h))
    directions = pca.find(tiny_denoiser, schedule, Settings(2, samples=400, joint=False, sigmas=1.0))
    assert torch.allclose(directions.sigma, deviations[:, :2].T.float(), rtol=0.15)
    cosines = torch.einsum("ksd,kd->ks", directions.table.flatten(2).double(), basis[:2])
    assert cosines.abs().min() > 0.99 and (cosines.sign() == cosines.sign()[:, :1]).all()


def test_a_step_at_which_nothing_varies_is_left_alone(
    tiny_denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    h = torch.randn(3, 50, *tiny_denoiser.h_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h[1] = 2.0
    monkeypatch.setattr(pca, "draw_h", planted_draw(h))
    for joint in (True, False):
        directions = pca.find(tiny_denoiser, schedule, Settings(4, samples=50, joint=joint))
        assert directions.sigma[:, 1].tolist() == pytest.approx([0] * 4, abs=1e-12)
        assert torch.allclose(directions.table.flatten(2).norm(dim=2), torch.ones(4, 3))


def test_h_that_varies_too_little_or_is_not_finite(
    tiny_denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    basis = random_basis(32)[:3]
    h = (torch.randn(3, 50, 3, dtype=torch.float64) @ basis).reshape(3, 50, *tiny_denoiser.h_shape)
    monkeypatch.setattr(pca, "draw_h", planted_draw(h))
    with pytest.raises(UserError, match="directions: got 4; h of model 'tiny' varies in 3 dimensions over 50 samples"):
        pca.find(tiny_denoiser, schedule, Settings(4, samples=50, joint=False))
    h[2, 40] = torch.nan
    with pytest.raises(NonFiniteError, match="h of model 'tiny' became NaN or infinite in samples 32 to 47"):
        pca.find(tiny_denoiser, schedule, Settings(4, samples=50), batch=16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(33, samples=60, joint=False), "directions: got 33; h of model 'tiny' has 32 dimensions"),
        (Settings(97, samples=99), "directions: got 97; h over 3 steps of model 'tiny' has 96 dimensions"),
        (Settings(seed=1 << 32), "seed: got 4294967296; allowed: 0 to 4294967295"),
    ],
)
def test_what_the_model_cannot_give_is_told_before_sampling(
    tiny_denoiser: Denoiser,
    schedule: Schedule,
    settings: Settings,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pca, "draw_h", lambda *_: pytest.fail("it sampled"))
    with pytest.raises(UserError, match=message):
        pca.find(tiny_denoiser, schedule, settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directions": 0}, "directions: got 0; allowed: 1 or more"),
        ({"directions": 16, "samples": 8}, "samples: got 8; 16 components need at least 17 samples"),
        ({"directions": 16, "samples": 16}, "samples: got 16; 16 components need at least 17 samples"),
        ({"sigmas": 0.0}, "sigmas: got 0.0; allowed: a number above 0"),
        ({"sigmas": float("nan")}, "sigmas: got nan; allowed: a number above 0"),
        ({"seed": -1}, "seed: got -1; allowed: 0 or more"),
    ],
)
def test_settings_that_cannot_be(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SETTINGS, **change)
