"""A trial whose checkpoints are written and read."""

from pathlib import Path

import pytest

from orchestrator.store.checkpoints import TrialFolder


@pytest.fixture
def trial(tmp_path: Path) -> TrialFolder:
    return TrialFolder(tmp_path / "trials" / "abc")
