"""Do the engines descend what plain PyTorch descends, however they partition it and over however many workers?

    python -m benchmarks.parity                 writes benchmarks/results/parity_cpu.md; half an hour on two cores
    python -m benchmarks.parity --zero 3 --world 2

Every row trains the learned method's networks for five iterations on a tiny model and compares all parameters with
those that plain PyTorch comes to in one process with the whole batch at once:

    error = ||ours - plain|| / ||plain - start||    of all parameters of a network together

so that 1 is an error as large as everything that was learned.
"""

import argparse
import itertools
import json
import math
import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from benchmarks.common import RESULTS, machine
from core import Denoiser, Schedule
from core.methods.learned.training import Learner, Settings
from core.methods.trained.chain_learner import Workers
from core.methods.trained.optimiser import Group, TorchOptimiser
from core.methods.trained.shift_control import Parametrisation
from orchestrator.spec.checks import unworkable
from orchestrator.spec.sections import DeepSpeed
from orchestrator.store.state_file import read_state
from orchestrator.trial.engine import Engines
from tests.faults.machine import tiny_model

NETWORKS = ("explorer", "discriminator")
BATCH, ITERATIONS = 16, 5
CLIP = 1.0  # of the order of the gradients' norms: some are clipped, others not
# fp32: sums are taken in another order, and Adam divides by what may be next to nothing. bf16: weights of 8 bits.
LIMITS = {"fp32": 1e-3, "bf16": 0.25}


@dataclass(frozen=True)
class Job:
    """One trial's training: with which engines, on how many workers, from where to where."""

    name: str
    zero: int = 1
    offload_optimizer: str = "none"
    offload_param: str = "none"
    precision: str = "fp32"
    gradient_clipping: float | None = None
    micro_batch: int | None = None  # None: a worker's whole share
    world: int = 1
    iterations: int = ITERATIONS
    resume: str | None = None  # the job from whose checkpoint it goes on
    parametrisation: Parametrisation = "shared"
    nvme_path: str | None = None

    @property
    def deepspeed(self) -> dict[str, Any]:
        names = ("zero", "offload_optimizer", "offload_param", "precision", "gradient_clipping", "nvme_path")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Outcome:
    """What a job came to, or why it did not."""

    failed: str | None
    losses: list[dict[str, float]]  # means over the workers
    seconds: float
    tensors: dict[str, dict[str, Tensor]]
    directions: Tensor


def run(model: Path, jobs: Sequence[Job], folder: Path) -> dict[str, Outcome]:
    """Run jobs of one world size after another, in the same processes; each has a process group of its own."""
    [world] = {job.world for job in jobs}
    spawn(worker, (world, str(model), jobs, str(folder)), nprocs=world)  # type: ignore[no-untyped-call]  # torch's
    return {job.name: outcome(folder / job.name) for job in jobs}


def outcome(folder: Path) -> Outcome:
    """What a job wrote."""
    told = json.loads((folder / "told.json").read_text())
    if told["failed"]:
        return Outcome(told["failed"], [], 0.0, {}, torch.empty(0))
    tensors = {name: read_state(folder / "state" / name)[0] for name in NETWORKS}
    return Outcome(None, told["losses"], told["seconds"], tensors, torch.load(folder / "directions.pt"))


def worker(rank: int, world: int, model: str, jobs: Sequence[Job], folder: str) -> None:
    """One of the processes that run these jobs; what they come to lies in `folder`."""
    torch.set_num_threads(1)
    told = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    os.environ.update({name: str(value) for name, value in told.items()})
    for job in jobs:
        place = Path(folder) / job.name
        place.mkdir(parents=True, exist_ok=True)
        store = f"file://{place}/store"
        torch.distributed.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
        try:
            _train(job, rank, Path(model), Path(folder))
        except Exception as error:
            if rank == 0:
                traceback.print_exc()
                (place / "told.json").write_text(json.dumps({"failed": f"{type(error).__name__}: {error}"}))
        torch.distributed.destroy_process_group()


def _train(job: Job, rank: int, model: Path, folder: Path) -> None:
    denoiser, schedule = _model(model)
    micro = job.micro_batch or BATCH // job.world
    engines, place = Engines(DeepSpeed(**job.deepspeed), micro), folder / job.name
    try:
        learner = Learner(denoiser, schedule, settings(job, micro), Workers(engines.make, rank, job.world))
        first = engines.load(folder / job.resume / "state") if job.resume else 0
        began = time.monotonic()
        losses = [_mean(learner.iterate(n)) for n in range(first, job.iterations)]
        seconds = time.monotonic() - began
        state = engines.snapshot(job.iterations)
        if rank == 0:
            state.write(place / "state")
        directions = learner.directions().table
        if rank == 0:
            torch.save(directions, place / "directions.pt")
            (place / "told.json").write_text(json.dumps({"failed": None, "losses": losses, "seconds": seconds}))
        torch.distributed.barrier()
    finally:
        engines.close()


def _model(folder: Path) -> tuple[Any, Any]:
    denoiser = Denoiser.from_pretrained(str(folder))
    return denoiser, Schedule.ddim(denoiser, 2)


def settings(job: Job, micro_batch: int | None = None) -> Settings:
    """The learned method's. At its usual rates rounding grows a hundredfold an iteration: nothing could be compared.

    Directions start from principal components: slopes are summed over micro-batches, whose rounding is not the
    engine's. With this seed no unit of a head starts on the kink of its activation, where rounding decides the slope.
    """
    return Settings(
        directions=3,
        batch=BATCH,
        micro_batch=micro_batch,
        pool=32,
        parametrisation=job.parametrisation,
        start="pca",
        seed=6,
        direction_rate=1e-3,
        reconstructor_rate=1e-5,
        discriminator_rate=1e-5,
    )


def _mean(losses: dict[str, float]) -> dict[str, float]:
    values = torch.tensor(list(losses.values()), dtype=torch.float64)
    torch.distributed.all_reduce(values)
    return dict(zip(losses, (values / torch.distributed.get_world_size()).tolist(), strict=True))


@dataclass(frozen=True)
class Plain:
    """What plain PyTorch comes to in one process, and from where."""

    start: dict[str, dict[str, Tensor]]
    end: dict[str, dict[str, Tensor]]
    losses: list[dict[str, float]]
    directions: Tensor

    @property
    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The end, named as a checkpoint does."""
        return {name: {f"parameter/{key}": tensor for key, tensor in end.items()} for name, end in self.end.items()}

    def errors(self, tensors: dict[str, dict[str, Tensor]]) -> dict[str, float]:
        """How far parameters are from these, for each network, as a fraction of the way from the start."""
        return {network: self._error(network, tensors[network]) for network in NETWORKS}

    def _error(self, network: str, tensors: dict[str, Tensor]) -> float:
        start, end = self.start[network], self.end[network]
        off = sum(float((tensors[f"parameter/{name}"] - end[name]).square().sum()) for name in end)
        way = sum(float((end[name] - start[name]).square().sum()) for name in end)
        return float((off / way) ** 0.5)


def plain(model: Path, job: Job) -> Plain:
    """The reference for a job: one process, Adam of torch, torch's clipping, float32.

    For bf16 it starts from weights rounded to that: DeepSpeed's copies in float32 do too.
    """
    torch.set_num_threads(1)
    learner = Learner(*_model(model), settings(job, job.micro_batch), Workers(partial(Clipped, job.gradient_clipping)))
    networks = {"explorer": learner.explorer, "discriminator": learner.discriminator}
    for network in networks.values():
        for parameter in network.parameters() if job.precision == "bf16" else ():
            parameter.data.copy_(parameter.data.bfloat16())
    start = {name: _parameters(network) for name, network in networks.items()}
    losses = [learner.iterate(n) for n in range(job.iterations)]
    end = {name: _parameters(network) for name, network in networks.items()}
    return Plain(start, end, losses, learner.directions().table)


def _parameters(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


class Clipped(TorchOptimiser):
    """With torch's own clipping: one norm over all gradients of a network."""

    def __init__(self, limit: float | None, name: str, module: nn.Module, groups: list[Group], count: int) -> None:
        super().__init__(name, module, groups, count)

        def clip(*_: object) -> None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), math.inf if limit is None else limit)

        self.adam.register_step_pre_hook(clip)


def matrix(zeros: Sequence[int], worlds: Sequence[int], nvme: str | None) -> Iterator[Job]:
    """Every combination that a sweep file may ask for; those with nvme where it gives a folder."""
    devices = ("none", "cpu", "nvme") if nvme else ("none", "cpu")
    kinds = itertools.product(worlds, zeros, devices, devices, ("fp32", "bf16"), (None, 2), (None, CLIP))
    for world, zero, optimiser, parameters, precision, micro, clip in kinds:
        path = nvme if "nvme" in (optimiser, parameters) else None
        job = Job("", zero, optimiser, parameters, precision, clip, micro, world, nvme_path=path)
        if not any(unworkable(DeepSpeed(**job.deepspeed))):
            yield replace(job, name=f"{world}-{zero}-{optimiser}-{parameters}-{precision}-{micro}-{clip}")


def row(job: Job, found: Outcome, errors: Mapping[str, float]) -> str:
    """A line of the table."""
    micro = BATCH // job.world // (job.micro_batch or BATCH // job.world)
    cells: list[object] = [job.zero, job.offload_optimizer, job.offload_param, job.precision, micro]
    cells += [job.gradient_clipping or "-", job.world]
    if found.failed:
        return _line([*cells, "failed", found.failed, "", ""])
    good = all(error <= LIMITS[job.precision] for error in errors.values())
    shown = [f"{errors[name]:.1e}" for name in NETWORKS]
    return _line([*cells, *shown, f"{found.seconds / job.iterations:.2f}", "yes" if good else "NO"])


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


HEAD = "ZeRO|optimizer on|param on|precision|micro-batches|clip|workers|explorer|discriminator|s/it|within".split("|")
PAGE = f"""\
# Engines against plain PyTorch

Errors after {ITERATIONS} iterations of the learned method on a model of 8x8 images, batch {BATCH} over all workers:
||ours - plain|| / ||plain - start|| of all parameters of a network together, where plain is `torch.optim.Adam` in one
process with the whole batch at once. "micro-batches": those of a worker, whose gradients are added up; "clip": the
largest norm of a network's gradients, against `torch.nn.utils.clip_grad_norm_`. "within": fp32 {LIMITS["fp32"]:g},
which is rounding as Adam magnifies it (it divides by gradients that may be next to nothing); bf16
{LIMITS["bf16"]:g}, for weights and gradients of 8 bits (plain is in float32 and starts from weights rounded to bf16, as
DeepSpeed does). Written by `python -m benchmarks.parity`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zero", type=int, nargs="*", default=[0, 1, 2, 3])
    parser.add_argument("--world", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--nvme", help="a folder, where libaio is")
    asked = parser.parse_args()
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    print(*lines, sep="\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = tiny_model(folder / "model")
        kinds = itertools.product(("fp32", "bf16"), (None, CLIP))
        references = {kind: plain(model, Job("", precision=kind[0], gradient_clipping=kind[1])) for kind in kinds}
        away = references["fp32", None].errors(plain(model, Job("", micro_batch=2)).tensors)
        rounding = [
            f"Plain PyTorch itself, in micro-batches of 2: {', '.join(f'{n} {e:.1e}' for n, e in away.items())}."
        ]
        for world in asked.world:
            jobs = list(matrix(asked.zero, [world], asked.nvme))
            for job, found in zip(jobs, run(model, jobs, folder).values(), strict=True):
                errors = {} if found.failed else references[job.precision, job.gradient_clipping].errors(found.tensors)
                lines.append(row(job, found, errors))
                print(lines[-1], flush=True)
    if asked == parser.parse_args([]):
        text = "\n".join([PAGE, *rounding, "", machine(torch.device("cpu")), "", *lines])
        (RESULTS / "parity_cpu.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
