"""What a machine of a cluster answers when it is asked whether it is ready."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import UserError
from core.model.denoiser import Denoiser
from orchestrator.spec import parse
from orchestrator.sweep import inspection
from orchestrator.sweep.inspection import Wanted, problems, versions
from orchestrator.trial import operators


@pytest.fixture
def wanted(tiny_model: Path, tmp_path: Path) -> Wanted:
    given = {"name": "a", "model": str(tiny_model), "sampler": {"steps": 2}, "search": {}, "budget": {"trials": 1}}
    sweep = parse(given)
    probe = tmp_path / ".probe"
    probe.touch()
    return Wanted(sweep, Denoiser.from_pretrained(tiny_model).digest, Path.cwd(), probe, versions())


def with_sections(wanted: Wanted, **sections: Any) -> Wanted:
    return replace(wanted, sweep=parse({**wanted.sweep.resolved(), **sections}))


@pytest.mark.slow
def test_a_machine_that_has_everything_says_nothing(wanted: Wanted) -> None:
    assert problems(wanted) == []


def test_every_problem_is_told_at_once_with_its_cure(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    elsewhere = wanted.probe.parent / "not shared" / ".probe"
    other = replace(wanted, weights="0" * 64, probe=elsewhere, versions={**wanted.versions, "torch": "1.0"})
    torch = versions()["torch"]
    assert problems(with_sections(other, resources={"gpus_per_trial": 1}))[:4] == [
        f"torch is {torch}, the driver has 1.0: install from the same constraints.txt",
        f"does not see {elsewhere.parent}: set --root to a folder on a disk that all machines share",
        "its torch is built for the CPU alone: install one for CUDA, or set resources.gpus_per_trial: 0",
        f"model '{wanted.sweep.model}' has other weights than on the driver's machine: copy those",
    ]


def test_a_model_that_only_the_driver_has(wanted: Wanted) -> None:
    [told] = problems(with_sections(wanted, model="./only-here"))
    assert told.startswith("model './only-here' is not there: give a built-in name")


def test_relative_paths_begin_where_the_sweep_was_started(
    wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(wanted.sweep.model, tmp_path / "home" / "model")
    monkeypatch.chdir("/")
    assert problems(replace(with_sections(wanted, model="./model"), home=tmp_path / "home")) == []
    assert os.getcwd() == str(tmp_path / "home")


@pytest.mark.slow
def test_a_root_that_is_not_ours(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(inspection.tempfile, "NamedTemporaryFile", refuse)
    root = wanted.probe.parent
    assert problems(wanted) == [
        f"cannot write to {root} (Permission denied): let the user that Ray runs as write there"
    ]


def test_a_full_disk(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    [told] = problems(wanted)
    assert told.startswith("only 5 MiB are free in ") and told.endswith(": free 1024 MiB")


@pytest.mark.slow
def test_operators_are_built_before_a_trial_waits_for_them(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[bool] = []
    monkeypatch.setattr(operators, "build_ops", lambda: built.append(True))
    assert problems(wanted) == [] and built == []
    assert problems(with_sections(wanted, deepspeed={"offload_optimizer": "cpu"})) == [] and built == [True]


def test_machines_with_the_same_problem_share_a_line(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"is too small": ["10.0.0.1", "10.0.0.2"], "is too slow": ["10.0.0.2"]}
    asked: list[Wanted] = []

    def ask(given: Wanted) -> dict[str, list[str]]:
        assert given.probe.is_file()
        asked.append(given)
        return found

    monkeypatch.setattr(inspection, "_ask", ask)
    with pytest.raises(UserError) as refused:
        inspection.inspect(wanted.sweep, wanted.probe.parent / "new", wanted.weights)
    assert str(refused.value) == "10.0.0.1 and 10.0.0.2: is too small\n10.0.0.2: is too slow"
    assert not asked[0].probe.exists()
