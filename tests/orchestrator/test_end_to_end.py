"""Whole sweeps with every real part: Ray Tune, Optuna, DeepSpeed, MLflow, diffusers, in processes of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import optuna
import pytest
from PIL import Image

from core import DirectionSet
from orchestrator.ledger import newest_rows
from orchestrator.ranking import rows
from orchestrator.spool import pending, refused
from orchestrator.store import SweepFolder
from tests.orchestrator.conftest import Orchestrate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def check_stores(root: Path, trials: int) -> None:
    """Optuna and MLflow tell the same: as many trials as children, none of them running, each of them once."""
    folder = SweepFolder(root, "tiny")
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{folder.study}")
    assert all(trial.state.is_finished() for trial in study.trials)
    newest = newest_rows(study)
    assert len(newest) == trials
    assert all(trial.state.name in ("COMPLETE", "PRUNED") for trial in newest.values())
    assert {path.name for path in (folder.path / "trials").iterdir()} == newest.keys()
    assert pending(folder.outbox) == refused(folder.outbox) == 0
    state = folder.read()
    client = mlflow.MlflowClient(f"sqlite:///{root.resolve()}/mlflow.db")
    parent = client.get_run(state["parent_run"])
    assert parent.info.status == "FINISHED"
    assert {"champion/identifiability", "random/identifiability"} <= parent.data.metrics.keys()
    rule = f"tags.`mlflow.parentRunId` = '{state['parent_run']}'"
    children = client.search_runs([state["experiment_id"]], rule)
    assert sorted(child.data.tags["trial_id"] for child in children) == sorted(newest)
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.tags["outcome"] in ("completed", "pruned")
        assert {"directions", "shift_scale", "discriminator_weight"} <= child.data.params.keys()
        assert (child.data.tags["micro_batch"], child.data.tags["out_of_memory_retries"]) == ("2", "0")
        steps = [point.step for point in client.get_metric_history(child.info.run_id, "identifiability")]
        assert steps == [2, 4][: len(steps)]
        losses = [point.step for point in client.get_metric_history(child.info.run_id, "training/direction_loss")]
        assert losses == list(range(1, steps[-1] + 1))
        assert len(client.list_artifacts(child.info.run_id, "images")) >= 2
        files = {Path(file.path).name for file in client.list_artifacts(child.info.run_id, "directions")}
        assert files == {"directions.safetensors", "directions.json"}
    assert client.get_model_version_by_alias("tiny-directions", "champion").run_id == state["parent_run"]


def test_a_sweep_from_the_command_to_the_bundle(sweep_file: Path, orchestrate: Orchestrate, tmp_path: Path) -> None:
    done = orchestrate("sweep", sweep_file)
    assert done.returncode == 0, done.stderr
    root = tmp_path / "runs"
    check_stores(root, trials=3)
    assert list((root / "cache").glob("*.safetensors"))  # the trials shared what they drew unshifted

    again = orchestrate("sweep", sweep_file)
    assert again.returncode == 0 and "Sweep 'tiny' is complete." in again.stdout
    changed = orchestrate("sweep", sweep_file, "--set", "seed=7")
    assert changed.returncode == 2
    assert "sweep 'tiny' has already been started with other settings; changed since: seed" in changed.stderr
    assert "--fork" in changed.stderr

    assert "tiny: complete; 3 of 3 trials" in orchestrate("status").stdout
    assert "Pareto front of identifiability and fidelity_kid" in orchestrate("report", "tiny").stdout

    assert orchestrate("export", "tiny", "--to", "out").returncode == 0
    directions = DirectionSet.load(tmp_path / "out")
    assert directions.provenance["sweep"] == "tiny" and "identifiability" in directions.metrics
    assert len(directions.dials) == len(directions)
    assert {"gallery.html", "apply_directions.py", "README.md"} <= {file.name for file in (tmp_path / "out").iterdir()}
    refused = orchestrate("export", "tiny", "--to", "out")
    assert refused.returncode == 2 and "out exists; an export is written into a new folder" in refused.stderr

    folder = SweepFolder(root, "tiny")
    completed = [row for row in rows(folder, folder.sweep()) if row.state == "completed"]
    assert orchestrate("export", "tiny", "--to", "top", "--top", 1).returncode == 0
    [best] = (tmp_path / "top").iterdir()
    assert best.name == f"01_{completed[0].trial_id}" and len(DirectionSet.load(best)) in (3, 4)
    assert orchestrate("export", "tiny", "--to", "one", "--run", completed[-1].trial_id).returncode == 0
    nobody = orchestrate("export", "tiny", "--to", "none", "--run", "nobody")
    assert nobody.returncode == 2 and "has no run or trial 'nobody'; its trials: " in nobody.stderr
    assert not (tmp_path / "none").exists()


def test_the_same_command_goes_on_after_a_kill(sweep_file: Path, orchestrate: Orchestrate, tmp_path: Path) -> None:
    """SIGKILL of the driver and everything it started, as soon as a trial has reported."""
    command = [sys.executable, "-u", "-m", "orchestrator.cli", "sweep", str(sweep_file)]
    driver = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert driver.stdout is not None
    deadline = time.monotonic() + 300
    for line in driver.stdout:
        if "iteration 2/4" in line or time.monotonic() > deadline:
            break
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    before = json.loads((tmp_path / "runs" / "tiny" / "sweep.json").read_text())

    done = orchestrate("sweep", sweep_file)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs" / "tiny" / "sweep.json").read_text()) == before
    assert "goes on (attempt 2)" in done.stdout
    check_stores(tmp_path / "runs", trials=3)


COMPARISON = """\
name: compared
model: ./model
method: {choice: [learned, pca, jacobian, random]}
sampler: {steps: 2}
train: {iterations: 4, batch: 4, pool: 32}
search: {directions: 3, pca.samples: 32, jacobian.mask: mask.png}
scheduler: {asha: {grace: 2, reduction: 2}}
evaluate: {seeds: 6, strength: 0.05}
budget: {trials: 9}
gradient: {policy: full_graph}
"""


def test_methods_side_by_side(tiny_model: Path, orchestrate: Orchestrate, tmp_path: Path) -> None:
    """Each configuration has one trial, however many the budget holds; paths are relative to where the user is."""
    shutil.copytree(tiny_model, tmp_path / "model")
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    (tmp_path / "compared.yaml").write_text(COMPARISON)
    done = orchestrate("sweep", "compared.yaml")
    assert done.returncode == 0, done.stderr
    assert "Sweep 'compared': 4 trials" in done.stdout
    assert "compared: complete; 4 of 4 trials" in orchestrate("status").stdout

    folder = SweepFolder(tmp_path / "runs", "compared")
    found = rows(folder, folder.sweep())
    assert sorted(row.parameters["method"] for row in found) == ["jacobian", "learned", "pca", "random"]
    assert all(row.state == "completed" and row.iteration == 4 and row.seconds for row in found)
    table = orchestrate("report", "compared").stdout.partition("Methods, best first")[2].splitlines()
    assert table[1].split() == [*(row.parameters["method"] for row in found), "better"]
    assert table[2].split() == ["completed", *("1 of 1".split() * 4)]

    state = folder.read()
    client = mlflow.MlflowClient(f"sqlite:///{(tmp_path / 'runs').resolve()}/mlflow.db")
    rule = f"tags.`mlflow.parentRunId` = '{state['parent_run']}'"
    children = client.search_runs([state["experiment_id"]], rule)
    assert len(children) == 4 and all("find_seconds" in child.data.metrics for child in children)
    assert {child.data.params.get("pca.samples") for child in children} == {"32", None}
