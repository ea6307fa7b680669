"""The sections of a sweep file as frozen values."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.secrets import redacted
from orchestrator.spec.domains import (
    Domain,
    Duration,
    Gpus,
    OneOf,
    OrNull,
    OrWord,
    Real,
    Size,
    Text,
    Truth,
    Whole,
    Window,
    size_bytes,
)
from orchestrator.spec.problems import Problem, Refused, nearest, shown
from orchestrator.spec.tables import METRICS, STRENGTH

_DATABASE = re.compile(r"postgresql(\+psycopg)?://[^/]*/[^/?]")


class Metric(Domain):
    """The name of a metric."""

    def __str__(self) -> str:
        return ", ".join(METRICS)

    def check(self, value: object) -> str:
        """Return `value` if it is the name of a metric, else raise Refused with the nearest spelling."""
        if not isinstance(value, str) or value not in METRICS:
            near = nearest(value, METRICS)
            text = f"no metric provides {shown(value)}; allowed: {self}" + (f"; did you mean {near!r}?" if near else "")
            raise Refused([Problem((), text)])
        return value


class Section(BaseModel):
    """A section of the file; a section left empty has its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, data: object) -> object:
        return {} if data is None else data


class Sampler(Section):
    """The chain: DDIM steps, where a shift enters, and in which window of training timesteps.

    `batch` is how many samples are drawn at a time wherever nothing is differentiated; it changes no result.
    """

    steps: Annotated[int, Whole(1, 10_000)] = 20  # at most the training timesteps of the model
    injection: Annotated[Literal["symmetric", "asymmetric"], OneOf(("symmetric", "asymmetric"))] = "symmetric"
    window: Annotated[tuple[int, int] | None, OrNull(Window())] = None
    eta: Annotated[float, Real(low=0, high=1)] = 0.0
    batch: Annotated[int, Whole(1)] = 64


class Train(Section):
    """The training of one trial.

    `batch` is the number of samples of the whole trial's step, `micro_batch` the number that one worker runs at a time
    (null: what fits its device best, see `Gradient`; it changes no result). `pool` is the number of unshifted samples
    from which batches are drawn. `precision` is the denoiser's: fp32 allows no TF32, tf32 does; with bf16 and fp16 the
    chain itself stays in fp32.
    """

    iterations: Annotated[int, Whole(1)] = 400
    batch: Annotated[int, Whole(1)] = 16
    micro_batch: Annotated[int | None, OrNull(Whole(1))] = None
    pool: Annotated[int, Whole(32)] = 1024  # the reconstructor is calibrated on the first 32
    precision: Annotated[str, OneOf(("fp32", "tf32", "bf16", "fp16"))] = "fp32"
    strength_floor: Annotated[float, Real(low=0, below=1)] = 1 / 6


class Asha(Section):
    """Early stopping of trials that fall behind, by ASHA; `grace` and the rungs count training iterations."""

    metric: Annotated[str | None, OrNull(Metric())] = None
    grace: Annotated[int, Whole(1)]
    reduction: Annotated[int, Whole(2)] = 3


class Scheduler(Section):
    """How trials are stopped early."""

    asha: Asha


class Budget(Section):
    """When the sweep ends: after `trials` trials, or `hours` hours (null: no limit)."""

    trials: Annotated[int, Whole(1, 100_000)] = 16
    hours: Annotated[float | None, OrNull(Duration("hours"))] = None


class Evaluate(Section):
    """How often a trial is measured, on how many seeds, at which strength, and with which networks.

    `every` counts iterations (null: ASHA's grace, or without ASHA only at the end). `strength` is how far scale 1.0
    moves images when a set is measured, the same for every set; 1 is the distance to another sample. So trials, methods
    and random directions are always compared at equal strength, and `shift_scale` is a parameter of training alone.
    With null each set keeps the strength that its method gave it.

    The other keys name networks that judge images, by a file or folder here, or a hub id: `features` of CLIP, DINOv2 or
    another vision model, in place of the denoiser's own (null), `inception` for the metrics fid and inception_kid,
    `lpips` and `identity` for the metrics of their names (core.metrics.networks). `second_predictor` scores attributes
    for the metrics second_disentanglement and second_coverage, and is used for nothing else, so that it can judge sets
    that were found or named by `predictor`; null is the second one that ships with an embedded model.
    """

    every: Annotated[int | None, OrNull(Whole(1))] = None
    seeds: Annotated[int, Whole(6)] = 24
    strength: Annotated[float | None, OrNull(Real(above=0))] = STRENGTH
    features: Annotated[str | None, OrNull(Text())] = None
    inception: Annotated[str | None, OrNull(Text())] = None
    lpips: Annotated[str | None, OrNull(Text())] = None
    identity: Annotated[str | None, OrNull(Text())] = None
    second_predictor: Annotated[str | None, OrNull(Text())] = None


class Resources(Section):
    """The resources of one trial. They change no result beyond rounding.

    `workers` is the number of processes that share a trial, on one machine or several (null: one for each GPU, at least
    one).
    """

    gpus_per_trial: Annotated[float, Gpus()] = 0.0
    cpus_per_worker: Annotated[int, Whole(1)] = 1
    # Called `workers` in a file; here the property of that name always has a number.
    workers_asked: Annotated[int | None, OrNull(Whole(1, 4096))] = Field(default=None, alias="workers")

    @property
    def workers(self) -> int:
        """The number of processes that share a trial."""
        return self.workers_asked or max(1, int(self.gpus_per_trial))


class DeepSpeed(Section):
    """How the trained parts are partitioned over a trial's workers. The frozen denoiser is not one of these parts.

    `zero` partitions the optimiser (1), gradients too (2), and parameters too (3). `offload_optimizer` keeps Adam's
    state away from the GPU, `offload_param` the parameters, on the CPU or in files under `nvme_path`.
    `gradient_clipping` is the largest norm of all gradients of a network together (null: any). `precision` is that of
    the trained parts; Adam always keeps a copy of them in fp32.
    """

    zero: Annotated[int, Whole(0, 3)] = 1
    offload_optimizer: Annotated[str, OneOf(("none", "cpu", "nvme"), null="none")] = "none"
    offload_param: Annotated[str, OneOf(("none", "cpu", "nvme"), null="none")] = "none"
    nvme_path: Annotated[str | None, OrNull(Text())] = None
    gradient_clipping: Annotated[float | None, OrNull(Real(above=0))] = None
    precision: Annotated[str, OneOf(("fp32", "bf16"))] = "fp32"


class Gradient(Section):
    """How the chain keeps memory down (core.chain.gradient). It changes no result, only memory and time.

    `policy`: auto keeps as many steps as the device holds; deepspeed is checkpoint_steps by DeepSpeed's own
    checkpointing, which moves states to the CPU. `memory` is the most that the graphs of the kept steps may take.
    `lean` runs the denoiser with fewer operations and saved bytes (core.execution.lean). `weights` says where the
    weights of the denoiser's blocks are until they run: in the CPU's memory (cpu), or a part on each worker's device
    (partitioned) (core.execution.streaming; such networks are not lean).
    """

    policy: Annotated[
        str, OneOf(("auto", "full_graph", "keep_steps", "checkpoint_steps", "checkpoint_blocks", "deepspeed"))
    ] = "auto"
    memory: Annotated[str, OrWord(Size(), ("auto",))] = "auto"
    lean: Annotated[bool, Truth()] = True
    weights: Annotated[str, OneOf(("device", "cpu", "partitioned"))] = "device"

    @property
    def bytes(self) -> int | None:
        """`memory` in bytes; None where it is auto."""
        return None if self.memory == "auto" else size_bytes(self.memory)


class Recovery(Section):
    """How often a trial may be interrupted and still be finished. It changes no result.

    A trial's process that ends early is started again from the last checkpoint, at most this often: `crashes` counts
    errors, kills and hangs; `out_of_memory` ends for want of memory, after which the trial goes on in smaller parts;
    `preemptions` SIGTERM and interruptions of the whole sweep (null: any number). A trial hangs when it has made no
    step for `stalled_minutes`. `checkpoint_every` adds checkpoints every so many iterations (null: only one with every
    measurement). `keep_trials` is how many of the finished trials, best first, keep their direction sets on disk.
    """

    crashes: Annotated[int, Whole(0)] = 2
    out_of_memory: Annotated[int, Whole(0)] = 3
    preemptions: Annotated[int | None, OrNull(Whole(0))] = None
    stalled_minutes: Annotated[float, Duration("minutes")] = 30.0
    checkpoint_every: Annotated[int | None, OrNull(Whole(1))] = None
    keep_trials: Annotated[int, Whole(1)] = 10


class Tracking(Section):
    """Where runs are recorded. `uri`: null is the embedded store; `experiment`: null is the sweep's name.

    `system_metrics`: whether every trial records how much of its machine it uses.
    """

    uri: Annotated[str | None, OrNull(Text())] = None
    experiment: Annotated[str | None, OrNull(Text())] = None
    system_metrics: Annotated[bool, Truth()] = True


class DatabaseAddress(Domain):
    """The address of a PostgreSQL database."""

    def __str__(self) -> str:
        return "postgresql://user@host:port/database, or null for a file in the sweep's folder"

    def check(self, value: object) -> str:
        """Return `value` if it is the address of a PostgreSQL database, else raise Refused, with secrets redacted."""
        address = Text().check(value)
        if not _DATABASE.match(address):
            self.refuse("is not the address of a PostgreSQL database", redacted(address))
        return address


class Study(Section):
    """Where Optuna's study is kept; `uri`: null is a file in the sweep's folder."""

    uri: Annotated[str | None, OrNull(DatabaseAddress())] = None


class Export(Section):
    """What is done with the best direction set."""

    # The attribute cannot be called `register`, which Python's abstract classes use.
    register_as: Annotated[str | None, OrNull(Text())] = Field(default=None, alias="register")


@dataclass(frozen=True)
class Word(Domain):
    """Text of a few safe characters, as the programs that read it require; `allowed` is the text of the message."""

    pattern: str
    allowed: str

    def __str__(self) -> str:
        return self.allowed

    def check(self, value: object) -> str:
        """Return `value` if it matches `pattern`, else raise Refused."""
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            self.refuse("is not such a name", value)
        return value


@dataclass(frozen=True)
class Absolute(Domain):
    """A folder that every machine finds under the same path."""

    def __str__(self) -> str:
        return "an absolute path without : and without .."

    def check(self, value: object) -> str:
        """Return the path without repeated or final slashes.

        Raises Refused for a relative path, the root, and a path with : or .. in it.
        """
        text = Text().check(value)
        if not text.startswith("/") or ":" in text or ".." in text.split("/") or not text.strip("/"):
            self.refuse("is no path that is the same everywhere", value)
        return "/" + "/".join(part for part in text.split("/") if part)


@dataclass(frozen=True)
class Hosts(Domain):
    """The host names or addresses of machines, the head first."""

    def __str__(self) -> str:
        return "a list of different host names or addresses, the head first"

    def check(self, value: object) -> tuple[str, ...]:
        """Return the hosts as a tuple. Raises Refused for equal hosts, and for one that is no host name or address."""
        if not isinstance(value, list | tuple) or len({str(host) for host in value}) < len(value):
            self.refuse("is not a list of hosts", value)
        for host in value:
            if not isinstance(host, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,252}", host):
                self.refuse("is not a host", host)
        return tuple(value)


_QUEUE = Word(r"[A-Za-z0-9_][A-Za-z0-9_.,@+-]{0,99}", "at most 100 of A-Z a-z 0-9 _ . , @ + -")
_OBJECT = Word(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", "at most 63 of a-z 0-9 -, the first and last a letter or digit")
_MACHINE = Word(r"[a-z0-9][a-z0-9.-]{0,62}", "at most 63 of a-z 0-9 . -")
_IMAGE = Word(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}", "at most 255 of A-Z a-z 0-9 . _ / : @ -")
_USER = Word(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", "at most 32 of A-Z a-z 0-9 _ . -, the first a letter or _")


class Cluster(Section):
    """Where `orchestrate launch` runs the sweep. It changes no result.

    A null is derived from the rest of the file, or left to the cluster. `hours` is Slurm's time limit, after which the
    job goes on in a new turn; `retries` is how many turns a launch takes by itself. `root` is the folder of sweeps, on
    a disk that all nodes share; `volume` is that disk (a Kubernetes claim, or the id of an EFS file system). `setup` is
    a line of shell that runs before everything else where no image has all that is needed. `secret` names the
    Kubernetes Secret whose keys become environment variables. `hosts` are machines that exist already.
    """

    nodes: Annotated[int | None, OrNull(Whole(1, 10_000))] = None
    gpus_per_node: Annotated[int | None, OrNull(Whole(0, 64))] = None
    cpus_per_node: Annotated[int | None, OrNull(Whole(1, 4096))] = None
    memory_per_node: Annotated[str | None, OrNull(Size())] = None
    hours: Annotated[float | None, OrNull(Duration("hours", 8760))] = None
    retries: Annotated[int, Whole(0, 1000)] = 20
    root: Annotated[str | None, OrNull(Absolute())] = None
    setup: Annotated[str | None, OrNull(Text())] = None
    image: Annotated[str | None, OrNull(_IMAGE)] = None
    partition: Annotated[str | None, OrNull(_QUEUE)] = None
    account: Annotated[str | None, OrNull(_QUEUE)] = None
    namespace: Annotated[str | None, OrNull(_OBJECT)] = None
    volume: Annotated[str | None, OrNull(_OBJECT)] = None
    secret: Annotated[str | None, OrNull(_OBJECT)] = None
    hosts: Annotated[tuple[str, ...], Hosts()] = ()
    user: Annotated[str | None, OrNull(_USER)] = None
    region: Annotated[str, _MACHINE] = "us-west-2"
    instance: Annotated[str | None, OrNull(_MACHINE)] = None
