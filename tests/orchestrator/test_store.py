"""A sweep's folder knows its own sweep again, however its numbers are computed."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from orchestrator.spec import parse
from orchestrator.store import SweepFolder

DATA: dict[str, Any] = {"name": "a", "model": "toyfaces", "search": {}, "budget": {"trials": 1}, "train": {"batch": 8}}
MEANS = {"gradient": {"policy": "checkpoint_blocks", "lean": False}, "sampler": {"batch": 4}}


def test_a_sweep_goes_on_with_other_means(tmp_path: Path) -> None:
    """After running out of memory, say, or on another device."""
    folder = SweepFolder(tmp_path, "a")
    folder.create(parse(DATA), "sqlite://", "1", "2")
    folder.refuse_changed(parse(DATA))
    folder.refuse_changed(parse(DATA | MEANS | {"train": {"batch": 8, "micro_batch": 2}}))


def test_and_only_what_decides_its_results_is_told_as_changed(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "a")
    folder.create(parse(DATA), "sqlite://", "1", "2")
    with pytest.raises(UserError, match="changed since: train.batch; give the new one another name"):
        folder.refuse_changed(parse(DATA | MEANS | {"train": {"batch": 16, "micro_batch": 2}}))
