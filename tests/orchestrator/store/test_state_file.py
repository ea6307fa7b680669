"""A state comes back from disk bit by bit, and what is not a state is refused."""

import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from orchestrator.store import state_file
from orchestrator.store.state_file import StateFileError, read_state, write_state

FACTS = {"iteration": 2**40, "steps": 3}


def state() -> dict[str, Tensor]:
    flat = torch.randn(20, generator=torch.Generator().manual_seed(0))
    parts = {"parameter/a.weight": flat[3:9].view(2, 3).clone(), "exp_avg/a.weight": flat[:6].view(3, 2).T}
    return {**parts, "buffer/b": torch.tensor(math.nan), "none": torch.zeros(0, 3), "half": flat.to(torch.bfloat16)}


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_state(tmp_path / "state", state(), FACTS)
    return tmp_path / "state"


def test_a_state_comes_back_bit_by_bit(written: Path) -> None:
    tensors, facts = read_state(written)
    assert facts == {"format": 1, **FACTS} and tensors.keys() == state().keys()
    for name, tensor in state().items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(tensors[name]) == bits(tensor)
    assert sorted(path.name for path in written.iterdir()) == ["facts.json", "tensors.safetensors"]


def test_a_state_is_never_written_over_another(written: Path) -> None:
    with pytest.raises(FileExistsError):
        write_state(written, {}, {})
    assert read_state(written)[1]["steps"] == 3


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["", "facts.json", "tensors.safetensors"])
def test_a_pickle_is_refused_and_not_unpickled(written: Path, tmp_path: Path, place: str) -> None:
    if not place:
        shutil.rmtree(written)
    (written / place).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(StateFileError, match=str(written / place)):
        read_state(written)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists(), "the trap is none"


@pytest.mark.parametrize("name", ["facts.json", "tensors.safetensors"])
@pytest.mark.parametrize("part", [None, 0.0, 0.3, 0.99])
def test_a_file_that_is_missing_or_short_is_refused(written: Path, name: str, part: float | None) -> None:
    content = (written / name).read_bytes()
    (written / name).unlink()
    if part is not None:
        (written / name).write_bytes(content[: int(part * len(content))])
    with pytest.raises(StateFileError, match=f"{name} is damaged: "):
        read_state(written)


@pytest.mark.parametrize("facts", ["[]", "{}", '{"format": 2}', "[" * 100_000, "\u00e9", " " * (1 << 20) + "{}"])
def test_facts_that_nobody_wrote_are_refused(written: Path, facts: str) -> None:
    (written / "facts.json").write_text(facts, encoding="latin-1")
    with pytest.raises(StateFileError, match=r"facts.json is damaged: "):
        read_state(written)


def test_a_full_disk_is_the_disks_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(state_file, "save_file", full)
    with pytest.raises(OSError, match=r"^\[Errno 28\] .*No space left"):
        write_state(tmp_path / "state", state(), FACTS)


def test_facts_hold_no_number_that_json_has_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_state(tmp_path / "state", {}, {"loss": math.nan})
