"""Where `orchestrate launch` is run."""

from pathlib import Path

import pytest

HERE = Path("/shared/work")


@pytest.fixture
def in_project_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: HERE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
