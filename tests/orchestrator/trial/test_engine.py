"""DeepSpeed engines give what plain torch gives, and come back from disk."""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests import forks
from tests.faults.sweep_under_test import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# One trial a process is the rule (DeepSpeed keeps state in its process), so every case runs in one of its own.
TRAINS = """
import json, pathlib, shutil, sys, warnings
import torch
torch.set_num_threads(1)
from core import Denoiser, Schedule
from core.methods.trained.chain_learner import Workers
from core.methods.learned.training import Learner, Settings
from orchestrator.store.state_file import read_state, write_state
from orchestrator.trial.engine import Engines, EngineError
from orchestrator.spec.sections import DeepSpeed

model, zero, offload, precision, folder_name = sys.argv[1:]
told = []
denoiser = Denoiser.from_pretrained(model)
schedule = Schedule.ddim(denoiser, 2)
# Small steps: at the usual rates rounding grows a hundredfold an iteration, and nothing could be compared.
rates = {"direction_rate": 1e-3, "reconstructor_rate": 1e-5, "discriminator_rate": 1e-5}
settings = Settings(directions=3, batch=4, micro_batch=2, pool=32, start="random", **rates)
ours = DeepSpeed(zero=int(zero), offload_optimizer=offload, precision=precision)

def fresh():
    engines = Engines(ours, 2)
    return engines, Learner(denoiser, schedule, settings, Workers(engines.make))

engines, learner = fresh()
losses = [learner.iterate(n) for n in range(2)]
engines.snapshot(2).write(pathlib.Path(folder_name) / "state")
losses += [learner.iterate(n) for n in range(2, 4)]
engines.close()

resumed_engines, resumed = fresh()
assert resumed_engines.load(pathlib.Path(folder_name) / "state") == 2
tail = [resumed.iterate(n) for n in range(2, 4)]
REFUSALS
resumed_engines.close()

plain = Learner(denoiser, schedule, settings)
expected = [plain.iterate(n) for n in range(4)]
print("RESULT", json.dumps([losses, tail, expected, told]))
"""

# What a checkpoint that does not fit its trial is refused with.
REFUSALS = """
try:
    resumed_engines.load(pathlib.Path(folder_name) / "nothing")
    missing = None
except EngineError as error:
    missing = str(error)

def refused(damage):
    folder = pathlib.Path(folder_name) / "damaged"
    shutil.copytree(pathlib.Path(folder_name) / "state", folder)
    place = folder / "explorer"
    tensors, facts = read_state(place)
    shutil.rmtree(place)
    damage(tensors, facts)
    write_state(place, tensors, {name: facts[name] for name in facts if name != "format"})
    try:
        resumed_engines.load(folder)
    except EngineError as error:
        return str(error).removeprefix(f"checkpoint {folder} ")
    finally:
        shutil.rmtree(folder)

name = "parameter/shift.coordinates"
told += [
    missing,
    refused(lambda tensors, facts: tensors.pop(name)),
    refused(lambda tensors, facts: tensors.update({"parameter/other": torch.zeros(1)})),
    refused(lambda tensors, facts: tensors.update({name: tensors[name][:1]})),
    refused(lambda tensors, facts: tensors.update({name: tensors[name].double()})),
    refused(lambda tensors, facts: tensors[name].fill_(float("nan"))),
    refused(lambda tensors, facts: facts.update(steps=0)),
    refused(lambda tensors, facts: facts.update(steps="two")),
    refused(lambda tensors, facts: facts.update(iteration=7)),
]
damaged = pathlib.Path(folder_name) / "damaged"
shutil.copytree(pathlib.Path(folder_name) / "state", damaged)
(damaged / "explorer" / "tensors.safetensors").write_bytes(b"x" * 100)
try:
    resumed_engines.load(damaged)
except EngineError as error:
    told.append(str(error).removeprefix(f"checkpoint {damaged} "))
"""
Told = tuple[list[Any], list[Any], list[Any], list[str]]


def run(
    model: Path, folder: Path, zero: int, offload: str, precision: str, refusals: str = "", **environment: str
) -> Told:
    """Losses of four iterations, of the last two gone on with, of plain torch; and what was refused on the way."""
    script = TRAINS.replace("REFUSALS\n", refusals)
    done = forks.run(script, folder / "forks", model, zero, offload, precision, folder, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    losses, tail, expected, refused = json.loads(line.removeprefix("RESULT "))
    assert_no_pickle(folder / "state")
    return losses, tail, expected, refused


def assert_no_pickle(folder: Path) -> None:
    """A checkpoint of two engines holds safetensors and JSON and nothing else; torch's pickles are zip files."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert len(found) == 4 and {path.suffix for path in found} == {".safetensors", ".json"}
    for path in found:
        assert not zipfile.is_zipfile(path)
        assert load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())["format"] == 1


@pytest.mark.parametrize(("zero", "offload"), [(0, "none"), (1, "none"), (2, "cpu"), (3, "none"), (3, "cpu")])
def test_engines_match_plain_torch_and_resume_exactly(
    tiny_model: Path, tmp_path: Path, zero: int, offload: str
) -> None:
    losses, tail, expected, _ = run(tiny_model, tmp_path, zero, offload, "fp32")
    assert tail == losses[2:]
    for ours, plain in zip(losses, expected, strict=True):
        assert ours == pytest.approx(plain, rel=1e-3)


def test_a_checkpoint_that_does_not_fit_is_refused_in_a_sentence(tiny_model: Path, tmp_path: Path) -> None:
    *_, refused = run(tiny_model, tmp_path, 1, "none", "fp32", REFUSALS)
    assert refused[0].endswith("nothing holds no state of the engine 'explorer'")
    found = "is no state of 'explorer': "
    assert refused[1:-2] == [
        f"{found}it lacks 'parameter/shift.coordinates'",
        f"{found}its 'parameter/other' is not trained here",
        f"{found}its 'parameter/shift.coordinates' is [1, 1, 32] in float32, not [3, 1, 32] in float32",
        f"{found}its 'parameter/shift.coordinates' is [3, 1, 32] in float64, not [3, 1, 32] in float32",
        f"{found}its 'parameter/shift.coordinates' is not finite",
        f"{found}its 'exp_avg/reconstructor.body.0.bias' is not trained here",
        f"{found}steps is no whole number",
    ]
    assert refused[-2] == "mixes iterations [2, 7]"
    assert refused[-1].startswith(found) and "tensors.safetensors is damaged: " in refused[-1]


@pytest.mark.parametrize(("zero", "offload"), [(0, "none"), (1, "none"), (2, "cpu"), (3, "none")])
def test_bf16_stays_near_full_precision(tiny_model: Path, tmp_path: Path, zero: int, offload: str) -> None:
    losses, tail, expected, _ = run(tiny_model, tmp_path, zero, offload, "bf16")
    assert tail == losses[2:]
    assert losses[0]["direction_loss"] == pytest.approx(expected[0]["direction_loss"], rel=0.05)


def test_deepspeeds_checkpointing_gives_the_gradient_of_the_full_graph(tiny_model: Path, tmp_path: Path) -> None:
    code = """
import sys
import torch
torch.set_num_threads(1)
from core import Denoiser, Schedule, ShiftControl, noise, sample
from core.chain.gradient import FullGraph
from orchestrator.trial.settings import DeepSpeedSteps

loaded = Denoiser.from_pretrained(sys.argv[1])
denoiser = Denoiser(loaded.network.double(), loaded.scheduler, "tiny")
schedule, images = Schedule.ddim(denoiser, 5), denoiser.sample_shape

def gradient(policy):
    shift = ShiftControl(3, denoiser.h_shape, torch.linspace(2, 1, 5), schedule.timesteps, seed=1).double()
    delta = shift.at(torch.tensor([0, 2]), torch.tensor([0.7, -0.4]).double())
    x_0 = sample(denoiser, schedule, noise(range(2), images, torch.float64), delta, "asymmetric", policy)
    (x_0 * noise([7, 8], images, torch.float64)).sum().backward()
    return shift.coordinates.grad

whole = gradient(FullGraph())
assert whole.abs().max() > 0.1
for _ in range(2):
    assert torch.allclose(gradient(DeepSpeedSteps()), whole, rtol=1e-12, atol=1e-12)
"""
    done = forks.run(code, tmp_path, tiny_model)
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_a_compiler_torchs_optimiser_takes_over(tiny_model: Path, tmp_path: Path) -> None:
    """A path that holds ninja and no g++, and no operator built before."""
    hidden = {"PATH": str(Path(sys.executable).parent), "TORCH_EXTENSIONS_DIR": str(tmp_path / "none")}
    losses, tail, expected, _ = run(tiny_model, tmp_path, 2, "cpu", "fp32", **hidden)
    assert tail == losses[2:]
    for ours, plain in zip(losses, expected, strict=True):
        assert ours == pytest.approx(plain, rel=1e-3)
    code = "from orchestrator.trial.operators import compiler_problem; print(compiler_problem())"
    assert (
        forks.run(code, tmp_path, **hidden)
        .stdout.strip()
        .endswith("g++ not found: DeepSpeed's compiled Adam is replaced by torch's (slower offload)")
    )


def test_nvme_without_its_library_or_folder_is_told(tmp_path: Path) -> None:
    code = f"""
from orchestrator.trial import engine, operators
from orchestrator.spec.sections import DeepSpeed
there, nowhere = (DeepSpeed(zero=3, offload_param="nvme", nvme_path=path) for path in ({str(tmp_path)!r}, "/nowhere"))
compatible = engine.deepspeed.ops.__compatible_ops__
compatible["async_io"] = False
print(operators.settings_problem(DeepSpeed()), operators.settings_problem(there), sep="|", end="|")
compatible["async_io"] = True
def build(builder):
    if not built:
        raise RuntimeError("aio.cpp:1: fatal error: Python.h: No such file or directory")
built = False
operators.load = build
print(operators.settings_problem(there), end="|")
built = True
operators.build_problem.cache_clear()
print(operators.settings_problem(there), operators.settings_problem(nowhere), sep="|")
"""
    done = forks.run(code, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1].split("|") == [
        "None",
        "deepspeed: offloading to nvme needs g++, ninja and libaio's headers (package libaio-dev), "
        "which are not all here",
        "deepspeed: offloading to nvme needs an operator that cannot be built here (aio.cpp:1: fatal error: Python.h: "
        f"No such file or directory): install Python's headers (Debian: python3.{sys.version_info.minor}-dev)",
        "None",
        "deepspeed.nvme_path: /nowhere is not a folder that can be written to",
    ]


def test_a_build_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    """torch's guard file stays behind, and with it nothing else would ever be built there."""
    code = """
import os, time
from orchestrator.trial.operators import build_lock
print("ready", flush=True)
with build_lock():
    print("has it", os.environ["TORCH_EXTENSIONS_DIR"], flush=True)
    time.sleep(99)
"""
    first = forks.started(code, tmp_path / "forks", TORCH_EXTENSIONS_DIR=str(tmp_path))
    until(lambda: "has it" in first.out.read_text(), 60, "the first builds")
    own = Path(first.out.read_text().split()[-1])
    for guard in (own / "cpu_adam" / "lock", tmp_path / "cpu_adam" / "lock"):
        guard.parent.mkdir()
        guard.touch()
    second = forks.started(code, tmp_path / "forks", TORCH_EXTENSIONS_DIR=str(tmp_path))
    until(lambda: "ready" in second.out.read_text(), 60, "the second is there")
    second.process.join(1)
    assert second.out.read_text() == "ready\n", "two at a time"
    first.process.kill()
    until(lambda: "has it" in second.out.read_text(), 60, "the second builds")
    assert not (own / "cpu_adam" / "lock").exists()
    assert (tmp_path / "cpu_adam" / "lock").exists(), "a build of another project's, which goes on"
    second.process.kill()


def test_what_the_processor_is_is_asked_for_once(tmp_path: Path) -> None:
    """However many optimisers DeepSpeed makes: cpuinfo starts a process for each answer."""
    script = """
import cpuinfo
from orchestrator.trial import engine
asked = []
cpuinfo.get_cpu_info = lambda: asked.append("asked") or {"vendor_id_raw": "one"}
for _ in range(2):
    engine._remember_the_processor()
    print(cpuinfo.get_cpu_info()["vendor_id_raw"], len(asked))
"""
    assert forks.run(script, tmp_path).stdout.splitlines()[-2:] == ["one 1", "one 1"]
