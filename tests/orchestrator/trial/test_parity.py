"""Several workers, every ZeRO stage, a checkpoint that moves between them: always what one plain process comes to.

The whole matrix is benchmarks/parity.py; here is one of each kind. Workers are processes of this machine (gloo).
"""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.parity import CLIP, LIMITS, NETWORKS, Job, Outcome, outcome, plain
from tests import forks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# DeepSpeed is kept out of the process that runs the tests.
SCRIPT = """
import sys
from benchmarks.parity import Job, worker

rank, world, model, folder, jobs = sys.argv[1:]
worker(int(rank), int(world), model, eval(jobs), folder)
"""

ALONE = [
    Job("fresh", zero=2, iterations=4),
    Job("another", zero=3, micro_batch=4, precision="bf16", iterations=2),
    Job("cpu", zero=2, offload_optimizer="cpu", iterations=4),
    Job("time", zero=3, parametrisation="time", iterations=2),
    Job("again", zero=2, iterations=4),
]
TWO = [
    Job("two", zero=2, world=2),
    Job("two-0", zero=0, micro_batch=2, gradient_clipping=CLIP, world=2),
    Job("two-1", zero=1, offload_optimizer="cpu", micro_batch=4, world=2),
    Job("two-2", zero=2, gradient_clipping=CLIP, micro_batch=2, world=2),
    Job("two-3", zero=3, offload_optimizer="cpu", offload_param="cpu", micro_batch=2, world=2),
    Job("two-3-bf16", zero=3, precision="bf16", gradient_clipping=CLIP, world=2),
    Job("half", zero=2, world=2, iterations=2),
    Job("whole", zero=2, world=2, resume="half"),
]
FOUR = [
    Job("four-1", zero=1, micro_batch=2, world=4),
    Job("four-3-from-two", zero=3, world=4, resume="half"),
]
ONE_FROM_TWO = [
    Job("one-from-two", zero=2, resume="half"),
    Job("one-0-from-two", zero=0, resume="half"),
    Job("one-3-from-two", zero=3, offload_optimizer="cpu", resume="half"),
]
Runs = dict[str, Outcome]


@pytest.fixture(autouse=True)
def _in_this_process_too(hardly_measured: None) -> None:
    """What the workers are compared with has sources that were searched for as little as theirs."""


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("jobs")
    batches = [ALONE, TWO, FOUR, ONE_FROM_TWO, [replace(ALONE[0], name="alone")]]
    for jobs in batches:
        [world] = {job.world for job in jobs}
        workers = [
            forks.started(forks.HARDLY_MEASURED + SCRIPT, folder / "forks", rank, world, tiny_model, folder, repr(jobs))
            for rank in range(world)
        ]
        for done in [worker.ended() for worker in workers]:
            assert done.returncode == 0, done.stderr[-3000:]
    found = {job.name: outcome(folder / job.name) for jobs in batches for job in jobs}
    assert {name: run.failed for name, run in found.items() if run.failed} == {}
    return found


def same(ours: Outcome, theirs: Outcome) -> bool:
    """To the last bit."""
    tensors = all(
        ours.tensors[network][name].equal(tensor)
        for network in NETWORKS
        for name, tensor in theirs.tensors[network].items()
    )
    return tensors and ours.directions.equal(theirs.directions)


@pytest.mark.parametrize("job", [job for job in (*TWO, *FOUR, *ONE_FROM_TWO) if job.iterations == 5], ids=str)
def test_parameters_are_those_of_plain_torch(runs: Runs, tiny_model: Path, job: Job) -> None:
    reference = plain(tiny_model, Job("", precision=job.precision, gradient_clipping=job.gradient_clipping))
    errors = reference.errors(runs[job.name].tensors)
    assert all(error < LIMITS[job.precision] for error in errors.values()), errors


def test_clipping_changes_what_is_learned(tiny_model: Path) -> None:
    """Otherwise the cases above prove nothing of it."""
    free, clipped = (plain(tiny_model, Job("", gradient_clipping=clip)) for clip in (None, CLIP))
    assert max(clipped.errors(free.tensors).values()) > 10 * LIMITS["fp32"]


@pytest.mark.parametrize("name", ["two", "two-1", "two-3", "four-1"])
def test_losses_and_directions_do_not_depend_on_the_workers(runs: Runs, tiny_model: Path, name: str) -> None:
    reference = plain(tiny_model, Job(""))
    for ours, theirs in zip(runs[name].losses, reference.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert runs[name].directions == pytest.approx(reference.directions, abs=1e-5)


def test_a_trial_of_two_workers_goes_on_to_the_same_bits(runs: Runs) -> None:
    assert same(runs["whole"], runs["two"]) and runs["whole"].losses == runs["two"].losses[2:]


def test_a_trial_leaves_nothing_behind_for_the_next_of_its_process(runs: Runs) -> None:
    """Five in one process, each in a process group of its own; the last is what a fresh process does."""
    assert same(runs["again"], runs["fresh"]) and same(runs["again"], runs["alone"])
    assert runs["again"].losses == runs["fresh"].losses == runs["alone"].losses
