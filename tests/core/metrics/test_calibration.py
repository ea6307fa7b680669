"""Dials: equally far at 1.0, a range that ends where images leave the model's own, a sign and a name that hold."""

import itertools
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from unittest.mock import create_autospec

import pytest
import torch
from torch import Tensor

from core import Denoiser, DirectionSet, Schedule
from core.directions.dials import Dial
from core.errors import DirectionSetError
from core.methods import random
from core.metrics import Traversals, calibration, draw_traversals, moved, strength
from core.metrics.calibration import SCALES, SEEDS, names_from, reach, with_dials
from core.metrics.consistency import agreement, distinctness
from core.metrics.networks import Extractor
from core.predictors.attributes import Attributes
from core.randomness import CALIBRATION_SEEDS
from core.samples.draw import Sampling


@pytest.fixture(scope="module")
def schedule(tiny_denoiser: Denoiser) -> Schedule:
    return Schedule.ddim(tiny_denoiser, 2)


@pytest.fixture(scope="module")
def found(tiny_denoiser: Denoiser, schedule: Schedule) -> DirectionSet:
    made = random.find(tiny_denoiser, schedule, random.Settings(4, 1.0))
    made.sigma.mul_(torch.tensor([0.3, 1.0, 1.0, 3.0])[:, None])
    return replace(made, metrics={"identifiability": 0.5})


def brightness(images: Tensor) -> Tensor:
    return torch.stack([images.mean(dim=(1, 2, 3)), -images.mean(dim=(1, 2, 3))], dim=1)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


@pytest.mark.parametrize("asked", [False, True], ids=["without a predictor", "with one"])
def test_a_dial_is_what_its_definition_reads_off_the_images(
    tiny_denoiser: Denoiser, schedule: Schedule, found: DirectionSet, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """Of images that are their own features, four numbers each: every figure worked out sample by sample."""
    random = torch.Generator().manual_seed(0)
    units = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    reference, plain = (torch.randn(n, 4, generator=random, dtype=torch.float64) * units + 3 for n in (40, 5))
    along = torch.tensor([[0, 0, -0.6, 0], [2.0, 0, 0, 0], [-9.0, 3, 0, 0.6], [0, 2.5, 0, 0]], dtype=torch.float64)
    change = along + 0.3 * torch.randn(5, 4, 4, generator=random, dtype=torch.float64) * units
    change[:, 0] -= 0.9 * change[:, 0].mean(0)  # to every sample something else
    change[0, 1] *= -1  # to one sample the opposite
    amount = torch.tensor([scale + 0.2 * scale**2 for scale in SCALES], dtype=torch.float64)  # farther up than down
    drawn = Traversals(plain, plain[:, None, None] + amount[:, None] * change[:, :, None], SCALES)

    before = replace(found, dials=(Dial(-1.0, 1.0, 0.5, 0.5, own=2.0),) * 4)
    stretched = replace(before, sigma=before.sigma * 4, metrics={})
    calibrate = create_autospec(calibration.calibrate, return_value=stretched)
    traversals = create_autospec(calibration.draw_traversals, return_value=drawn)
    unshifted = create_autospec(calibration.draw_plain, return_value=reference)
    features = create_autospec(calibration.features_of, side_effect=lambda denoiser, samples, **_: samples.flatten(1))
    for name, fake in (
        ("calibrate", calibrate),
        ("draw_traversals", traversals),
        ("draw_plain", unshifted),
        ("features_of", features),
    ):
        monkeypatch.setattr(calibration, name, fake)
    attributes = Attributes(("first", "second"), lambda x: torch.stack([x[:, 0], -x[:, 1]], dim=1)) if asked else None
    extractor, window = Extractor("own", lambda images: images), (900, 100)
    told = (tiny_denoiser, schedule, before, attributes, 0.7, Sampling("asymmetric", window, 9), "clip", extractor)
    made = calibration.with_dials(*told)

    place = Sampling("asymmetric", window, 9)
    calibrate.assert_called_once_with(tiny_denoiser, schedule, before, 0.7, place, 0.1, extractor)
    traversals.assert_called_once_with(tiny_denoiser, schedule, stretched, SEEDS, SCALES, place)
    unshifted.assert_called_once_with(tiny_denoiser, schedule, strength.REFERENCE, 9, None)
    assert all(call.kwargs == {"batch": 9, "extractor": extractor} for call in features.call_args_list)
    calibration.with_dials(tiny_denoiser, schedule, before)
    calibrate.assert_called_with(tiny_denoiser, schedule, before, 0.5, Sampling(), 0.1, None)

    def standard(x: Tensor) -> Tensor:
        return (x - reference.mean(0)) / reference.std(0)

    def nearest(x: Tensor, others: Tensor) -> float:
        return min(float((standard(x) - standard(other)).norm()) for other in others)

    apart = [nearest(x, reference[torch.arange(40) != n]) for n, x in enumerate(reference)]
    limit, still = float(torch.tensor(apart).quantile(0.9)), median(nearest(x, reference) for x in plain)
    high, low = drawn.shifted[:, :, SCALES.index(1.0)], drawn.shifted[:, :, SCALES.index(-1.0)]
    ends = standard(high) - standard(low)  # [M, K, F]
    effect = (high - low).mean(0)[:, :2] / 2 * torch.tensor([1.0, -1.0]) / reference.std(0)[:2]
    upward = [scale for scale in SCALES if scale > 0]
    signs = []
    for k, dial in enumerate(made.directions.dials):
        pairs = itertools.combinations(range(5), 2)
        assert dial.consistency == pytest.approx(max(0, fmean(cosine(ends[i, k], ends[j, k]) for i, j in pairs)))
        mean = ends.mean(0)
        alike = max(abs(cosine(mean[k], mean[j])) for j in range(4) if j != k)
        assert dial.distinctness == pytest.approx(1 - alike)
        deciding = effect[k] if asked else mean[k]
        signs.append(-1.0 if deciding[deciding.abs().argmax()] < 0 else 1.0)
        away = [median(nearest(x, reference) for x in drawn.shifted[:, k, a]) for a in range(len(SCALES))]
        up, down = (reach(distance, upward, still, limit) for distance in (away[5:], away[4::-1]))
        assert (dial.low, dial.high) == pytest.approx((-down, up) if signs[k] > 0 else (-up, down))
        assert dial.own == pytest.approx(2.0 / 4)
        by_name = dict(zip(("first", "second"), (effect[k] * signs[k]).tolist(), strict=True))
        assert dial.effects == (pytest.approx(by_name) if asked else {})
    assert made.directions.dials[0].consistency == 0
    assert signs == ([1, 1, -1, -1] if asked else [-1, 1, -1, 1])
    assert len({(dial.low, dial.high) for dial in made.directions.dials}) == 4
    names = ("direction_0", "first 2", "first", "second") if asked else found.names
    assert made.directions.names == names
    assert [dial.named_by for dial in made.directions.dials] == (["", "clip", "clip", "clip"] if asked else [""] * 4)
    assert torch.equal(made.directions.table, before.table * torch.tensor(signs)[:, None, None, None, None])
    assert torch.equal(made.directions.sigma, stretched.sigma) and made.directions.metrics == found.metrics
    for k, sign in enumerate(signs):
        assert torch.equal(
            made.traversals.shifted[:, k], drawn.shifted[:, k] if sign > 0 else drawn.shifted[:, k].flip(1)
        )


def test_samples_of_calibration_are_in_no_two_parts_of_it() -> None:
    """What strength is measured on, what it is compared with and what dials are read off."""
    parts = (strength.SEEDS, strength.REFERENCE, SEEDS)
    assert [len(part) for part in parts] == [8, 64, 6]
    assert all(set(part) <= set(CALIBRATION_SEEDS[:100]) for part in parts)
    assert not any(set(a) & set(b) for a, b in itertools.combinations(parts, 2))


def test_scale_one_moves_images_equally_far(tiny_denoiser: Denoiser, schedule: Schedule, found: DirectionSet) -> None:
    goal = float(moved(tiny_denoiser, schedule, found).mean()) / 2
    dialled = with_dials(tiny_denoiser, schedule, found, strength=goal).directions
    after = moved(tiny_denoiser, schedule, dialled)
    assert torch.allclose(after, torch.full_like(after, goal), rtol=0.11)
    assert dialled.metrics == found.metrics
    for dial, before, now in zip(dialled.dials, found.sigma[:, 0], dialled.sigma[:, 0], strict=True):
        assert dial.own * float(now) == pytest.approx(float(before))


@pytest.mark.slow
def test_a_second_calibration_remembers_the_scale_that_metrics_were_measured_at(
    tiny_denoiser: Denoiser, schedule: Schedule, found: DirectionSet
) -> None:
    goal = float(moved(tiny_denoiser, schedule, found).mean()) / 2
    once = with_dials(tiny_denoiser, schedule, found, strength=goal).directions
    twice = with_dials(tiny_denoiser, schedule, once, strength=goal * 1.5).directions
    for dial, before, now in zip(twice.dials, found.sigma[:, 0], twice.sigma[:, 0], strict=True):
        assert dial.own * float(now) == pytest.approx(float(before))


@pytest.mark.slow
def test_the_images_are_those_of_the_set_as_it_is_handed_out(
    tiny_denoiser: Denoiser, schedule: Schedule, found: DirectionSet
) -> None:
    attributes = Attributes(("bright",), lambda images: -brightness(images)[:, :1])
    for given in (None, attributes):
        calibrated = with_dials(tiny_denoiser, schedule, found, given, strength=0.1)
        again = draw_traversals(tiny_denoiser, schedule, calibrated.directions, SEEDS, SCALES)
        assert torch.allclose(calibrated.traversals.shifted, again.shifted, atol=1e-5)


def test_plus_increases_the_attribute_of_its_name(
    tiny_denoiser: Denoiser, schedule: Schedule, found: DirectionSet
) -> None:
    attributes = Attributes(("bright", "dark"), brightness)
    turned = replace(found, table=-found.table)
    for each in (found, turned):
        dialled = with_dials(tiny_denoiser, schedule, each, attributes, strength=0.3).directions
        for name, dial in zip(dialled.names, dialled.dials, strict=True):
            attribute = name.split()[0] if dial.named_by else max(dial.effects, key=lambda a: abs(dial.effects[a]))
            assert dial.effects[attribute] >= 0
            assert dial.effects["bright"] == pytest.approx(-dial.effects["dark"], abs=1e-9)


@pytest.mark.slow
def test_both_ways_round_become_the_same_set(tiny_denoiser: Denoiser, schedule: Schedule, found: DirectionSet) -> None:
    sets = [found, replace(found, table=-found.table)]
    one, other = (with_dials(tiny_denoiser, schedule, each, strength=0.1).directions for each in sets)
    assert torch.equal(one.table, other.table)
    for a, b in zip(one.dials, other.dials, strict=True):
        assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=1e-4)


def test_controlled_attributes_name_directions_and_names_by_hand_stay(found: DirectionSet) -> None:
    attributes = Attributes(("smile", "age"), brightness)
    effect = torch.tensor([[0.6, 0.1], [0.2, 0.3], [0.9, 0.0], [-0.8, 0.1]], dtype=torch.float64)
    names, sources = names_from(found.renamed({2: "mine"}), effect, attributes, "clip")
    # The strongest of two that move the same gets the name alone; 0.3 is too little for one.
    assert names == ("smile 2", "direction_1", "mine", "smile")
    assert sources == ("clip", "", "", "clip")
    named = replace(found, names=names, dials=tuple(Dial(-1, 1, 0.5, 0.5, named_by=source) for source in sources))
    assert names_from(named, effect, attributes, "clip") == (names, sources)
    by_hand = named.renamed({0: "grin"})
    assert names_from(by_hand, effect, attributes, "attributes")[0] == ("grin", "direction_1", "mine", "smile")
    assert names_from(found, None, None, "attributes")[0] == found.names


def test_a_name_from_an_attribute_goes_where_the_attribute_is_no_longer_controlled(found: DirectionSet) -> None:
    """And is free for another direction then; a name by hand stays, whatever the direction does."""
    dials = tuple(Dial(-1, 1, 0.5, 0.5, named_by=source) for source in ("attributes", "clip", "hand", ""))
    named = replace(found, names=("smile", "age", "grin", "direction_3"), dials=dials)
    attributes = Attributes(("smile", "age", "hair"), brightness)
    effect = torch.tensor([[0.49, 0, 0], [1.0, 1.0, 1.05], [2.0, 0, 0], [-0.9, 0.6, 0.6]], dtype=torch.float64)
    expected = ("direction_0", "direction_1", "grin", "smile")
    assert names_from(named, effect, attributes, "attributes") == (expected, ("", "", "hand", "attributes"))


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        ([1.0, 1.0, 1.0], 3.0),
        ([2.0, 4.0, 5.0], 1.5),
        ([5.0, 6.0, 7.0], 0.5),
        ([2.0, 3.0, 4.0], 2.0),
        ([2.0, 3.0, 3.0], 3.0),  # at the limit is still as faithful as asked
        ([2.0, 9.0, 1.0], 1 + 1 / 7),  # what comes back is not reached
        ([1.0, torch.inf, 1.0], 1.0),
        ([1.0, torch.nan, 1.0], 1.0),
    ],
)
def test_the_range_ends_where_the_distance_crosses_the_limit(distance: list[float], expected: float) -> None:
    assert reach(distance, (1.0, 2.0, 3.0), still=1.0, limit=3.0) == pytest.approx(expected)


def test_nothing_is_faithful_where_unshifted_samples_are_not() -> None:
    assert reach((5.0,), (1.0,), still=4.0, limit=3.0) == 0.0


def test_consistency_and_distinctness_in_closed_form() -> None:
    same = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    across = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
    change = torch.stack([same, across], dim=1)  # [M=3, K=2, F=2]
    assert agreement(change).tolist() == pytest.approx([1.0, -1 / 3])
    assert distinctness(change).tolist() == pytest.approx([1.0, 1.0])
    twice = torch.stack([same, -same], dim=1)
    assert distinctness(twice).tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    assert distinctness(same[:, None]).tolist() == [1.0]


def test_dials_survive_the_file_and_the_old_format_opens(found: DirectionSet, tmp_path: Path) -> None:
    dials = tuple(Dial(-1.0, 2.0 + k, 0.5, 0.25, 1.5, {"smile": 0.1 * k}, "hand") for k in range(4))
    with_them = replace(found, dials=dials)
    with_them.save(tmp_path / "new")
    assert DirectionSet.load(tmp_path / "new").dials == dials
    assert dials[0].score == 0.125

    found.save(tmp_path / "old")
    path = tmp_path / "old" / "directions.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 1').replace('"dials": []', '"more": []'))
    assert DirectionSet.load(tmp_path / "old").dials == ()


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("low", 0.5, "the range 0.5 to 2.0 does not hold 0"),
        ("consistency", 1.5, "consistency is 1.5; allowed: 0 to 1"),
        ("named_by", "me", "named_by is 'me'; allowed: attributes, clip, hand"),
        ("own", "x", "own is 'x', not a finite number"),
        ("effects", {"a": None}, "a is null, not a finite number"),
    ],
)
def test_a_dial_that_is_none_is_refused(
    found: DirectionSet, tmp_path: Path, field: str, value: object, sentence: str
) -> None:
    import json

    replace(found, dials=(Dial(-1.0, 2.0, 0.5, 0.5),) * 4).save(tmp_path / "set")
    path = tmp_path / "set" / "directions.json"
    content = json.loads(path.read_text())
    content["dials"][1][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DirectionSetError) as raised:
        DirectionSet.load(tmp_path / "set")
    assert sentence in str(raised.value)


def test_a_name_by_hand_says_so(found: DirectionSet) -> None:
    dialled = replace(found, dials=(Dial(-1.0, 2.0, 0.5, 0.5),) * 4)
    renamed = dialled.renamed({"direction_1": "smile"})
    assert renamed.names[1] == "smile"
    assert [dial.named_by for dial in renamed.dials] == ["", "hand", "", ""]
    with pytest.raises(DirectionSetError, match="each needs one of its own"):
        found.renamed({0: "same", 1: "same"})
