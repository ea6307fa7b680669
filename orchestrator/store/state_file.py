"""Store named tensors and plain facts in a folder, without pickle.

    <folder>/tensors.safetensors   every tensor, under its name
    <folder>/facts.json            everything that JSON can hold

Reading runs no code from a file. A damaged file, or one of another format, is refused.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from core.errors import first_line
from core.files import FILE_MODE

_TENSORS, _FACTS = "tensors.safetensors", "facts.json"
_FORMAT = 1
_LIMIT = 1 << 20  # bytes allowed for facts.json; an engine writes some tens


class StateFileError(RuntimeError):
    """A file of a state that cannot be read."""


def write_state(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts into a new folder. Raises OSError where the disk is full or fails."""
    folder.mkdir(parents=True)
    path = folder / _TENSORS
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        errno_match = re.search(r"\(os error (\d+)\)", str(error))  # safetensors gives the errno only as text
        raise OSError(int(errno_match[1]) if errno_match else None, first_line(error), str(path)) from error
    path.chmod(FILE_MODE)  # safetensors makes its files readable by their owner alone
    (folder / _FACTS).write_text(json.dumps({"format": _FORMAT, **facts}, allow_nan=False))


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the facts that `write_state` wrote.

    Raises StateFileError, which names the file, where a file cannot be read.
    """
    path = folder / _FACTS
    try:
        if path.stat().st_size > _LIMIT:
            raise ValueError(f"it has more than {_LIMIT} bytes")
        facts = json.loads(path.read_text())
        if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
            raise ValueError(f"it is not of format {_FORMAT}")
        path = folder / _TENSORS
        # Read the whole file: a memory map breaks if the file is removed while the state is in use.
        return load(path.read_bytes()), facts
    except (OSError, SafetensorError, ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise StateFileError(f"{path} is damaged: {first_line(error)}") from error
