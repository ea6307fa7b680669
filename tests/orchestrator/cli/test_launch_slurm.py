"""The job scripts of `orchestrate launch --on slurm`, read and run as Slurm would do."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli import launch
from orchestrator.spec import load
from tests.orchestrator.cli.conftest import HERE
from tests.orchestrator.cli.test_launch import CASES, EVIL, TARGETS, directives, rendered, sweep_with


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
