"""What the benchmarks' pages rest on: records reused only under the same conditions, tables that add up."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import jacobian, jacobian_published, memory, methods, metric_pictures, pca, sweep
from benchmarks.ablation import BASE, CHANGES
from benchmarks.chain import ablated, precisions, timed
from benchmarks.common import Record, kept, table
from benchmarks.discriminator import steps_table
from benchmarks.measured_sets import SCALES, folder_of
from benchmarks.methods import best_shares, differences_table, digits_kept, shares_table
from benchmarks.metric_pictures import END, START, Shown
from benchmarks.sides import Case, celeba, chain_flops, flops, ours, straightforward
from core.chain.gradient import CheckpointSteps
from core.directions.direction_set import DirectionSet
from core.errors import UserError
from core.execution.linearised import DecoderJacobian
from core.methods import learned
from core.metrics import Traversals
from core.model.denoiser import Denoiser
from core.predictors.attributes import Attributes

# torch 2.13's forward mode, on its first use, calls its own deprecated scripting.
FORWARD_MODE = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")


def test_a_record_is_reused_only_under_the_same_conditions(tmp_path: Path) -> None:
    runs = iter([Record({"globality": 0.1}, "one"), Record({"globality": 0.2}, "two")])
    first = kept(tmp_path, "run", ("settings", 1), lambda: next(runs))
    assert kept(tmp_path, "run", ("settings", 1), lambda: pytest.fail("measured again")) == first
    assert kept(tmp_path, "run", ("settings", 2), lambda: next(runs)).machine == "two"


def test_a_table_has_the_mean_of_each_column_with_its_interval() -> None:
    rows = [("a", [{"globality": 0.2}, {"globality": 0.4}]), ("b", [{"globality": 0.5}]), ("c", [{}])]
    assert table(rows, ["globality", "seconds"]).splitlines() == [
        "| | runs | globality ↑ | seconds |",
        "|---|---|---|---|",
        "| a | 2 | 0.300 ± 1.271 | - |",
        "| b | 1 | 0.500 | - |",
        "| c | 1 | - | - |",
    ]


def test_best_shares_are_of_directions_that_move_the_attribute_most_and_enough() -> None:
    effects = torch.tensor(
        [
            [2.0, -1.0, 1.0],  # half of its effect is on the first
            [-3.0, 0.5, 0.5],  # three quarters are
            [0.1, 0.3, 0.0],  # mostly the second, but too little of it
            [1.0, 0.0, 0.9],  # never the third most
        ]
    )
    shares = best_shares(effects, ("a", "b", "c"))
    assert shares == pytest.approx({"share/a": 0.75, "share/b": 0.0, "share/c": 0.0})
    assert shares_table({"pca": [shares]}, ("a", "b")).splitlines()[2:] == ["| a | 0.75 |", "| b | 0.00 |"]


def test_digits_that_stay_are_counted_along_directions_that_change_the_stroke(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a digit is its brightest pixel. Of two directions one moves the slant most; it changes one digit of four."""
    reader = Attributes(("zero", "one"), lambda images: images.flatten(1)[:, :2])
    monkeypatch.setattr(methods, "digit_classifier", lambda: reader)
    zero, one = torch.tensor([1.0, 0.0]).reshape(1, 1, 2), torch.tensor([0.0, 1.0]).reshape(1, 1, 2)
    plain = torch.stack([zero, one])
    kept = torch.stack([torch.stack([zero] * 4), torch.stack([one, one, one, zero])])  # [M, S, C, H, W]
    lost = torch.stack([torch.stack([one] * 4), torch.stack([zero] * 4)])
    traversals = Traversals(plain, torch.stack([lost, kept], dim=1), SCALES)
    names = ("width", "slant", "thickness")
    effects = torch.tensor([[2.0, 1.0, 0.0], [0.1, -0.5, 0.2]])
    assert digits_kept(traversals, effects, names) == {"digit_kept": 0.75}
    assert digits_kept(traversals, effects[:, :1].expand(2, 3) * torch.tensor([1.0, 0.5, 0.5]), names) == {}


def test_differences_of_methods_are_paired_by_seed_and_told_by_their_interval() -> None:
    """+1 on both seeds is ahead, whatever the seeds have in common; of what is better small, it is behind."""
    ours = [{"coverage": 3.0, "fidelity_kid": 3.0}, {"coverage": 8.0, "fidelity_kid": 9.0}]
    theirs = [{"coverage": 2.0, "fidelity_kid": 2.0}, {"coverage": 7.0, "fidelity_kid": 8.0}]
    lines = differences_table("learned", {"learned": ours, "pca": theirs}, ["coverage", "fidelity_kid"]).splitlines()
    assert lines[0] == "| learned minus | pca |"
    assert lines[2:] == [
        "| coverage ↑ | +1.000 ± 0.000, ahead |",
        "| fidelity kid ↓ | +1.000 ± 0.000, behind |",
    ]
    alone = differences_table("learned", {"learned": ours[:1], "pca": theirs[:1]}, ["coverage"])
    assert alone.splitlines()[2] == "| coverage ↑ | - |", "one seed has no interval"


def test_steps_of_a_dose_are_paired_by_seed() -> None:
    """From 2 and 4 to 1 and 3: -1 on both, and two thirds of the mean."""
    records = {0.0: [{"kid": 2.0}, {"kid": 4.0}], 3.0: [{"kid": 1.0}, {"kid": 3.0}]}
    assert steps_table(records, "kid").splitlines()[2:] == ["| 0 to 3 | -1.000 ± 0.000 | 0.67 |"]


def test_power_iteration_and_block_power_iteration_find_the_largest() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    vectors, products = jacobian.power_iteration(lambda v: v * values, (5,), 2, 1e-6)
    assert torch.allclose(vectors.abs(), torch.eye(5, dtype=torch.float64)[:2], atol=1e-5)
    assert 10 < products < 60
    assert jacobian.residuals(lambda v: v * values, vectors) <= 2e-6
    assert 10 < jacobian.block_power_iteration(lambda v: v * values, (5,), 2, 1e-6) < 60


def test_passes_of_the_published_code_are_counted_as_products(tiny_denoiser: Denoiser) -> None:
    class Power:
        def sequential_power_iteration(self, eps: Any, h: Tensor, **settings: float) -> tuple[Tensor, Tensor, Tensor]:
            assert settings == {"tol": 1e-5, "max_iters": 50, "k": 3}
            assert torch.allclose(eps(h), tiny_denoiser(x_t, t))
            found = torch.stack([torch.ones_like(eps(h * (1 + n)))[0] for n in range(7)])
            return found, found, torch.stack([h[0] * n for n in range(3)])

    x_t, t = jacobian.at_step(tiny_denoiser, 5)
    vectors, products = jacobian_published.theirs(Power(), tiny_denoiser, x_t, t)
    assert vectors.shape == (3, *tiny_denoiser.h_shape) and products == 8 - 3


@FORWARD_MODE
def test_the_reference_multiplies_with_the_same_jacobian(tiny_denoiser: Denoiser) -> None:
    x_t, t = jacobian.at_step(tiny_denoiser, 5)
    v = torch.randn(tiny_denoiser.h_shape, dtype=torch.float64)
    ours = DecoderJacobian(tiny_denoiser, x_t, t)
    expected = ours.vjp(ours.jvp(v[None]))[0]
    assert torch.allclose(jacobian.FullNetwork(tiny_denoiser, x_t, t)(v), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@FORWARD_MODE
def test_the_page_of_the_jacobian(tiny_denoiser: Denoiser) -> None:
    figures = jacobian.measure(tiny_denoiser, jacobian.Case("tiny", 5, 3, repeats=1))
    assert figures.residuals[1] <= 1.01e-4 and figures.residuals[0] <= 3e-4
    assert figures.products[0] > figures.products[1] > 3 and jacobian.ratio(figures.flops) > 1
    assert "| tiny | 5 | 3 | 1e-04 |" in jacobian.document([figures], {"tiny": (40, 20, 10)}, "here")


@pytest.mark.slow
def test_the_page_of_the_components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pca, "drawn", partial(pca.drawn, width=300))
    for case in (pca.Case("gap", 200, (100,)), pca.Case("slow", 2100, (100,))):
        ours, peer = pca.measure(case, torch.device("cpu"))
        assert ours.side == "ours" and ours.cosines[0] > (0.9999 if case.rows == 200 else 0.9)
        assert peer.side == "IncrementalPCA, batch 100" and 0.9 < peer.explained <= 1 + 1e-9
        assert "**" in pca.document([ours, peer], "here")


def test_every_line_of_the_ablation_changes_the_default() -> None:
    assert replace(BASE, iterations=learned.Settings().iterations) == learned.Settings()
    changed = [replace(BASE, **change) for change in CHANGES.values()]
    assert changed[0] == BASE and len(set(changed)) == len(changed)


@pytest.mark.slow
def test_both_sides_of_the_chain_have_the_same_gradient() -> None:
    case = Case.of(celeba(8, 32, "cpu", torch.float64), 3, 1)
    wanted = straightforward(case, frozen=True)().clone()
    assert wanted.abs().max() > 0
    for run in (straightforward(case, frozen=False), ours(case, CheckpointSteps())):
        assert float((run() - wanted).norm() / wanted.norm()) < 1e-9


@pytest.mark.slow
def test_operations_of_a_long_chain_follow_from_short_ones() -> None:
    denoiser = Denoiser.without_weights("mnist")
    run = partial(straightforward, frozen=False)
    assert chain_flops(run, denoiser, 5) == flops(run(Case.of(denoiser, 5, 1)))


@pytest.mark.slow
def test_the_straightforward_step_costs_nine_calls() -> None:
    """Two forward, one of each again, and two back through inputs and weights; and the unshifted sample's."""
    denoiser = Denoiser.without_weights("mnist")
    x = torch.empty(1, *denoiser.sample_shape, device="meta")
    with torch.no_grad():
        once = flops(lambda: denoiser(x, 5))
    assert chain_flops(partial(straightforward, frozen=False), denoiser, 40) / (40 * once) == pytest.approx(9, rel=0.02)


@pytest.mark.slow
def test_the_chains_tables_have_a_row_for_each_case() -> None:
    case = Case.of(Denoiser.from_pretrained("mnist"), 2, 1)
    assert len(timed("narrow", case, 1)) == 1
    assert len(precisions("narrow", case)) == 3
    assert len(ablated(case, 1)) == 3


@pytest.mark.slow
def test_what_a_sweep_costs_is_measured_on_a_real_one() -> None:
    """Its trials only sleep; the tables have their rows, and processes are used for more than one trial."""
    found = sweep.driven(sweep.Load(4, 0.1, 1, reports=2))
    assert found["processes"] == 1 and len(found["ended"]) == 4 and found["calls"]["SweepRecord.reported"] == 8
    assert 0 < 0.4 < found["trials"] < found["tune"] < found["whole"]
    for rows in (sweep.overhead_rows(found), sweep.driver_rows(found, (2, 4)), sweep.scale_rows(found, (2, 4))):
        assert len({row.count("|") for row in rows}) == 1


def test_steps_that_asha_saves_are_at_least_what_every_rung_lets_through() -> None:
    race = sweep.Race(trials=27, slots=1, iterations=90, every=10, grace=10, reduction=3)
    assert race.least == pytest.approx((10 + 20 / 3 + 60 / 9) / 90)
    share, place = sweep.raced(race, seed=0)
    assert race.least <= share < 0.6 and place < 14


@pytest.mark.slow
def test_the_page_of_memory_has_a_row_for_each_way_and_policy() -> None:
    found = memory.rows(Denoiser.without_weights("mnist"), (1,), 2)
    assert len(found) == len({row.name for row in found}) == 9
    assert {row.verdicts for row in found} == {("yes",) * 4, ("2 of 2",) * 4}
    page = memory.document({"mnist": found})
    assert "None of this was measured on a GPU" in page
    assert len({line.count("|") for line in page.splitlines() if line.startswith("|")}) == 1


def shown(base: str, directions: int, **figures: float) -> Shown:
    return Shown(base, {**figures, "directions": directions}, ("a",), torch.zeros(1, 2, 5, 3, 8, 8))


def test_pictures_of_metrics_are_of_sets_of_about_one_size() -> None:
    few, low, high, many = (shown(f"{k} {v}", k, coverage=v) for k, v in ((4, 0.0), (9, 1.0), (16, 3.0), (32, 7.0)))
    assert metric_pictures.extremes([many, high, low, few, shown("other", 12)], "coverage") == (low, high)
    assert metric_pictures.extremes([many, high, few], "coverage") is None


def test_pictures_show_copies_only_where_copies_matter() -> None:
    copies, low, high = (
        shown(base, 16, told_apart=v, locality=v) for v, base in enumerate(("a, each twice", "b", "c"))
    )
    assert metric_pictures.extremes([low, copies, high], "told_apart") == (copies, high)
    assert metric_pictures.extremes([low, copies, high], "locality") == (low, high)


def test_a_value_has_half_the_width_of_its_interval() -> None:
    each = shown("pca 16", 16, coverage=2.0, purity=0.5, **{"half/purity": 0.214})
    assert [each.value(metric) for metric in ("coverage", "purity", "diversity")] == ["2.00", "0.50 ± 0.21", "-"]


def test_the_page_of_metrics_needs_a_place_for_the_table() -> None:
    page = f"before\n{START}\nold\n{END}\nafter"
    assert metric_pictures.with_table(page, "new") == f"before\n{START}\nnew\n{END}\nafter"
    with pytest.raises(UserError, match="no place for the table"):
        metric_pictures.with_table("before\nafter", "new")


@pytest.mark.slow
def test_the_pictures_of_the_metrics(tmp_path: Path) -> None:
    """Two sets that are kept, of which one metric is measured, and one set that is not measured."""
    page = tmp_path / "metrics.md"
    page.write_text(f"{START}{END}")
    for base, value in {"random 16": 0.4, "pca 16": 0.1, "jacobian 16": None}.items():
        keep(tmp_path, base, {} if value is None else {"purity": value, "directions": 16.0})
    assert metric_pictures.write("toyfaces", tmp_path, tmp_path) == ["purity"]
    assert [file.name for file in (tmp_path / "metrics").iterdir()] == ["purity.png"]
    with Image.open(tmp_path / "metrics" / "purity.png") as picture:
        assert picture.width > 6 * metric_pictures.CELL and picture.height > 8 * metric_pictures.CELL
    assert "| purity ↑ | 0.40 | 0.10 | 0.10 (pca 16) | 0.40 (random 16) |" in page.read_text()


def keep(folder: Path, base: str, figures: dict[str, float]) -> None:
    """Write a set of four directions as benchmarks.measured_sets does, and its figures, if any."""
    kept_set = folder_of(folder, "toyfaces", base, metric_pictures.STRENGTH)
    kept_set.mkdir(parents=True)
    DirectionSet(torch.eye(4).reshape(4, 1, 4, 1, 1), torch.ones(4, 1), (5,)).write(kept_set)
    images = {"plain": torch.zeros(2, 3, 32, 32), "shifted": torch.rand(2, 4, len(SCALES), 3, 32, 32)}
    save_file({**images, "effects": torch.zeros(4, 9)}, kept_set / "images.safetensors")
    if figures:
        kept(folder / "toyfaces" / "measured", kept_set.name, (), lambda: Record(figures, "here"))
