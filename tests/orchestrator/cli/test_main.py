"""The command line: quick to answer, and clear about what it was given."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from core.model.catalogue import MODELS
from core.precision import PRECISIONS
from orchestrator.cli import main as cli
from orchestrator.cli.arguments import SHELLS
from orchestrator.spec import Sweep
from orchestrator.trial.loading import WEIGHTS
from tests.orchestrator.conftest import Command
from tests.orchestrator.fabricated import fabricated

HEAVY = ("torch", "ray", "optuna", "mlflow", "deepspeed", "diffusers", "pydantic", "rich")


def test_help_loads_nothing_heavy() -> None:
    """The promise is half a second; what breaks it is an import, and that can be tested exactly."""
    code = f"""
import sys
from orchestrator.cli.main import main
try:
    main(["--help"])
except SystemExit as done:
    assert done.code == 0
print("loaded:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("loaded: []")
    for verb in cli._VERBS:
        assert verb in done.stdout


def test_how_sweeps_stand_is_shown_without_what_runs_them(tmp_path: Path) -> None:
    fabricated(tmp_path, trials=3)
    code = f"""
import sys
from orchestrator.cli.main import main
for verb in (["status"], ["status", "made"], ["report", "made"]):
    assert main([*verb, "--root", {str(tmp_path)!r}]) == 0
print("loaded:", [name for name in ("torch", "ray", "mlflow", "deepspeed", "diffusers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("loaded: []")


@pytest.mark.parametrize("verb", cli._VERBS)
def test_every_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main([verb, "--help"])
    told = capsys.readouterr().out
    assert done.value.code == 0 and "usage: orchestrate" in told
    examples = [line.strip() for line in told.partition("examples:")[2].splitlines() if line.startswith("  orch")]
    assert examples
    for example in examples:  # an example that cannot be parsed helps nobody
        words = shlex.split(example.split("   ")[0])
        end = next((i for i, word in enumerate(words) if word in "|>"), len(words))
        assert cli.parser().parse_args(words[1:end]).verb == verb


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_verbs_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "explore" in script
    assert "--device-memory" in script or shell == "tcsh"  # which completes verbs alone


@pytest.mark.parametrize("verb", ["edit", "explore", "name"])
def test_a_sets_model_is_run_in_any_precision(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The parser has words of its own, for it loads nothing; help and completion are made of it."""
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert f"--precision {{{','.join(PRECISIONS)}}} what the model is run in" in told
    assert f"--weights {{{','.join(WEIGHTS)}}} where the model's are kept" in told
    cli.main(["completion", "bash"])
    options = next(line for line in capsys.readouterr().out.splitlines() if f"_{verb}_option_strings=" in line)
    assert "--precision" in options and "--weights" in options


def test_bash_takes_the_completion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["completion", "bash"])
    script = capsys.readouterr().out + (
        "COMP_WORDS=(orchestrate exp); COMP_CWORD=1\n$(complete -p orchestrate | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert sorted(done.stdout.split()) == ["explore", "export"], done.stderr


FIVE_MISTAKES = """\
name: faces
modle: toyfaces
method: lerned
search:
  directions: {choice: []}
  shift_scale: {float: [2.0, 0.5]}
objectives: [{smiling: max}]
"""


@pytest.mark.parametrize("verb", ["plan", "sweep"])
def test_a_file_with_five_mistakes_prints_five_lines(verb: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / "bad.yaml").write_text(FIVE_MISTAKES)
    done = command(verb, "bad.yaml")
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 5, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.yaml"]


@pytest.mark.slow
def test_plan_of_celeba_needs_no_weights_and_no_network(command: Command) -> None:
    done = command("plan", Path(__file__).parents[3] / "sweeps" / "celeba.yaml")
    assert done.returncode == 0 and "google/ddpm-celebahq-256" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "nothing"), "no sweep.json of a sweep 'nothing' in runs; no sweep has run there"),
        (("status", "--repair"), "no sweep has run in runs; start one with: orchestrate sweep SPEC"),
        (("status", "--repair", "../x"), "sweep: "),
        (("report", "../x"), "sweep: "),
        (("status",), "no sweep has run in runs; start one with: orchestrate sweep SPEC"),
        (("export", "nothing", "--to", "out"), "no sweep.json of a sweep 'nothing' in runs; no sweep has run there"),
        (("ui",), "no embedded store in "),
        (("sweep", "nowhere.yaml"), "nowhere.yaml: "),
    ],
)
def test_what_is_not_there_gets_one_sentence(
    arguments: tuple[str, ...], message: str, tmp_path: Path, command: Command
) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=./nowhere", f"model './nowhere' is not there: give a built-in name ({', '.join(MODELS)}), a folder"),
        ("tracking.uri=http://127.0.0.1:9", "tracking.uri: the MLflow store http://127.0.0.1:9 does not answer"),
        ("search.directions=33", "search.directions: got 33; h of "),
        ("objectives=[{coverage: max}]", "objectives: 'coverage' needs an attribute predictor, and model "),
        ("sampler.window=[3, 1]", "window [3, 1] holds none of the chain's timesteps [500, 0]"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    override: str, message: str, sweep_file: Path, command: Command
) -> None:
    done = command("sweep", sweep_file, "--set", override)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (sweep_file.parent / "runs" / "tiny").exists()


@pytest.mark.slow
def test_a_deleted_experiment_is_told_before_anything_is_written(sweep_file: Path, command: Command) -> None:
    from orchestrator.tracking.client import Tracking

    tracking = Tracking(None, sweep_file.parent / "runs")
    tracking.client.delete_experiment(tracking.experiment("tiny"))
    done = command("sweep", sweep_file)
    assert done.returncode == 2 and "tracking.experiment: 'tiny' was deleted in the MLflow store " in done.stderr
    assert not (sweep_file.parent / "runs" / "tiny").exists()


def test_interrupts_and_broken_parts_have_their_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: BaseException) -> None:
        def verb(given: object) -> int:
            raise error

        monkeypatch.setitem(cli._VERBS, "status", verb)

    raising(KeyboardInterrupt())
    assert cli.main(["status"]) == 130
    for error in (RuntimeError("a part broke"), MemoryError("not even one sample fits")):
        raising(error)
        assert cli.main(["status"]) == 1


def test_an_error_of_the_system_names_its_file_where_it_has_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, said in (
        (ConnectionError("the network is away\nsecond line"), "the network is away"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(28, "No space left on device", "runs/a"), "No space left on device: runs/a"),
    ):
        monkeypatch.setitem(cli._VERBS, "status", Mock(side_effect=error))
        assert cli.main(["status"]) == 1
        assert capsys.readouterr().err == f"{said}\n"


def test_a_user_without_a_home_is_told_which_variable_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    assert cli.main(["status", "--root", str(tmp_path)]) == 2
    told = "HOME: is not set, and this user has no home folder; set it to a folder to write to\n"
    assert capsys.readouterr().err == told


def test_a_repair_comes_before_the_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[tuple[str, Path, str | None]] = []
    monkeypatch.setattr("orchestrator.sweep.resume.repair", lambda root, name, _: done.append(("repair", root, name)))
    monkeypatch.setattr("orchestrator.report.status.show", lambda root, name, _: done.append(("show", root, name)))
    assert cli.main(["status", "--root", str(tmp_path)]) == 0
    assert cli.main(["status", "--repair", "faces", "--root", str(tmp_path)]) == 0
    assert done == [("show", tmp_path, None), ("repair", tmp_path, "faces"), ("show", tmp_path, "faces")]


@pytest.mark.slow
@pytest.mark.parametrize("fork", [False, True])
def test_a_fork_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sweep_file: Path, fork: bool) -> None:
    """And what is told at the end names the sweep that ran."""
    import orchestrator.sweep.sweep

    given: list[tuple[str, bool]] = []

    def run(sweep: Sweep, root: Path, address: str | None, console: object, fork: bool) -> str:
        given.append((sweep.name, fork))
        return "tiny-2"

    monkeypatch.setattr(orchestrator.sweep.sweep, "run", run)
    assert cli.main(["sweep", str(sweep_file), *["--fork"] * fork]) == 0
    assert given == [("tiny", fork)]


VERB = """
import sys, warnings
from pathlib import Path
from orchestrator.cli import main as cli

def verb(given):
    warnings.warn("of one library by another", ImportWarning)
    console = cli._console()
    for n in range(3):
        console.print("mean \\u00b1 deviation \\u2713", n)
    Path("done").write_text(f"{sys.flags.utf8_mode} \\u2713")
    print("a line of its own")
    return 0

cli._VERBS["status"] = verb
sys.exit(cli.main())
"""


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONWARNINGS": "error"}], ids=["a locale", "strict warnings"])
def test_the_environment_changes_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    """Files are in UTF-8 whatever the locale's encoding, and libraries may warn, in every process that is started."""
    command = [sys.executable, "-c", VERB, "status"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert "mean ± deviation ✓ 2" in done.stdout.decode()
    assert (tmp_path / "done").read_text("utf-8") == "1 ✓"


def test_a_verb_comes_to_its_end_where_nobody_reads_its_output(tmp_path: Path) -> None:
    """As in `orchestrate sweep x | head`: hours of work do not end with their reader."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-c", VERB, "status"]
        done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "done").is_file()
