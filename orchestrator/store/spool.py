"""Records that wait on disk: each is whole or absent, has a number, and stays until it is removed or set aside.

00000012.json    a record
00000012/        the files it brings, linked where that is possible, so that they outlive what they were taken from
refused/         records set aside, each with a text that says why. Moved back, one is the first in the queue again.

One process writes; any number may look on.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from core.files import atomic_folder, write_json

_NAME = "[0-9]" * 8
Record = dict[str, Any]


class Unreadable(Exception):
    """A record that a disk has damaged, or whose files have gone."""


def pending(folder: Path) -> int:
    """How many records wait."""
    return len(_numbers(folder))


def refused(folder: Path) -> int:
    """How many records were set aside."""
    return len(_numbers(folder / "refused"))


class Spool:
    """The records in a folder, for the one process that writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "refused").mkdir(parents=True, exist_ok=True)
        _sweep_up(folder)
        self._last = max([*_numbers(folder), *_numbers(folder / "refused")], default=0)

    def numbers(self) -> list[int]:
        return _numbers(self.folder)

    def put(self, record: Record, files: Path | None = None) -> int:
        """Its number; durable when this returns. files: a file, or a folder with those that it brings."""
        self._last += 1
        if files is not None:
            _keep(files, self.files(self._last))
        write_json(self.file(self._last), record)  # last: the record is there when this file is
        return self._last

    def file(self, number: int) -> Path:
        return self.folder / f"{number:08}.json"

    def files(self, number: int) -> Path:
        return self.folder / f"{number:08}"

    def read(self, number: int) -> Record | None:
        """A record; None where it has gone. Raises Unreadable."""
        try:
            record = json.loads(self.file(number).read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Unreadable(f"it cannot be read: {error}") from error
        if not isinstance(record, dict):
            raise Unreadable("it cannot be read: it is not an object")
        return record

    def remove(self, number: int) -> None:
        """The record first: files alone are swept up, a record without its files would be damaged."""
        self.file(number).unlink(missing_ok=True)
        shutil.rmtree(self.files(number), ignore_errors=True)

    def set_aside(self, number: int, reason: str) -> Path:
        """Move a record out of the way of those behind it; where it is now. Its own file goes last, as in `put`."""
        to = self.folder / "refused"
        (to / f"{number:08}.txt").write_text(reason + "\n")
        if self.files(number).exists():
            os.replace(self.files(number), to / f"{number:08}")
        os.replace(self.file(number), to / f"{number:08}.json")
        return to / f"{number:08}.json"


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob(f"{_NAME}.json"))


def _keep(source: Path, folder: Path) -> None:
    """A file, or what a folder holds, into a new folder that stays as it is when the source is removed."""
    with atomic_folder(folder) as temporary:
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=_link, dirs_exist_ok=True)
        else:
            _link(source, temporary / source.name)


def _link(source: Any, to: Any) -> None:
    """The same file under another name; a copy where the two are on different disks, or the disk has no links."""
    try:
        os.link(source, to)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, to)


def _sweep_up(folder: Path) -> None:
    """Remove what a writer that was killed had begun: its temporary files, and files whose record was not put down."""
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(_NAME):
        if not path.with_suffix(".json").exists():
            shutil.rmtree(path, ignore_errors=True)
