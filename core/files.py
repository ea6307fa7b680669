"""Write files and folders that are either whole or absent: under a unique temporary name, then synced and renamed."""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")  # of weights; they can run code, and are never read
TEMPORARY = ".writing-"  # beginning of the names of `atomic_file`'s temporary folders


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` when the block ends without an error.

    Raises FileExistsError where `path` exists already. An error in the block removes the folder.
    """
    if path.exists():
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        temporary.chmod(0o755)
        os.rename(temporary, path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def atomic_file(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Yield the path of a file to write, which replaces `path` when the block ends without an error.

    The file is in a temporary folder of its own, beside `path`, where its writer may put temporary files too.
    """
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=path.parent))
    try:
        yield folder / path.name
        (folder / path.name).chmod(mode)
        _sync(folder / path.name)
        os.replace(folder / path.name, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by the JSON of `value`, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def open_regular(path: Path, follow: bool = True) -> BufferedReader:
    """Open an ordinary file for reading. Raises OSError for a folder, and for a pipe or a device, which may block.

    follow: False refuses a link too, so that no file outside the folder is read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "It is not an ordinary file")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
