"""Write, verify and prune the checkpoints of one trial on disk.

    <trial>/checkpoint_00000100/                what the trial saved at step 100 (orchestrator.trial.run)
    <trial>/checkpoint_00000100/manifest.json   the step, its score, and size and SHA-256 of every other file
    <trial>/damaged_00000100/                   a damaged checkpoint, kept for inspection and never read again

A checkpoint is written whole, verified before use, and only a few are kept. A folder that is being written or removed
has a hidden name. A process that is killed therefore leaves only whole checkpoints, and hidden folders that the next
process removes. One process at a time changes a trial's folder; `whole` and `result` only read.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.files import atomic_folder, write_json

_MANIFEST = "manifest.json"
_FORMAT = 1
_RESUMING = "engines"  # the sub-folder that is needed only to resume the trial
_RESULT = "directions"  # the sub-folder with the result of the trial
_KEPT = 2  # the newest checkpoint, and one to fall back to where the newest is damaged


class CheckpointError(RuntimeError):
    """A trial has checkpoints, but none that can be used. The trial is never started afresh silently instead."""


class _Damage(Exception):
    """The reason why a checkpoint is not what was written, worded for a bracket in a sentence."""


@dataclass(frozen=True)
class Latest:
    """The checkpoint to resume from: the newest sound one, if any, and a sentence on each damaged newer one."""

    path: Path | None = None
    step: int = 0
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialFolder:
    """The folder of one trial with its checkpoints. Other files in the folder are left alone."""

    path: Path

    def save(self, step: int, write: Callable[[Path], None], score: float | None = None) -> Path:
        """Write the checkpoint of this step with `write`, and return its folder.

        An older checkpoint of the same step is replaced. Where anything fails, no part of the new one stays.
        write: called with an empty folder, into which it writes the files of the checkpoint.
        score: how good the trial was at this step, larger is better; the best checkpoint outlives newer ones.
        """
        self._tidy()
        path = self.path / f"checkpoint_{step:08d}"
        new, old = _hidden(path, "new"), _hidden(path, "old")
        with atomic_folder(new) as folder:
            write(folder)
            _write_manifest(folder, step, score)
        if path.exists():
            _move(path, old)  # rename cannot replace a folder with files; `_tidy` moves it back after a kill
        _move(new, path)
        shutil.rmtree(old, ignore_errors=True)
        self.prune()
        return path

    def latest(self) -> Latest:
        """Return the newest sound checkpoint, and set newer damaged ones aside.

        Raises CheckpointError where there are checkpoints and none is sound, and leaves them in place.
        """
        self._tidy()
        reasons: dict[Path, str] = {}
        for path in reversed(self._checkpoints()):
            reason = self.damage_of(path)
            if reason is None:
                self._set_aside(list(reasons))
                return Latest(path, _step(path), tuple(_told(*each) for each in reasons.items()))
            reasons[path] = reason
        # A checkpoint set aside earlier shows that a sound one existed too: the trial is not new.
        reasons = reasons or {path: "set aside before" for path in self._damaged()}
        if reasons:
            each = "; ".join(f"{path.name}: {reason}" for path, reason in reasons.items())
            raise CheckpointError(f"no checkpoint in {self.path} is sound ({each})")
        return Latest()

    def prune(self) -> None:
        """Remove all checkpoints but the last two, the last that was measured and the best, to bound a trial's disk."""
        paths = self._checkpoints()
        scores = {path: score for path in paths if (score := _score(path)) is not None}
        best = max(scores, key=lambda path: (scores[path], _step(path)), default=None)
        for path in paths[:-_KEPT]:
            if path not in (best, *list(scores)[-1:]):
                _discard(path)

    @staticmethod
    def damage_of(path: Path) -> str | None:
        """Return None where a checkpoint holds exactly the files of its manifest, else the reason, for a sentence."""
        try:
            _verify(path)
        except _Damage as damage:
            return str(damage)
        return None

    def keep_result_only(self) -> None:
        """Keep one checkpoint of a trial that is over, without the files that only resuming needs. May be repeated.

        The one kept is the last that holds directions, or else the last: a trial that fails has often saved since then.
        """
        newest = self.latest().path
        if newest is None:
            return
        path = self._result() or newest
        for other in self._checkpoints():
            if other != path:
                _discard(other)
        if (path / _RESUMING).is_dir():
            self.save(_step(path), lambda folder: _copy_result(path, folder), _score(path))

    def resumable(self) -> bool:
        """Return whether any checkpoint has the files that only resuming needs."""
        return any((path / _RESUMING).is_dir() for path in self._checkpoints())

    def result(self) -> Path:
        """Return the newest sound checkpoint that holds directions. Changes nothing, so the trial may be running.

        Raises CheckpointError where there is none.
        """
        path = self._result()
        if path is None:
            raise CheckpointError(f"no sound checkpoint in {self.path} holds {_RESULT}")
        return path

    def remove_all(self) -> None:
        """Remove all checkpoints. The folder and its other files stay."""
        self._tidy()
        for path in (*self._checkpoints(), *self._damaged()):
            _discard(path)

    def _result(self) -> Path | None:
        holders = (path for path in reversed(self._checkpoints()) if (path / _RESULT).is_dir())
        return next((path for path in holders if self.damage_of(path) is None), None)

    def _checkpoints(self) -> list[Path]:
        """Return the checkpoints by step, the newest last."""
        paths = (path for path in self.path.glob("checkpoint_*") if re.fullmatch(r"checkpoint_\d{8,}", path.name))
        return sorted((path for path in paths if path.is_dir()), key=_step)

    def _damaged(self) -> list[Path]:
        return list(self.path.glob("damaged_*"))

    def _set_aside(self, damaged: Sequence[Path]) -> None:
        """Keep the newest damaged checkpoint, the first of `damaged`, for inspection, and remove the others."""
        if not damaged:
            return
        for path in (*self._damaged(), *damaged[1:]):
            _discard(path)
        _move(damaged[0], self.path / damaged[0].name.replace("checkpoint", "damaged"))

    def _tidy(self) -> None:
        """Repair what a killed process has left half done."""
        for old in self.path.glob(".checkpoint_*.old"):
            path = self.path / old.stem.removeprefix(".")
            if not path.exists():
                _move(old, path)
        for pattern in ("..checkpoint_*.new-*", ".checkpoint_*.new", ".checkpoint_*.old", ".*.gone"):
            for left in self.path.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)


def remove_checkpoints(folders: Iterable[TrialFolder]) -> None:
    """Remove all checkpoints of these trials, which have ended."""
    for folder in folders:
        folder.remove_all()


def _write_manifest(folder: Path, step: int, score: float | None) -> None:
    finite = score if score is not None and math.isfinite(score) else None  # NaN is never the best
    files = {name: _entry(folder / name) for name in sorted(_files(folder))}
    content = {"format": _FORMAT, "step": step, "score": finite, "files": files}
    write_json(folder / _MANIFEST, {**content, "sha256": _digest_of(content)})


def _manifest(path: Path) -> dict[str, Any]:
    with _reading(_MANIFEST):
        text = (path / _MANIFEST).read_bytes()
    try:
        content = json.loads(text)
        digest = content.pop("sha256")
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
        raise _Damage(f"{_MANIFEST} is not a manifest") from None
    if digest != _digest_of(content):
        raise _Damage(f"{_MANIFEST}: its digest differs")
    if content["format"] != _FORMAT:
        raise _Damage(f"{_MANIFEST} is of format {content['format']}, not {_FORMAT}")
    return dict(content)


def _score(path: Path) -> float | None:
    try:
        score: float | None = _manifest(path)["score"]
    except _Damage:
        return None
    return score


def _verify(path: Path) -> None:
    entries, names = _manifest(path)["files"], _files(path)
    for name, entry in entries.items():
        with _reading(name):
            nbytes = (path / name).stat().st_size
            if nbytes != entry["bytes"]:
                raise _Damage(f"{name} has {nbytes} bytes instead of {entry['bytes']}")
            if _entry(path / name) != entry:
                raise _Damage(f"{name}: its digest differs")
    for name in sorted(names - entries.keys()):
        raise _Damage(f"{name} is not in its manifest")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Raise _Damage where a file is missing or the disk cannot read it."""
    try:
        yield
    except FileNotFoundError:
        raise _Damage(f"{name} is missing") from None
    except OSError as error:
        raise _Damage(f"{name} cannot be read: {error.strerror}") from error


def _files(folder: Path) -> set[str]:
    """Return the paths of all files but the manifest, relative to the folder."""
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in paths} - {_MANIFEST}


def _entry(file: Path) -> dict[str, Any]:
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return {"bytes": content.tell(), "sha256": digest}


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _copy_result(path: Path, folder: Path) -> None:
    """Copy all but the files that only resuming needs, and the manifest, which lists those files."""

    def left_out(at: str, names: list[str]) -> set[str]:
        return {_RESUMING, _MANIFEST} if Path(at) == path else set()

    shutil.copytree(path, folder, ignore=left_out, dirs_exist_ok=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint_"))


def _told(path: Path, reason: str) -> str:
    return f"{path.name} is damaged ({reason}); the one before it is taken"


def _hidden(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")


def _discard(path: Path) -> None:
    """Remove a folder under a hidden name: half removed under its own name, it would look damaged."""
    gone = _hidden(path, "gone")
    shutil.rmtree(gone, ignore_errors=True)
    _move(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _move(path: Path, to: Path) -> None:
    """Rename, and wait until the rename is on the disk."""
    os.rename(path, to)
    descriptor = os.open(to.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
