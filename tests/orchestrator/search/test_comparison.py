"""What the interval of a difference says of the champion beside random directions, and of one method beside another."""

from typing import Any

import pytest

from orchestrator.search.comparison import compared, method_verdicts
from orchestrator.search.ranking import Row
from orchestrator.spec import Sweep, parse


def table(name: str, value: float, half: float) -> dict[str, float]:
    return {name: value, f"{name}/low": value - half, f"{name}/high": value + half}


@pytest.mark.parametrize(
    ("metric", "difference", "expected"),
    [
        ("coverage", 0.3, "ahead"),
        ("coverage", -0.3, "behind"),
        ("coverage", 0.1, "not told apart"),
        ("fidelity_kid", -0.3, "ahead"),
        ("fidelity_kid", 0.3, "behind"),
        ("fidelity_kid", -0.1, "not told apart"),
    ],
)
def test_the_verdict_of_a_metric_follows_its_better_side(metric: str, difference: float, expected: str) -> None:
    [found] = compared({metric: 0.5}, {metric: 0.4}, table(metric, difference, 0.2))
    assert found.verdict == expected
    assert (found.difference, found.low, found.high) == (difference, difference - 0.2, difference + 0.2)


def test_each_metric_has_its_own_intervals_and_none_is_a_metric_itself() -> None:
    champion = table("coverage", 0.5, 0.1) | table("fid", 30.0, 2.0)
    found = compared(champion, table("coverage", 0.4, 0.2), table("coverage", 0.1, 0.05))
    assert [each.metric for each in found] == ["coverage", "fid"]
    assert found[0].champion_interval == (0.4, 0.6) and found[0].random_interval == pytest.approx((0.2, 0.6))
    assert (found[1].random, found[1].difference, found[1].verdict) == (None, None, None)


def test_an_older_result_has_differences_without_intervals() -> None:
    [same, more] = compared({"globality": 0.1 + 0.2, "coverage": 0.5}, {"globality": 0.3, "coverage": 0.25}, {})
    assert (same.difference, more.difference) == (0.0, 0.25), "rounding is no difference"
    assert same.interval is more.interval is more.verdict is None


def sweep() -> Sweep:
    data: dict[str, Any] = {"name": "a", "model": "b", "method": {"choice": ["learned", "pca"]}}
    objectives = [{"identifiability": "max"}, {"fidelity_kid": "min"}]
    return parse(data | {"search": {"seed": {"choice": [0, 1, 2]}}, "objectives": objectives})


def row(method: str, identifiability: float, kid: float, state: str = "completed") -> Row:
    metrics = {"identifiability": identifiability, "fidelity_kid": kid}
    return Row("t", state, {"method": method}, metrics, 100, on_front=False)


def test_methods_are_told_apart_by_the_interval_of_the_difference_of_their_means() -> None:
    made = [row("pca", 0.9 + n / 100, 0.3 + n / 100) for n in range(3)]
    made += [row("learned", 0.5 + n / 100, 0.31 + n / 100) for n in range(3)]
    made.append(row("learned", 5.0, -9.0, "pruned"))
    assert method_verdicts(made, sweep(), "pca", "learned") == {
        "identifiability": "ahead",
        "fidelity_kid": "not told apart",
    }
    assert method_verdicts(made, sweep(), "learned", "pca")["identifiability"] == "behind"
    assert method_verdicts(made[:4], sweep(), "pca", "learned") == {}, "of one run there is no interval"
