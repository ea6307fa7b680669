"""A state comes back from disk bit by bit, and what is not a state is refused."""

import json
import math
import pickle
import shutil
from collections import OrderedDict, defaultdict, namedtuple
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator import statefile
from orchestrator.statefile import StateFileError

Pair = namedtuple("Pair", "left right")
Stage = IntEnum("Stage", "one two")


def same(ours: Any, theirs: Any) -> bool:
    """Of the same types, in the same order, and bit by bit."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, torch.Tensor):
        alike = ours.dtype is theirs.dtype and ours.shape == theirs.shape
        return alike and bits(ours) == bits(theirs)
    if isinstance(ours, dict):
        return same(list(ours.items()), list(theirs.items()))
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, float):
        return ours.hex() == theirs.hex()
    return bool(ours == theirs)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def state() -> dict[Any, Any]:
    flat = torch.randn(20, generator=torch.Generator().manual_seed(0))
    return {
        "module": OrderedDict(second=flat[3:9].view(2, 3), first=flat[:4]),  # in one storage
        "state": {0: {"step": 7, "exp_avg": flat[::2]}, 1: {"step": torch.tensor(7.0)}},
        ("a", 1): {True: 1, None: 2, 2.5: 3},
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
        "betas": (0.9, 0.1 + 0.2, -0.0, 5e-324, 1e22, math.inf, -math.inf, math.nan),
        "whole": [1, -(2**70), True, None, "", "\u00e9\n\ud800", [], (), {}, set(), {1, "x", (2, 3)}],
        "shapes": [torch.Size([2, 3]), torch.Size([]), torch.bfloat16, torch.complex128],
        "bytes": torch.arange(256, dtype=torch.uint8),
        "odd": [torch.tensor(math.nan), torch.zeros(0, 3), torch.tensor([True]), torch.tensor(2**62)],
        "halves": [flat.to(torch.bfloat16), flat.half(), flat.double(), flat.to(torch.float8_e5m2), flat.cfloat()],
        "view": torch.arange(6).view(2, 3).T,
    }


@pytest.fixture
def written(tmp_path: Path) -> Path:
    statefile.write(state(), tmp_path / "state")
    return tmp_path / "state"


def test_a_tree_comes_back_bit_by_bit(written: Path) -> None:
    assert same(statefile.read(written), state())
    assert sorted(path.name for path in written.iterdir()) == ["tensors.safetensors", "tree.json"]


def test_a_parameter_comes_back_as_a_plain_tensor_of_its_own(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.arange(3.0))
    statefile.write([parameter, parameter], tmp_path / "state")
    first, second = statefile.read(tmp_path / "state")
    assert type(first) is torch.Tensor and not first.requires_grad
    with open(tmp_path / "state" / "tensors.safetensors", "r+b") as file:  # nothing of it is mapped
        file.write(bytes((tmp_path / "state" / "tensors.safetensors").stat().st_size))
    first.add_(1)
    assert first.tolist() == [1, 2, 3] and second.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Stage.two, "Stage"),
        (Pair(1, 2), "Pair"),
        (SimpleNamespace(a=1), "types.SimpleNamespace"),
        (len, "builtins.builtin_function_or_method"),
        (defaultdict(int), "collections.defaultdict"),
        (b"bytes", "builtins.bytes"),
        (frozenset(), "builtins.frozenset"),
        (1j, "builtins.complex"),
        (torch.device("cpu"), "torch.device"),
        (torch.eye(2).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(1, device="meta"), "meta"),
        (torch.zeros(1, dtype=torch.complex128), "torch.complex128"),
    ],
)
def test_any_other_type_is_refused_with_its_place(tmp_path: Path, value: Any, kind: str) -> None:
    with pytest.raises(StateFileError) as error:
        statefile.write({"groups": [{"odd": value}]}, tmp_path / "state")
    assert str(error.value).startswith("state.groups.0.odd is of type ") and kind in str(error.value)
    assert not (tmp_path / "state").exists()


def test_a_key_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StateFileError, match=r"^the key .* of state is of type .*Stage, which a state file cannot hold$"
    ):
        statefile.write({Stage.one: 1}, tmp_path / "state")


def test_a_state_is_never_written_over_another(written: Path) -> None:
    with pytest.raises(FileExistsError):
        statefile.write({}, written)
    assert same(statefile.read(written), state())


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["", "tree.json", "tensors.safetensors"])
def test_a_pickle_is_refused_and_not_unpickled(written: Path, tmp_path: Path, place: str) -> None:
    if not place:
        shutil.rmtree(written)
    (written / place).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(StateFileError, match=str(written / place)):
        statefile.read(written)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists(), "the trap is none"


@pytest.mark.parametrize("name", ["tree.json", "tensors.safetensors"])
@pytest.mark.parametrize("part", [None, 0.0, 0.3, 0.99])
def test_a_file_that_is_missing_or_short_is_refused(written: Path, name: str, part: float | None) -> None:
    content = (written / name).read_bytes()
    (written / name).unlink()
    if part is not None:
        (written / name).write_bytes(content[: int(part * len(content))])
    with pytest.raises(StateFileError, match=f"{name}.* is damaged: "):
        statefile.read(written)


@pytest.mark.parametrize(
    "tree",
    [
        "[]",
        "{}",
        '{"format": 2, "tree": 1}',
        '{"format": 1}',
        "[" * 100_000,
        '{"format": 1, "tree": ' + "[" * 100_000 + "]" * 100_000 + "}",
        *(
            json.dumps({"format": 1, "tree": tree})
            for tree in (
                {"object": []},
                {"dict": 5},
                {"dict": [[1, 2, 3]]},
                {"dict": [[[], 2]]},
                {"set": [[1]]},
                {"dtype": "load"},
                {"float": "x"},
                {"float": 10**400},
                {"Size": ["x"]},
                {"tuple": 1, "set": 2},
                {"tensor": {"name": "0 state.x", "dtype": "float32", "shape": [5]}},
                {"tensor": {"name": "0 state.x", "dtype": "int32", "shape": [4]}},
                {"tensor": {"name": "1 state.y", "dtype": "float32", "shape": [4]}},
                {"tensor": "0 state.x"},
                [{"tensor": {"name": "0 state.x", "dtype": "float32", "shape": [4]}}] * 2,
                [],
            )
        ),
    ],
    ids=lambda tree: tree[:60],
)
def test_a_tree_that_nobody_wrote_is_refused(tmp_path: Path, tree: str) -> None:
    statefile.write({"x": torch.zeros(4)}, tmp_path / "state")
    (tmp_path / "state" / "tree.json").write_text(tree)
    with pytest.raises(StateFileError, match=r"tree.json.* is damaged: "):
        statefile.read(tmp_path / "state")


def test_a_tree_without_end_is_not_read(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statefile, "_TREE_LIMIT", 100)
    with pytest.raises(StateFileError, match=r"tree.json is damaged: it has more than 100 bytes$"):
        statefile.read(written)


def test_a_tensor_of_another_state_is_refused(written: Path) -> None:
    tensors = load_file(written / "tensors.safetensors")
    save_file({**tensors, "99 state.more": torch.zeros(1)}, written / "tensors.safetensors")
    with pytest.raises(StateFileError, match=r"holds '99 state.more', which tree.json does not$"):
        statefile.read(written)


def test_a_full_disk_is_the_disks_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise statefile.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(statefile, "save_file", full)
    with pytest.raises(OSError, match=r"^\[Errno 28\] .*No space left"):
        statefile.write(state(), tmp_path / "state")
