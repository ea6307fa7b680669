"""What a bad disk does to the files of a sweep that lies still, and what is promised then."""

import hashlib
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

from tests.faults.sweep_under_test import SweepUnderTest, check


def newest(trial: Path) -> Path:
    """The last checkpoint of a trial."""
    return max(trial.glob("checkpoint_*"))


def truncate(checkpoint: Path) -> None:
    """Its largest file to one half."""
    file = _largest(checkpoint)
    os.truncate(file, file.stat().st_size // 2)


def flip(checkpoint: Path) -> None:
    """One bit in the middle of its largest file."""
    file = _largest(checkpoint)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def delete_one(checkpoint: Path) -> None:
    """Its largest file."""
    _largest(checkpoint).unlink()


def _largest(checkpoint: Path) -> Path:
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def told(sweep: SweepUnderTest, trial: Path, times: int) -> None:
    """Wait until the sweep has said of a trial, that many times, that it falls back."""
    sweep.says(f"trial {trial.name} note ", times=times)
    sweep.says("; the one before it is taken", times=times)
    found = re.findall(rf"trial {trial.name} note checkpoint_\d+ is damaged \(.+?\); the one before", sweep.said())
    check(len(found) >= times, f"never said of trial {trial.name}: {sweep.said()[-300:]}")


def noise_at_start(file: Path) -> None:
    """Where a database says what it is."""
    _noise(file, 0)


def noise_in_the_middle(file: Path) -> None:
    """In its pages."""
    _noise(file, 4096)


def _noise(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    length = 4096 if at else 100
    content[at : at + length] = random.Random(0).randbytes(length)
    file.write_bytes(content)


def refused_study(sweep: SweepUnderTest, said: str, spoil: Callable[[Path], None]) -> None:
    """Spoil the study of a sweep that lies still, and see it refused and left as it is; it is whole again then."""
    study = sweep.folder.study_file
    whole = study.read_bytes()
    spoil(study)
    before = _digests(sweep.folder.path)
    try:
        done = sweep.run()
        check(done.returncode == 2, f"exit {done.returncode}: {done.stdout}{done.stderr}")
        check(done.stderr.startswith(f"{study} {said}"), f"it said {done.stderr}")
        check(done.stderr.count("\n") == 1, f"more than a sentence: {done.stderr}")
        after = _digests(sweep.folder.path)
        check(after == before, f"changed: {sorted(str(path) for path, _ in before.items() ^ after.items())}")
    finally:
        study.write_bytes(whole)


def _digests(folder: Path) -> dict[Path, str]:
    """Of every file; the lock is held by whoever looks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
