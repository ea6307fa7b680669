"""A whole sweep with every real part: Ray Tune, Optuna, DeepSpeed, MLflow, diffusers, in processes of their own.

What kills do to one is in tests/faults, and what a browser shows of this one in tests/browser.
"""

from pathlib import Path

import mlflow
import optuna
import pytest

from core import DirectionSet
from orchestrator.search.ledger import newest_rows
from orchestrator.search.ranking import rows
from orchestrator.store.folder import SweepFolder
from orchestrator.store.spool import pending, refused
from tests.conftest import shadow
from tests.orchestrator.conftest import Command, Orchestrate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the first of them waits for the sweep
METHODS = ["jacobian", "learned", "pca", "random"]


@pytest.fixture
def home(finished_sweep: SweepFolder) -> Path:
    """The folder in which the sweep was started."""
    return finished_sweep.root.parent


def test_it_ran_beside_the_users_own_packages(home: Path) -> None:
    assert {"core", "orchestrator"} <= {folder.name for folder in home.iterdir()}


def test_the_module_runs_beside_the_users_own_package(tmp_path: Path, orchestrate: Orchestrate) -> None:
    """Python looks for modules in the working folder first."""
    shadow(tmp_path, "core")
    done = orchestrate("status")
    assert done.returncode == 2 and "no sweep has run" in done.stderr


def test_each_configuration_was_tried_once(finished_sweep: SweepFolder, home: Path) -> None:
    said = (home / "said").read_text()
    assert "Sweep 'faces': 4 trials" in said and "Pareto front of identifiability and fidelity_kid" in said
    found = rows(finished_sweep, finished_sweep.sweep())
    assert sorted(row.parameters["method"] for row in found) == METHODS
    assert all(row.state == "completed" and row.iteration == 4 and row.seconds for row in found)
    assert list((finished_sweep.root / "cache").glob("*.safetensors"))  # the trials shared what they drew unshifted


def test_optuna_and_mlflow_tell_the_same(finished_sweep: SweepFolder) -> None:
    """As many trials as children, none of them running, each of them once, with all that it reported."""
    study = optuna.load_study(study_name="faces", storage=f"sqlite:///{finished_sweep.study_file}")
    assert all(trial.state.is_finished() for trial in study.trials)
    newest = newest_rows(study)
    assert len(newest) == 4 and all(trial.state.name == "COMPLETE" for trial in newest.values())
    assert {path.name for path in (finished_sweep.path / "trials").iterdir()} == newest.keys()
    assert pending(finished_sweep.outbox) == refused(finished_sweep.outbox) == 0
    state = finished_sweep.read()
    client = mlflow.MlflowClient(f"sqlite:///{finished_sweep.root.resolve()}/mlflow.db")
    parent = client.get_run(state["parent_run"])
    assert parent.info.status == "FINISHED"
    assert {"champion/identifiability", "random/identifiability"} <= parent.data.metrics.keys()
    rule = f"tags.`mlflow.parentRunId` = '{state['parent_run']}'"
    children = client.search_runs([state["experiment_id"]], rule)
    assert sorted(child.data.tags["trial_id"] for child in children) == sorted(newest)
    for child in children:
        learned = child.data.tags["method"] == "learned"
        assert child.info.status == "FINISHED" and child.data.tags["outcome"] == "completed"
        assert child.data.params.get("pca.samples") == ("32" if child.data.tags["method"] == "pca" else None)
        assert "find_seconds" in child.data.metrics
        if learned:
            assert (child.data.tags["micro_batch"], child.data.tags["out_of_memory_retries"]) == ("2", "0")
        steps = [point.step for point in client.get_metric_history(child.info.run_id, "identifiability")]
        losses = [point.step for point in client.get_metric_history(child.info.run_id, "training/direction_loss")]
        assert (steps, losses) == (([2, 4], [1, 2, 3, 4]) if learned else ([4], []))
        assert len(client.list_artifacts(child.info.run_id, "images")) >= len(steps)
        files = {Path(file.path).name for file in client.list_artifacts(child.info.run_id, "directions")}
        assert files == {"directions.safetensors", "directions.json"}
    assert client.get_model_version_by_alias("faces-directions", "champion").run_id == state["parent_run"]


def test_a_complete_sweep_is_shown_and_one_with_other_settings_refused(home: Path, command: Command) -> None:
    again = command("sweep", "faces.yaml", at=home)
    assert again.returncode == 0 and "Sweep 'faces' is complete; " in again.stdout
    changed = command("sweep", "faces.yaml", "--set", "seed=7", at=home)
    assert changed.returncode == 2
    assert "sweep 'faces' has already been started with other settings; changed since: seed" in changed.stderr
    assert "--fork" in changed.stderr


def test_status_and_report(home: Path, finished_sweep: SweepFolder, command: Command) -> None:
    assert "faces: complete; 4 of 4 trials" in command("status", at=home).stdout
    said = command("report", "faces", at=home).stdout
    assert "Pareto front of identifiability and fidelity_kid" in said
    table = said.partition("Methods, best first")[2].splitlines()
    found = rows(finished_sweep, finished_sweep.sweep())
    assert sorted(table[1].split()) == sorted([*METHODS, "better"]) and len(found) == 4
    assert table[2].split() == ["completed", *("1 of 1".split() * 4)]


def test_the_sets_are_handed_out(home: Path, finished_sweep: SweepFolder, command: Command, tmp_path: Path) -> None:
    assert command("export", "faces", "--to", tmp_path / "out", at=home).returncode == 0
    directions = DirectionSet.load(tmp_path / "out")
    assert directions.provenance["sweep"] == "faces" and "identifiability" in directions.metrics
    assert len(directions.dials) == len(directions)
    assert {"gallery.html", "apply_directions.py", "README.md"} <= {file.name for file in (tmp_path / "out").iterdir()}
    refused = command("export", "faces", "--to", tmp_path / "out", at=home)
    assert refused.returncode == 2 and "out exists; an export is written into a new folder" in refused.stderr

    found = rows(finished_sweep, finished_sweep.sweep())
    assert command("export", "faces", "--to", tmp_path / "top", "--top", 1, at=home).returncode == 0
    [best] = (tmp_path / "top").iterdir()
    assert best.name == f"01_{found[0].trial_id}" and len(DirectionSet.load(best)) == 3
    last = found[-1].trial_id
    assert command("export", "faces", "--to", tmp_path / "one", "--run", last, at=home).returncode == 0
    assert DirectionSet.load(tmp_path / "one").provenance["trial"] == last
    nobody = command("export", "faces", "--to", tmp_path / "none", "--run", "nobody", at=home)
    assert nobody.returncode == 2 and "has no run or trial 'nobody'; its trials: " in nobody.stderr
    assert not (tmp_path / "none").exists()
