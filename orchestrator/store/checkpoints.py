"""The checkpoints of one trial on disk: written whole, verified before they are believed, few at a time.

    <trial>/checkpoint_00000100/                what a trial at step 100 wrote of itself (orchestrator.trial.run)
    <trial>/checkpoint_00000100/manifest.json   the step, its score, and size and SHA-256 of every file beside it
    <trial>/damaged_00000100/                   one that was found damaged, kept for a look and never read again

What is on its way in or out has a hidden name, so that whoever is killed leaves checkpoints that are whole, and litter
that the next one knows. One process at a time changes a trial's folder; `whole` and `result` only look.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.files import atomic_folder, write_json

_MANIFEST = "manifest.json"
_FORMAT = 1
_RESUMING = "engines"  # the sub-folder that only going on with a trial needs
_RESULT = "directions"  # the sub-folder that a trial is run for
_KEPT = 2  # the last one, and one to fall back to where that is damaged


class CheckpointError(RuntimeError):
    """A trial has checkpoints, and none that can be used. Never answered by a silent fresh start."""


class _Damage(Exception):
    """Why a checkpoint is not what was written, for a bracket in a sentence."""


@dataclass(frozen=True)
class Latest:
    """Where a trial goes on: its newest sound checkpoint, if it has any, and a sentence on each damaged newer one."""

    path: Path | None = None
    step: int = 0
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialFolder:
    """The folder of one trial. Other files in it, beside the checkpoints, are left alone."""

    path: Path

    def save(self, step: int, write: Callable[[Path], None], score: float | None = None) -> Path:
        """Keep what `write` puts into the folder that it is given as the checkpoint of this step.

        It takes the place of one of the same step. Where anything fails, nothing of it stays behind.
        score: how good the trial was at this step, the larger the better; the best checkpoint outlives newer ones.
        """
        self._tidy()
        path = self.path / f"checkpoint_{step:08d}"
        new, old = _hidden(path, "new"), _hidden(path, "old")
        with atomic_folder(new) as folder:
            write(folder)
            _write_manifest(folder, step, score)
        if path.exists():
            _move(path, old)  # a folder that is not empty cannot be renamed over; `_tidy` puts it back
        _move(new, path)
        shutil.rmtree(old, ignore_errors=True)
        self.prune()
        return path

    def latest(self) -> Latest:
        """The newest sound checkpoint. Newer ones that are damaged are set aside.

        Raises CheckpointError where there are checkpoints and none is sound, and leaves them as they are.
        """
        self._tidy()
        reasons: dict[Path, str] = {}
        for path in reversed(self._checkpoints()):
            reason = self.whole(path)
            if reason is None:
                self._set_aside(list(reasons))
                return Latest(path, _step(path), tuple(_told(*each) for each in reasons.items()))
            reasons[path] = reason
        # One that was set aside says that there has been a sound one as well: the trial is not new.
        reasons = reasons or {path: "set aside before" for path in self._damaged()}
        if reasons:
            each = "; ".join(f"{path.name}: {reason}" for path, reason in reasons.items())
            raise CheckpointError(f"no checkpoint in {self.path} is sound ({each})")
        return Latest()

    def prune(self) -> None:
        """Keep the last two checkpoints, the last that was measured and the best; a trial's disk is bounded."""
        paths = self._checkpoints()
        scores = {path: score for path in paths if (score := _score(path)) is not None}
        best = max(scores, key=lambda path: (scores[path], _step(path)), default=None)
        for path in paths[:-_KEPT]:
            if path not in (best, *list(scores)[-1:]):
                _discard(path)

    @staticmethod
    def whole(path: Path) -> str | None:
        """None where a checkpoint holds the files of its manifest and no other; else the reason, for a sentence."""
        try:
            _verify(path)
        except _Damage as damage:
            return str(damage)
        return None

    def ended(self) -> None:
        """The trial is over: keep the last checkpoint, without what only resuming needs. May be asked for again.

        The last that holds directions, if any does: a trial that fails has often saved more than once since.
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
        """Whether anything is kept here that only going on needs."""
        return any((path / _RESUMING).is_dir() for path in self._checkpoints())

    def result(self) -> Path:
        """The newest sound checkpoint that holds directions. It changes nothing, so a trial may be running."""
        path = self._result()
        if path is None:
            raise CheckpointError(f"no sound checkpoint in {self.path} holds {_RESULT}")
        return path

    def empty(self) -> None:
        """Remove all checkpoints. The folder and the files beside them stay."""
        self._tidy()
        for path in (*self._checkpoints(), *self._damaged()):
            _discard(path)

    def _result(self) -> Path | None:
        holders = (path for path in reversed(self._checkpoints()) if (path / _RESULT).is_dir())
        return next((path for path in holders if self.whole(path) is None), None)

    def _checkpoints(self) -> list[Path]:
        """By step, the newest last."""
        found = (path for path in self.path.glob("checkpoint_*") if re.fullmatch(r"checkpoint_\d{8,}", path.name))
        return sorted((path for path in found if path.is_dir()), key=_step)

    def _damaged(self) -> list[Path]:
        return list(self.path.glob("damaged_*"))

    def _set_aside(self, damaged: Sequence[Path]) -> None:
        """Keep the newest damaged checkpoint, which stands first, for a look."""
        if not damaged:
            return
        for path in (*self._damaged(), *damaged[1:]):
            _discard(path)
        _move(damaged[0], self.path / damaged[0].name.replace("checkpoint", "damaged"))

    def _tidy(self) -> None:
        """Put right what a process that was killed has left half done."""
        for old in self.path.glob(".checkpoint_*.old"):
            path = self.path / old.stem.removeprefix(".")
            if not path.exists():
                _move(old, path)
        for pattern in ("..checkpoint_*.new-*", ".checkpoint_*.new", ".checkpoint_*.old", ".*.gone"):
            for left in self.path.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)


def keep_best(trial_folders_in_order: Sequence[TrialFolder], count: int) -> None:
    """Of trials that have ended, the best first, all beyond `count` lose their checkpoints."""
    for folder in trial_folders_in_order[count:]:
        folder.empty()


def _write_manifest(folder: Path, step: int, score: float | None) -> None:
    finite = score if score is not None and math.isfinite(score) else None  # one that is no number is never the best
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
    told, found = _manifest(path)["files"], _files(path)
    for name, entry in told.items():
        with _reading(name):
            nbytes = (path / name).stat().st_size
            if nbytes != entry["bytes"]:
                raise _Damage(f"{name} has {nbytes} bytes instead of {entry['bytes']}")
            if _entry(path / name) != entry:
                raise _Damage(f"{name}: its digest differs")
    for name in sorted(found - told.keys()):
        raise _Damage(f"{name} is not in its manifest")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """A file that is missing, or that the disk does not give, is damage."""
    try:
        yield
    except FileNotFoundError:
        raise _Damage(f"{name} is missing") from None
    except OSError as error:
        raise _Damage(f"{name} cannot be read: {error.strerror}") from error


def _files(folder: Path) -> set[str]:
    """All but the manifest, by their path in the folder."""
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in paths} - {_MANIFEST}


def _entry(file: Path) -> dict[str, Any]:
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return {"bytes": content.tell(), "sha256": digest}


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _copy_result(path: Path, folder: Path) -> None:
    """All but what only resuming needs, and the manifest, which tells of it."""

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
    """Remove a folder that is never seen half removed, which would look like damage."""
    gone = _hidden(path, "gone")
    shutil.rmtree(gone, ignore_errors=True)
    _move(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _move(path: Path, to: Path) -> None:
    """Rename, and wait until the disk knows."""
    os.rename(path, to)
    descriptor = os.open(to.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
