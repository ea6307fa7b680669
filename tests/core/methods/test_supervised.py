"""Supervised directions are differences of mean h: of the right samples, with the right signs, and they steer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core import Denoiser, DirectionSet, Schedule, noise, sample
from core.chain.sampling import trajectory
from core.errors import DirectionSetError, UserError
from core.methods import supervised
from core.methods.supervised import Settings, extremes_of, mean_h, projected
from core.metrics.attributes import effects_by_sample
from core.metrics.traversals import draw_traversals
from core.pictures.images import load_images
from core.pictures.traversal_grid import to_picture
from core.predictors.attributes import Attributes
from core.predictors.embedded import embedded_predictor
from core.randomness import REPORT_SEEDS
from core.samples.training import training_seeds

SAMPLES, EXTREMES = 24, 6
SMALL = Settings(samples=SAMPLES, extremes=EXTREMES)


def brightness(images: Tensor) -> Tensor:
    """Three attributes that are linear in the image: mean of all, mean of the left half, mean of the first channel."""
    return torch.stack([images.mean((1, 2, 3)), images[..., :4].mean((1, 2, 3)), images[:, 0].mean((1, 2))], dim=1)


BRIGHTNESS = Attributes(("all", "left", "red"), brightness)


@pytest.fixture
def schedule(tiny_denoiser: Denoiser) -> Schedule:
    return Schedule.ddim(tiny_denoiser, 3)


@pytest.fixture
def drawn(tiny_denoiser: Denoiser, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Scores [N, 3] and h [T, N, C, H, W] of the samples that SMALL looks at, drawn all at once."""
    x_T = noise(training_seeds(SAMPLES), tiny_denoiser.sample_shape, torch.float64)
    x_0, h = trajectory(tiny_denoiser, schedule, x_T)
    return brightness(x_0), h


def full(directions: DirectionSet) -> Tensor:
    """Shifts at scale 1: [K, T, C, H, W]."""
    return directions.table * directions.sigma[:, :, None, None, None]


def ranked(score: Tensor) -> list[int]:
    return sorted(range(len(score)), key=lambda n: float(score[n]))


def difference(h: Tensor, least: list[int], most: list[int]) -> Tensor:
    return h[:, most].mean(1) - h[:, least].mean(1)


def test_a_direction_is_the_difference_of_the_extremes_mean_h(
    tiny_denoiser: Denoiser, schedule: Schedule, drawn: tuple[Tensor, Tensor]
) -> None:
    directions = supervised.find(tiny_denoiser, schedule, SMALL, BRIGHTNESS)
    scores, h = drawn
    orders = [ranked(score) for score in scores.T]
    expected = torch.stack([difference(h, order[:EXTREMES], order[-EXTREMES:]) for order in orders])
    assert directions.names == ("all", "left", "red") and directions.timesteps == schedule.timesteps
    assert torch.allclose(full(directions), expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(directions.table.flatten(2).norm(dim=2), torch.ones(3, 3, dtype=torch.float64))
    assert directions.table.dtype == torch.float64


def test_the_chosen_attributes_keep_their_order_and_the_scale_is_a_factor(
    tiny_denoiser: Denoiser, schedule: Schedule
) -> None:
    every = supervised.find(tiny_denoiser, schedule, SMALL, BRIGHTNESS)
    settings = Settings(attributes=("red", "all"), samples=SAMPLES, extremes=EXTREMES, scale=2.5)
    chosen = supervised.find(tiny_denoiser, schedule, settings, BRIGHTNESS)
    assert chosen.names == ("red", "all")
    assert torch.allclose(chosen.table, every.table[[2, 0]])
    assert torch.allclose(chosen.sigma, 2.5 * every.sigma[[2, 0]])


def test_the_set_does_not_depend_on_the_batch_but_on_the_seed(tiny_denoiser: Denoiser, schedule: Schedule) -> None:
    at_once = supervised.find(tiny_denoiser, schedule, SMALL, BRIGHTNESS)
    by_fives = supervised.find(tiny_denoiser, schedule, SMALL, BRIGHTNESS, batch=5)
    assert torch.allclose(full(by_fives), full(at_once), rtol=1e-9, atol=1e-12)
    other = supervised.find(tiny_denoiser, schedule, Settings(samples=SAMPLES, extremes=EXTREMES, seed=1), BRIGHTNESS)
    assert not torch.allclose(full(other), full(at_once), rtol=0.1)


def test_a_stochastic_chain_has_directions_too(tiny_denoiser: Denoiser) -> None:
    directions = supervised.find(tiny_denoiser, Schedule.ddim(tiny_denoiser, 3, eta=1.0), SMALL, BRIGHTNESS)
    assert directions.provenance["eta"] == 1.0 and (directions.sigma > 0).all()


def test_balance_gives_both_groups_equal_shares() -> None:
    random = torch.Generator().manual_seed(0)
    other = torch.randn(101, generator=random, dtype=torch.float64)
    score = other + 0.5 * torch.randn(101, generator=random, dtype=torch.float64)
    above = other > other.median()
    least, most = extremes_of(score, 20)
    assert above[most].sum() > 15 and above[least].sum() < 5
    least, most = extremes_of(score, 20, other)
    for side in (above, ~above):
        members = [n for n in ranked(score) if side[n]]
        assert sorted(n for n in most.tolist() if side[n]) == sorted(members[-10:])
        assert sorted(n for n in least.tolist() if side[n]) == sorted(members[:10])


def test_balance_reaches_the_directions_but_not_its_own(
    tiny_denoiser: Denoiser, schedule: Schedule, drawn: tuple[Tensor, Tensor]
) -> None:
    settings = Settings(samples=SAMPLES, extremes=EXTREMES, balance="red")
    directions = supervised.find(tiny_denoiser, schedule, settings, BRIGHTNESS)
    scores, h = drawn
    groups = [group.tolist() for group in extremes_of(scores[:, 0], EXTREMES, scores[:, 2])]
    assert torch.allclose(full(directions)[0], difference(h, *groups), rtol=1e-9, atol=1e-12)
    plain = supervised.find(tiny_denoiser, schedule, SMALL, BRIGHTNESS)
    assert not torch.allclose(full(directions)[0], full(plain)[0], rtol=0.1)
    assert torch.allclose(full(directions)[2], full(plain)[2])


def test_project_is_the_residual_of_the_fit_by_the_others(tiny_denoiser: Denoiser, schedule: Schedule) -> None:
    """n - C^T (C C^T)^-1 C n with the others as found: what least squares leaves of n."""
    plain = full(supervised.find(tiny_denoiser, schedule, SMALL, BRIGHTNESS)).flatten(1)
    settings = Settings(samples=SAMPLES, extremes=EXTREMES, project=True)
    directions = supervised.find(tiny_denoiser, schedule, settings, BRIGHTNESS)
    for k in range(3):
        others = plain[[other for other in range(3) if other != k]]
        fit = torch.linalg.lstsq(others.T, plain[k]).solution
        left = plain[k] - others.T @ fit
        assert left.norm() < 0.99 * plain[k].norm()
        assert torch.allclose(full(directions)[k].flatten(), left, rtol=1e-6, atol=1e-9)
    assert directions.provenance["settings"]["project"] is True


def test_project_refuses_what_leaves_nothing(tiny_denoiser: Denoiser, schedule: Schedule) -> None:
    twice = Attributes(("one", "same"), lambda images: brightness(images)[:, [0, 0]])
    plain = supervised.find(tiny_denoiser, schedule, SMALL, twice)
    with pytest.raises(DirectionSetError, match="nothing is left of 'one': the other directions span it"):
        projected(plain)


@pytest.mark.slow
def test_mean_h_of_drawn_images_is_that_of_the_chain_that_drew_them(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, 40)
    x_0, h = trajectory(tiny_denoiser, schedule, noise(range(4), tiny_denoiser.sample_shape, torch.float64))
    found = mean_h(tiny_denoiser, schedule, x_0[2:]) - mean_h(tiny_denoiser, schedule, x_0[:2])
    expected = difference(h, [0, 1], [2, 3])
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_mean_h_does_not_depend_on_the_batch(tiny_denoiser: Denoiser, schedule: Schedule) -> None:
    images = noise(range(5), tiny_denoiser.sample_shape, torch.float64)
    by_twos = mean_h(tiny_denoiser, schedule, images, batch=2)
    assert torch.allclose(by_twos, mean_h(tiny_denoiser, schedule, images), rtol=1e-9, atol=1e-12)


def save_pairs(folder: Path, name: str, negative: Tensor, positive: Tensor) -> None:
    for side, images in (("negative", negative), ("positive", positive)):
        (folder / name / side).mkdir(parents=True)
        for n, image in enumerate(images):
            to_picture(image).save(folder / name / side / f"{n}.png")


@pytest.mark.slow
def test_pairs_of_drawn_digits_give_back_the_difference_of_their_h(tmp_path: Path) -> None:
    """Through PNG files and inversion. Near, not equal: other x_T than the one that was drawn lead to a digit too."""
    denoiser = Denoiser.from_pretrained("mnist")
    schedule = Schedule.ddim(denoiser, 20)
    x_0, h = trajectory(denoiser, schedule, noise(range(4), denoiser.sample_shape))
    save_pairs(tmp_path, "last", x_0[:2], x_0[2:])
    directions = supervised.find(denoiser, schedule, Settings(pairs=str(tmp_path)))
    expected = difference(h, [0, 1], [2, 3])
    assert directions.names == ("last",) and directions.provenance["settings"]["pairs"] == str(tmp_path)
    assert torch.cosine_similarity(full(directions)[0].flatten(), expected.flatten(), dim=0) > 0.8
    assert 0.8 < directions.sigma.norm() / expected.norm() < 1.25


@pytest.mark.slow
def test_pairs_can_be_chosen_scaled_and_projected(tiny_denoiser: Denoiser, schedule: Schedule, tmp_path: Path) -> None:
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_pairs(tmp_path, "b", images[:2], images[2:4])
    save_pairs(tmp_path, "a", images[4:6], images[6:])
    settings = Settings(attributes=("b", "a"), pairs=str(tmp_path), scale=0.5)
    plain = supervised.find(tiny_denoiser, schedule, settings)
    assert plain.names == ("b", "a")
    for k, name in enumerate(plain.names):
        negative, positive = (
            mean_h(tiny_denoiser, schedule, load_images(tmp_path / name / side, (3, 8, 8)))
            for side in ("negative", "positive")
        )
        assert torch.allclose(full(plain)[k], 0.5 * (positive - negative), rtol=1e-9, atol=1e-12)
    projected = full(supervised.find(tiny_denoiser, schedule, replace(settings, project=True))).flatten(1)
    b, a = full(plain).flatten(1)
    assert torch.allclose(projected[0], b - a * (a @ b) / (a @ a), rtol=1e-6, atol=1e-9)
    with pytest.raises(UserError, match="project: 'a' is the only attribute; at least 2 are needed"):
        Settings(attributes=("a",), pairs=str(tmp_path), project=True)


@pytest.mark.slow
def test_a_direction_moves_its_attribute_on_fresh_samples() -> None:
    denoiser, attributes = Denoiser.from_pretrained("mnist"), embedded_predictor("mnist")
    assert attributes is not None
    schedule = Schedule.ddim(denoiser, 10)
    settings = Settings(attributes=("slant", "thickness"), samples=128, extremes=16)
    directions = supervised.find(denoiser, schedule, settings)
    traversals = draw_traversals(denoiser, schedule, directions, REPORT_SEEDS[:16], (-1.0, 1.0))
    reference = sample(denoiser, schedule, noise(REPORT_SEEDS[:64], denoiser.sample_shape))
    moved = effects_by_sample(traversals, attributes, reference).mean(dim=0)
    for k, name in enumerate(directions.names):
        assert moved[k, attributes.index(name)] > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extremes": 13}, "extremes: got 13; two groups of them are taken from 24 samples, allowed: 1 to 12"),
        ({"extremes": 0}, "extremes: got 0; two groups of them are taken from 24 samples, allowed: 1 to 12"),
        ({"extremes": 5, "balance": "a"}, "extremes: got 5; with balance, half of them come from each half: even only"),
        ({"scale": 0.0}, "scale: got 0.0; it must be a finite number above 0"),
        ({"scale": float("inf")}, "scale: got inf; it must be a finite number above 0"),
        ({"attributes": ("a", "b", "a")}, "attributes: got a, b, a; each may be given once"),
        ({"pairs": "p", "balance": "a"}, "balance: got 'a'; pairs are labelled, give either balance or pairs"),
        ({"pairs": "p", "predictor": "x"}, "predictor: got 'x'; pairs are labelled, give either predictor or pairs"),
    ],
)
def test_settings_that_do_not_fit(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings(**{"samples": SAMPLES, "extremes": EXTREMES, **change})


def broken(images: Tensor) -> Tensor:
    return torch.full((len(images), 1), torch.nan)


@pytest.mark.parametrize(
    ("change", "attributes", "message"),
    [
        (
            {"attributes": ("al",)},
            BRIGHTNESS,
            "attribute 'al' is not one that the predictor knows: all, left, red; did you mean 'all'?",
        ),
        (
            {"balance": "rad"},
            BRIGHTNESS,
            "attribute 'rad' is not one that the predictor knows: all, left, red; did you mean 'red'?",
        ),
        (
            {"project": True},
            Attributes(("bright",), BRIGHTNESS.score),
            "project: 'bright' is the only attribute; at least 2 are needed",
        ),
        (
            {},
            Attributes(("flat",), lambda images: torch.zeros(len(images), 1)),
            "attribute 'flat' does not vary: the predictor scores all 24 samples alike",
        ),
        ({}, Attributes(("nan",), broken), "attribute 'nan': the predictor gives scores that are NaN or infinite"),
        (
            {"attributes": ("all",), "balance": "rare"},
            Attributes(("all", "rare"), lambda x: torch.stack([x.mean((1, 2, 3)), (x[:, 0, 0, 0] > 1e9).float()], 1)),
            "attribute 'rare' does not vary: the predictor scores all 24 samples alike",
        ),
        (
            {},
            None,
            "predictor: model 'tiny' has none of its own; give a folder or hub id of an image classifier, or labelled",
        ),
    ],
)
def test_what_cannot_be_found_is_told(
    tiny_denoiser: Denoiser, schedule: Schedule, change: dict, attributes: Attributes | None, message: str
) -> None:
    settings = Settings(**{"samples": SAMPLES, "extremes": EXTREMES, **change})
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        supervised.find(tiny_denoiser, schedule, settings, attributes)


def test_of_two_attributes_each_can_be_projected_off_the_other() -> None:
    with pytest.raises(UserError, match="^project: 'a' is the only attribute; at least 2 are needed$"):
        Settings(attributes=("a",), project=True)
    assert Settings(attributes=("a", "b"), project=True).project


def test_two_groups_may_be_all_the_samples_there_are() -> None:
    assert Settings(samples=12, extremes=6).extremes == 6
    assert torch.cat(extremes_of(torch.tensor([3.0, 1.0, 2.0, 0.0]), 2)).tolist() == [3, 1, 2, 0]


def test_balance_needs_enough_samples_on_both_sides_of_the_median() -> None:
    other = torch.tensor([0.0] * 9 + [1.0] * 3)
    message = "balance: too many samples share its median score, which leaves 3 on one side of it; 4 are needed"
    with pytest.raises(UserError, match=message):
        extremes_of(torch.arange(12.0), 4, other)
    assert len(extremes_of(torch.arange(12.0), 2, other)[0]) == 2


def test_pairs_that_do_not_differ(tiny_denoiser: Denoiser, schedule: Schedule, tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 8, 8)
    save_pairs(tmp_path, "same", images, images)
    with pytest.raises(UserError, match="attribute 'same': its two groups of images have the same h"):
        supervised.find(tiny_denoiser, schedule, Settings(pairs=str(tmp_path)))


def test_pairs_need_a_deterministic_chain(tiny_denoiser: Denoiser, tmp_path: Path) -> None:
    save_pairs(tmp_path, "same", torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8))
    with pytest.raises(UserError, match=r"invert needs a deterministic chain \(eta 0\); this schedule has eta 0.5"):
        supervised.find(tiny_denoiser, Schedule.ddim(tiny_denoiser, 3, eta=0.5), Settings(pairs=str(tmp_path)))


def test_a_named_predictor_is_asked(
    tiny_denoiser: Denoiser, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(*arguments: object) -> Attributes:
        asked.append(arguments)
        return BRIGHTNESS

    monkeypatch.setattr("core.predictors.classifier.load", load)
    settings = Settings(samples=SAMPLES, extremes=EXTREMES, predictor="some/classifier")
    assert len(supervised.find(tiny_denoiser, schedule, settings)) == 3
    assert asked == [("some/classifier", "tiny", tiny_denoiser.device)]
    supervised.find(tiny_denoiser, schedule, settings, BRIGHTNESS)
    assert len(asked) == 1, "a predictor that is given directly wins"
