"""Dials: equally far at 1.0, a range that ends where images leave the model's own, a sign and a name that hold."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core import Denoiser, DirectionSet, Schedule
from core.calibration import SCALES, SEEDS, names_from, reach, with_dials
from core.dials import Dial
from core.errors import DirectionSetError
from core.methods import random
from core.metrics import draw_traversals, moved
from core.metrics.consistency import agreement, distinctness
from core.zoo.attributes import Attributes


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


def test_scale_one_moves_images_equally_far(tiny_denoiser: Denoiser, schedule: Schedule, found: DirectionSet) -> None:
    goal = float(moved(tiny_denoiser, schedule, found).mean()) / 2
    dialled = with_dials(tiny_denoiser, schedule, found, strength=goal).directions
    after = moved(tiny_denoiser, schedule, dialled)
    assert torch.allclose(after, torch.full_like(after, goal), rtol=0.11)
    assert dialled.metrics == found.metrics
    for dial, before, now in zip(dialled.dials, found.sigma[:, 0], dialled.sigma[:, 0], strict=True):
        assert dial.own * float(now) == pytest.approx(float(before))


def test_a_second_calibration_remembers_the_scale_that_metrics_were_measured_at(
    tiny_denoiser: Denoiser, schedule: Schedule, found: DirectionSet
) -> None:
    goal = float(moved(tiny_denoiser, schedule, found).mean()) / 2
    once = with_dials(tiny_denoiser, schedule, found, strength=goal).directions
    twice = with_dials(tiny_denoiser, schedule, once, strength=goal * 1.5).directions
    for dial, before, now in zip(twice.dials, found.sigma[:, 0], twice.sigma[:, 0], strict=True):
        assert dial.own * float(now) == pytest.approx(float(before))


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


@pytest.mark.parametrize(
    ("distance", "expected"),
    [([1.0, 1.0, 1.0], 3.0), ([2.0, 4.0, 5.0], 1.5), ([5.0, 6.0, 7.0], 0.5), ([2.0, 3.0, 4.0], 2.0)],
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
