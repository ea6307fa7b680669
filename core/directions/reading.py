"""Read the two files of a direction set that may come from anyone: everything is checked before memory is allocated.

The tensors are read here and not by the safetensors package, from the same open file whose header was checked. This
takes no more memory than the tensors do, and the file cannot be replaced between the check and the reading.
"""

import json
import math
import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.directions.dials import NAMED_BY, Dial
from core.errors import DirectionSetError
from core.files import open_regular

# Upper limits for a set. The largest sets that the methods here can make stay far below them.
MAX_TENSOR_BYTES = 8 << 30  # of the whole file with both tensors
MAX_HEADER_BYTES = 1 << 16  # of the header of a safetensors file; that of a set takes about 200
MAX_JSON_BYTES = 4 << 20
MAX_DEPTH = 20  # lists and mappings inside each other
MAX_NAME = 200  # characters of a direction's name or a metric's
MAX_TIMESTEPS = 10_000  # limits the number of timesteps and the value of each
_SHOWN = 60  # characters of a value read from a file that a message shows

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_DIMENSIONS = {"table": 5, "sigma": 2}


@dataclass(frozen=True)
class Stored:
    """The type and shape of one tensor, and its range of bytes in the file, `end` exclusive."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_description(path: Path) -> dict[str, Any]:
    """Return the JSON mapping in a file. Raises DirectionSetError, in one sentence, where it is none or too large."""
    with _opened(path) as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise DirectionSetError(f"{path} is longer than {MAX_JSON_BYTES} bytes")
    read = _json(content, path)
    if _deeper(read, MAX_DEPTH):
        raise DirectionSetError(f"{path} has more than {MAX_DEPTH} lists and mappings inside each other")
    return read


def read_names(description: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the directions. Raises DirectionSetError where they are no list of texts."""
    names = _listed(description, "names")
    for name in names:
        if not isinstance(name, str):
            raise DirectionSetError(f"names holds {shown(name)}, which is not text")
    return tuple(names)


def name_problem(name: str) -> str | None:
    """Return why `name` cannot be the name of a direction or a metric; None where it can.

    Names are printed in terminals and copied from there, so they must not hold control characters.
    """
    if not name or len(name) > MAX_NAME:
        return f"the name {shown(name)} has {len(name)} characters; allowed: 1 to {MAX_NAME}"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        return f"the name {shown(name)} has control characters"
    return None


def read_timesteps(description: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the training timesteps of the set's chain. Raises DirectionSetError where they are out of range."""
    timesteps = _listed(description, "timesteps")
    if not 1 <= len(timesteps) <= MAX_TIMESTEPS:
        raise DirectionSetError(f"timesteps has {len(timesteps)} entries; allowed: 1 to {MAX_TIMESTEPS}")
    for t in timesteps:
        if type(t) not in (int, float) or not 0 <= t < MAX_TIMESTEPS:  # NaN is not
            raise DirectionSetError(f"timesteps holds {shown(t)}; allowed: numbers from 0 to {MAX_TIMESTEPS - 1}")
    return tuple(timesteps)


def read_metrics(description: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of the set: name -> finite number. Raises DirectionSetError for anything else."""
    return _numbers(description, "metrics")


def read_provenance(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance of the set. Raises DirectionSetError where it is no mapping; its values are not checked."""
    return _mapping(description, "provenance")


def read_dials(description: Mapping[str, Any]) -> tuple[Dial, ...]:
    """Return the dials of the directions. Raises DirectionSetError where one is incomplete or out of range."""
    return tuple(_dial(entry) for entry in _listed(description, "dials"))


def _dial(entry: Any) -> Dial:
    wanted = {field.name for field in fields(Dial)}
    if not isinstance(entry, dict) or entry.keys() != wanted:
        raise DirectionSetError(f"dials: each needs {', '.join(sorted(wanted))}, nothing else")
    numbers = {name: _number(entry, name, "dials") for name in wanted - {"effects", "named_by"}}
    if not numbers["low"] <= 0 <= numbers["high"]:
        raise DirectionSetError(f"dials: the range {shown(entry['low'])} to {shown(entry['high'])} does not hold 0")
    for name in ("consistency", "distinctness"):
        if not 0 <= numbers[name] <= 1:
            raise DirectionSetError(f"dials: {name} is {shown(entry[name])}; allowed: 0 to 1")
    if entry["named_by"] not in NAMED_BY:
        raise DirectionSetError(f"dials: named_by is {shown(entry['named_by'])}; allowed: {', '.join(NAMED_BY[1:])}")
    return Dial(**numbers, effects=_numbers(entry, "effects"), named_by=entry["named_by"])


def _numbers(description: Mapping[str, Any], key: str) -> dict[str, float]:
    """Return the mapping of names to finite numbers at `key`. Raises DirectionSetError for anything else."""
    numbers = _mapping(description, key)
    for name in numbers:
        if problem := name_problem(name):
            raise DirectionSetError(f"{key}: {problem}")
        _number(numbers, name, key)
    return numbers


def _number(numbers: Mapping[str, Any], name: str, key: str) -> float:
    value = numbers[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise DirectionSetError(f"{key}: {name} is {shown(value)}, not a finite number")
    return value


def read_tensors(path: Path, count: int, timesteps: int) -> dict[str, Tensor]:
    """Return `table` and `sigma` of a set of `count` directions on `timesteps` timesteps, from a safetensors file.

    Raises DirectionSetError, before a tensor is allocated, where the file is not that of such a set.
    """
    with _opened(path) as file:
        stored = _header(file, path)
        _check_shapes(stored, count, timesteps, path)
        return {name: _tensor(file, part, path) for name, part in stored.items()}


def shown(value: object) -> str:
    """Return a value read from a file as one short line for a message."""
    text = ascii(value) if isinstance(value, str) else _plain(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _plain(value: object) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return json.dumps(value)


def _opened(path: Path) -> BufferedReader:
    try:
        return open_regular(path, follow=False)
    except FileNotFoundError:
        raise DirectionSetError(f"{path.parent} is not a direction set: {path.name} is missing") from None
    except OSError as error:
        why = "it is a link, which could lead anywhere" if path.is_symlink() else error.strerror
        raise DirectionSetError(f"{path.parent} is not a direction set: {path.name} cannot be read: {why}") from None
    except ValueError:  # a NUL in the name of the folder
        raise DirectionSetError(f"{ascii(str(path.parent))} is not the name of a folder") from None


def _json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        read = json.loads(content.decode(), parse_constant=_not_finite)
    except RecursionError:
        raise DirectionSetError(f"{path} has more than {MAX_DEPTH} lists and mappings inside each other") from None
    except ValueError as error:
        raise DirectionSetError(f"{path} is not JSON: {str(error)[:_SHOWN]}") from None
    if not isinstance(read, dict):
        raise DirectionSetError(f"{path} is not a mapping")
    return read


def _not_finite(word: str) -> float:
    raise ValueError(f"{word} is not a number of JSON")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def _deeper(value: Any, most: int) -> bool:
    """Return whether lists and mappings are nested more than `most` deep."""
    level = [value]
    for _ in range(most + 1):
        level = [item for part in level if isinstance(part, dict | list) for item in _items(part)]
    return any(isinstance(item, dict | list) for item in level)


def _items(part: dict[str, Any] | list[Any]) -> Iterator[Any]:
    return iter(part.values() if isinstance(part, dict) else part)


def _value(description: Mapping[str, Any], key: str) -> Any:
    if key not in description:
        raise DirectionSetError(f"{key} is missing")
    return description[key]


def _listed(description: Mapping[str, Any], key: str) -> list[Any]:
    value = _value(description, key)
    if not isinstance(value, list):
        raise DirectionSetError(f"{key} is {shown(value)}, not a list")
    return value


def _mapping(description: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = _value(description, key)
    if not isinstance(value, dict):
        raise DirectionSetError(f"{key} is {shown(value)}, not a mapping")
    return value


def _header(file: BufferedReader, path: Path) -> dict[str, Stored]:
    """Return where `table` and `sigma` lie in the file: from the end of the header to the end, without a gap.

    Raises DirectionSetError where the header is invalid or says something else.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise DirectionSetError(
            f"{path} is not a safetensors file of a set: it has {size} bytes, and says that its header has {length} "
            f"(allowed: {MAX_HEADER_BYTES})"
        )
    entries = _json(file.read(length), path)
    entries.pop("__metadata__", None)
    if entries.keys() != _DIMENSIONS.keys():
        named = ", ".join(shown(name) for name in sorted(entries)[:5])
        raise DirectionSetError(f"{path} holds {named or 'nothing'}; a set has exactly table and sigma")
    stored = {name: _stored(name, entries[name], 8 + length, path) for name in _DIMENSIONS}
    place = 8 + length
    for part in sorted(stored.values(), key=lambda part: part.begin):
        if part.begin != place:
            raise DirectionSetError(f"{path}: table and sigma overlap, or leave a gap")
        place = part.end
    if place != size or size > MAX_TENSOR_BYTES:
        raise DirectionSetError(f"{path} has {size} bytes; table and sigma end at {place} (at most {MAX_TENSOR_BYTES})")
    return stored


def _stored(name: str, entry: Any, start: int, path: Path) -> Stored:
    """Return one entry of the header, checked for consistency. `start`: where the tensors begin in the file."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise DirectionSetError(f"{path}: the entry of {name} needs dtype, shape and data_offsets, nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise DirectionSetError(f"{path}: {name} is of type {shown(dtype)}; allowed: {', '.join(_DTYPES)}")
    if not _whole(shape) or len(shape) != _DIMENSIONS[name] or 0 in shape:
        raise DirectionSetError(f"{path}: {name} needs {_DIMENSIONS[name]} sizes of 1 or more")
    if not _whole(offsets) or len(offsets) != 2:
        raise DirectionSetError(f"{path}: the data_offsets of {name} are not two integers")
    begin, end = offsets
    if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise DirectionSetError(f"{path}: the shape of {name} and its {end - begin} bytes do not agree")
    return Stored(_DTYPES[dtype], tuple(shape), start + begin, start + end)


def _whole(values: Any) -> bool:
    """Return whether `values` is a short list of integers from 0 to 2^63 - 1."""
    return (
        isinstance(values, list)
        and len(values) <= max(_DIMENSIONS.values())
        and all(type(value) is int and 0 <= value < 2**63 for value in values)
    )


def _check_shapes(stored: Mapping[str, Stored], count: int, timesteps: int, path: Path) -> None:
    """Raise DirectionSetError unless table has `count` directions and 1 or `timesteps` steps, and sigma as many."""
    table, sigma = stored["table"].shape, stored["sigma"].shape
    if table[0] != count or table[1] not in (1, timesteps) or sigma != table[:2]:
        raise DirectionSetError(
            f"{path}: table has shape {list(table)} and sigma {list(sigma)}; "
            f"there are {count} names and {timesteps} timesteps"
        )


def _tensor(file: BufferedReader, part: Stored, path: Path) -> Tensor:
    tensor = torch.empty(part.shape, dtype=part.dtype)
    file.seek(part.begin)
    if file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data) != part.end - part.begin:
        raise DirectionSetError(f"{path} became shorter while it was read")
    return tensor
