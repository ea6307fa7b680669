"""Keep numbered records on disk until they are sent. Each is whole or absent, and stays until removed or set aside.

00000012.json    a record
00000012/        the files of the record, hard links where possible, so that they outlive the originals
refused/         records set aside, each with a text that says why. A record moved back becomes the first in the queue.

One process writes; any number of processes may read.
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
    """A record that is damaged, or whose files are missing."""


def pending(folder: Path) -> int:
    """Return how many records wait."""
    return len(_numbers(folder))


def refused(folder: Path) -> int:
    """Return how many records were set aside."""
    return len(_numbers(folder / "refused"))


class Spool:
    """The records in a folder, for the one process that writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "refused").mkdir(parents=True, exist_ok=True)
        _sweep_up(folder)
        self._last = max([*_numbers(folder), *_numbers(folder / "refused")], default=0)

    def numbers(self) -> list[int]:
        """Return the numbers of the waiting records, in order."""
        return _numbers(self.folder)

    def put(self, record: Record, files: Path | None = None) -> int:
        """Write a record and return its number; the record is durable then.

        files: a file, or a folder whose content belongs to the record.
        """
        self._last += 1
        if files is not None:
            _keep(files, self.files(self._last))
        write_json(self.file(self._last), record)  # last: the record exists once this file does
        return self._last

    def file(self, number: int) -> Path:
        """Return the path of a record."""
        return self.folder / f"{number:08}.json"

    def files(self, number: int) -> Path:
        """Return the folder of a record's files."""
        return self.folder / f"{number:08}"

    def read(self, number: int) -> Record | None:
        """Return a record, or None where it has been removed. Raises Unreadable."""
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
        """Remove a record, then its files: files alone are cleaned up, a record without its files would be damaged."""
        self.file(number).unlink(missing_ok=True)
        shutil.rmtree(self.files(number), ignore_errors=True)

    def set_aside(self, number: int, reason: str) -> Path:
        """Move a record and its files to `refused/`, with the reason, and return its new path.

        The record's own file is moved last, as in `put`.
        """
        to = self.folder / "refused"
        (to / f"{number:08}.txt").write_text(reason + "\n")
        if self.files(number).exists():
            os.replace(self.files(number), to / f"{number:08}")
        os.replace(self.file(number), to / f"{number:08}.json")
        return to / f"{number:08}.json"


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob(f"{_NAME}.json"))


def _keep(source: Path, folder: Path) -> None:
    """Link a file, or the content of a folder, into a new folder that stays when the source is removed."""
    with atomic_folder(folder) as temporary:
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=_link, dirs_exist_ok=True)
        else:
            _link(source, temporary / source.name)


def _link(source: Any, to: Any) -> None:
    """Hard-link a file; copy it where the two paths are on different disks, or the disk has no links."""
    try:
        os.link(source, to)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, to)


def _sweep_up(folder: Path) -> None:
    """Remove what a killed writer left: its temporary files, and files whose record was never written."""
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(_NAME):
        if not path.with_suffix(".json").exists():
            shutil.rmtree(path, ignore_errors=True)
