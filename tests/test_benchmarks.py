"""What the benchmarks' pages rest on: records reused only under the same conditions, tables that add up."""

from pathlib import Path

import pytest
import torch

from benchmarks.ablation import BASE, CHANGES
from benchmarks.common import Record, kept, table
from benchmarks.methods import best_shares, shares_table
from core.methods import learned


def test_a_record_is_reused_only_under_the_same_conditions(tmp_path: Path) -> None:
    runs = iter([Record({"globality": 0.1}, "one"), Record({"globality": 0.2}, "two")])
    first = kept(tmp_path, "run", ("settings", 1), lambda: next(runs))
    assert kept(tmp_path, "run", ("settings", 1), lambda: pytest.fail("measured again")) == first
    assert kept(tmp_path, "run", ("settings", 2), lambda: next(runs)).machine == "two"


def test_a_table_has_mean_and_spread_of_each_column() -> None:
    rows = [("a", [{"globality": 0.2}, {"globality": 0.4}]), ("b", [{"globality": 0.5}]), ("c", [{}])]
    assert table(rows, ["globality", "seconds"]).splitlines() == [
        "| | runs | globality ↑ | seconds |",
        "|---|---|---|---|",
        "| a | 2 | 0.300 ± 0.141 | - |",
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


def test_the_ablation_ends_with_the_defaults_of_the_method() -> None:
    ablated = learned.Settings(**{**BASE.__dict__, **CHANGES["default"]})
    defaults = learned.Settings(iterations=ablated.iterations)
    assert ablated == defaults
