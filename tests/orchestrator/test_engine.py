"""DeepSpeed engines give what plain torch gives, and come back from disk."""

import json
import os
import select
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# One trial a process is the rule (DeepSpeed keeps state in its process), so every case runs in one of its own.
SCRIPT = """
import json, pathlib, shutil, sys, warnings
import torch
torch.set_num_threads(1)
from core import Denoiser, Schedule
from core.methods.learned import Learner, Settings
from orchestrator.engine import Engines, EngineError
from orchestrator.spec.sections import DeepSpeed

model, zero, offload, precision, folder = sys.argv[1:]
denoiser = Denoiser.from_pretrained(model)
schedule = Schedule.ddim(denoiser, 2)
# Small steps: at the usual rates rounding grows a hundredfold an iteration, and nothing could be compared.
rates = {"direction_rate": 1e-3, "reconstructor_rate": 1e-5, "discriminator_rate": 1e-5}
settings = Settings(directions=3, batch=4, micro_batch=2, pool=32, **rates)
ours = DeepSpeed(zero=int(zero), offload_optimizer=offload, precision=precision)

def fresh():
    engines = Engines(ours, 2)
    return engines, Learner(denoiser, schedule, settings, engines.make)

engines, learner = fresh()
losses = [learner.iterate(n) for n in range(2)]
engines.save(pathlib.Path(folder) / "state", 2)
losses += [learner.iterate(n) for n in range(2, 4)]
engines.close()

resumed_engines, resumed = fresh()
assert resumed_engines.load(pathlib.Path(folder) / "state") == 2
tail = [resumed.iterate(n) for n in range(2, 4)]
try:
    resumed_engines.load(pathlib.Path(folder) / "nothing")
    refused = None
except EngineError as error:
    refused = str(error)

class Trap:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(folder) / "unpickled",)

state = "explorer/state/mp_rank_00_model_states.pt"
for place in (state, f"{state}/tree.json", f"{state}/tensors.safetensors"):
    shutil.copytree(pathlib.Path(folder) / "state", pathlib.Path(folder) / "pickled", dirs_exist_ok=True)
    if place == state:
        shutil.rmtree(pathlib.Path(folder) / "pickled" / place)
        try:
            resumed_engines.load(pathlib.Path(folder) / "pickled")
        except EngineError as error:
            assert "pickled is no state of 'explorer'" in str(error), error
        else:
            raise AssertionError("a state that is missing was taken")
    torch.save(Trap(), pathlib.Path(folder) / "pickled" / place)
    try:
        resumed_engines.load(pathlib.Path(folder) / "pickled")
    except EngineError as error:
        assert place in str(error), error
    else:
        raise AssertionError(f"a pickle was taken for {place}")
    shutil.rmtree(pathlib.Path(folder) / "pickled")
assert not (pathlib.Path(folder) / "unpickled").exists()
resumed_engines.close()

plain = Learner(denoiser, schedule, settings)
expected = [plain.iterate(n) for n in range(4)]
print("RESULT", json.dumps([losses, tail, expected, refused]))
"""


def run(
    model: Path, folder: Path, zero: int, offload: str, precision: str, **environment: str
) -> tuple[list, list, list, str]:
    command = [sys.executable, "-c", SCRIPT, str(model), str(zero), offload, precision, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    losses, tail, expected, refused = json.loads(line.removeprefix("RESULT "))
    assert_no_pickle(folder / "state", files=4 if zero == 0 else 8)
    return losses, tail, expected, refused


def assert_no_pickle(folder: Path, files: int) -> None:
    """A checkpoint of two engines holds safetensors and JSON and nothing else; torch's pickles are zip files."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert len(found) == files and {path.suffix for path in found} == {".safetensors", ".json"}
    for path in found:
        assert not zipfile.is_zipfile(path)
        assert load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())["format"] == 1


@pytest.mark.parametrize(("zero", "offload"), [(0, "none"), (0, "cpu"), (1, "none"), (2, "none"), (2, "cpu")])
def test_engines_match_plain_torch_and_resume_exactly(
    tiny_model: Path, tmp_path: Path, zero: int, offload: str
) -> None:
    losses, tail, expected, refused = run(tiny_model, tmp_path, zero, offload, "fp32")
    assert tail == losses[2:]
    for ours, plain in zip(losses, expected, strict=True):
        assert ours == pytest.approx(plain, rel=1e-3)
    assert refused.endswith("nothing holds no state of the engine 'explorer'")


@pytest.mark.parametrize(("zero", "offload"), [(0, "none"), (1, "none"), (2, "cpu")])
def test_bf16_stays_near_full_precision(tiny_model: Path, tmp_path: Path, zero: int, offload: str) -> None:
    losses, tail, expected, _ = run(tiny_model, tmp_path, zero, offload, "bf16")
    assert tail == losses[2:]
    assert losses[0]["direction_loss"] == pytest.approx(expected[0]["direction_loss"], rel=0.05)


def test_without_a_compiler_torchs_optimiser_takes_over(tiny_model: Path, tmp_path: Path) -> None:
    """A path that holds no g++, and no operator built before."""
    hidden = {"PATH": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path / "none")}
    losses, tail, expected, _ = run(tiny_model, tmp_path, 2, "cpu", "fp32", **hidden)
    assert tail == losses[2:]
    for ours, plain in zip(losses, expected, strict=True):
        assert ours == pytest.approx(plain, rel=1e-3)
    code = "from orchestrator.engine import compiler_missing; print(compiler_missing())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **hidden})
    assert said.stdout.strip().endswith(
        "g++ not found: DeepSpeed's compiled Adam is replaced by torch's (slower offload)"
    )


def test_a_build_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    """torch's guard file stays behind, and with it nothing else would ever be built there."""
    code = "import time, orchestrator.engine as e\nwith e._operators():\n  print(1, flush=True)\n  time.sleep(99)"
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    (tmp_path / "cpu_adam").mkdir()
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert first.stdout is not None and first.stdout.readline() == "1\n"
    (tmp_path / "cpu_adam" / "lock").touch()
    second = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert second.stdout is not None
    assert not select.select([second.stdout], [], [], 12)[0], "two at a time"
    first.kill()
    assert second.stdout.readline() == "1\n" and not (tmp_path / "cpu_adam" / "lock").exists()
    for process in (first, second):
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
