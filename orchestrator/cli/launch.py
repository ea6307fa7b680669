"""Write the files that run a sweep on a cluster, for `orchestrate launch`. Nothing is submitted.

Slurm, KubeRay and Ray's cluster launcher read these files. Their templates are in `cluster/`. Every value from a user
goes through a filter that quotes it for the program that reads the file.
"""

import getpass
import hashlib
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from core.errors import UserError
from core.files import atomic_folder
from orchestrator.pages import environment
from orchestrator.secrets import redacted
from orchestrator.spec import SpecError, Sweep, size_bytes
from orchestrator.spec.domains import Text
from orchestrator.spec.problems import Refused, complaint
from orchestrator.spec.scalars import to_yaml
from orchestrator.spec.sources import sources
from orchestrator.text import counted

TARGETS = ("slurm", "kuberay", "ray")

_AT_ONCE = 4  # trials that run at a time where the sweep file does not give the cluster's size
_MOST_GPUS, _MOST_CPUS = 8, 64  # of a node, where the sweep file does not say
_HOURS = 24.0  # of one job, where neither the cluster nor the budget says
_SECONDS_TO_SAVE = 180  # before the end of a job; trials save and end within 60
_SHARED = Path("/shared/runs")  # the mount point of a volume, where the sweep file does not say


@dataclass(frozen=True)
class Shape:
    """The size of a cluster: its machines, and the resources of each; `least` machines hold one trial."""

    nodes: int
    gpus: int
    cpus: int
    least: int


@dataclass(frozen=True)
class Launch:
    """The files to write, and the commands that come next."""

    files: Mapping[str, str]
    commands: tuple[str, ...]
    executable: frozenset[str] = field(default_factory=frozenset)


def launch(sweep: Sweep, target: str, folder: Path, root: Path, dry_run: bool = False) -> str:
    """Write the files into the new folder `folder` and return the next commands; dry_run: return the files' text."""
    files = render(sweep, target, folder, root)
    if dry_run:
        return "\n".join(f"# ---- {name} ----\n{text}" for name, text in files.files.items())
    try:
        with atomic_folder(folder) as temporary:
            for name, text in files.files.items():
                (temporary / name).write_text(text)
                (temporary / name).chmod(0o755 if name in files.executable else 0o644)
    except FileExistsError:
        raise UserError(f"--to: {folder} is there already; name another folder, or remove it") from None
    return "\n".join([f"Written: {folder}", "Next:", *(f"  {command}" for command in files.commands)])


def render(sweep: Sweep, target: str, folder: Path, root: Path) -> Launch:
    """Return the files and the next commands.

    folder: where the files will be; root: where sweeps are kept here, for machines that share this one's disk.
    Raises UserError, one line for every mistake, where the sweep cannot run there.
    """
    folder, working = folder.absolute(), Path.cwd()
    root = _root(sweep, target, root)
    shape, problems = shape_of(sweep, len(sweep.cluster.hosts) if target == "ray" else 0)
    problems += [*_missing(sweep, target), *_hosts(sweep, target), *_secret(sweep), *_paths(sweep, target, root)]
    problems += _unwritable(**{"--to": folder, "the working folder": working, "--root": root})
    if problems:
        raise SpecError(problems)
    # Written into the copied sweep file, so that the sweep asks an autoscaler for as many nodes.
    sized = sweep.model_copy(update={"cluster": sweep.cluster.model_copy(update={"nodes": shape.nodes})})
    values = {
        "name": sweep.name,
        "object": object_name(sweep.name),
        "cluster": sweep.cluster,
        "shape": shape,
        "root": str(root),
        "sweep_file": f"{sweep.name}.yaml",
        "sweep_text": sweep_text(sized),
    }
    return {"slurm": _slurm, "kuberay": _kuberay, "ray": _ray}[target](sweep, values, folder, working)


def _slurm(sweep: Sweep, values: dict[str, Any], folder: Path, working: Path) -> Launch:
    memory = sweep.cluster.memory_per_node
    values |= {
        "folder": str(folder),
        "log": str(folder).replace("%", "%%") + "/%x-%j.log",
        "working": str(working),
        "megabytes": size_bytes(memory) >> 20 if memory else 0,
        "minutes": math.ceil((sweep.cluster.hours or sweep.budget.hours or _HOURS) * 60),
        "seconds_to_save": _SECONDS_TO_SAVE,
    }
    files = {"job.sh": _filled("slurm.sh.j2", values), values["sweep_file"]: values["sweep_text"]}
    job = shlex.quote(str(folder / "job.sh"))
    return Launch(files, (f"sbatch {job}", "squeue --me"), frozenset({"job.sh"}))


def _kuberay(sweep: Sweep, values: dict[str, Any], folder: Path, working: Path) -> Launch:
    memory = sweep.cluster.memory_per_node
    values |= {
        "run_text": _filled("run.sh.j2", values | {"setup": None, "gathered": 0}),
        "memory": memory.removesuffix("B") if memory else None,  # Kubernetes writes 64Gi
        "ray_version": version("ray"),
    }
    namespace = f" --namespace {sweep.cluster.namespace}" if sweep.cluster.namespace else ""
    job, kind = shlex.quote(str(folder / "job.yaml")), f"rayjob/{values['object']}"
    commands = (
        f"kubectl apply -f {job}",
        f"kubectl get{namespace} {kind}",
        f"kubectl replace --force -f {job}  # once it has ended early: it goes on",
    )
    return Launch({"job.yaml": _filled("kuberay.yaml.j2", values)}, commands)


def _ray(sweep: Sweep, values: dict[str, Any], folder: Path, working: Path) -> Launch:
    hosts, shape, root = sweep.cluster.hosts, values["shape"], shlex.quote(values["root"])
    setup = sweep.cluster.setup
    cache = f"HF_HOME={shlex.quote(values['root'] + '/.huggingface')} " if sweep.cluster.image else ""
    values |= {
        "setup": setup,
        "first": f"{setup} && " if setup else "",
        "gathered": shape.nodes if hosts else shape.nodes + 1,  # in a cloud the head is one more
        "environment": f"RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 {cache}",
        "amounts": f"--num-cpus={shape.cpus} --num-gpus={shape.gpus}",
        "run_options": [f"--volume {root}:{root}", "--ulimit nofile=65536:65536"],
        "user": sweep.cluster.user or getpass.getuser(),
    }
    files = {
        "cluster.yaml": _filled("ray-hosts.yaml.j2" if hosts else "ray-aws.yaml.j2", values),
        "run.sh": _filled("run.sh.j2", values),
        "gather.py": (_templates() / "gather.py").read_text(),
        values["sweep_file"]: values["sweep_text"],
    }
    script = f"~/{values['object']}/run.sh"
    submit = f"{values['first']}ray job submit --no-wait --address http://127.0.0.1:8265 -- bash {script}"
    commands = (
        f"cd {shlex.quote(str(folder))}",
        "ray get-auth-token --generate > /dev/null",
        "ray up --yes cluster.yaml",
        f"ray exec cluster.yaml {shlex.quote(submit)}  # again, once it has ended early: it goes on",
        "ray down --yes cluster.yaml  # at the end",
    )
    return Launch(files, commands, frozenset({"run.sh"}))


def sweep_text(sweep: Sweep) -> str:
    """Return the sweep as a file with every override and default, in ASCII, which every reader decodes alike."""
    return to_yaml(sweep.resolved(), allow_unicode=False, default_flow_style=None, width=110)


def object_name(name: str) -> str:
    """Return a sweep's name as Kubernetes and Ray allow it; where it had to be changed, a digest makes it unique."""
    plain = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:24].strip("-")
    return f"sweep-{plain}" if plain == name else f"sweep-{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def shape_of(sweep: Sweep, machines: int = 0) -> tuple[Shape, list[str]]:
    """Return the cluster's shape, and a list of what does not fit into it.

    What the sweep file does not say is computed from the needs of one trial.
    machines: how many there are already; 0 where none are known.
    """
    cluster, resources, workers = sweep.cluster, sweep.resources, sweep.resources.workers
    gpus, cpus, held = _node(sweep)
    if not held:
        each = _amounts(resources.cpus_per_worker, resources.gpus_per_trial / workers)
        text = f"cluster: a worker needs {each} (resources), and a node has {_amounts(cpus, gpus)}"
        return Shape(cluster.nodes or 1, gpus, cpus, 1), [text]
    least, at_once = math.ceil(workers / held), _at_once(sweep)
    wanted = at_once * least if workers > held else math.ceil(at_once / (held // workers))
    nodes = _given(cluster.nodes, machines or wanted)
    shape = Shape(nodes, gpus, cpus, least)
    if nodes >= least:
        return shape, []
    text = f"cluster.nodes: a trial of {counted(workers, 'worker')} takes {least} nodes of {_amounts(cpus, gpus)}"
    return shape, [f"{text}, and there are {nodes}"]


def _node(sweep: Sweep) -> tuple[int, int, int]:
    """Return GPUs and CPUs of a node, and how many workers it holds; by default those of one trial.

    Trials that take a share of a GPU, or none, run beside each other on a node.
    """
    cluster, each, workers = sweep.cluster, sweep.resources.cpus_per_worker, sweep.resources.workers
    gpus_each, at_once = sweep.resources.gpus_per_trial, _at_once(sweep)
    gpus = _given(
        cluster.gpus_per_node, min(_MOST_GPUS, math.ceil(gpus_each * at_once if gpus_each < 1 else gpus_each))
    )
    if gpus_each:
        most = by_gpus = int(gpus * workers / gpus_each + 1e-9)
    else:
        by_gpus = workers * at_once
        most = min(by_gpus, _MOST_CPUS // each)
    cpus = _given(cluster.cpus_per_node, max(1, most) * each)
    return gpus, cpus, min(by_gpus, cpus // each)


def _at_once(sweep: Sweep) -> int:
    return min(_AT_ONCE, sweep.budget.trials)


def _given(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _amounts(cpus: float, gpus: float) -> str:
    return " and ".join([counted(int(cpus), "CPU"), *([f"{gpus:g} GPU" + "s" * (gpus > 1)] if gpus else [])])


def _root(sweep: Sweep, target: str, root: Path) -> Path:
    """Return where the cluster keeps sweeps."""
    if sweep.cluster.root:
        return Path(sweep.cluster.root)
    return root.absolute() if target == "slurm" or (target == "ray" and sweep.cluster.hosts) else _SHARED


_NEEDED = {
    "image": "the container image that cluster/Containerfile makes",
    "volume": "the disk that all nodes share, {volume}",
    "instance": "the kind of machine that workers run on, such as g6.12xlarge; or cluster.hosts",
}


def _missing(sweep: Sweep, target: str) -> Iterator[str]:
    """Yield a message for each value that is needed, missing, and has no default."""
    needed = {"slurm": (), "kuberay": ("image", "volume"), "ray": ("image", "volume", "instance")}[target]
    if target == "ray" and sweep.cluster.hosts:
        return
    volume = "a PersistentVolumeClaim" if target == "kuberay" else "the id of an EFS file system, such as fs-0123abcd"
    for name in needed:
        if getattr(sweep.cluster, name) is None:
            yield f"cluster.{name}: is missing; allowed with --on {target}: {_NEEDED[name].format(volume=volume)}"


def _hosts(sweep: Sweep, target: str) -> Iterator[str]:
    hosts, nodes = sweep.cluster.hosts, sweep.cluster.nodes
    if target == "ray" and hosts and nodes not in (None, len(hosts)):
        yield complaint("cluster.nodes: is not the number of hosts", nodes, f"{len(hosts)}, or null")


def _secret(sweep: Sweep) -> Iterator[str]:
    """Yield a message for each address with a password: a launch copies the sweep file to where others may read it."""
    for section, key, uri in (
        (name, key, value)
        for name, part in sweep.resolved().items()
        if isinstance(part, dict)
        for key, value in part.items()
        if isinstance(value, str)
    ):
        if redacted(uri) != uri:
            yield (
                f"{section}.{key}: holds a password, which a launch would copy (got {redacted(uri)}); "
                "allowed: an address without one, and the password in the environment of the nodes"
            )


def _paths(sweep: Sweep, target: str, root: Path) -> Iterator[str]:
    """Yield a message for each file that the sweep names and the nodes do not have."""
    for source in sources(sweep):
        path, text = Path(source.name), source.name
        if not source.on_disk:
            continue
        if target == "slurm":  # its nodes share this machine's disk, and start in this working folder
            inside = path.is_absolute() or text.startswith("~") or _below(Path.cwd() / path, Path.cwd(), root)
            allowed = "a folder below the working folder, or an absolute path"
        else:
            inside, allowed = path.is_absolute() and _below(path, root), f"an absolute path below {root}"
        if not inside:
            yield f"{source.key}: " + complaint("is nothing that the nodes have", text, allowed)


def _below(path: Path, *parents: Path) -> bool:
    resolved = path.resolve()
    return any(resolved.is_relative_to(parent.resolve()) for parent in parents)


def _unwritable(**paths: Path) -> Iterator[str]:
    for where, path in paths.items():
        try:
            Text().check(str(path))
        except Refused as refused:
            yield f"{where}: {refused.problems[0].text}"


def _templates() -> Path:
    """Return the folder of templates: inside this package where it is installed, beside the packages in a checkout."""
    shipped = Path(__file__).parents[1] / "shipped" / "cluster"
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "cluster"


def _filled(template: str, values: Mapping[str, Any]) -> str:
    filters: dict[str, Callable[..., str]] = {"sh": shlex.quote, "sbatch": _sbatch, "yaml": _yaml, "block": _block}
    return environment(_templates(), html=False, filters=filters).get_template(template).render(values)


def _sbatch(path: str) -> str:
    """Quote a path for a #SBATCH line, where a backslash escapes the next character, within quotes too."""
    return '"' + re.sub(r'(["\\])', r"\\\1", path) + '"'


def _yaml(value: Any) -> str:
    """Return a value as YAML on one line, with everything beyond ASCII escaped."""
    style = '"' if isinstance(value, str) else None
    text: str = yaml.safe_dump(value, default_style=style, default_flow_style=True, allow_unicode=False, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _block(text: str, indent: int) -> str:
    """Return a text as a readable YAML block where its characters allow it, else as a quoted line."""
    if (
        not text.strip()
        or text != text.strip() + "\n"
        or not text.isascii()
        or not text.replace("\n", "").isprintable()
    ):
        return _yaml(text)
    return "|\n" + "".join(" " * indent + line for line in text.splitlines(keepends=True)).removesuffix("\n")
