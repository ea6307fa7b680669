"""A trial that runs out of memory goes on with smaller parts of the same batches, and finds the same directions."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import forks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# DeepSpeed is kept out of the process that runs the tests. Memory runs out where the chain is differentiated, where
# pool samples are drawn, or where a set is measured or pictured, as each case says.
SCRIPT = """
import gc, json, pathlib, sys, tempfile, weakref
import torch
from core import DirectionSet
from core.samples import draw as unshifted
from core.methods import learned
from core.methods.trained import chain_learner
from orchestrator.trial import model as trial_model
from orchestrator.store.checkpoints import TrialFolder
from orchestrator.trial.outcome import classify
from orchestrator.spec import parse
from orchestrator.trial.run import TrialContext, run_trial

model, cases = sys.argv[1], json.loads(sys.argv[2])
# Small steps: at the usual rates rounding grows a hundredfold an iteration, and nothing could be compared.
rates = {"direction_rate": 1e-3, "reconstructor_rate": 1e-5, "discriminator_rate": 1e-5}
parameters = {"method": "learned", "directions": 3, **rates}
sample, chain, iterate = chain_learner.sample, unshifted._chain, learned.Learner.iterate
evaluate, traversal = trial_model.evaluate, trial_model.traversal
ran, alive, most_alive = [], weakref.WeakSet(), []

def run(gradient, micro_batch, most=None, since=0, without="", error="cuda", draws=None, measures=None, pictures=None,
        smaller=0, start="random"):
    sweep = {"name": "a", "model": model, "sampler": {"steps": 2, "batch": 16}, "search": {}, "budget": {"trials": 1},
             "train": {"iterations": 4, "batch": 8, "micro_batch": micro_batch, "pool": 32},
             "evaluate": {"every": 2, "seeds": 6, "strength": None}, "gradient": gradient}
    ran.clear()
    gc.collect()  # of the case before
    def no_memory():  # a new one each time: an error holds on to the frames that it came through
        if error == "cuda":
            return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        return RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9")
    def guarded(denoiser, schedule, x, shift, injection, policy, *rest):
        tight = torch.is_grad_enabled() and most is not None and len(x) > most and type(policy).__name__ != without
        if tight and (ran[-1] if ran else 0) >= since:
            x = x.clone()  # as far as the chain comes before it fails
            raise no_memory()
        return sample(denoiser, schedule, x, shift, injection, policy, *rest)
    def drawn(denoiser, schedule, seeds, names):
        if draws is not None and len(seeds) > draws:
            raise no_memory()
        return chain(denoiser, schedule, seeds, names)
    def measured(work, limit):
        def measure(*given, sampling, **more):
            if limit is not None and sampling.batch > limit:
                raise no_memory()
            return work(*given, sampling=sampling, **more)
        return measure
    chain_learner.sample, unshifted._chain = guarded, drawn
    trial_model.evaluate, trial_model.traversal = measured(evaluate, measures), measured(traversal, pictures)
    def iterated(self, n):
        ran.append(n)
        alive.add(self)
        most_alive.append(len(alive))
        return iterate(self, n)
    learned.Learner.iterate = iterated
    folder, told, failed = TrialFolder(pathlib.Path(tempfile.mkdtemp())), [], None
    try:
        for report in run_trial({**parameters, "start": start}, parse(sweep), folder,
                                context=TrialContext(out_of_memory=smaller)):
            told.append({"step": report.global_step, "curve": [c["step"] for c in report.curve],
                         **report.memory})
    except Exception as raised:
        failed = [str(raised), str(classify(raised))]
    table = DirectionSet.load(folder.result() / "directions").table.flatten().tolist() if told else None
    return {"told": told, "ran": list(ran), "table": table, "failed": failed}

found = {name: run(**case) for name, case in cases.items()}
print("RESULT", json.dumps({**found, "most_alive": max(most_alive)}))
"""
FULL, KEEP, AUTO = {"policy": "full_graph"}, {"policy": "keep_steps"}, {"policy": "auto"}
CASES: dict[str, dict[str, Any]] = {
    "quarters": {"gradient": FULL, "micro_batch": 2},
    "whole": {"gradient": FULL, "micro_batch": 8},
    "early": {"gradient": FULL, "micro_batch": 8, "most": 2, "since": 1},
    "late": {"gradient": FULL, "micro_batch": 8, "most": 4, "since": 3, "error": "cpu"},
    "kept": {"gradient": KEEP, "micro_batch": 8, "most": 4},
    "auto": {"gradient": AUTO, "micro_batch": None, "most": 4},
    "blocks": {"gradient": FULL, "micro_batch": 4, "most": 0, "without": "CheckpointBlocks"},
    "never": {"gradient": FULL, "micro_batch": 4, "most": 0},
    "drawing": {"gradient": FULL, "micro_batch": 8, "draws": 4},
    "measuring": {"gradient": FULL, "micro_batch": 8, "measures": 8, "pictures": 4, "most": 4, "since": 3},
    "unmeasured": {"gradient": FULL, "micro_batch": 8, "measures": 0},
    "nothing": {"gradient": FULL, "micro_batch": 8, "draws": 0},
    "slopes": {"gradient": FULL, "micro_batch": 8, "most": 4, "start": "slopes"},
    "killed": {"gradient": FULL, "micro_batch": 8, "smaller": 2},
}


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    done = forks.run(forks.HARDLY_MEASURED + SCRIPT, tmp_path_factory.mktemp("trials"), tiny_model, json.dumps(CASES))
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    found: dict[str, dict[str, Any]] = json.loads(line.removeprefix("RESULT "))
    return found


def near(table: list[float]) -> Any:
    return pytest.approx(table, abs=1e-5)


def test_what_runs_out_before_its_first_report_starts_again_in_smaller_parts(runs: dict[str, dict[str, Any]]) -> None:
    early = runs["early"]
    assert early["ran"] == [0, 1, 0, 1, 0, 1, 2, 3]
    assert early["table"] == runs["quarters"]["table"]
    assert early["table"] == near(runs["whole"]["table"])
    assert early["told"] == [
        {
            "step": step,
            "curve": [step - 1, step],
            "gradient": "full_graph",
            "micro_batch": 2,
            "sampler_batch": 16,
            "out_of_memory_retries": 2,
        }
        for step in (2, 4)
    ]


def test_what_runs_out_later_goes_on_from_its_last_report(runs: dict[str, dict[str, Any]]) -> None:
    """No iteration counts twice: the one that failed is run again as a whole, and reported once."""
    late = runs["late"]
    assert late["ran"] == [0, 1, 2, 3, 2, 3]
    assert [(told["step"], told["curve"], told["micro_batch"]) for told in late["told"]] == [
        (2, [1, 2], 8),
        (4, [3, 4], 4),
    ]
    assert late["table"] == near(runs["whole"]["table"])


def test_a_process_that_was_killed_for_its_memory_goes_on_smaller(runs: dict[str, dict[str, Any]]) -> None:
    """Once for every time that it happened; it draws fewer at a time too, for what ran out is not known."""
    killed = runs["killed"]
    parts = [(told["micro_batch"], told["sampler_batch"], told["out_of_memory_retries"]) for told in killed["told"]]
    assert parts == [(2, 4, 2), (2, 4, 2)]
    assert killed["table"] == near(runs["quarters"]["table"])


@pytest.mark.parametrize("case", ["kept", "auto"])
def test_kept_steps_give_way_too(runs: dict[str, dict[str, Any]], case: str) -> None:
    [first, _] = runs[case]["told"]
    assert (first["gradient"], first["micro_batch"], first["out_of_memory_retries"]) == ("keep_steps", 4, 1)
    assert runs[case]["table"] == near(runs["whole"]["table"])


def test_at_the_smallest_micro_batch_steps_are_run_again_then_by_blocks(runs: dict[str, dict[str, Any]]) -> None:
    """The smallest is 2: samples are compared in pairs."""
    [first, _] = runs["blocks"]["told"]
    assert (first["gradient"], first["micro_batch"], first["out_of_memory_retries"]) == ("checkpoint_blocks", 2, 3)
    assert runs["blocks"]["table"] == near(runs["quarters"]["table"])


def test_then_it_fails_with_what_to_do(runs: dict[str, dict[str, Any]]) -> None:
    assert runs["never"]["failed"] == [
        "not even micro_batch 2 with policy checkpoint_blocks fits: use a device with more memory, lower train.pool, "
        "or set train.precision: bf16",
        "out_of_memory",
    ]
    assert runs["never"]["ran"] == [0, 0, 0, 0]


def test_slopes_are_taken_in_the_parts_that_training_fits_in(runs: dict[str, dict[str, Any]]) -> None:
    """Before the first iteration, where a gradient ran out of memory and not the drawing of samples."""
    slopes = runs["slopes"]
    [first, _] = slopes["told"]
    assert slopes["ran"] == [0, 1, 2, 3]
    assert (first["micro_batch"], first["sampler_batch"], first["out_of_memory_retries"]) == (4, 16, 1)


def test_what_an_attempt_held_is_freed_before_the_next(runs: dict[str, Any]) -> None:
    assert runs["most_alive"] == 1


def test_samples_are_drawn_fewer_at_a_time(runs: dict[str, dict[str, Any]]) -> None:
    drawing = runs["drawing"]
    [first, _] = drawing["told"]
    assert (first["micro_batch"], first["sampler_batch"], first["out_of_memory_retries"]) == (8, 4, 2)
    assert drawing["ran"] == [0, 1, 2, 3] and drawing["table"] == near(runs["whole"]["table"])
    assert runs["nothing"]["failed"] == [
        "not even one sample fits: use a device with more memory, or lower train.pool",
        "out_of_memory",
    ]


def test_memory_that_runs_out_while_measuring_costs_no_training(runs: dict[str, dict[str, Any]]) -> None:
    """The report is made with fewer samples at a time, once, and so is every later one, also after a restart."""
    measuring = runs["measuring"]
    assert measuring["ran"] == [0, 1, 2, 3, 2, 3] and measuring["table"] == near(runs["whole"]["table"])
    assert [
        (told["step"], told["curve"], told["micro_batch"], told["sampler_batch"], told["out_of_memory_retries"])
        for told in measuring["told"]
    ] == [(2, [1, 2], 8, 4, 2), (4, [3, 4], 4, 4, 3)]


def test_what_cannot_be_measured_is_not_trained_again(runs: dict[str, dict[str, Any]]) -> None:
    assert (runs["unmeasured"]["ran"], runs["unmeasured"]["told"]) == ([0, 1], [])
    assert runs["unmeasured"]["failed"] == [
        "not even one sample at a time (sampler.batch 1) fits: use a device with more memory, give each trial more of "
        "it, or set train.precision: bf16",
        "out_of_memory",
    ]
