"""What `orchestrate launch` writes, and what it refuses to write.

The whole files stand in tests/golden/launch; after a change that is meant, write them anew and look at the difference:
REFRESH_GOLDEN=1 python -m pytest tests/orchestrator/cli/test_launch.py -k whole
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import UserError
from core.model import catalogue
from orchestrator.cli import launch
from orchestrator.cli import main as cli
from orchestrator.spec import Sweep, load, parse
from tests.orchestrator.cli.conftest import HERE
from tests.orchestrator.conftest import Orchestrate

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "launch"
CELEBA = ROOT / "sweeps" / "celeba.yaml"

# What breaks quoting, in every place that takes free text.
EVIL = 'it\'s "a" $HOME `id` $(id) \\ {{ x }} # %j ; & ünï\u2028 \U0001f600'
SHARED = f"/shared/{EVIL}"

MACHINES = {"image": "example/h-space:1", "volume": "sweeps", "instance": "g6.12xlarge", "user": "ubuntu"}
HOSTS = {"hosts": ["node-a", "10.0.0.2", "fd00::3", "node-d"], "user": "ubuntu"}
TARGETS = {
    "slurm": ("slurm", {"partition": "gpu", "account": "faces"}),
    "kuberay": ("kuberay", {**MACHINES, "namespace": "faces", "secret": "tokens", "memory_per_node": "256GiB"}),
    "ray-hosts": ("ray", HOSTS),
    "ray-aws": ("ray", MACHINES),
}


def sweep_with(**sections: Any) -> Sweep:
    search = {"directions": {"choice": [2, 4]}}
    base = {"name": "faces", "model": "toyfaces", "search": search, "budget": {"trials": 8}, "train": {"batch": 64}}
    return parse(base | sections)


def celeba(target: str) -> Sweep:
    data = yaml.safe_load(CELEBA.read_text())
    return parse(data | {"cluster": {"root": "/shared/runs", **TARGETS[target][1]}})


def nasty(target: str) -> Sweep:
    return sweep_with(
        name="A_nasty.Name",
        model=f"{SHARED}/model",
        predictor=f"{SHARED}/predictor",
        tracking={"experiment": "it's ünï\u2028\U0001f600"},
        cluster={"root": SHARED, "setup": 'export A="it\'s $HOME"', **TARGETS[target][1]},
    )


CASES = {"celeba": celeba, "nasty": nasty}


def rendered(case: str, target: str) -> launch.Launch:
    return launch.render(
        CASES[case](target), TARGETS[target][0], HERE / ("plain" if case == "celeba" else EVIL), HERE / "runs"
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("in_project_folder")
def test_the_whole_files_are_as_agreed(case: str, target: str) -> None:
    made = rendered(case, target)
    text = "".join(f"==== {name}\n{content}\n" for name, content in made.files.items())
    text += "".join(f"==== next: {command}\n" for command in made.commands)
    golden = GOLDEN / f"{case}-{target}.txt"
    if os.environ.get("REFRESH_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("in_project_folder")
def test_the_file_that_is_shipped_is_the_same_sweep(case: str, target: str, tmp_path: Path) -> None:
    sweep = CASES[case](target)
    files = rendered(case, target).files
    name = f"{sweep.name}.yaml"
    text = files[name] if name in files else next(yaml.safe_load_all(files["job.yaml"]))["data"][name]
    (tmp_path / name).write_text(text)
    shipped = load(tmp_path / name)
    assert shipped.cluster.nodes is not None  # for which the sweep asks an autoscaler
    expected, told = sweep.resolved(), shipped.resolved()
    assert {**told, "cluster": expected["cluster"]} == expected and shipped.identity() == sweep.identity()


def test_where_a_sweep_runs_is_no_part_of_its_identity() -> None:
    assert sweep_with(cluster={"nodes": 7, "hosts": ["a"]}).identity() == sweep_with().identity()


def directives(script: str) -> dict[str, str]:
    """The #SBATCH lines as sbatch reads them: quotes group, a backslash takes the next letter as it is, # ends."""
    found = {}
    for line in script.split("\n"):
        if not line.startswith("#SBATCH "):
            continue
        word, quote, escaped = "", "", False
        for letter in line.removeprefix("#SBATCH "):
            if escaped:
                word, escaped = word + letter, False
            elif letter == "\\":
                escaped = True
            elif quote:
                word, quote = (word, "") if letter == quote else (word + letter, quote)
            elif letter in "'\"":
                quote = letter
            elif letter in " #":
                break
            else:
                word += letter
        name, _, value = word.removeprefix("--").partition("=")
        found[name] = value
    return found


# How large


@pytest.mark.parametrize(
    ("resources", "cluster", "shape"),
    [
        ({}, {}, launch.Shape(nodes=1, gpus=0, cpus=4, least=1)),
        ({"cpus_per_worker": 100}, {}, launch.Shape(nodes=4, gpus=0, cpus=100, least=1)),
        ({"gpus_per_trial": 0.25}, {}, launch.Shape(nodes=1, gpus=1, cpus=4, least=1)),
        ({"gpus_per_trial": 1, "cpus_per_worker": 6}, {}, launch.Shape(nodes=4, gpus=1, cpus=6, least=1)),
        ({"gpus_per_trial": 1}, {"gpus_per_node": 8}, launch.Shape(nodes=1, gpus=8, cpus=8, least=1)),
        ({"gpus_per_trial": 1}, {"gpus_per_node": 2}, launch.Shape(nodes=2, gpus=2, cpus=2, least=1)),
        ({"gpus_per_trial": 16}, {}, launch.Shape(nodes=8, gpus=8, cpus=8, least=2)),
        ({"gpus_per_trial": 16}, {"nodes": 2}, launch.Shape(nodes=2, gpus=8, cpus=8, least=2)),
        ({"gpus_per_trial": 2}, {"hosts": ["a", "b", "c"]}, launch.Shape(nodes=3, gpus=2, cpus=2, least=1)),
    ],
)
def test_the_cluster_is_worked_out_from_one_trial(
    resources: dict[str, Any], cluster: dict[str, Any], shape: launch.Shape
) -> None:
    sweep = sweep_with(resources=resources, cluster=cluster)
    assert launch.shape_of(sweep, len(sweep.cluster.hosts)) == (shape, [])


# What cannot work


@pytest.mark.parametrize(
    ("target", "sections", "message"),
    [
        (
            "slurm",
            {"resources": {"gpus_per_trial": 16}, "cluster": {"nodes": 1}},
            "cluster.nodes: a trial of 16 workers takes 2 nodes of 8 CPUs and 8 GPUs, and there are 1",
        ),
        (
            "slurm",
            {"resources": {"cpus_per_worker": 8}, "cluster": {"cpus_per_node": 4}},
            "cluster: a worker needs 8 CPUs (resources), and a node has 4 CPUs",
        ),
        (
            "slurm",
            {"resources": {"gpus_per_trial": 1}, "cluster": {"gpus_per_node": 0, "cpus_per_node": 4}},
            "cluster: a worker needs 1 CPU and 1 GPU (resources), and a node has 4 CPUs",
        ),
        (
            "slurm",
            {"model": "../models/mine"},
            "model: is nothing that the nodes have (got '../models/mine'); "
            "allowed: a folder below the working folder, or an absolute path",
        ),
        (
            "kuberay",
            {"predictor": "./mine", "cluster": MACHINES},
            "predictor: is nothing that the nodes have (got './mine'); allowed: an absolute path below /shared/runs",
        ),
        (
            "kuberay",
            {"model": "/elsewhere/model", "cluster": MACHINES | {"root": "/data"}},
            "model: is nothing that the nodes have (got '/elsewhere/model'); allowed: an absolute path below /data",
        ),
        (
            "kuberay",
            {
                "method": "supervised",
                "search": {"supervised.pairs": {"choice": ["pairs", "none"]}},
                "cluster": MACHINES,
            },
            "search.supervised.pairs: is nothing that the nodes have (got 'pairs'); "
            "allowed: an absolute path below /shared/runs",
        ),
        *(
            (
                target,
                {"evaluate": {key: name}, "cluster": MACHINES if target == "kuberay" else {}},
                f"evaluate.{key}: is nothing that the nodes have (got '{name}'); allowed: {allowed}",
            )
            for target, name, allowed in (
                ("kuberay", "./net.pth", "an absolute path below /shared/runs"),
                ("kuberay", "/elsewhere/net.safetensors", "an absolute path below /shared/runs"),
                ("slurm", "../net.safetensors", "a folder below the working folder, or an absolute path"),
            )
            for key in ("features", "inception", "lpips", "identity", "second_predictor")
        ),
        (
            "kuberay",
            {"cluster": {"volume": "x"}},
            "cluster.image: is missing; allowed with --on kuberay: "
            "the container image that cluster/Containerfile makes",
        ),
        (
            "kuberay",
            {"cluster": {"image": "x"}},
            "cluster.volume: is missing; allowed with --on kuberay: "
            "the disk that all nodes share, a PersistentVolumeClaim",
        ),
        (
            "ray",
            {"cluster": {"image": "x", "volume": "fs-1"}},
            "cluster.instance: is missing; allowed with --on ray: the kind of machine that workers run on, such as "
            "g6.12xlarge; or cluster.hosts",
        ),
        (
            "ray",
            {"cluster": HOSTS | {"nodes": 3}},
            "cluster.nodes: is not the number of hosts (got 3); allowed: 4, or null",
        ),
        (
            "slurm",
            {"tracking": {"uri": "https://me:secret@tracking.example"}},
            "tracking.uri: holds a password, which a launch would copy (got https://***@tracking.example); "
            "allowed: an address without one, and the password in the environment of the nodes",
        ),
    ],
)
def test_what_cannot_work_gets_one_sentence(target: str, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        launch.render(sweep_with(**sections), target, Path("there"), Path("runs"))
    assert str(error.value) == message


def test_what_a_package_registers_and_what_the_hub_has_is_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("colours", "somewhere:load", catalogue.GROUP)])
    monkeypatch.setattr(catalogue, "entry_points", lambda **asked: points.select(**asked))
    for model in ("colours", "toyfaces", "some/model@main"):
        assert launch.render(sweep_with(model=model, cluster=MACHINES), "kuberay", Path("there"), Path("runs")).files


def test_a_single_file_is_one_that_the_nodes_must_have() -> None:
    message = (
        "model: is nothing that the nodes have (got 'models/sd.safetensors'); "
        "allowed: an absolute path below /shared/runs"
    )
    with pytest.raises(UserError) as error:
        launch.render(
            sweep_with(model="models/sd.safetensors", cluster=MACHINES), "kuberay", Path("there"), Path("runs")
        )
    assert str(error.value) == message


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        launch.render(sweep_with(model="./mine"), "ray", Path("there"), Path("runs"))
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "cluster.image",
        "cluster.volume",
        "cluster.instance",
        "model",
    ]


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (
            {"root": "runs"},
            "cluster.root: is no path that is the same everywhere (got 'runs'); allowed: an absolute path",
        ),
        ({"root": "/a:b"}, "cluster.root: is no path that is the same everywhere (got '/a:b')"),
        ({"root": "/a/../b"}, "cluster.root: is no path that is the same everywhere (got '/a/../b')"),
        ({"root": "/a\nb"}, "cluster.root: has control characters"),
        ({"hosts": ["a", "a"]}, "cluster.hosts: is not a list of hosts (got ['a', 'a']); allowed: a list of different"),
        ({"hosts": ["a b"]}, "cluster.hosts: is not a host (got 'a b')"),
        ({"partition": "a b"}, "cluster.partition: is not such a name (got 'a b'); allowed: at most 100 of A-Z a-z"),
        ({"image": "$(id)"}, "cluster.image: is not such a name (got '$(id)')"),
        (
            {"namespace": "Faces"},
            "cluster.namespace: is not such a name (got 'Faces'); allowed: at most 63 of a-z 0-9 -",
        ),
        ({"memory_per_node": "64"}, "cluster.memory_per_node: is not an amount of memory (got '64')"),
        ({"node": 3}, "did you mean 'nodes'?"),
    ],
)
def test_the_section_says_what_it_takes(cluster: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        sweep_with(cluster=cluster)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


# The command


@pytest.mark.slow
def test_the_command_writes_the_folder_once_and_says_what_comes_next(folder: Path, orchestrate: Orchestrate) -> None:
    done = orchestrate("launch", CELEBA, "--on", "slurm", "--set", "cluster.nodes=8", "--to", "a b")
    assert done.returncode == 0, done.stderr
    assert f"sbatch '{folder}/a b/job.sh'" in done.stdout
    assert sorted(path.name for path in (folder / "a b").iterdir()) == ["celeba.yaml", "job.sh"]
    assert os.access(folder / "a b" / "job.sh", os.X_OK)
    assert load(folder / "a b" / "celeba.yaml").cluster.nodes == 8
    assert directives((folder / "a b" / "job.sh").read_text())["nodes"] == "8"
    again = orchestrate("launch", CELEBA, "--on", "slurm", "--to", "a b")
    assert again.returncode == 2 and again.stderr == "--to: a b is there already; name another folder, or remove it\n"
    assert [path.name for path in folder.iterdir()] == ["a b"]


def test_a_dry_run_prints_the_files_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["launch", str(CELEBA), "--on", "kuberay", "--dry-run", "--set", "cluster.image=a/b:1"]
    assert cli.main([*arguments, "--set", "cluster.volume=disk"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("# ---- job.yaml ----\n") and "kind: RayJob" in told
    assert list(folder.iterdir()) == []


def test_what_cannot_be_written_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "chmod", _full)
    with pytest.raises(OSError, match="full"):
        launch.launch(sweep_with(), "slurm", folder / "there", folder / "runs")
    assert list(folder.iterdir()) == []


def _full(*_: object, **__: object) -> None:
    raise OSError("full")


HEAVY = {"torch", "ray", "optuna", "mlflow", "deepspeed", "diffusers"}


@pytest.mark.slow
def test_it_is_quick_for_it_loads_nothing_heavy() -> None:
    code = f"""
import sys
from orchestrator.cli.main import main
assert main(["launch", {str(CELEBA)!r}, "--on", "slurm", "--dry-run"]) == 0
print("loaded:", {HEAVY} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("loaded: set()")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The installed form of the package, unpacked."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("core", "orchestrator", "cluster", "sweeps"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(made)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    [file] = made.glob("*.whl")
    shutil.unpack_archive(file, made / "site", "zip")
    yield made / "site"


@pytest.mark.slow
def test_an_installed_package_has_its_templates_and_the_sweeps(wheel: Path, tmp_path: Path) -> None:
    shipped = wheel / "orchestrator" / "shipped"
    assert {path.name for path in (shipped / "sweeps").iterdir()} == {path.name for path in (ROOT / "sweeps").iterdir()}
    assert {path.name for path in (shipped / "cluster").iterdir()} == {
        path.name for path in (ROOT / "cluster").iterdir() if path.is_file()
    }
    command = [sys.executable, "-m", "orchestrator.cli", "launch", shipped / "sweeps" / "celeba.yaml", "--on", "slurm"]
    environment = os.environ | {"PYTHONPATH": str(wheel)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "celeba-slurm" / "job.sh").is_file()


def test_the_image_is_made_for_the_user_that_the_manifest_names() -> None:
    recipe = (ROOT / "cluster" / "Containerfile").read_text()
    assert "USER 1000:1000" in recipe and "orchestrate doctor --build" in recipe and "constraints.txt" in recipe
