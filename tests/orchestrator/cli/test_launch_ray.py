"""What `orchestrate launch` writes for KubeRay and for Ray's cluster launcher, read as they would do."""

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.cli import launch
from tests.orchestrator.cli.test_launch import CASES, HOSTS, SHARED, directives, rendered

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
@example("\n")
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
