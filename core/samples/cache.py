"""Tensors kept on disk under the digest of all that they depend on, so that the processes of a node compute them once.

    <folder>/<key>.<name>.safetensors    one tensor with its checksum, whole or absent; read by mmap, hence from one
                                         page cache by all processes
    <folder>/locks/                      who is computing or writing right now; the kernel gives a lock back when the
                                         process that holds it ends, however it ends

A cache that cannot be used (a full disk, a folder that is read only, a file system without locks) costs time and
nothing else: what is not there, or is damaged, is computed.
"""

import fcntl
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.files import TEMPORARY, atomic_file

_POLL_S = 0.1
_HEADER = 512  # bytes of a file beside its tensor, at most

Compute = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Entry:
    """Tensors that are computed together: the digest of what they depend on, and what each of them has to be."""

    key: str
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # name -> shape, dtype

    @property
    def nbytes(self) -> int:
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self.tensors.values())


@dataclass(frozen=True)
class SampleCache:
    """A folder that all trials of a node share, and how many bytes it may hold; what was used longest ago goes first.

    Samples are kept `block` at a time, however many are drawn at once.

    waiting: called again and again while another process computes what is needed.

    It never takes more than half of what the disk has free for it. A file that is being read may go as well: whoever
    has it mapped keeps its pages.
    """

    folder: Path
    limit_bytes: int = 20 << 30
    block: int = 64
    waiting: Callable[[], None] = lambda: None

    def __contains__(self, entry: Entry) -> bool:
        """Whether all files of the entry are there, not whether they are sound."""
        return all(self._path(entry, name).is_file() for name in entry.tensors)

    def worthwhile(self, nbytes: int) -> bool:
        """Whether so much more should be kept: at most half of what there may be, so that not all the rest is lost."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return nbytes <= self._bound() // 2
        except OSError:
            return False

    def read(self, entry: Entry) -> dict[str, Tensor] | None:
        """The entry's tensors on the CPU, mapped from their files; None where one is missing or damaged."""
        if entry not in self:
            return None
        found = {name: self._read(entry, name) for name in entry.tensors}
        whole = {name: tensor for name, tensor in found.items() if tensor is not None}
        return whole if len(whole) == len(found) else None

    def get(self, entry: Entry, compute: Compute) -> Mapping[str, Tensor]:
        """The entry's tensors: read, waited for where another process is computing them, or computed and kept."""
        found = self.read(entry)
        if found is not None:
            return found
        with self._locked(entry.key[:2]) as held:
            found = self.read(entry)
            if found is not None:
                return found
            computed = compute()
            if held:
                self._keep(entry, computed)
            return computed

    def prepare(self, entry: Entry, compute: Compute) -> bool:
        """Compute and keep what is missing, unless another process is at it. False where it could not be kept."""
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
        """One tensor; where its file is damaged, the file is thrown away."""
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
        """Write what is missing of the entry; False where that is not possible."""
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
        """Remove what was used longest ago until so much more fits; False where it never will. For the writer alone."""
        for left in self.folder.glob(f"{TEMPORARY}*"):  # only one process writes at a time: of one that was killed
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
        """Bytes that all files together may have."""
        held = sum(status.st_size for _, status in self._files())
        return min(self.limit_bytes, (held + shutil.disk_usage(self.folder).free) // 2)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob("*.safetensors"):
            try:
                yield path, path.stat()
            except FileNotFoundError:  # another process has thrown it away
                continue

    @contextmanager
    def _locked(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Whether this process, and no other, holds the lock `name` for the duration of a block.

        False where `wait` is not wanted and another has it, and where there are no locks.
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
    """Whether the lock of a file is this process's now; None where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data):08x}"


def _touch(path: Path) -> None:
    """Note that the file was used now."""
    with _tolerated():
        os.utime(path)


@contextmanager
def _tolerated() -> Iterator[None]:
    """What the disk refuses is not done, and that is all."""
    try:
        yield
    except (OSError, SafetensorError):
        pass
