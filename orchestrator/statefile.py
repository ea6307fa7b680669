"""A state dict on disk without pickle: its tensors as safetensors, the tree that holds them as JSON.

    <folder>/tensors.safetensors   every tensor, under a number and the place where it stands in the tree
    <folder>/tree.json             all the rest; what JSON has no word for is an object of one key, its type

Reading runs nothing that a file says: a file that is damaged, or another's, is refused.
"""

import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import first_line

_TENSORS, _TREE = "tensors.safetensors", "tree.json"
_FORMAT = 1
_TREE_LIMIT = 64 << 20  # bytes; a tree of DeepSpeed's takes some kilobytes

# What safetensors stores. complex128 and quantised types are not among them.
_STORED = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
}


class StateFileError(RuntimeError):
    """A state that cannot be written, or a file of one that cannot be read."""


def write(state: Any, folder: Path) -> None:
    """Write a tree of dicts, lists, tuples, sets, plain values, sizes, dtypes and tensors to a new folder.

    It comes back as it is, bit by bit, save that tensors are on the CPU, ask for no gradient and share no memory.
    Raises StateFileError where a value is of any other type: what is left out in silence is missed at the resume.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "state", tensors)
    folder.mkdir(parents=True)
    path = folder / _TENSORS
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise _as_os_error(error, path) from error
    path.chmod(0o644)  # safetensors keeps its files to their owner
    (folder / _TREE).write_text(json.dumps({"format": _FORMAT, "tree": tree}, allow_nan=False))


def read(folder: Path) -> Any:
    """What `write` wrote. Raises StateFileError, which names the file, where anything is not as it was written."""
    if not folder.is_dir():
        raise StateFileError(f"{folder} is not a folder that holds a state")
    tree = _tree(folder / _TREE)
    path = folder / _TENSORS
    try:
        with safe_open(path, framework="pt") as file:
            tensors = _Tensors(file)
            state = _decode(tree, tensors)
            if tensors.unread:
                raise ValueError(f"holds {sorted(tensors.unread)[0]!r}, which {_TREE} does not")
        return state
    except (OSError, SafetensorError, ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise StateFileError(f"{path} or {_TREE} beside it is damaged: {first_line(error)}") from error


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON holds it; tensors are put aside under a name."""
    if isinstance(value, Tensor):
        return {"tensor": _put_aside(value, place, tensors)}
    # By the very type: an enumeration is an int, a named tuple is a tuple, and neither would come back as it was.
    kind = type(value)
    if kind is dict or kind is OrderedDict:
        pairs = [
            [_encode(key, f"the key {key!r} of {place}", tensors), _encode(item, f"{place}.{key}", tensors)]
            for key, item in value.items()
        ]
        return {kind.__name__: pairs}
    if kind is list or kind is tuple or kind is set:
        items = [_encode(item, f"{place}.{index}", tensors) for index, item in enumerate(value)]
        return items if kind is list else {kind.__name__: items}
    if kind is torch.Size:
        return {"Size": list(value)}
    if kind is torch.dtype:
        return {"dtype": _name(value)}
    if kind is float and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or kind in (bool, int, float, str):
        return value
    raise StateFileError(f"{place} is of type {kind.__module__}.{kind.__qualname__}, which a state file cannot hold")


def _put_aside(tensor: Tensor, place: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Copy a tensor to the CPU under a name of its own, and say what it is, so that a file can be checked by it."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_meta
    if not plain or tensor.dtype not in _STORED:
        kind = f"{type(tensor).__qualname__} ({tensor.layout}, {tensor.dtype}, {tensor.device})"
        raise StateFileError(f"{place} is of type {kind}, which a state file cannot hold")
    name = f"{len(tensors)} {place}"  # the number tells {"a.b": x} from {"a": {"b": x}}
    tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return {"name": name, "dtype": _name(tensor.dtype), "shape": list(tensor.shape)}


class _Tensors:
    """The tensors of an open file. Each is taken once, and only if it is what the tree says."""

    def __init__(self, file: Any) -> None:
        self.file, self.unread = file, set(file.keys())

    def take(self, told: Mapping[str, Any]) -> Tensor:
        name = told["name"]
        if name not in self.unread:
            raise ValueError(f"does not hold {name!r}, or is asked for it twice")
        self.unread.remove(name)
        if self.file.get_slice(name).get_shape() != told["shape"]:
            raise ValueError(f"{name!r} is not of shape {told['shape']}")
        # A copy, for what safetensors gives is a map of the file, which may go while the state is used.
        tensor: Tensor = self.file.get_tensor(name).clone()
        if tensor.dtype is not _DTYPES[told["dtype"]]:
            raise ValueError(f"{name!r} is not of type {told['dtype']}")
        return tensor


def _decode(value: Any, tensors: _Tensors) -> Any:
    """What `_encode` was given."""
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors.take(content)
    if kind in ("dict", "OrderedDict"):
        pairs = [(_decode(key, tensors), _decode(item, tensors)) for key, item in content]
        return dict(pairs) if kind == "dict" else OrderedDict(pairs)
    return _MAKE[kind](_decode(content, tensors))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_DTYPES = {_name(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_MAKE: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "Size": torch.Size,
    "dtype": _DTYPES.__getitem__,
    "float": float,
}


def _tree(path: Path) -> Any:
    try:
        if path.stat().st_size > _TREE_LIMIT:
            raise ValueError(f"it has more than {_TREE_LIMIT} bytes")
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"it is not of format {_FORMAT}")
        return content["tree"]
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise StateFileError(f"{path} is damaged: {first_line(error)}") from error


def _as_os_error(error: SafetensorError, path: Path) -> Exception:
    """The error of the disk that safetensors gives in words, for a full disk is no fault of the state."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), first_line(error), str(path)) if found else StateFileError(f"{path}: {error}")
