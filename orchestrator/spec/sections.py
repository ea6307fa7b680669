"""The sections of a sweep file as frozen values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
    denoiser's: fp32 allows no TF32, tf32 does, with bf16 the chain itself stays in fp32.
    """

    iterations: Annotated[int, Whole(1)] = 400
    batch: Annotated[int, Whole(1)] = 16
    micro_batch: Annotated[int | None, OrNull(Whole(1))] = None
    pool: Annotated[int, Whole(32)] = 1024  # the reconstructor is calibrated on the first 32
    precision: Annotated[str, OneOf(("fp32", "tf32", "bf16"))] = "fp32"
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
    """

    every: Annotated[int | None, OrNull(Whole(1))] = None
    seeds: Annotated[int, Whole(6)] = 24
    strength: Annotated[float | None, OrNull(Real(above=0))] = None


class Resources(Section):
    """What one trial holds."""

    gpus_per_trial: Annotated[float, Gpus()] = 0.0
    cpus_per_worker: Annotated[int, Whole(1)] = 1

    @property
    def workers(self) -> int:
        """Processes that share a trial: one for each whole GPU, and at least one."""
        return max(1, int(self.gpus_per_trial))


class DeepSpeed(Section):
    """How the trained parts are partitioned. The frozen denoiser is not among them."""

    zero: Annotated[int, Whole(0, 2, {3: "is not supported yet"})] = 1
    offload_optimizer: Annotated[str, OneOf(("none", "cpu"), null="none")] = "none"
    precision: Annotated[str, OneOf(("fp32", "bf16"))] = "fp32"


class Gradient(Section):
    """How the chain keeps memory down (core.gradient). It changes no result, only memory and time.

    `policy` auto keeps as many steps as the device holds; `memory` is what the graphs of the kept steps may take, at
    most; `lean` runs the denoiser with fewer operations and saved bytes (core.lean).
    """

    policy: Annotated[str, OneOf(("auto", "full_graph", "keep_steps", "checkpoint_steps", "checkpoint_blocks"))] = (
        "auto"
    )
    memory: Annotated[str, OrWord(Size(), ("auto",))] = "auto"
    lean: Annotated[bool, Truth()] = True

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
    """Where runs are recorded; a null uri is the embedded store, a null experiment the sweep's name."""

    uri: Annotated[str | None, OrNull(Text())] = None
    experiment: Annotated[str | None, OrNull(Text())] = None


class Export(Section):
    """What becomes of the best direction set."""

    # `register` is taken by Python's abstract classes, hence another name for the attribute.
    register_as: Annotated[str | None, OrNull(Text())] = Field(default=None, alias="register")
