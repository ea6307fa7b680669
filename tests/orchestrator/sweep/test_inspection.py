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
from orchestrator.spec.sections import DeepSpeed
from orchestrator.sweep import inspection
from orchestrator.sweep.inspection import Requirements, problems, versions
from orchestrator.trial import operators


@pytest.fixture
def requirements(tiny_model: Path, tmp_path: Path) -> Requirements:
    given = {"name": "a", "model": str(tiny_model), "sampler": {"steps": 2}, "search": {}, "budget": {"trials": 1}}
    sweep = parse(given)
    probe = tmp_path / ".probe"
    probe.touch()
    return Requirements(sweep, Denoiser.from_pretrained(tiny_model).digest, Path.cwd(), probe, versions())


def with_sections(requirements: Requirements, **sections: Any) -> Requirements:
    return replace(requirements, sweep=parse({**requirements.sweep.resolved(), **sections}))


@pytest.mark.slow
def test_a_machine_that_has_everything_says_nothing(requirements: Requirements) -> None:
    assert problems(requirements) == []


def test_every_problem_is_told_at_once_with_its_cure(
    requirements: Requirements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    elsewhere = requirements.probe.parent / "not shared" / ".probe"
    other = replace(requirements, weights="0" * 64, probe=elsewhere, versions={**requirements.versions, "torch": "1.0"})
    torch = versions()["torch"]
    assert problems(with_sections(other, resources={"gpus_per_trial": 1}))[:4] == [
        f"torch is {torch}, the driver has 1.0: install from the same constraints.txt",
        f"does not see {elsewhere.parent}: set --root to a folder on a disk that all machines share",
        "its torch is built for the CPU alone: install one for CUDA, or set resources.gpus_per_trial: 0",
        f"model '{requirements.sweep.model}' has other weights than on the driver's machine: copy those",
    ]


def test_a_model_that_only_the_driver_has(requirements: Requirements) -> None:
    [told] = problems(with_sections(requirements, model="./only-here"))
    assert told.startswith("model './only-here' is not there: give a built-in name")


def test_a_vision_model_is_read_on_each_machine(requirements: Requirements, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    search = {"directions": 2, "semantic.look": str(tmp_path / "empty")}
    [told] = problems(with_sections(requirements, method="semantic", search=search))
    assert told.startswith(f"search.semantic.look: model '{tmp_path / 'empty'}' is incomplete: ")


def test_files_that_only_the_driver_has(requirements: Requirements, tmp_path: Path) -> None:
    networks = {name: f"{tmp_path}/{name}.safetensors" for name in ("inception", "lpips", "identity")}
    evaluate, search = (
        {**networks, "features": "./features", "second_predictor": "./other"},
        {"jacobian.mask": {"choice": ["none", "./mask.png"]}},
    )
    given = with_sections(requirements, evaluate=evaluate, method="jacobian", search=search, predictor="./mine")
    assert [line.partition(" is not there; allowed: ")[0] for line in problems(given)] == [
        "predictor: './mine'",
        "evaluate.second_predictor: './other'",
        "evaluate.features: './features'",
        f"evaluate.identity: '{tmp_path}/identity.safetensors'",
        f"evaluate.inception: '{tmp_path}/inception.safetensors'",
        f"evaluate.lpips: '{tmp_path}/lpips.safetensors'",
        "search.jacobian.mask: './mask.png'",
    ]


def test_a_network_that_cannot_be_read_there(requirements: Requirements, tmp_path: Path) -> None:
    (tmp_path / "lpips.safetensors").write_bytes(b"damaged")
    [told] = problems(with_sections(requirements, evaluate={"lpips": str(tmp_path / "lpips.safetensors")}))
    assert told.startswith(f"LPIPS network '{tmp_path}/lpips.safetensors' cannot be read as safetensors")


def test_a_second_predictor_that_cannot_be_read_there(requirements: Requirements, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    [told] = problems(with_sections(requirements, evaluate={"second_predictor": str(tmp_path / "other")}))
    assert told.startswith(f"predictor '{tmp_path}/other' ")


def test_relative_paths_begin_where_the_sweep_was_started(
    requirements: Requirements, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(requirements.sweep.model, tmp_path / "home" / "model")
    monkeypatch.chdir("/")
    assert problems(replace(with_sections(requirements, model="./model"), home=tmp_path / "home")) == []
    assert os.getcwd() == str(tmp_path / "home")


@pytest.mark.slow
def test_a_root_that_is_not_ours(requirements: Requirements, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(inspection.tempfile, "NamedTemporaryFile", refuse)
    root = requirements.probe.parent
    assert problems(requirements) == [
        f"cannot write to {root} (Permission denied): let the user that Ray runs as write there"
    ]


def test_a_full_disk(requirements: Requirements, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    [told] = problems(requirements)
    assert told.startswith("only 5 MiB are free in ") and told.endswith(": free 1024 MiB")


def test_a_home_that_keeps_no_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(operators, "compiler_problem", lambda: None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert operators.settings_problem(DeepSpeed()) is None, "nothing is compiled"
    offload = DeepSpeed(zero=2, offload_optimizer="cpu")
    told = operators.settings_problem(offload)
    assert told is not None and told.endswith(
        " (Not a directory); set HOME, or TORCH_EXTENSIONS_DIR, to a folder to write to, or "
        "deepspeed.offload_optimizer: none"
    )
    assert told.startswith(f"deepspeed: its compiled operators cannot be kept in {tmp_path / 'file' / '.cache'}")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "kept"))
    assert operators.settings_problem(offload) is None


@pytest.mark.slow
def test_a_compiler_that_fails_on_a_machine_is_told_and_refuses_nothing(
    requirements: Requirements, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(operators, "adam_problem", lambda: asked.append(True) or "the C++ compiler fails")
    monkeypatch.setattr(inspection, "_ask", lambda given, look: {each: ["10.0.0.1"] for each in look(given)})
    root = requirements.probe.parent
    assert inspection.inspect(requirements.sweep, root, requirements.weights) == [] and asked == []
    offloading = with_sections(requirements, deepspeed={"offload_optimizer": "cpu"}).sweep
    told = inspection.inspect(offloading, root, requirements.weights)
    assert told == ["10.0.0.1: the C++ compiler fails"] and asked == [True]


def test_machines_with_the_same_problem_share_a_line(
    requirements: Requirements, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"is too small": ["10.0.0.1", "10.0.0.2"], "is too slow": ["10.0.0.2"]}
    asked: list[Requirements] = []

    def ask(given: Requirements, _look: object) -> dict[str, list[str]]:
        assert given.probe.is_file()
        asked.append(given)
        return found

    monkeypatch.setattr(inspection, "_ask", ask)
    with pytest.raises(UserError) as refused:
        inspection.inspect(requirements.sweep, requirements.probe.parent / "new", requirements.weights)
    assert str(refused.value) == "10.0.0.1 and 10.0.0.2: is too small\n10.0.0.2: is too slow"
    assert not asked[0].probe.exists()
