"""What a sweep found, as a person reads it."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.table import Table

from orchestrator.ranking import Row, by_method
from orchestrator.report import failure_lines, methods_table, out_of_memory_lines
from orchestrator.spec import Sweep, parse


@pytest.fixture
def sweep() -> Sweep:
    return parse(
        {
            "name": "compared",
            "model": "toyfaces",
            "method": {"choice": ["learned", "pca", "jacobian", "random"]},
            "search": {"seed": {"choice": [0, 1]}},
            "objectives": [{"identifiability": "max"}, {"fidelity_kid": "min"}],
        }
    )


def row(method: str, identifiability: float, kid: float, seconds: float | None, state: str = "completed") -> Row:
    metrics = {"identifiability": identifiability, "fidelity_kid": kid}
    return Row(f"{method}{seconds}", state, {"method": method, "seed": 0}, metrics, 4, False, seconds)


RANKED = [
    row("pca", 0.9, 0.2, 1.0),  # beaten in nothing
    row("learned", 0.8, 0.3, 10.0),  # once in each
    row("learned", 0.6, 0.4, 30.0),  # twice in each
    row("random", 0.1, 0.5, None),
    row("learned", 0.99, 0.1, 5.0, "pruned"),
    row("jacobian", 0.99, 0.1, None, "failed"),
]


def text_of(table: Table) -> list[str]:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(table)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_methods_are_ordered_by_the_mean_rank_of_completed_trials(sweep: Sweep) -> None:
    found = by_method(RANKED, sweep)
    assert [each.method for each in found] == ["pca", "learned", "random", "jacobian"]
    assert [(each.completed, each.trials) for each in found] == [(1, 1), (2, 3), (1, 1), (0, 1)]
    assert [each.seconds for each in found] == [1.0, 20.0, None, None]
    mean, deviation = found[1].metrics["identifiability"]
    assert mean == pytest.approx(0.7) and deviation == pytest.approx(0.02**0.5)
    assert found[0].metrics["fidelity_kid"] == (0.2, None) and found[3].metrics == {}


def test_the_table_of_methods(sweep: Sweep) -> None:
    more = replace(RANKED[0], metrics={**RANKED[0].metrics, "globality": 0.5})
    lines = text_of(methods_table(by_method([more, *RANKED[1:]], sweep)))
    assert lines[1].split() == ["pca", "learned", "random", "jacobian", "better"]
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "completed",
        "identifiability",
        "fidelity kid",
        "globality",
        "seconds to find",
    ]
    assert lines[2].split() == "completed 1 of 1 2 of 3 1 of 1 0 of 1".split()
    assert lines[3].split() == "identifiability 0.900 0.700 ± 0.141 0.100 - more".split()
    assert lines[5].split() == "globality 0.500 - - - more".split()
    assert lines[6].split() == "seconds to find 1 20 - -".split()


def test_a_trial_that_ran_out_of_memory_is_told() -> None:
    told = {"gradient": "full_graph", "micro_batch": 2, "sampler_batch": 64}
    undisturbed = replace(RANKED[0], memory={**told, "out_of_memory_retries": 0})
    shrunk = replace(RANKED[1], trial_id="b", memory={**told, "out_of_memory_retries": 2})
    assert out_of_memory_lines([undisturbed, shrunk, RANKED[2]]) == [
        "Trial b ran out of memory (retries: 2) and went on with full_graph, micro_batch 2, 64 samples drawn at a time."
    ]
    untrained = replace(RANKED[1], trial_id="c", memory={"sampler_batch": 16, "out_of_memory_retries": 2})
    assert out_of_memory_lines([untrained]) == [
        "Trial c ran out of memory (retries: 2) and went on with 16 samples drawn at a time."
    ]


def test_a_trial_that_is_over_without_a_result_is_told_with_its_reason() -> None:
    crashed = replace(RANKED[5], trial_id="b", reason="the mask is missing")
    exhausted = replace(RANKED[5], trial_id="c", state="out_of_memory", reason="")
    goes_on = replace(RANKED[5], trial_id="d", state="waiting", over=False, reason="its process was killed")
    assert failure_lines([*RANKED[:5], crashed, exhausted, goes_on]) == [
        "Trial b failed: the mask is missing.",
        "Trial c out of memory: no reason known.",
    ]
