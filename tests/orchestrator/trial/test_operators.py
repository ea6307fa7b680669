"""DeepSpeed's compiled operators: the folder that is this product's own, and compilers that fail."""

import os
from pathlib import Path

import pytest
import torch

from core.methods.trained.optimiser import Group
from orchestrator.trial import engine, operators


def test_only_this_products_own_folder_is_tidied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with operators.build_lock():
        own = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    others = tmp_path / "cpu_adam" / "lock"
    for guard in (own / "cpu_adam" / "lock", others):
        guard.parent.mkdir()
        guard.touch()
    with operators.build_lock():
        assert others.exists(), "a build of another project's may go on"
        assert not (own / "cpu_adam" / "lock").exists()


def test_a_process_that_inherits_the_folder_of_operators_builds_in_the_same_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folders = []
    for _ in range(2):
        with operators.build_lock():
            folders.append(os.environ["TORCH_EXTENSIONS_DIR"])
    assert folders[0] == folders[1] and Path(folders[0]).is_relative_to(tmp_path / "h-space-orchestrator")


@pytest.mark.parametrize(
    ("said", "line", "cure"),
    [
        (
            "Error building extension 'cpu_adam': [1/3] g++ -c cpu_adam.cpp\nFAILED: cpu_adam.o\n"
            "pybind11.h:1: fatal error: Python.h: No such file or directory\ncompilation terminated.\n"
            "ninja: build stopped: subcommand failed.\n",
            "pybind11.h:1: fatal error: Python.h: No such file or directory",
            "install Python's headers (Debian: python3.",
        ),
        ("Command '['broken', '--version']' returned non-zero exit status 1.", None, "unset or correct CXX=broken -O2"),
    ],
)
def test_a_compiler_that_fails_is_told_with_its_last_line_and_torchs_adam_takes_over(
    said: str, line: str | None, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_builder: str) -> None:
        raise RuntimeError(said)

    monkeypatch.setenv("CXX", "broken -O2")
    monkeypatch.setattr(operators, "load", fail)
    monkeypatch.setattr(operators.shutil, "which", lambda tool: None if tool == "g++" else f"/usr/bin/{tool}")
    operators.build_problem.cache_clear()
    try:
        why = line or said
        assert operators.adam_problem() == (
            f"the C++ compiler fails ({why}): DeepSpeed's compiled Adam is replaced by torch's (slower offload); "
            "what to do: orchestrate doctor --build"
        )
        assert operators.build_cure(why).startswith(cure)
        parameters = Group([torch.nn.Parameter(torch.zeros(1))], 0.1)
        assert type(engine._adam([parameters], offload=True)) is torch.optim.Adam
    finally:
        operators.build_problem.cache_clear()
