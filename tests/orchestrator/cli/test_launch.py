"""What `orchestrate launch` writes, read and run as the programs that it is for would do.

The whole files stand in tests/golden/launch; after a change that is meant, write them anew and look at the difference:
REFRESH_GOLDEN=1 python -m pytest tests/orchestrator/cli/test_launch.py -k whole
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.model import catalogue
from orchestrator.cli import launch
from orchestrator.cli import main as cli
from orchestrator.spec import Sweep, load, parse
from tests.orchestrator.conftest import Orchestrate

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "launch"
CELEBA = ROOT / "sweeps" / "celeba.yaml"

# What breaks quoting, in every place that takes free text.
EVIL = 'it\'s "a" $HOME `id` $(id) \\ {{ x }} # %j ; & ünï\u2028 \U0001f600'
SHARED = f"/shared/{EVIL}"
HERE = Path("/shared/work")

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


@pytest.fixture
def in_project_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: HERE)


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


# Slurm


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


@pytest.mark.usefixtures("in_project_folder")
def test_sbatch_reads_what_was_meant() -> None:
    found = directives(rendered("nasty", "slurm").files["job.sh"])
    assert found["output"] == f"{HERE}/{EVIL}".replace("%", "%%") + "/%x-%j.log"
    assert found["job-name"] == "A_nasty.Name" and found["partition"] == "gpu" and found["account"] == "faces"
    found = directives(rendered("celeba", "slurm").files["job.sh"])
    assert (found["nodes"], found["gpus-per-node"], found["cpus-per-task"]) == ("4", "4", "16")
    assert found["time"] == "4320" and found["signal"] == "B:USR1@180" and "requeue" in found


SHELLCHECK = Path(sys.executable).parent / "shellcheck"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("in_project_folder")
def test_the_shell_has_nothing_to_say_against_the_scripts(case: str, target: str, tmp_path: Path) -> None:
    files = dict(rendered(case, target).files)
    if target == "kuberay":
        files |= {"run.sh": next(yaml.safe_load_all(files["job.yaml"]))["data"]["run.sh"]}
    scripts = [name for name in files if name.endswith(".sh")]
    assert scripts
    for name in scripts:
        (tmp_path / name).write_text(files[name])
        subprocess.run(["bash", "-n", tmp_path / name], check=True)
        # Below errors it also warns of how a well quoted path looks.
        level = "style" if case == "celeba" else "error"
        done = subprocess.run([SHELLCHECK, "--severity", level, tmp_path / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


FAKES = {
    # ray symmetric-run runs the entry point on the head; here there is nothing else.
    "srun": '#!/bin/bash\nprintf "%s\\0" "$@" > "$RECORD/srun"\nwhile [ "$1" != ray ]; do shift; done\nexec "$@"\n',
    "ray": '#!/bin/bash\nwhile [ "$1" != -- ]; do shift; done\nshift\n"$@"\n',
    "scontrol": '#!/bin/bash\n[ "$1" = show ] && printf "node1\\nnode2\\n" || echo "$*" >> "$RECORD/scontrol"\n',
    "getent": '#!/bin/bash\nprintf "127.0.1.1 STREAM node1\\n10.0.0.7 STREAM\\n"\n',
    "orchestrate": f"""#!{sys.executable}
import json, os, pathlib, signal, stat, sys, time
record, token = pathlib.Path(os.environ["RECORD"]), pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
root = pathlib.Path(sys.argv[sys.argv.index("--root") + 1])
signals = []
def told(number, frame):
    signals.append(number)
    (root / "faces").mkdir(exist_ok=True)
    (root / "faces" / "stop").touch()
signal.signal(signal.SIGTERM, told)
facts = dict(argv=sys.argv[1:], mode=os.environ["RAY_AUTH_MODE"], token=token.read_text(), private=str(token.parent),
             modes=[stat.S_IMODE(path.stat().st_mode) for path in (token, token.parent)], cwd=os.getcwd(),
             set_up=os.environ.get("SET_UP"))
(record / "began").write_text(json.dumps(facts))
ends = time.monotonic() + float(os.environ["LASTS"])
while not signals and time.monotonic() < ends:
    time.sleep(0.05)
time.sleep(2.5 if signals else 0)  # trials save
(record / "signals").write_text(json.dumps(signals))
sys.exit(130 if signals else int(os.environ["ENDS"]))
""",
}


class Job:
    """A job script, run with programs of ours in place of Slurm's and Ray's."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.record, self.root = folder / "record", folder / 'it\'s $a "disk"'
        programs = folder / "programs"
        for made in (self.record, programs):
            made.mkdir()
        for name, text in FAKES.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        cluster = {"root": str(self.root), "nodes": 2, "setup": 'export SET_UP="it\'s $UNSET"', "retries": 3}
        launch.launch(sweep_with(cluster=cluster), "slurm", folder / "a launch's", folder / "runs")
        slurm = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node[1-2]", "RECORD": str(self.record)}
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | slurm | {"PATH": path, "LASTS": "0", "ENDS": "0"} | environment
        self.script = folder / "a launch's" / "job.sh"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([self.script], env=self.environment, cwd="/", start_new_session=True)
        until = time.monotonic() + 60
        while not (self.record / "began").exists() or not (self.record / "began").read_text():
            assert time.monotonic() < until and self.process.poll() in (None, int(self.environment["ENDS"]))
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> int:
        assert self.process is not None
        return self.process.wait(60)

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.record / "began").read_text())
        return facts

    def requeued(self) -> list[str]:
        file = self.record / "scontrol"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("status", [0, 2])
def test_the_job_runs_the_sweep_on_the_head_and_ends_as_it_does(status: int, folder: Path) -> None:
    job = Job(folder, ENDS=str(status))
    job.start()
    assert job.end() == status and job.requeued() == []
    facts = job.facts()
    spec = str(folder / "a launch's" / "faces.yaml")
    assert facts["argv"] == ["sweep", spec, "--root", str(job.root), "--address", "auto"]
    assert load(Path(spec)).name == "faces" and facts["cwd"] == str(folder) and facts["set_up"] == "it's "
    step = (job.record / "srun").read_text().split("\0")[:-1]
    ray = step[step.index("ray") : step.index("--")]
    assert ray == shlex.split("ray symmetric-run --address 10.0.0.7:6379 --min-nodes 2 --num-cpus=4 --num-gpus=0")
    assert step[:2] == ["--kill-on-bad-exit=1", "--cpus-per-task=4"]


def test_ray_asks_for_a_token_that_only_this_user_can_read_and_that_goes_with_the_job(folder: Path) -> None:
    job = Job(folder)
    job.start()
    assert job.end() == 0
    facts = job.facts()
    assert facts["mode"] == "token" and facts["modes"] == [0o600, 0o700]
    assert len(facts["token"]) == 64 and set(facts["token"]) <= set("0123456789abcdef")
    assert Path(facts["private"]).parent == job.root and not Path(facts["private"]).exists()


def test_when_the_time_is_nearly_over_the_driver_is_told_once_and_the_job_queues_again(folder: Path) -> None:
    job = Job(folder, LASTS="50")
    job.start()
    job.send(signal.SIGUSR1)
    time.sleep(1.6)
    job.send(signal.SIGTERM)  # Slurm's own, a little later
    assert job.end() == 130
    assert json.loads((job.record / "signals").read_text()) == [signal.SIGTERM]
    assert job.requeued() == ["requeue 17"]


def test_a_preempted_job_saves_and_leaves_the_queue_to_slurm(folder: Path) -> None:
    job = Job(folder, LASTS="50")
    job.start()
    job.send(signal.SIGTERM)
    assert job.end() == 130
    assert json.loads((job.record / "signals").read_text()) == [signal.SIGTERM] and job.requeued() == []
    assert not list(job.root.glob(".slurm-*"))


def test_a_job_does_not_queue_for_ever(folder: Path) -> None:
    job = Job(folder, LASTS="50", SLURM_RESTART_COUNT="3")
    job.start()
    job.send(signal.SIGUSR1)
    assert job.end() == 130 and job.requeued() == []


# Kubernetes


def manifests(case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config, job = yaml.safe_load_all(rendered(case, "kuberay").files["job.yaml"])
    return config, job


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("in_project_folder")
def test_the_job_has_the_fields_that_kuberay_and_kubernetes_know(case: str) -> None:
    schema = json.loads((Path(__file__).parents[2] / "golden" / "launch" / "rayjob.schema.json").read_text())
    config, job = manifests(case)
    jsonschema.validate(job, schema)
    jsonschema.validate(config, schema["$defs"]["ConfigMap"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job | {"spec": job["spec"] | {"backofLimit": 3}}, schema)


@pytest.mark.usefixtures("in_project_folder")
def test_no_trial_runs_on_the_head_and_every_pod_sees_the_shared_disk() -> None:
    config, job = manifests("nasty")
    cluster = job["spec"]["rayClusterSpec"]
    [workers] = cluster["workerGroupSpecs"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0" and cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] and (workers["minReplicas"], workers["maxReplicas"]) == (1, 1)
    for group in (cluster["headGroupSpec"], workers):
        spec = group["template"]["spec"]
        [container] = spec["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"root": SHARED, "launch": "/launch", "memory": "/dev/shm"}
        assert {volume["name"] for volume in spec["volumes"]} == mounts.keys() and spec["securityContext"][
            "runAsNonRoot"
        ]
        assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]
    assert config["metadata"]["name"] == job["metadata"]["name"]
    assert config["metadata"]["name"] == launch.object_name("A_nasty.Name")


@pytest.mark.usefixtures("in_project_folder")
def test_pods_ask_for_what_a_trial_takes() -> None:
    _, job = manifests("celeba")
    [workers] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [container] = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "16", "memory": "256Gi", "nvidia.com/gpu": "4"}
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (1, 1, 4)


@pytest.mark.usefixtures("in_project_folder")
def test_the_script_in_the_config_map_starts_the_sweep(tmp_path: Path) -> None:
    config, _ = manifests("nasty")
    (tmp_path / "run.sh").write_text(config["data"]["run.sh"])
    (tmp_path / "orchestrate").write_text('#!/bin/bash\nprintf "%s\\0" "$PWD" "$@"\n')
    (tmp_path / "orchestrate").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", tmp_path / "run.sh"], env=environment, capture_output=True, cwd="/", check=True)
    told = done.stdout.decode().split("\0")[:-1]
    assert told == [str(tmp_path), "sweep", "A_nasty.Name.yaml", "--root", SHARED, "--address", "auto"]


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True))
def test_a_sweep_s_name_becomes_one_that_kubernetes_takes(name: str) -> None:
    made = launch.object_name(name)
    assert len(made) <= 47 and made[0].isalpha() and made[-1] != "-"
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_names_that_look_alike_stay_apart() -> None:
    assert len({launch.object_name(name) for name in ("a-b", "a.b", "a_b", "A-b", "a" * 30, "a" * 31)}) == 6


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1)  # what a sweep file lets through


@given(TEXT)
def test_quoted_text_is_read_as_it_was(text: str) -> None:
    assert yaml.safe_load(f"a: [{launch._yaml(text)}]") == {"a": [text]}
    assert directives(f"#SBATCH --a={launch._sbatch(text)}") == {"a": text}


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_a_file_within_a_file_is_read_as_it_was(text: str) -> None:
    assert yaml.safe_load(f"a:\n  b: {launch._block(text, 4)}\nc: 1\n") == {"a": {"b": text}, "c": 1}


# Ray's cluster launcher


@pytest.mark.parametrize("target", ["ray-hosts", "ray-aws"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("in_project_folder")
def test_ray_up_accepts_its_file(case: str, target: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(rendered(case, target).files["cluster.yaml"])
    validate_config(prepare_config(config))


@pytest.mark.usefixtures("in_project_folder")
def test_a_cloud_has_an_on_demand_head_and_spot_workers() -> None:
    config = yaml.safe_load(rendered("celeba", "ray-aws").files["cluster.yaml"])
    kinds = config["available_node_types"]
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"] and kinds["head"]["resources"] == {"CPU": 0}
    assert kinds["trials"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert kinds["trials"]["resources"] == {"CPU": 16, "GPU": 4} and kinds["trials"]["max_workers"] == 4
    assert config["max_workers"] == 4 and "python gather.py 5" in rendered("celeba", "ray-aws").files["run.sh"]


@pytest.mark.usefixtures("in_project_folder")
def test_the_first_host_is_the_head() -> None:
    config = yaml.safe_load(rendered("celeba", "ray-hosts").files["cluster.yaml"])
    assert config["provider"] == {"type": "local", "head_ip": "node-a", "worker_ips": HOSTS["hosts"][1:]}
    assert config["max_workers"] == 3 and all(
        "RAY_AUTH_MODE=token" in config[f"{kind}_start_ray_commands"][1] for kind in ("head", "worker")
    )


@pytest.mark.usefixtures("in_project_folder")
def test_a_path_stays_one_word_in_the_commands_of_the_launcher() -> None:
    config = yaml.safe_load(rendered("nasty", "ray-aws").files["cluster.yaml"])
    assert shlex.split(config["initialization_commands"][0]) == ["sudo", "mkdir", "-p", SHARED]
    assert shlex.split(config["docker"]["run_options"][0]) == ["--volume", f"{SHARED}:{SHARED}"]
    assert f"HF_HOME={SHARED}/.huggingface" in shlex.split(config["head_start_ray_commands"][1])


@pytest.mark.usefixtures("in_project_folder")
def test_the_line_of_setup_comes_before_whatever_the_launcher_starts() -> None:
    line = CASES["nasty"]("ray-hosts").cluster.setup
    made = rendered("nasty", "ray-hosts")
    config = yaml.safe_load(made.files["cluster.yaml"])
    assert all(
        command.startswith(f"{line} && ")
        for kind in ("head", "worker")
        for command in config[f"{kind}_start_ray_commands"]
    )
    assert f"{line}\npython gather.py 4\n" in made.files["run.sh"]
    assert shlex.split(made.commands[3], comments=True)[3].startswith(f"{line} && ray job submit")


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
