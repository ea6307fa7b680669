"""The sections of a sweep file as frozen values."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.secrets import redacted
from orchestrator.spec.domains import (
    Domain,
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
from orchestrator.spec.tables import METRICS

_DATABASE = re.compile(r"postgresql(\+psycopg)?://[^/]*/[^/?]")


class Metric(Domain):
    """The name of a metric."""

    def __str__(self) -> str:
        return ", ".join(METRICS)

    def check(self, value: object) -> str:
        if not isinstance(value, str) or value not in METRICS:
            near = nearest(value, METRICS)
            text = f"no metric provides {shown(value)}; allowed: {self}" + (f"; did you mean {near!r}?" if near else "")
            raise Refused([Problem((), text)])
        return value


class Section(BaseModel):
    """A part of the file; a section left empty has its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, data: object) -> object:
        return {} if data is None else data


class Sampler(Section):
    """The chain: DDIM steps, where a shift enters, and in which window of training timesteps.

    `batch` is how many samples are drawn at a time wherever nothing is differentiated; it changes no result.
    """

    steps: Annotated[int, Whole(1, 1000)] = 20
    injection: Annotated[Literal["symmetric", "asymmetric"], OneOf(("symmetric", "asymmetric"))] = "symmetric"
    window: Annotated[tuple[int, int] | None, OrNull(Window())] = None
    eta: Annotated[float, Real(low=0, high=1)] = 0.0
    batch: Annotated[int, Whole(1)] = 64


class Train(Section):
    """One trial's training.

    `batch` is that of the whole trial, `micro_batch` what one worker runs at a time (null: what fits its device best,
    see `Gradient`; it changes no result), `pool` the unshifted samples that batches are drawn from, `precision` the
    denoiser's: fp32 allows no TF32, tf32 does, with bf16 and fp16 the chain itself stays in fp32.
    """

    iterations: Annotated[int, Whole(1)] = 400
    batch: Annotated[int, Whole(1)] = 16
    micro_batch: Annotated[int | None, OrNull(Whole(1))] = None
    pool: Annotated[int, Whole(32)] = 1024  # the reconstructor is calibrated on the first 32
    precision: Annotated[str, OneOf(("fp32", "tf32", "bf16", "fp16"))] = "fp32"
    strength_floor: Annotated[float, Real(low=0, below=1)] = 1 / 6


class Asha(Section):
    """Stops trials that fall behind; `grace` and the rungs count training iterations."""

    metric: Annotated[str | None, OrNull(Metric())] = None
    grace: Annotated[int, Whole(1)]
    reduction: Annotated[int, Whole(2)] = 3


class Scheduler(Section):
    """How trials are stopped early."""

    asha: Asha


class Budget(Section):
    """When the sweep ends."""

    trials: Annotated[int, Whole(1, 100_000)] = 16
    hours: Annotated[float | None, OrNull(Real(above=0))] = None


class Evaluate(Section):
    """How often a trial is measured (iterations; null: at its end only), on how many seeds, and at which strength.

    Strength is how far scale 1.0 moves images, the same for every set; 1 is as far as another sample. With null each
    set is as strong as its method made it.

    The others name networks that judge images, whose weights are a file or folder here, or on the hub: `features` of
    CLIP, DINOv2 or another vision model in place of the denoiser's own (null), `inception` for the metrics fid and
    inception_kid, `lpips` and `identity` for those of their names (core.metrics.networks).
    """

    every: Annotated[int | None, OrNull(Whole(1))] = None
    seeds: Annotated[int, Whole(6)] = 24
    strength: Annotated[float | None, OrNull(Real(above=0))] = None
    features: Annotated[str | None, OrNull(Text())] = None
    inception: Annotated[str | None, OrNull(Text())] = None
    lpips: Annotated[str | None, OrNull(Text())] = None
    identity: Annotated[str | None, OrNull(Text())] = None


class Resources(Section):
    """What one trial holds. It changes no result beyond rounding.

    `workers` are the processes that share it, on one machine or several (null: one for each GPU, and at least one).
    """

    gpus_per_trial: Annotated[float, Gpus()] = 0.0
    cpus_per_worker: Annotated[int, Whole(1)] = 1
    # The name is that of the property, which always has a number.
    workers_asked: Annotated[int | None, OrNull(Whole(1, 4096))] = Field(default=None, alias="workers")

    @property
    def workers(self) -> int:
        """Processes that share a trial."""
        return self.workers_asked or max(1, int(self.gpus_per_trial))


class DeepSpeed(Section):
    """How the trained parts are partitioned over a trial's workers. The frozen denoiser is not among them.

    `zero` partitions the optimiser (1), gradients too (2), and parameters too (3); `offload_optimizer` keeps Adam's
    state away from the GPU, `offload_param` the parameters, on the CPU or in files under `nvme_path`.
    `gradient_clipping` is the largest norm of all gradients of a network taken together (null: any), `precision` that
    of the trained parts, of which Adam always keeps a copy in fp32.
    """

    zero: Annotated[int, Whole(0, 3)] = 1
    offload_optimizer: Annotated[str, OneOf(("none", "cpu", "nvme"), null="none")] = "none"
    offload_param: Annotated[str, OneOf(("none", "cpu", "nvme"), null="none")] = "none"
    nvme_path: Annotated[str | None, OrNull(Text())] = None
    gradient_clipping: Annotated[float | None, OrNull(Real(above=0))] = None
    precision: Annotated[str, OneOf(("fp32", "bf16"))] = "fp32"


class Gradient(Section):
    """How the chain keeps memory down (core.chain.gradient). It changes no result, only memory and time.

    `policy` auto keeps as many steps as the device holds, deepspeed is checkpoint_steps by DeepSpeed's own
    checkpointing, which moves states to the CPU; `memory` is what the graphs of the kept steps may take, at
    most; `lean` runs the denoiser with fewer operations and saved bytes (core.execution.lean); `weights` says where
    those of its blocks are until they run: cpu, in the CPU's memory, or partitioned, over the workers of a trial, a
    part on each device (core.execution.streaming; such networks are not lean).
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
    """What a trial may go through and still be finished. It changes no result.

    How often the process of a trial may end before its time and be started again, from the last checkpoint: `crashes`
    counts errors, kills and hangs; `out_of_memory` ends for want of memory, after which it goes on in smaller parts;
    `preemptions` SIGTERM and interruptions of the whole sweep (null: as often as it takes). It hangs when it has made
    no step for `stalled_minutes`. `checkpoint_every` counts iterations (null: one with every measurement);
    `keep_trials` is how many of the finished trials, best first, keep their direction sets on disk.
    """

    crashes: Annotated[int, Whole(0)] = 2
    out_of_memory: Annotated[int, Whole(0)] = 3
    preemptions: Annotated[int | None, OrNull(Whole(0))] = None
    stalled_minutes: Annotated[float, Real(above=0)] = 30.0
    checkpoint_every: Annotated[int | None, OrNull(Whole(1))] = None
    keep_trials: Annotated[int, Whole(1)] = 10


class Tracking(Section):
    """Where runs are recorded; a null uri is the embedded store, a null experiment the sweep's name.

    `system_metrics` is whether every trial tells what it takes of its machine.
    """

    uri: Annotated[str | None, OrNull(Text())] = None
    experiment: Annotated[str | None, OrNull(Text())] = None
    system_metrics: Annotated[bool, Truth()] = True


class DatabaseAddress(Domain):
    """The address of a PostgreSQL database."""

    def __str__(self) -> str:
        return "postgresql://user@host:port/database, or null for a file in the sweep's folder"

    def check(self, value: object) -> str:
        address = Text().check(value)
        if not _DATABASE.match(address):
            self.refuse("is not the address of a PostgreSQL database", redacted(address))
        return address


class Study(Section):
    """Where Optuna's study is kept; a null uri is a file in the sweep's folder."""

    uri: Annotated[str | None, OrNull(DatabaseAddress())] = None


class Export(Section):
    """What becomes of the best direction set."""

    # `register` is taken by Python's abstract classes, hence another name for the attribute.
    register_as: Annotated[str | None, OrNull(Text())] = Field(default=None, alias="register")


@dataclass(frozen=True)
class Word(Domain):
    """Text of a few harmless letters, as those who read it elsewhere ask for; `allowed` says which."""

    pattern: str
    allowed: str

    def __str__(self) -> str:
        return self.allowed

    def check(self, value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            self.refuse("is not such a name", value)
        return value


@dataclass(frozen=True)
class Absolute(Domain):
    """A folder that every machine finds under the same path."""

    def __str__(self) -> str:
        return "an absolute path without : and without .."

    def check(self, value: object) -> str:
        text = Text().check(value)
        if not text.startswith("/") or ":" in text or ".." in text.split("/") or not text.strip("/"):
            self.refuse("is no path that is the same everywhere", value)
        return "/" + "/".join(part for part in text.split("/") if part)


@dataclass(frozen=True)
class Hosts(Domain):
    """Machines, the head first."""

    def __str__(self) -> str:
        return "a list of different host names or addresses, the head first"

    def check(self, value: object) -> tuple[str, ...]:
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
    """Where `orchestrate launch` lets the sweep run. It changes no result.

    A null is worked out from the rest of the file, or left to the cluster. `hours` is Slurm's time limit, after which
    the job goes on in a new turn; `retries` is how many turns a launch takes by itself. `root` is where sweeps are
    kept, on a disk that all nodes share; `volume` is that disk (a Kubernetes claim, or the id of an EFS file system).
    `setup` is a line of shell that comes before everything else where no image has it all; `secret` names the
    Kubernetes Secret whose keys become environment variables. `hosts` are machines that are there already.
    """

    nodes: Annotated[int | None, OrNull(Whole(1, 10_000))] = None
    gpus_per_node: Annotated[int | None, OrNull(Whole(0, 64))] = None
    cpus_per_node: Annotated[int | None, OrNull(Whole(1, 4096))] = None
    memory_per_node: Annotated[str | None, OrNull(Size())] = None
    hours: Annotated[float | None, OrNull(Real(above=0, high=8760))] = None
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
