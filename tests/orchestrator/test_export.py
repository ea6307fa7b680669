"""Bundles: whole, described, verified on read."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import create_autospec

import pytest
import torch
from PIL import Image

from core import DirectionSet
from core.errors import UserError
from core.methods import random
from core.metrics import evaluate
from orchestrator import export as module
from orchestrator import trial
from orchestrator.export import card, crown, export, write_bundle
from orchestrator.ranking import Row
from orchestrator.spec import parse
from orchestrator.store import SweepFolder
from orchestrator.tracking import Tracking


@pytest.fixture
def directions() -> DirectionSet:
    table = torch.nn.functional.normalize(torch.ones(2, 1, 4, 1, 1), dim=2)
    origin = {"model": "toyfaces", "method": "learned", "trial": "t1", "sweep": "faces", "weight_digest": "ab" * 32}
    return DirectionSet(table, torch.ones(2, 1), (500, 0), metrics={"globality": 0.5}, provenance=origin)


@pytest.fixture
def folder(tmp_path: Path, directions: DirectionSet) -> SweepFolder:
    """A sweep's folder with one trial's checkpoint."""
    sweep = parse({"name": "faces", "model": "toyfaces", "search": {"directions": {"choice": [2, 3]}}})
    folder = SweepFolder(tmp_path / "runs", "faces")
    folder.create(sweep, "sqlite://", "1", "parent")
    for number in (0, 10, 9):
        checkpoint = folder.tune / "trial_t1" / f"checkpoint_{number:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "directions").mkdir()
        named = DirectionSet(directions.table, directions.sigma, (500, 0), names=("a", f"of {number}"))
        named.write(checkpoint / "directions")
        Image.new("RGB", (4, 4)).save(checkpoint / "traversal.png")
    return folder


def test_a_bundle_has_its_four_files_and_a_card(directions: DirectionSet, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    (tmp_path / "out").mkdir()
    write_bundle(directions, tmp_path / "picture.png", tmp_path / "out")
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == ["README.md", "directions.json", "directions.safetensors", "traversal.png"]
    text = card(directions)
    assert "# 2 directions in the h-space of `toyfaces`" in text
    assert "| globality | 0.500 | more |" in text and "identifiability" not in text
    assert 'direction="direction_0"' in text and "num_inference_steps=2" in text


def test_a_card_names_the_injection_that_was_measured(directions: DirectionSet) -> None:
    """A pipeline shifts symmetrically; what was measured otherwise is used otherwise."""
    asymmetric = replace(directions, provenance={**directions.provenance, "injection": "asymmetric"})
    assert 'injection="asymmetric"' in card(asymmetric) and "applied" not in card(asymmetric)
    code = card(asymmetric).split("```python")[1].split("```")[0]
    compile(code, "card", "exec")


def test_a_trials_last_checkpoint_is_exported(folder: SweepFolder, tmp_path: Path) -> None:
    assert export(folder, tmp_path / "out", run="t1") == [tmp_path / "out"]
    loaded = DirectionSet.load(tmp_path / "out")
    assert loaded.names == ("a", "of 10") and loaded.provenance == {"sweep": "faces", "trial": "t1"}


def test_what_cannot_be_exported(folder: SweepFolder, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="sweep 'faces' has no champion yet; run it to its end, or name a trial with --run"
    ):
        export(folder, tmp_path / "out")
    with pytest.raises(UserError, match="--top: got 1; sweep 'faces' has 0 completed trials"):
        export(folder, tmp_path / "out", top=1)
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists; an export is written into a new folder"):
        export(folder, tmp_path / "there", run="t1")
    assert not (tmp_path / "out").exists()


def test_the_champion_is_measured_with_as_many_samples_at_a_time_as_fit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = parse(
        {"name": "a", "model": str(tiny_model), "sampler": {"steps": 2}, "search": {}, "budget": {"trials": 1}}
    )
    folder, bench = SweepFolder(tmp_path / "runs", "a"), trial.Bench.load(sweep)
    folder.create(sweep, "sqlite://", "1", "parent")
    checkpoint = folder.tune / "trial_t1" / "checkpoint_000000"
    (checkpoint / "directions").mkdir(parents=True)
    random.find(bench.denoiser, bench.schedule, random.Settings(2)).write(checkpoint / "directions")
    Image.new("RGB", (4, 4)).save(checkpoint / "traversal.png")
    tried: list[int] = []
    measure = cast(Any, evaluate)

    def tight(*given: Any, batch: int, **more: Any) -> Any:
        tried.append(batch)
        if batch > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(*given, batch=batch, **more)

    monkeypatch.setattr(trial, "evaluate", tight)
    monkeypatch.setattr(module, "rows", lambda *_: [Row("t1", "completed", {}, {}, 1, True)])
    assert crown(sweep, folder, create_autospec(Tracking, instance=True)) is not None
    assert tried == [64, 32, 16, 16]  # the champion, then the baseline
    assert DirectionSet.load(folder.champion).metrics == folder.read("result.json")["champion"]


def test_a_damaged_sweep_folder(folder: SweepFolder) -> None:
    (folder.path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="sweep.json is damaged: "):
        folder.sweep()
    with pytest.raises(UserError, match="no sweep.json of a sweep 'other' in .*; sweeps there: faces"):
        SweepFolder(folder.root, "other").read()


def test_a_changed_sweep_is_refused_by_name(folder: SweepFolder) -> None:
    same = folder.sweep()
    folder.refuse_changed(same)
    changed = parse({**same.resolved(), "seed": 3, "sampler": {"steps": 9}})
    with pytest.raises(UserError, match="with other settings; changed since: sampler.steps, seed; give the new one"):
        folder.refuse_changed(changed)
