"""Write files and folders that are either whole or absent: under a unique temporary name, then synced and renamed."""

import errno
import hashlib
import json
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from core.errors import first_line

PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")  # of weights; they can run code, and are never read
# What a safetensors file begins with where something else was stored under its name.
_NO_WEIGHTS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights: fetch them with git lfs pull",
    b"<!doctype html": "is a web page, not the weights: download them again",
    b"<html": "is a web page, not the weights: download them again",
}
ZIP = b"PK\x03\x04"  # how torch.save begins a file, whatever its name is
_UMASK = os.umask(0o077)  # read by setting it, hence here, where no other thread makes files yet
os.umask(_UMASK)
# What files and folders may be used for: temporary ones, and those of safetensors, begin as their owner's alone.
FILE_MODE, FOLDER_MODE = 0o666 & ~_UMASK, 0o777 & ~_UMASK
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
        temporary.chmod(FOLDER_MODE)
        os.rename(temporary, path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def atomic_file(path: Path, mode: int = FILE_MODE) -> Iterator[Path]:
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


def why_unreadable(path: Path, error: Exception) -> str:
    """Return why the safetensors file at `path`, or one in that folder, cannot be read: what it is, else the error."""
    for file in [path] if path.is_file() else sorted(path.rglob("*.safetensors")):
        with suppress(OSError), open(file, "rb") as stored:
            begins = stored.read(max(map(len, _NO_WEIGHTS))).lower()
            if what := next((what for start, what in _NO_WEIGHTS.items() if begins.startswith(start)), None):
                return f"{file} {what}"
            if begins.startswith(ZIP.lower()):
                return f"{file} is what torch.save writes, under the name of a safetensors file; {conversion(file)}"
    return first_line(error)


def conversion(path: Path) -> str:
    """Return the end of a sentence: the command that converts a state dict of torch.save to safetensors beside it.

    Tensors are cloned: safetensors refuses tensors that share memory, as those of LPIPS do.
    """
    target = str(path.with_suffix(".safetensors"))
    return "convert it with: " + in_python(
        "import torch; from safetensors.torch import save_file; "
        f"weights = torch.load({str(path)!r}, map_location='cpu', weights_only=True); "
        f"save_file({{k: v.contiguous().clone() for k, v in weights.items()}}, {target!r})"
    )


def in_python(code: str) -> str:
    """Return the shell command that runs one line of Python."""
    quoted = shlex.quote(code) if set(code) & set('"$`!\\') else f'"{code}"'
    return f"python -c {quoted}"


def digest_of_files(files: Iterable[Path]) -> str:
    """Return the first 8 digits of the SHA-256 of the files' contents, one after the other."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:8]


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
