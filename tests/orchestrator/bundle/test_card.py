"""The card of a set: figures with the interval in which they are known."""

from collections.abc import Mapping

import torch

from core.directions.direction_set import DirectionSet
from orchestrator.bundle.card import card


def text_of(metrics: Mapping[str, float]) -> str:
    table = torch.eye(2).reshape(2, 1, 2, 1, 1)
    return card(DirectionSet(table, torch.ones(2, 1), (500,), metrics=metrics, provenance={"model": "toyfaces"}))


def test_a_figure_stands_beside_its_interval_and_a_sentence_says_what_that_is() -> None:
    text = text_of({"coverage": 0.5, "coverage/low": 0.4, "coverage/high": 0.6125, "globality": 0.25})
    rows = [line for line in text.splitlines() if line.startswith(("| coverage", "| globality", "| metric"))]
    assert rows == [
        "| metric | value | 95 % interval | better |",
        "| globality | 0.25 | - | more |",
        "| coverage | 0.5 | 0.4 to 0.613 | more |",
    ]
    assert "of 100 such intervals, each\nfrom other samples, about 95 hold it." in text


def test_a_set_without_intervals_is_told_without_them() -> None:
    text = text_of({"globality": 0.25})
    assert "| globality | 0.25 | - | more |" in text and "95 hold it" not in text
    assert "How good it is" in text_of({"globality": 0.25}) and "| metric |" not in text_of({})
