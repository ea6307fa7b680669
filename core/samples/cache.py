"""A disk cache of tensors that the processes of a node share, so that each is computed once.

    <folder>/<key>.<name>.safetensors    one tensor with its checksum, whole or absent; read by mmap, so that all
                                         processes share one page cache
    <folder>/locks/                      file locks of the processes that compute or write now; the kernel releases a
                                         lock when its process ends, however it ends

The key is the digest of everything that a tensor depends on. A cache that cannot be used (a full disk, a read-only
folder, a file system without locks) costs only time: what is missing or damaged is computed again.
"""

import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import torch
from filelock import lock_descriptor
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.files import TEMPORARY, atomic_file

_POLL_S = 0.1
_HEADER = 512  # bytes of a file beside its tensor, at most

Compute = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Entry:
    """A group of tensors that are computed together: the digest of what they depend on, and their shapes and dtypes."""

    key: str
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # name -> shape, dtype

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors together."""
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self.tensors.values())


@dataclass(frozen=True)
class SampleCache:
    """A cache folder that all trials of a node share. The least recently used files are removed first.

    limit_bytes: bytes that the folder may hold. The cache also never takes more than half of the disk space that is
    available to it, which is its own files and the free space.
    block: samples kept in one entry, however many are drawn at a time.
    waiting: called repeatedly while another process computes an entry that this one needs.

    A file may be removed while it is read: a process that has mapped it keeps its pages.
    """

    folder: Path
    limit_bytes: int = 20 << 30
    block: int = 64
    waiting: Callable[[], None] = lambda: None

    def __contains__(self, entry: Entry) -> bool:
        """Return whether all files of the entry exist. Their content is not checked."""
        return all(self._path(entry, name).is_file() for name in entry.tensors)

    def has_room_for(self, nbytes: int) -> bool:
        """Return whether `nbytes` more should be kept: at most half of the allowed size, so that others remain."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return nbytes <= self._bound() // 2
        except OSError:
            return False

    def read(self, entry: Entry) -> dict[str, Tensor] | None:
        """Return the entry's tensors on the CPU, mapped from their files; None where one is missing or damaged."""
        if entry not in self:
            return None
        tensors = {name: self._read(entry, name) for name in entry.tensors}
        whole = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        return whole if len(whole) == len(tensors) else None

    def get_or_compute(self, entry: Entry, compute: Compute) -> Mapping[str, Tensor]:
        """Return the entry's tensors: read, waited for where another process computes them, or computed and kept."""
        kept = self.read(entry)
        if kept is not None:
            return kept
        with self._locked(entry.key[:2]) as held:
            kept = self.read(entry)
            if kept is not None:
                return kept
            computed = compute()
            if held:
                self._keep(entry, computed)
            return computed

    def compute_if_free(self, entry: Entry, compute: Compute) -> bool:
        """Compute and keep a missing entry, unless another process holds its lock.

        Returns False where the computed tensors could not be kept.
        """
        if entry in self:
            self._touch(entry)
            return True
        with self._locked(entry.key[:2], wait=False) as held:
            return not held or entry in self or self._keep(entry, compute())

    def _path(self, entry: Entry, name: str) -> Path:
        return self.folder / f"{entry.key}.{name}.safetensors"

    def _touch(self, entry: Entry) -> None:
        for name in entry.tensors:
            _touch(self._path(entry, name))

    def _read(self, entry: Entry, name: str) -> Tensor | None:
        """Return one tensor, or None where its file is missing or damaged. A damaged file is removed."""
        path = self._path(entry, name)
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                checksum = (file.metadata() or {}).get("crc32")
            if (tuple(tensor.shape), tensor.dtype) == entry.tensors[name] and _checksum(tensor) == checksum:
                _touch(path)
                return tensor
        except FileNotFoundError:  # another process has just made room
            return None
        except (OSError, SafetensorError):
            pass
        with _tolerated():
            path.unlink(missing_ok=True)
        return None

    def _keep(self, entry: Entry, computed: Mapping[str, Tensor]) -> bool:
        """Write the missing files of the entry. Returns False where that is not possible."""
        with _tolerated(), self._locked("writer") as held:
            missing = {name for name in entry.tensors if not self._path(entry, name).is_file()}
            if held and self._make_room(sum(computed[name].nbytes + _HEADER for name in missing)):
                for name in missing:
                    tensor = computed[name].contiguous().cpu()
                    with atomic_file(self._path(entry, name)) as temporary:
                        save_file({name: tensor}, temporary, {"crc32": _checksum(tensor)})
                return True
        return False

    def _make_room(self, nbytes: int) -> bool:
        """Remove the least recently used files until `nbytes` more fit. Returns False where they can never fit.

        Only the holder of the lock `writer` may call this.
        """
        for left in self.folder.glob(f"{TEMPORARY}*"):  # of a killed process, since only one process writes at a time
            shutil.rmtree(left, ignore_errors=True)
        bound = self._bound()
        if nbytes > bound:
            return False
        files = sorted(self._files(), key=lambda file: file[1].st_mtime_ns)
        held = sum(status.st_size for _, status in files)
        for path, status in files:
            if held + nbytes <= bound:
                break
            path.unlink(missing_ok=True)
            held -= status.st_size
        return True

    def _bound(self) -> int:
        """Return the bytes that all files together may have."""
        held = sum(status.st_size for _, status in self._files())
        return min(self.limit_bytes, (held + shutil.disk_usage(self.folder).free) // 2)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob("*.safetensors"):
            try:
                yield path, path.stat()
            except FileNotFoundError:  # another process has removed it
                continue

    @contextmanager
    def _locked(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Hold the lock `name` during the `with` block and yield whether this process holds it.

        Yields False where another process holds it and `wait` is False, and where the file system has no locks.
        """
        try:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            file = open(self.folder / "locks" / name, "a")
        except OSError:
            yield False
            return
        with file:
            while not (held := _locks(file)) and held is not None and wait:
                self.waiting()
                time.sleep(_POLL_S)
            yield bool(held)


def _locks(file: IO[str]) -> bool | None:
    """Try to lock a file. Returns whether this process holds the lock now; None where there are no locks."""
    try:
        return lock_descriptor(file.fileno(), blocking=False)
    except OSError:
        return None


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data):08x}"


def _touch(path: Path) -> None:
    """Set the times of the file to now, which marks it as used."""
    with _tolerated():
        os.utime(path)


@contextmanager
def _tolerated() -> Iterator[None]:
    """Ignore errors of the disk inside the `with` block: the rest of the block is skipped."""
    try:
        yield
    except (OSError, SafetensorError):
        pass
