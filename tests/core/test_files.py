"""What is written by core.files."""

import importlib.util
import os
from pathlib import Path

import pytest

from core import files


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0, 0o666, 0o777)])
def test_the_users_umask_is_kept(tmp_path: Path, umask: int, file: int, folder: int) -> None:
    """Of a group that shares its runs, or of somebody who shows them to nobody."""
    spec = importlib.util.spec_from_file_location("files_under_umask", files.__file__)
    assert spec is not None and spec.loader is not None
    before = os.umask(umask)
    try:
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        assert os.umask(umask) == umask
        with module.atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "inside").touch()
        module.write_json(tmp_path / "file", {})
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("folder", "folder/inside", "file")]
    assert modes == [folder, file, file]
