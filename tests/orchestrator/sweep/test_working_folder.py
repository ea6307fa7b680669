"""A working folder that holds packages named like this product's: nothing of them is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.orchestrator.conftest import Orchestrate

pytestmark = pytest.mark.slow

SWEEP = """\
name: tiny
model: {model}
method: random
sampler: {{steps: 2}}
train: {{pool: 32}}
search: {{directions: 3}}
objectives: [{{fidelity_kid: min}}]
evaluate: {{seeds: 6}}
budget: {{trials: 1}}
"""


def shadow(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise RuntimeError('the package of the working folder was imported')\n")


def test_a_sweep_runs_beside_the_users_own_packages(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("core", "orchestrator"):
        shadow(tmp_path, name)
    (tmp_path / "tiny.yaml").write_text(SWEEP.format(model=tiny_model))
    command = [str(Path(sys.executable).parent / "orchestrate"), "sweep", "tiny.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 trial: 1 completed" in done.stdout


def test_the_module_runs_beside_the_users_own_package(tmp_path: Path, orchestrate: Orchestrate) -> None:
    shadow(tmp_path, "core")
    done = orchestrate("status")
    assert done.returncode == 2 and "no sweep has run" in done.stderr
