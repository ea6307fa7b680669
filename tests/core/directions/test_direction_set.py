"""The product: what a set refuses, how it shifts, that it comes back from disk, and that it edits plain pipelines."""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler

from core import Denoiser, DirectionSet, Schedule, noise, sample
from core.directions.dials import Dial
from core.errors import DirectionSetError


def a_set(steps: int = 3, count: int = 4, shape: tuple[int, int, int] = (8, 2, 2)) -> DirectionSet:
    table = torch.randn(count, steps, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = table / table.flatten(2).norm(dim=2)[..., None, None, None]
    sigma = torch.linspace(1, 2, count * steps, dtype=torch.float64).reshape(count, steps)
    return DirectionSet(table, sigma, (600, 300, 0)[:steps] if steps > 1 else (600, 300, 0))


def test_shift_is_scale_times_sigma_times_direction() -> None:
    directions = a_set()
    delta = directions.shift(torch.tensor([2, 0]), torch.tensor([0.5, -2.0]))(1)
    assert torch.allclose(delta[0], 0.5 * directions.sigma[2, 1] * directions.table[2, 1])
    assert torch.allclose(delta[1], -2.0 * directions.sigma[0, 1] * directions.table[0, 1])
    assert directions.shift("direction_2")(0).shape == (1, 8, 2, 2)
    assert torch.equal(directions.shift(-1)(0), directions.shift(3)(0))


def test_an_edit_of_several_directions_is_their_sum_each_at_its_own_scale() -> None:
    directions = a_set()
    one, other = (directions.sigma[k, 2] * directions.table[k, 2] for k in (1, 3))
    edit = {"direction_1": 1.5, 3: -0.5}
    assert torch.allclose(directions.shift(edit, 2.0)(2), (3.0 * one - 1.0 * other)[None])
    each = directions.shift(edit, torch.tensor([1.0, -2.0]))(2)
    assert torch.allclose(each, torch.stack([1.5 * one - 0.5 * other, -3.0 * one + other]))
    with pytest.raises(DirectionSetError, match="^an edit of several directions needs at least one, as in"):
        directions.shift({})


def test_directions_are_counted_from_the_end_as_well() -> None:
    directions = a_set()
    assert [directions.index(k) for k in (-4, -1, 0, 3, "direction_3")] == [0, 3, 0, 3, 3]
    with pytest.raises(DirectionSetError, match="^direction -5 is outside the set: it has 0 to 3$"):
        directions.index(-5)
    with pytest.raises(DirectionSetError, match="has no direction named 'z'; it has: direction_0, .*, direction_3$"):
        directions.index("z")


def test_a_set_shared_by_all_steps_shifts_each_alike() -> None:
    shift = a_set(steps=1).shift(1)
    assert torch.equal(shift(0), shift(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": torch.zeros(4, 3, 8)}, r"table has shape \[4, 3, 8\], expected \[K, S, C, H, W\]"),
        ({"timesteps": (9, 5)}, r"table has 3 steps, expected 1 or 2 \(one for each timestep\)"),
        ({"sigma": torch.ones(4)}, r"sigma has shape \[4\], expected \[4, 3\]"),
        ({"names": ("a", "a", "b", "c")}, "4 names for 4 directions; each needs one of its own"),
        ({"sigma": torch.full((4, 3), torch.nan)}, "table or sigma holds NaN or infinite numbers"),
        ({"table": torch.full((4, 3, 8, 2, 2), torch.inf)}, "table or sigma holds NaN or infinite numbers"),
        ({"table": torch.zeros(0, 3, 8, 2, 2)}, r"table has shape \[0, 3, 8, 2, 2\], expected \[K, S, C, H, W\]"),
        ({"names": ("a", "b", "c")}, "3 names for 4 directions; each needs one of its own"),
        ({"names": ("a", "b", "c", "")}, "the name '' has 0 characters; allowed: 1 to 200"),
        (
            {"dials": (Dial(-1, 1, 0.5, 0.5),) * 3},
            "3 dials for 4 directions; each needs one of its own, or none has one",
        ),
    ],
)
def test_what_is_not_a_set(change: dict, message: str) -> None:
    plain = a_set()
    fields = {"table": plain.table, "sigma": plain.sigma, "timesteps": plain.timesteps, **change}
    with pytest.raises(DirectionSetError, match=f"not a direction set: {message}"):
        DirectionSet(**fields)


def test_unknown_directions_get_the_nearest_name() -> None:
    with pytest.raises(DirectionSetError, match="no direction named 'direction_22'; did you mean 'direction_2'?"):
        a_set().shift("direction_22")
    with pytest.raises(DirectionSetError, match="direction 4 is outside the set: it has 0 to 3"):
        a_set().shift(4)


def test_save_and_load(tmp_path: Path) -> None:
    directions = DirectionSet(
        a_set().table, a_set().sigma, (600, 300, 0), metrics={"globality": 0.5}, provenance={"a": 1}
    )
    directions.save(tmp_path / "set")
    loaded = DirectionSet.load(tmp_path / "set")
    assert torch.equal(loaded.table, directions.table) and torch.equal(loaded.sigma, directions.sigma)
    assert (loaded.names, loaded.timesteps) == (directions.names, directions.timesteps)
    assert loaded.metrics == {"globality": 0.5} and loaded.provenance == {"a": 1}
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == ["directions.json", "directions.safetensors"]
    with pytest.raises(DirectionSetError, match="set exists; a direction set is written into a new folder"):
        directions.save(tmp_path / "set")


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    directions = DirectionSet(a_set().table, a_set().sigma, (600, 300, 0), provenance={"a": object()})
    with pytest.raises(TypeError):
        directions.save(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("directions.json", None, "is not a direction set: directions.json is missing"),
        ("directions.safetensors", None, "is not a direction set: directions.safetensors is missing"),
        ("directions.safetensors", "x", "is not a safetensors file of a set: it has 1 bytes"),
        ("directions.json", "[", "is not JSON: Expecting value"),
        ("directions.json", "[]", "is not a mapping"),
        ("directions.json", '{"format": "other"}', "has format 'other', not 'h-space directions'"),
        (
            "directions.json",
            '{"format": "h-space directions", "version": 9}',
            "has format version 9; this one reads up to 2",
        ),
        (
            "directions.json",
            '{"format": "h-space directions", "version": 0}',
            "has format version 0; this one reads up to 2",
        ),
        (
            "directions.json",
            '{"format": "h-space directions", "version": 1}',
            "is not of a direction set: names is missing",
        ),
    ],
)
def test_damaged_sets_get_one_sentence(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    a_set().save(tmp_path / "set")
    (tmp_path / "set" / file).unlink()
    if content is not None:
        (tmp_path / "set" / file).write_text(content)
    with pytest.raises(DirectionSetError, match=message):
        DirectionSet.load(tmp_path / "set")


Change = Callable[[dict[str, Any]], Any]
DESCRIPTIONS: list[tuple[Change, str]] = [
    (lambda d: d.update(names="abcd"), "names is 'abcd', not a list"),
    (lambda d: d.update(names=["a", "b", "c", 4]), "names holds 4, which is not text"),
    (
        lambda d: d["names"].pop(),
        r"table has shape \[4, 3, 8, 2, 2\] and sigma \[4, 3\]; there are 3 names and 3 timest",
    ),
    (lambda d: d.update(names=["a", "b", "c", "c"]), "4 names for 4 directions; each needs one of its own"),
    (lambda d: d.update(names=["a", "b", "c", "d" * 201]), "the name 'ddd.* has 201 characters; allowed: 1 to 200"),
    (lambda d: d.update(names=["a", "b", "c", "\x1b[2J"]), r"the name '\\x1b\[2J' has control characters"),
    (lambda d: d.update(names=["a", "b", "c", "\ud800"]), r"the name '\\ud800' has control characters"),
    (lambda d: d.update(timesteps=[600, 300, True]), "timesteps holds true; allowed: numbers from 0 to 9999"),
    (lambda d: d.update(timesteps=[600, 300, -1]), "timesteps holds -1; allowed: numbers from 0 to 9999"),
    (lambda d: d.update(timesteps=[600, 300, "1"]), "timesteps holds '1'; allowed: numbers from 0 to 9999"),
    (lambda d: d.update(timesteps=[0] * 10_001), "timesteps has 10001 entries; allowed: 1 to 10000"),
    (lambda d: d.update(timesteps=[600, 300]), "there are 4 names and 2 timesteps"),
    (lambda d: d.update(metrics=[]), "metrics is a list, not a mapping"),
    (lambda d: d.update(metrics={"a": "1"}), "metrics: a is '1', not a finite number"),
    (lambda d: d.update(metrics={"a": 10**400}), "metrics: a is 1000.*, not a finite number"),
    (lambda d: d.update(metrics={"a": float("nan")}), "is not JSON: NaN is not a number of JSON"),
    (lambda d: d.update(provenance=5), "provenance is 5, not a mapping"),
    (lambda d: d.update(provenance=nested(25)), "has more than 20 lists and mappings inside each other"),
    (lambda d: d.update(version=True), "has format version true; this one reads up to 2"),
    (lambda d: d.update(format={}), "has format a mapping, not 'h-space directions'"),
    (lambda d: d.update(more="x" * (4 << 20)), "directions.json is longer than 4194304 bytes"),
]


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(("change", "message"), DESCRIPTIONS)
def test_a_description_from_a_stranger_gets_one_sentence(tmp_path: Path, change: Change, message: str) -> None:
    a_set().save(tmp_path / "set")
    file = tmp_path / "set" / "directions.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))
    with pytest.raises(DirectionSetError, match=message) as error:
        DirectionSet.load(tmp_path / "set")
    assert str(error.value).isprintable()


def test_brackets_without_end_are_no_description(tmp_path: Path) -> None:
    a_set().save(tmp_path / "set")
    (tmp_path / "set" / "directions.json").write_text('{"a":' * 100_000)
    with pytest.raises(DirectionSetError, match="more than 20 lists and mappings inside each other"):
        DirectionSet.load(tmp_path / "set")


HEADERS: list[tuple[Change, str]] = [
    (lambda h: h.pop("sigma"), "holds 'table'; a set has exactly table and sigma"),
    (lambda h: h.update(more=h["sigma"]), "holds 'more', 'sigma', 'table'; a set has exactly table and sigma"),
    (lambda h: h["table"].update(dtype="I64"), "table is of type 'I64'; allowed: F16, BF16, F32, F64"),
    (lambda h: h["table"].update(dtype=["F32"]), "table is of type a list; allowed: F16, BF16, F32, F64"),
    (lambda h: h["table"].update(dtype="F32"), "the shape of table and its 3072 bytes do not agree"),
    (lambda h: h["table"].update(shape=[4, 3, 8, 4]), "table needs 5 sizes of 1 or more"),
    (lambda h: h["table"].update(shape=[4, 3, 8, 2, -2]), "table needs 5 sizes of 1 or more"),
    (lambda h: h["table"].update(shape=[4, 3, 8, 2, True]), "table needs 5 sizes of 1 or more"),
    (lambda h: h["table"].update(shape=[2**62] * 5), "the shape of table and its 3072 bytes do not agree"),
    (lambda h: h["table"].update(shape=[3, 4, 8, 2, 2]), r"table has shape \[3, 4, 8, 2, 2\] and sigma \[4, 3\]"),
    (lambda h: h["sigma"].update(shape=[3, 4]), r"table has shape \[4, 3, 8, 2, 2\] and sigma \[3, 4\]"),
    (lambda h: h["sigma"].update(data_offsets=[8, 104]), "table and sigma overlap, or leave a gap"),
    (lambda h: h["sigma"].update(data_offsets=[10**30, 10**30 + 96]), "data_offsets of sigma are not two integers"),
    (lambda h: h["sigma"].update(more=1), "the entry of sigma needs dtype, shape and data_offsets, nothing else"),
    (lambda h: h.update(__metadata__={"a": "b" * 70_000}), r"its header has 70\d\d\d \(allowed: 65536\)"),
]


@pytest.mark.parametrize(("change", "message"), HEADERS)
def test_tensors_from_a_stranger_get_one_sentence(tmp_path: Path, change: Change, message: str) -> None:
    a_set().save(tmp_path / "set")
    file = tmp_path / "set" / "directions.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    written = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written + content[8 + length :])
    with pytest.raises(DirectionSetError, match=message):
        DirectionSet.load(tmp_path / "set")


def test_more_than_the_limit_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is right in itself, and all holes."""
    count, empty = 1 << 20, torch.empty
    a_set().save(tmp_path / "set")
    shapes = {"table": [count, 3, 64, 4, 4], "sigma": [count, 3]}
    sizes = [4 * count * 3 * 64 * 16, 4 * count * 3]
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": shape, "data_offsets": [sum(sizes[:k]), sum(sizes[: k + 1])]}
            for k, (name, shape) in enumerate(shapes.items())
        }
    ).encode()
    file = tmp_path / "set" / "directions.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(file, 8 + len(header) + sum(sizes))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("a tensor was made"))
    with pytest.raises(DirectionSetError, match=r"has 12\d{9} bytes; .* \(at most 8589934592\)"):
        DirectionSet.load(tmp_path / "set")
    monkeypatch.setattr(torch, "empty", empty)


@pytest.mark.parametrize("member", ["directions.json", "directions.safetensors"])
def test_only_ordinary_files_of_the_folder_are_read(tmp_path: Path, member: str) -> None:
    a_set().save(tmp_path / "other")
    a_set().save(tmp_path / "set")
    file = tmp_path / "set" / member
    for make, why in (
        (lambda: file.symlink_to(tmp_path / "other" / member), "it is a link, which could lead anywhere"),
        (lambda: os.mkfifo(file), "It is not an ordinary file"),
        (lambda: file.symlink_to("/dev/zero"), "it is a link, which could lead anywhere"),
        (file.mkdir, "Is a directory"),
    ):
        file.unlink()
        make()
        with pytest.raises(DirectionSetError) as error:
            DirectionSet.load(tmp_path / "set")
        assert str(error.value) == f"{tmp_path}/set is not a direction set: {member} cannot be read: {why}"
    with pytest.raises(DirectionSetError, match=r"'a\\x00b' is not the name of a folder"):
        DirectionSet.load("a\0b")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    directions = a_set().to("cpu", dtype)
    directions.save(tmp_path / "set")
    loaded = DirectionSet.load(tmp_path / "set")
    assert loaded.table.dtype == dtype and torch.equal(loaded.table, directions.table)
    assert torch.equal(loaded.sigma, directions.sigma)


def test_without_is_orthogonal_to_the_others_and_keeps_the_rest() -> None:
    directions = a_set()
    left = directions.without(0, others=[1, "direction_2"])
    full = (left.table * left.sigma[:, :, None, None, None]).flatten(1)
    assert torch.allclose(full[[1, 2]] @ full[0], torch.zeros(2, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(left.table.flatten(2).norm(dim=2), torch.ones(4, 3, dtype=torch.float64))
    assert torch.equal(left.table[1:], directions.table[1:]) and torch.equal(left.sigma[1:], directions.sigma[1:])


def test_what_is_without_another_has_no_figures_of_the_set_before() -> None:
    measured = replace(a_set(), metrics={"globality": 0.5}, provenance={"method": "pca"})
    left = measured.without(0, others=[1])
    assert dict(left.metrics) == {} and left.provenance == {"method": "pca"} and left.names == measured.names
    assert dict(measured.metrics) == {"globality": 0.5}


def test_without_matches_least_squares() -> None:
    """n - C^T (C C^T)^-1 C n is the residual of the least squares fit of n by the rows of C."""
    directions = a_set()
    full = (directions.table * directions.sigma[:, :, None, None, None]).flatten(1)
    fit = torch.linalg.lstsq(full[1:].T, full[0]).solution
    left = directions.without(0, others=[1, 2, 3])
    assert torch.allclose((left.table[0] * left.sigma[0][:, None, None, None]).flatten(), full[0] - full[1:].T @ fit)


def test_without_refuses_what_leaves_nothing() -> None:
    plain = a_set()
    table = plain.table.clone()
    table[1], sigma = table[0], plain.sigma.clone()
    sigma[1] = sigma[0]
    directions = DirectionSet(table, sigma, plain.timesteps)
    with pytest.raises(DirectionSetError, match="nothing is left of 'direction_0': the other directions span it"):
        directions.without(0, others=[1])
    with pytest.raises(DirectionSetError, match="give one or more other directions, not itself"):
        directions.without(0, others=[0])


def test_applied_edits_an_unmodified_pipeline_as_the_chain_does(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, 4)
    directions = DirectionSet(a_set(1).table, a_set(1).sigma, schedule.timesteps)
    x_T = noise([3], tiny_denoiser.sample_shape, torch.float64)
    scheduler = DDIMScheduler.from_config(tiny_denoiser.scheduler.config)
    scheduler.set_timesteps(4)

    def drawn() -> torch.Tensor:
        x = x_T
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(tiny_denoiser.network(x, t).sample, t, x).prev_sample
        return x

    plain = drawn()
    with directions.applied(tiny_denoiser.network, direction=2, scale=1.5):
        edited = drawn()
    expected = sample(tiny_denoiser, schedule, x_T, directions.shift(2, 1.5))
    assert torch.allclose(edited, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(edited, plain, atol=1e-3)
    assert torch.equal(drawn(), plain)


def test_applied_in_a_whole_pipeline_with_other_steps(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, 4)
    directions = DirectionSet(a_set(1).table, a_set(1).sigma, schedule.timesteps)
    unet = tiny_denoiser.network.float()
    pipeline = DDIMPipeline(unet, DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    try:
        with directions.applied(pipeline.unet, direction="direction_1", scale=2.0, steps=8):
            images = pipeline(batch_size=2, num_inference_steps=8, output_type="np").images
    finally:
        unet.double()
    assert images.shape == (2, 8, 8, 3)


@pytest.mark.parametrize(("steps", "ratio"), [(None, 1.0), (4, 1.0), (8, 0.5), (2, 2.0)])
def test_applied_shifts_by_a_share_of_the_steps_at_the_nearest_timestep(
    tiny_denoiser: Denoiser, steps: int | None, ratio: float
) -> None:
    """Over twice as many steps half as far at each, so that all of them together shift as far."""
    schedule = Schedule.ddim(tiny_denoiser, 4)
    directions = DirectionSet(a_set(3).table.repeat(1, 2, 1, 1, 1)[:, :4], torch.rand(4, 4), schedule.timesteps)
    x, t = noise([3], tiny_denoiser.sample_shape, torch.float64), schedule.timesteps[1] + 100
    with torch.no_grad(), directions.applied(tiny_denoiser.network, {2: 1.0, 0: -0.5}, 1.5, steps):
        found = tiny_denoiser.network(x, t).sample
    with torch.no_grad():
        expected = tiny_denoiser(x, t, directions.shift({2: 1.0, 0: -0.5}, 1.5 * ratio)(1))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_no_hook_survives_an_exception(tiny_denoiser: Denoiser) -> None:
    unet = tiny_denoiser.network
    with pytest.raises(ZeroDivisionError), a_set(1).applied(unet, 0):
        raise ZeroDivisionError
    assert not unet._forward_pre_hooks and not unet.mid_block._forward_hooks


def test_applied_refuses_another_models_set(tiny_denoiser: Denoiser) -> None:
    wrong = a_set(1, shape=(4, 2, 2))
    x = noise([0], tiny_denoiser.sample_shape, torch.float64)
    with (
        pytest.raises(DirectionSetError, match=r"h of shape \[4, 2, 2\]; this model has \[8, 2, 2\]"),
        wrong.applied(tiny_denoiser.network, 0),
    ):
        tiny_denoiser.network(x, 600)
    with (
        pytest.raises(DirectionSetError, match="a Linear has no mid_block to shift"),
        wrong.applied(torch.nn.Linear(1, 1), 0),
    ):
        pass


def test_description_is_plain_json(tmp_path: Path) -> None:
    a_set().save(tmp_path / "set")
    description = json.loads((tmp_path / "set" / "directions.json").read_text())
    assert description["format"] == "h-space directions" and description["version"] == 2


def test_a_window_is_part_of_the_set() -> None:
    """Outside of it the shift is zero, in whatever pipeline; a direction shared by all steps gets one for each."""
    table = torch.nn.functional.normalize(torch.ones(2, 1, 4, 1, 1), dim=2)
    shared = DirectionSet(table, torch.tensor([[2.0], [3.0]]), (900, 500, 100))
    inside = shared.within((600, 500))
    assert inside.table.shape == (2, 3, 4, 1, 1)
    assert torch.equal(inside.sigma, torch.tensor([[0.0, 2.0, 0.0], [0.0, 3.0, 0.0]]))
    assert torch.equal(inside.shift(1)(1), shared.shift(1)(1)) and not inside.shift(1)(0).any()
    assert shared.within((900, 501)).sigma.tolist() == [[2.0, 0.0, 0.0], [3.0, 0.0, 0.0]], "its ends belong to it"
    assert shared.within(None) is shared
