"""The dry run: what follows from the file. What is counted on the model is in test_forecast."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.plan import describe, show
from orchestrator.spec import Sweep, load, parse

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "sweeps").rglob("*.yaml"))


def sweep_with(**sections: Any) -> Sweep:
    search = {"directions": {"choice": [8, 16]}}
    return parse({"name": "a", "model": "toyfaces", "search": search} | sections)


def text_of(sweep: Sweep, samples: int = 5, root: Path = Path("runs")) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(describe(sweep, samples, root))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def row_of(text: str, name: str) -> list[str]:
    """The cells of the one row that starts with `name`."""
    [line] = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_whole_plan() -> None:
    sweep = sweep_with(
        method={"choice": ["learned", "random"]},
        search={
            "directions": {"int": [8, 16], "step": 4},
            "start": {"choice": ["pca", "random"]},
            "discriminator_weight": {"float": [0.01, 1.0], "log": True, "when": {"start": ["pca"]}},
        },
        sampler={"steps": 6, "injection": "asymmetric", "window": [900, 500]},
        train={"iterations": 100, "batch": 8, "micro_batch": 2},
        objectives=[{"identifiability": "max"}, {"fidelity_kid": "min"}],
        scheduler={"asha": {"grace": 50}},
        budget={"trials": 1, "hours": 1.5},
        resources={"gpus_per_trial": 2, "cpus_per_worker": 3},
        gradient={"policy": "keep_steps", "memory": "2GiB", "lean": False},
        export={"register": "a-directions"},
    )
    assert text_of(sweep, samples=0, root=Path("/data/runs")) == WHOLE.format(identity=sweep.identity()[:12])


WHOLE = """
Sweep
name        a
identity    {identity}
model       toyfaces
method      learned or random
chain       6 steps, eta 0, asymmetric injection in timesteps 900 to 500
objectives  identifiability (max), fidelity_kid (min)
scheduler   ASHA on identifiability: from iteration 50 on, the best 1 in 3 go on
budget      1 trial, at most 1.5 hours

Search space (continuous)
parameter             values                 only when
method                learned, random
directions            8 to 16 in steps of 4
shift_scale           0.5 (default)
seed                  0 (default)
consistency_weight    3 (default)            method is learned
parametrisation       shared (default)       method is learned
orthonormal           true (default)         method is learned
start                 pca, random            method is learned
discriminator_weight  0.01 to 1, log         start is pca and method is learned
direction_rate        0.02 (default)         method is learned
reconstructor_rate    0.001 (default)        method is learned
discriminator_rate    0.0002 (default)       method is learned

For example
method  directions  start  discriminator_weight

One trial
resources   2 workers, GPUs: 2, 6 CPUs
training    100 iterations, batch 8: 2 workers x 2 micro-batches of 2
precision   denoiser fp32, trained parts fp32
DeepSpeed   ZeRO-1, optimizer offload none
gradient    keep_steps, graphs of at most 2GiB
evaluation  every 50 iterations and at the end, on 24 seeds

Results
sweep          /data/runs/a
best set       /data/runs/a/champion
tracking       /data/runs/mlflow.db, experiment a
registered as  a-directions"""


def test_samples_are_shown_as_often_as_asked_and_mark_what_is_absent() -> None:
    search = {"start": {"choice": ["pca", "random"]}}
    sweep = sweep_with(method={"choice": ["learned", "random"]}, search=search, budget={"trials": 2})
    lines = text_of(sweep, samples=12).splitlines()
    first = lines.index("For example") + 2
    drawn = {tuple(line.split()) for line in lines[first : first + 12]}
    assert drawn == {("learned", "pca"), ("learned", "random"), ("random", "-")}


def test_nothing_to_search_shows_no_samples() -> None:
    text = text_of(sweep_with(search={}, budget={"trials": 1}))
    assert "For example" not in text
    assert "Search space (1 configuration)" in text


def test_a_space_that_is_run_through_shows_so() -> None:
    search = {"seed": {"choice": [0, 1]}, "pca.samples": 64}
    lines = text_of(sweep_with(method={"choice": ["pca", "jacobian"]}, search=search), samples=3).splitlines()
    assert "budget      all 4 configurations, each once" in lines
    first = lines.index("The first configurations") + 1
    assert [line.split() for line in lines[first : first + 4]] == [
        ["method", "seed"],
        ["pca", "0"],
        ["pca", "1"],
        ["jacobian", "0"],
    ]
    rows = {line.split("  ")[0]: line for line in lines if line}
    assert rows["pca.samples"].split() == ["pca.samples", "64", "method", "is", "pca"]
    assert rows["shift_scale"].split("  ")[-1].strip() == "method is jacobian"


def test_predictor_and_strength_are_told_where_given() -> None:
    assert "predictor" not in text_of(sweep_with()) and "strength" not in text_of(sweep_with())
    text = text_of(sweep_with(predictor="a/classifier", evaluate={"strength": 0.5}))
    assert row_of(text, "predictor") == ["predictor", "a/classifier"]
    assert row_of(text, "evaluation")[1] == "at the end, on 24 seeds, every set scaled to strength 0.5"


def test_what_does_not_learn_needs_no_training() -> None:
    console = Console(width=120, file=io.StringIO(), record=True)
    show(sweep_with(method={"choice": ["pca", "random"]}), console)
    text = console.export_text()
    assert "No training: only method learned trains." in text
    assert not any(row in text for row in ("iterations", "ZeRO", "auto", "UNet passes", "Memory"))


def test_what_is_left_to_the_device_is_told() -> None:
    text = text_of(sweep_with(train={"iterations": 10, "batch": 8}))
    assert row_of(text, "training")[1] == "10 iterations, batch 8: 1 worker x micro-batches that fit the device"
    assert row_of(text, "gradient")[1] == "auto, lean denoiser"


def test_names_are_not_markup() -> None:
    assert row_of(text_of(sweep_with(model="[bold]x[/bold]")), "model") == ["model", "[bold]x[/bold]"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_that_ship_are_planned(path: Path) -> None:
    assert row_of(text_of(load(path)), "name") == ["name", path.stem]


def test_what_follows_from_the_file_loads_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from orchestrator.plan import describe; from orchestrator.spec import load\n"
        "Console(file=open('/dev/null', 'w')).print(describe(load(Path('sweeps/celeba.yaml'))))\n"
        "print(*[m for m in 'torch ray mlflow diffusers deepspeed'.split() if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
