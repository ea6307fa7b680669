"""Where a sweep is recorded: its file, else where it began, else MLFLOW_TRACKING_URI; and the user hears which."""

from pathlib import Path

import pytest

from orchestrator.spec import Sweep, parse
from orchestrator.store.folder import SweepFolder
from orchestrator.tracking.address import VARIABLE, addressed
from tests.orchestrator.conftest import Command

SERVER, OTHER = "http://me:secret@mlflow.example", "http://other.example"


def sweep_of(uri: str | None = None) -> Sweep:
    return parse(
        {"name": "a", "model": "toyfaces", "search": {"directions": {"choice": [2, 3]}}, "tracking": {"uri": uri}}
    )


def where(sweep: Sweep, root: Path) -> tuple[str | None, str | None]:
    found, line = addressed(sweep, root)
    return found.tracking.uri, line


def test_a_new_sweep_is_recorded_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert where(sweep_of(), tmp_path) == (None, None)
    monkeypatch.setenv(VARIABLE, " ")
    assert where(sweep_of(), tmp_path) == (None, None)
    monkeypatch.setenv(VARIABLE, SERVER)
    uri, line = where(sweep_of(), tmp_path)
    assert uri == SERVER and line == (
        "MLflow: recorded in http://***@mlflow.example, as MLFLOW_TRACKING_URI says; "
        "tracking.uri in the sweep file would win."
    )


def test_the_file_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, SERVER)
    said = "MLflow: tracking.uri of the sweep file wins over MLFLOW_TRACKING_URI."
    assert where(sweep_of(OTHER), tmp_path) == (OTHER, said)
    assert where(sweep_of(SERVER), tmp_path) == (SERVER, None)
    monkeypatch.delenv(VARIABLE)
    assert where(sweep_of(OTHER), tmp_path) == (OTHER, None)


@pytest.mark.parametrize(
    ("began", "now", "line"),
    [
        (SERVER, SERVER, "MLflow: recorded in http://***@mlflow.example, as MLFLOW_TRACKING_URI says; "
         "tracking.uri in the sweep file would win."),
        (OTHER, "", f"MLflow: sweep 'a' goes on in {OTHER}, where it began."),
        (OTHER, SERVER, f"MLflow: sweep 'a' goes on in {OTHER}, where it began; MLFLOW_TRACKING_URI is not used."),
        (None, OTHER, f"MLflow: sweep 'a' goes on in the embedded store, where it began; {VARIABLE} is not used."),
        (None, "", None),
    ],
)  # fmt: skip
def test_a_sweep_goes_on_where_it_began(
    began: str | None, now: str, line: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SweepFolder(tmp_path, "a")
    folder.create(sweep_of(began), "weights")
    monkeypatch.setenv(VARIABLE, now)
    assert where(sweep_of(), tmp_path) == (began, line)
    folder.refuse_changed(addressed(sweep_of(), tmp_path)[0])


def test_the_plan_and_a_launch_say_where_a_sweep_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nmodel: toyfaces\nmethod: pca\nsearch: {pca.sigmas: {float: [1, 2]}}\n")
    monkeypatch.setenv(VARIABLE, OTHER)
    planned = command("plan", "a.yaml")
    assert planned.stdout.startswith(f"MLflow: recorded in {OTHER}, ") and f"{OTHER}, experiment a" in planned.stdout
    launched = command("launch", "a.yaml", "--on", "slurm", "--dry-run")
    assert launched.stderr.startswith(f"MLflow: recorded in {OTHER}, ") and OTHER in launched.stdout
