"""Identifiability and the error of the strength, on directions whose answer is known by construction."""

import math
from dataclasses import replace
from unittest.mock import create_autospec

import pytest
import torch
from torch import Tensor

from core.metrics import Traversals
from core.metrics import identifiability as judge
from core.metrics.evaluation import in_levels
from core.metrics.identifiability import Identified, identifiability
from core.metrics.traversals import SCALES
from tests.core.metrics.test_traversals import normal


def quadrants(size: int = 8) -> Tensor:
    """The changes by which direction k brightens quadrant k: [4, 1, size, size]."""
    parts = torch.zeros(4, 1, size, size, dtype=torch.float64)
    for k, part in enumerate(parts):
        row, column = (size // 2 * place for place in divmod(k, 2))
        part[0, row : row + size // 2, column : column + size // 2] = 0.5
    return parts


def painted(
    change: Tensor | None = None, per_scale: bool = True, unit: float = 1.0, plain: Tensor | None = None
) -> Traversals:
    """Noise images to which each direction adds its change [K, C, H, W], times the scale (None: its own quadrant)."""
    change = quadrants() if change is None else change
    plain = 0.3 * normal(12, *change.shape[1:]) if plain is None else plain
    brightness = torch.tensor(SCALES if per_scale else (1.0,) * 4, dtype=torch.float64)
    shift = brightness[:, None, None, None] * change[:, None]  # [K, A, C, H, W]
    return Traversals(plain, plain[:, None, None] + shift, tuple(unit * scale for scale in SCALES))


def numbers(found: Identified) -> tuple[float, float, float]:
    return found.information.value, found.told_apart.value, found.strength_error.value


@pytest.mark.parametrize("directions", [1, 2, 8, 32])
@pytest.mark.parametrize("known", [True, False])
def test_what_is_always_told_counts_each_direction_and_what_never_is_counts_one(directions: int, known: bool) -> None:
    logits = 200 * torch.eye(directions).double() * known + torch.zeros(5, directions)[:, None]  # [M, K, K]
    found = Identified(judge._bits(logits[:, :, None].expand(-1, -1, 4, -1)), torch.zeros(5, directions))
    counted = directions if known else 1
    assert found.told_apart.interval == pytest.approx((counted, counted))
    assert found.information.interval == pytest.approx((math.log2(counted), math.log2(counted)), abs=1e-9)
    assert found.by_direction.tolist() == pytest.approx([counted / directions] * directions)


def test_directions_in_pairs_of_equals_are_half_as_many() -> None:
    same = torch.eye(4).repeat_interleave(2, dim=0).repeat_interleave(2, dim=1).double()  # [8, 8]
    found = Identified(judge._bits(200 * same[None, :, None].expand(5, -1, 4, -1)), torch.zeros(5, 8))
    assert found.information.value == pytest.approx(2.0)
    assert found.told_apart.value == pytest.approx(4.0)
    assert found.by_direction.tolist() == pytest.approx([0.5] * 8)


def test_bits_are_log2_of_how_much_likelier_than_chance_the_right_direction_is() -> None:
    """Of two directions, by hand: the first recognised always, the second as a coin would."""
    bits = torch.tensor([[1.0, 0.0]] * 4)
    found = Identified(bits, torch.tensor([[0.1, 0.3]] * 4))
    assert numbers(found) == pytest.approx((0.5, math.sqrt(2), 0.2))
    assert found.by_direction.tolist() == pytest.approx([1.0, 0.5])
    spread = found.told_apart.replicates
    assert torch.allclose(spread, 2**found.information.replicates), "resampled as the bits are"


def test_a_network_is_as_sure_as_is_best_on_the_other_samples() -> None:
    """Of two directions, with odds of s by two samples and wrong by a third: by hand, one sample at a time."""
    logits = torch.zeros(3, 2, 1, 2, dtype=torch.float64)
    logits[:2, 0, 0, 0] = logits[:2, 1, 0, 1] = 2.0
    logits[2, 0, 0, 1] = logits[2, 1, 0, 0] = 2.0  # wrong in the last sample
    found = judge._bits(logits)

    def of(sureness: float, margin: float) -> float:
        return 1 - math.log2(1 + math.exp(-sureness * margin))

    grid = judge._SURENESS.tolist()
    one = max(grid, key=lambda s: of(s, 2.0) + of(s, -2.0))  # the others of a right sample: one right, one wrong
    assert one == 0.0, "where it is wrong as often as right it is not sure at all"
    assert found[:2].flatten().tolist() == pytest.approx([0.0] * 4)
    assert found[2].tolist() == pytest.approx([of(grid[-1], -2.0)] * 2), "the others of the wrong one are all right"


def test_one_sample_in_a_half_is_not_sure_at_all() -> None:
    assert torch.allclose(judge._bits(normal(1, 4, 2, 4)), torch.zeros(1, 4, dtype=torch.float64), atol=1e-12)


def test_directions_that_all_do_the_same_are_at_chance() -> None:
    """Whatever a network answers for four equal images, it is right for one of them."""
    found = identifiability(painted(quadrants()[:1].expand(4, 1, 8, 8)), iterations=3)
    assert found.information.interval == pytest.approx((0.0, 0.0), abs=1e-12)
    assert found.told_apart.interval == pytest.approx((1.0, 1.0), abs=1e-12)


def test_nothing_shifted_is_at_chance_and_its_strength_a_guess() -> None:
    """A guess within [-1/2, 1/2] that is the same for all scales is wrong by 3/4 over -1, -1/2, 1/2, 1."""
    found = identifiability(painted(torch.zeros(4, 1, 8, 8).double()), iterations=2)
    assert numbers(found) == pytest.approx((0.0, 1.0, 0.75), abs=0.01)


@pytest.mark.slow
def test_directions_that_paint_their_own_quadrant_are_identified_with_their_strength() -> None:
    found = identifiability(painted())
    assert found.information.value == pytest.approx(2.0, abs=0.02)
    assert found.told_apart.value == pytest.approx(4.0, abs=0.1)
    assert found.strength_error.value < 0.12


@pytest.mark.slow
def test_eight_directions_that_are_four_pairs_count_four() -> None:
    found = identifiability(painted(quadrants().repeat_interleave(2, dim=0)))
    assert found.information.value == pytest.approx(2.0, abs=0.1)
    assert found.told_apart.value == pytest.approx(4.0, abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("directions", [2, 8, 32])
def test_all_directions_of_one_kind_are_told_apart_however_many_there_are(directions: int) -> None:
    """Each brightens two pixels of its own."""
    cells = torch.eye(32, dtype=torch.float64).reshape(32, 1, 8, 4)[:directions].repeat_interleave(2, dim=3)
    found = identifiability(painted(cells))
    assert found.told_apart.value == pytest.approx(directions, rel=0.1)
    assert found.strength_error.value < 0.25


@pytest.mark.slow
def test_strength_that_does_not_show_is_guessed() -> None:
    found = identifiability(painted(per_scale=False))
    assert numbers(found) == pytest.approx((2.0, 4.0, 0.75), abs=0.03)


@pytest.mark.slow
def test_strength_error_is_in_units_of_the_largest_scale() -> None:
    one, seven = (identifiability(painted(unit=unit), iterations=20) for unit in (1.0, 7.0))
    assert seven.strength_error.value == pytest.approx(one.strength_error.value, rel=1e-5)


@pytest.mark.slow
def test_a_set_a_hundred_times_weaker_is_identified_worse_in_8_bit_levels() -> None:
    """On noise, a shift of half a level and less still changes some pixels by one; on flat images it changes none."""
    strong, weak = painted(), painted(quadrants() / 200)
    flat = painted(quadrants() / 200, plain=in_levels(0.3 * normal(12, 1, 1, 1)).expand(12, 1, 8, 8))
    clear, faint, gone = (
        identifiability(replace(each, plain=in_levels(each.plain), shifted=in_levels(each.shifted)))
        for each in (strong, weak, flat)
    )
    assert faint.told_apart.value < clear.told_apart.value - 0.2
    assert faint.strength_error.value > clear.strength_error.value + 0.05
    assert numbers(gone) == pytest.approx((0.0, 1.0, 0.75), abs=0.01)


@pytest.mark.slow
def test_identifiability_is_judged_on_samples_not_trained_on() -> None:
    """Directions recognisable only by a pattern that each sample has for itself can be learned by heart, not found."""
    own = 0.5 * normal(12, 4, 1, 8, 8, purpose="own")
    images = painted()
    scales = torch.tensor(SCALES, dtype=torch.float64)[:, None, None, None]
    found = identifiability(replace(images, shifted=images.plain[:, None, None] + scales * own[:, :, None]))
    assert found.information.value < 0.2
    assert abs(found.information.value) < 2 * found.information.error + 0.1


def test_each_half_is_judged_by_the_network_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every sample there, every direction at every scale, as even as chance is."""
    images, looked_at = painted(), []
    real = judge._look_up
    look_up = create_autospec(real, side_effect=lambda t, pairs, d: looked_at.append(pairs) or real(t, pairs, d))
    monkeypatch.setattr(judge, "_look_up", look_up)
    identifiability(images, iterations=10)
    for part, (training, test) in enumerate(((range(6), range(6, 12)), (range(6, 12), range(6)))):
        calls = looked_at[11 * part : 11 * (part + 1)]
        trained, tested = torch.cat(calls[:10]), calls[10]
        assert trained[:, 0].unique().tolist() == list(training) and len(trained) == 10 * 64
        assert tested[:, 0].unique().tolist() == list(test)
        assert len(tested) == 6 * 4 * 4 == len(tested.unique(dim=0))


def test_what_is_told_of_a_sample_stands_in_its_row() -> None:
    """What is not a number shows where it is looked at: untrained, a network sees its test alone."""
    images = painted()
    plain = images.plain.clone()
    plain[8] = math.nan
    found = identifiability(replace(images, plain=plain), iterations=0)
    assert found.error.isnan().any(dim=1).nonzero().flatten().tolist() == [8]


@pytest.mark.parametrize(
    ("samples", "iterations"), [(8, {4: 80, 16: 120, 17: 240, 32: 240, 33: 360}), (2, {1: 5, 4: 20, 17: 85})]
)
def test_many_directions_are_learned_for_longer_and_few_pairs_no_more_than_eighty_times(
    monkeypatch: pytest.MonkeyPatch, samples: int, iterations: dict[int, int]
) -> None:
    images, train = painted(), create_autospec(judge._train)
    monkeypatch.setattr(judge, "_train", train)
    plain, shifted = images.plain[:1].expand(samples, -1, -1, -1), images.shifted[:1, :1]
    found = {}
    for directions in iterations:
        identifiability(replace(images, plain=plain, shifted=shifted.expand(samples, directions, 4, 1, 8, 8)))
        [found[directions]] = {call.args[4] for call in train.call_args_list}
        train.reset_mock()
    assert found == iterations


@pytest.mark.slow
def test_one_direction_is_at_chance_and_still_has_a_strength() -> None:
    found = identifiability(painted(quadrants()[:1]))
    assert numbers(found)[:2] == (0.0, 1.0)
    assert found.strength_error.value < 0.2


def test_identifiability_depends_on_its_seed_alone_and_leaves_the_global_generator() -> None:
    images = painted()

    def told(seed: int, iterations: int) -> list[float]:
        found = identifiability(images, seed=seed, iterations=iterations)
        return [*found.bits.flatten().tolist(), *found.error.flatten().tolist()]

    before = torch.random.get_rng_state()
    first = told(1, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    with torch.no_grad():
        assert told(1, 5) == first
    assert told(2, 5) != first
    assert told(1, 0) != told(2, 0), "only the first weights differ"
