"""`orchestrate find` and `orchestrate new`: from a model to its directions without a sweep file."""

import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from core import DirectionSet
from orchestrator.cli import find as module
from orchestrator.cli.console import Console
from orchestrator.cli.find import find
from orchestrator.cli.main import main
from orchestrator.plan.starter import starter
from orchestrator.plan.wanted import Wanted
from orchestrator.spec import Sweep, load
from orchestrator.store.folder import SweepFolder
from tests.orchestrator.conftest import Orchestrate

ASKED = ["mnist", "--attributes", "slant, width", "--trials", "3", "--minutes", "90"]


def test_new_prints_a_file_that_a_sweep_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", *ASKED]) == 0
    told = capsys.readouterr()
    first, _, rest = told.out.partition("\n\n")
    assert first == "# Written by: orchestrate new mnist --attributes 'slant, width' --trials 3 --minutes 90"
    (tmp_path / "a.yaml").write_text(told.out)
    expected = starter(Wanted("mnist", attributes=("slant", "width"), trials=3, minutes=90))
    assert rest == expected.text and load(tmp_path / "a.yaml") == expected.sweep


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["toyfaces", "--to", "."], "--to: . exists; directions are written into a new folder"),
        (["toyfaces", "--to", "new", "--method", "pcs"], "--method: got 'pcs'; allowed: learned,"),
        (["./no", "--to", "new"], "model './no' is not there"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    given: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["find", *given]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(sentence) and told.err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option", ["--trials=0", "--directions=1", "--minutes=0.5", "--minutes=nan", "--guidance=0", "--class=-1"]
)
def test_numbers_are_refused_by_what_is_allowed(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["new", "toyfaces", option])
    assert done.value.code == 2 and "; allowed: a" in capsys.readouterr().err


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., object]]:
    """What `find` puts together, with the real signatures."""
    fakes = {name: create_autospec(getattr(module, name)) for name in ("predict_all", "takes", "export")}
    fakes["takes"].return_value = "2 trials; about 0:10"
    for name, fake in fakes.items():
        monkeypatch.setattr(module, name, fake)
    return fakes


def test_it_says_what_it_takes_runs_and_exports(
    parts: dict[str, Callable[..., object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Sweep] = []

    def run(sweep: Sweep) -> int:
        assert "about 0:10" in capsys.readouterr().out
        ran.append(sweep)
        return 0

    wanted = Wanted("toyfaces", "learned", trials=2)
    assert find(wanted, tmp_path / "o ut", tmp_path / "runs", run, Console(sys.stdout)) == 0
    expected = starter(wanted)
    assert ran == [expected.sweep]
    parts["export"].assert_called_once_with(SweepFolder(tmp_path / "runs", expected.sweep.name), tmp_path / "o ut")
    assert parts["predict_all"].call_args.kwargs == {"measure": True}
    told = capsys.readouterr().out
    assert expected.text in told and f"orchestrate explore '{tmp_path}/o ut'" in told


def test_a_wish_that_has_begun_goes_on_at_once_and_one_that_was_interrupted_exports_nothing(
    parts: dict[str, Callable[..., object]], tmp_path: Path
) -> None:
    folder = SweepFolder(tmp_path, starter(Wanted("toyfaces")).sweep.name)
    folder.create(starter(Wanted("toyfaces")).sweep, "weights")
    assert find(Wanted("toyfaces"), tmp_path / "out", tmp_path, lambda sweep: 130, Console(sys.stdout)) == 130
    parts["predict_all"].assert_not_called()
    parts["export"].assert_not_called()


@pytest.mark.slow
def test_from_a_folder_to_a_gallery(tiny_model: Path, tmp_path: Path, orchestrate: Orchestrate) -> None:
    done = orchestrate("find", tiny_model, "--method", "pca", "--directions", "2", "--to", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 trial of pca, 1 at a time; " in done.stdout and "of disk" in done.stdout
    assert len(DirectionSet.load(tmp_path / "out")) == 2 and (tmp_path / "out" / "gallery.html").is_file()
    text = done.stdout.partition("does the same:\n\n")[2].partition("Look:")[0]
    (tmp_path / "again.yaml").write_text(text)
    same = load(tmp_path / "again.yaml")
    assert SweepFolder(tmp_path / "runs", same.name).sweep().identity() == same.identity()
