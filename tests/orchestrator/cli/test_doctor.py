"""What doctor says of machines that are not ready: each time what is amiss, and its cure."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from orchestrator.cli import doctor
from orchestrator.cli.doctor import Check
from orchestrator.tracking.client import Tracking


def one(checks: Iterator[Check]) -> Check:
    [check] = checks
    return check


def needs(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    monkeypatch.setattr(doctor, "requires", lambda _: list(texts))


def test_a_missing_and_an_old_package_are_named_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    needs(monkeypatch, "torch>=99", "no-such-package>=1", "pyyaml", "gradio>=6; extra == 'explore'")
    torch, missing = doctor._packages(Path())
    assert torch.verdict == missing.verdict == "fix"
    assert torch.found.startswith("torch 2.") and torch.found.endswith("is not >=99")
    assert missing.found == "no-such-package is missing"
    assert missing.cure == "pip install --constraint constraints.txt 'no-such-package>=1'"


def test_what_an_extra_lacks_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    needs(monkeypatch, "torch", "no-such-package>=1; extra == 'explore'")
    check = one(doctor._extras(Path()))
    assert check == Check(
        "note",
        "orchestrate explore: no-such-package is missing",
        "pip install 'h-space-orchestrator[explore]', if wanted",
    )


def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    check = one(doctor._devices(Path()))
    assert check.verdict == "fix" and "built without CUDA" in check.found
    assert "install torch's CUDA build" in check.cure


def test_every_gpu_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    told = SimpleNamespace(name="NVIDIA X", total_memory=80_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: told)
    first, second = doctor._devices(Path())
    assert first.found.startswith("GPU 0: NVIDIA X, 80 GB") and second.found.startswith("GPU 1")


def test_a_compiler_that_fails_is_told_with_its_last_line_and_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.trial import operators

    why = "cpu_adam.cpp:8: fatal error: Python.h: No such file or directory"
    monkeypatch.setattr(operators, "compiler_problem", lambda: None)
    monkeypatch.setattr(operators, "build_problem", lambda _builder: why)
    check = one(doctor._operators_of(True, Console(quiet=True))(Path()))
    assert (check.verdict, check.found) == ("fix", f"DeepSpeed operators: the compiler fails: {why}")
    assert check.cure.startswith("install Python's headers (Debian: python3.")


def test_a_ray_that_does_not_start_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.sweep import cluster

    class Broken:
        def __init__(self, _address: None) -> None:
            raise RuntimeError("no port\nand more")

    monkeypatch.setattr(cluster, "Cluster", Broken)
    check = list(doctor._ray(Path()))[-1]
    assert (check.verdict, check.found) == ("fix", "Ray does not start: no port")
    assert "ray stop" in check.cure


@pytest.mark.slow
def test_a_store_of_another_mlflow_is_told_with_the_command(tmp_path: Path) -> None:
    assert one(doctor._mlflow(tmp_path)).verdict == "ok"
    Tracking(None, tmp_path).check()
    assert one(doctor._mlflow(tmp_path)).found == f"MLflow: the store in {tmp_path} opens"
    other = tmp_path / "other"  # MLflow looks at a store once a process
    other.mkdir()
    shutil.copy(tmp_path / "mlflow.db", other)
    with sqlite3.connect(other / "mlflow.db") as store:
        store.execute("update alembic_version set version_num = 'from another version'")
    store.close()
    check = one(doctor._mlflow(other))
    assert check.verdict == "fix" and f"mlflow db upgrade sqlite:///{other}/mlflow.db" in check.cure


@pytest.mark.slow
def test_the_store_that_the_environment_names_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/own.db")
    said = f"MLflow: new sweeps are recorded in sqlite:///{tmp_path}/own.db, as MLFLOW_TRACKING_URI says"
    assert one(doctor._mlflow(tmp_path)) == Check("ok", said)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    check = one(doctor._mlflow(tmp_path))
    assert check.verdict == "fix" and "the MLflow store http://127.0.0.1:9 does not answer" in check.found
    assert check.cure == "start it, or correct or unset MLFLOW_TRACKING_URI"


def test_disk_that_is_full_or_not_ours_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert one(doctor._disk(tmp_path / "runs")).verdict in ("ok", "fix")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    full = one(doctor._disk(tmp_path / "not" / "there"))
    assert full == Check("fix", f"disk: 1 GB free at {tmp_path}", "free some space, or move the sweeps with --root")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert one(doctor._disk(tmp_path)).found == f"disk: {tmp_path} cannot be written to"


def test_little_memory_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(available=2e9))
    check = one(doctor._memory(Path()))
    assert check.verdict == "note" and check.found == "memory: 2 GB free" and "end other programs" in check.cure


@pytest.mark.parametrize(("verdict", "code"), [("fix", 1), ("note", 0)])
def test_only_what_must_be_mended_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verdict: str, code: int
) -> None:
    def looks(found: list[Check]) -> Callable[[Path], Iterator[Check]]:
        return lambda _: iter(found)

    for name in ("_python", "_packages", "_extras", "_devices", "_memory", "_ray", "_mlflow"):
        monkeypatch.setattr(doctor, name, looks([]))
    monkeypatch.setattr(doctor, "_operators_of", lambda *_: looks([]))
    monkeypatch.setattr(doctor, "_disk", looks([Check(verdict, "[x] full", "make room")]))  # type: ignore[arg-type]  # one of its words
    assert doctor.show(tmp_path, False, Console(markup=False, width=40)) == code
    assert f"{verdict:<5}[x] full -> make room" in capsys.readouterr().out
