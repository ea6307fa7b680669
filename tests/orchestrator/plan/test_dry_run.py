"""The dry run: what follows from the file. What is counted on the model is in test_forecast."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from core.errors import UserError
from orchestrator.cli.main import main
from orchestrator.plan.disk_use import free_at
from orchestrator.plan.dry_run import PlanOptions, as_json, describe, show
from orchestrator.spec import Sweep, load, parse
from orchestrator.text import nbytes

ROOT = Path(__file__).parents[3]
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
consistency_weight    1 (default)            method is learned
purity_weight         30 (default)           method is learned
locality_weight       100 (default)          method is learned
parametrisation       shared (default)       method is learned
orthonormal           false (default)        method is learned
start                 pca, random            method is learned
discriminator_weight  0.01 to 1, log         start is pca and method is learned
direction_rate        0.02 (default)         method is learned
reconstructor_rate    0.001 (default)        method is learned
discriminator_rate    0.001 (default)        method is learned
learned.look          pixels (default)       method is learned

For example
method  directions  start  discriminator_weight

One trial
resources   2 workers, GPUs: 2, 6 CPUs
training    100 iterations, batch 8: 2 workers x 2 micro-batches of 2
precision   denoiser fp32, trained parts fp32
DeepSpeed   ZeRO-1, optimizer offload none
gradient    keep_steps, graphs of at most 2GiB
evaluation  every 50 iterations and at the end, on 24 seeds, every set scaled to strength 0.5

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


def test_the_predictor_is_told_where_one_is_named() -> None:
    assert "predictor" not in text_of(sweep_with())
    assert row_of(text_of(sweep_with(predictor="a/classifier")), "predictor") == ["predictor", "a/classifier"]


@pytest.mark.parametrize(
    ("evaluate", "scaled"),
    [
        ({}, "every set scaled to strength 0.5"),
        ({"strength": 0.25}, "every set scaled to strength 0.25"),
        ({"strength": None}, "each set as strong as its method made it"),
    ],
)
def test_the_strength_of_measured_sets_is_told(evaluate: dict[str, Any], scaled: str) -> None:
    row = row_of(text_of(sweep_with(evaluate=evaluate)), "evaluation")
    assert row[1] == f"at the end, on 24 seeds, {scaled}"


@pytest.mark.slow
def test_what_does_not_learn_needs_no_training() -> None:
    console = Console(width=120, file=io.StringIO(), record=True)
    show(sweep_with(method={"choice": ["pca", "random"]}), console)
    text = console.export_text()
    assert "No training: only methods learned and guided train." in text
    assert not any(row in text for row in ("iterations", "ZeRO", "auto", "UNet passes", "Memory"))


def test_what_is_left_to_the_device_is_told() -> None:
    text = text_of(sweep_with(train={"iterations": 10, "batch": 8}))
    assert row_of(text, "training")[1] == "10 iterations, batch 8: 1 worker x micro-batches that fit the device"
    assert row_of(text, "gradient")[1] == "auto, lean denoiser"


def lines_of(sweep: Sweep, width: int, whole: bool) -> list[str]:
    console, root = Console(width=width, file=io.StringIO(), record=True), Path("/a/long/root/" * 3)
    if whole:
        show(sweep, console, root)
    else:
        console.print(describe(sweep, root=root))
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize(("name", "whole"), [("mnist", True), ("cat", False), ("compare_mnist", False)])
def test_it_fits_the_terminal_and_nothing_is_cut(width: int, name: str, whole: bool) -> None:
    sweep = load(ROOT / "sweeps" / f"{name}.yaml")
    lines = lines_of(sweep, width, whole)
    assert max(map(len, lines)) <= width
    together = "".join("".join(lines).split())
    cells = {"".join(cell.split()) for line in lines_of(sweep, 400, whole) for cell in line.split("  ")}
    free = nbytes(free_at(Path("/"))).split(".")[0]
    headings = {"parameter", "values", "onlywhen", "what", "arithmetic"}  # of tables that became lines
    changing = ("thismachine", free)  # what is free of memory and of this disk
    assert [c for c in cells - headings if c not in together and not c.startswith(changing)] == []


def test_disk_downloads_and_time_are_told() -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    show(sweep_with(method="random", model="toyfaces"), console, options=PlanOptions(price_per_hour=2.0))
    text = console.export_text()
    assert row_of(text, "nothing")[1] == "what is read from the hub is on this machine"
    assert row_of(text, "a trial") == ["a trial", "unknown; --probe measures it on this machine"]
    assert row_of(text, "cost")[1] == "unknown; --probe measures it on this machine", "never guessed"
    assert all(row_of(text, part) for part in ("champion", "MLflow's files", "unshifted samples", "in all", "free"))
    assert "bytes free" not in text and "while trials run" in text


def test_what_the_model_does_not_tell_is_not_counted() -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    show(sweep_with(model="./nowhere"), console)
    assert row_of(console.export_text(), "taken")[1] == "not counted, for the model is not at hand"


@pytest.mark.slow
def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--set", "tracking.uri=http://anna:geheim@x/?token=abcdefgh", "--set", "budget.trials=4"]
    assert main(["plan", str(ROOT / "sweeps" / "toyfaces.yaml"), "--json", "--samples", "2", *given]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert told.err == "" and "geheim" not in told.out and "abcdefgh" not in told.out
    sweep = load(ROOT / "sweeps" / "toyfaces.yaml", ["tracking.uri=http://anna:geheim@x/?token=abcdefgh", given[3]])
    assert found["sweep"]["identity"] == sweep.identity() and found["sweep"]["resolved"]["sampler"]["steps"] == 6
    assert found["space"]["configurations"] is None and found["trials"] == 4 and found["root"] == "runs"
    assert found["space"]["parameters"]["directions"] == {"choice": [8, 12, 16]}
    assert len(found["samples"]) == 2 and found["samples"][0]["method"] == "learned"
    assert found["unet_passes"]["shifted"] == 14_400
    [here] = [each for each in found["memory"] if each["device"].startswith("this ")]
    parts = ("network", "states", "graphs", "work", "trained", "pool")
    assert here["fits"] and here["training_bytes"] == sum(here[f"{part}_bytes"] for part in parts)
    disk = found["disk"]
    assert disk["total_bytes"] == sum(disk["parts_bytes"].values()) and disk["free_bytes"] > 0
    assert (found["downloads"], found["time"], found["cost"], found["not_counted"]) == ([], None, None, None)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("denoiser.prompts=[a face]", "prompts: model 'toyfaces' reads no text"),
        ("denoiser.tap=mid", "tap: got 'mid'; a UNet has mid_block"),
        ("denoiser.size=9", "size: got 9; "),
    ],
)
def test_a_use_that_the_model_does_not_have_is_refused(
    capsys: pytest.CaptureFixture[str], setting: str, sentence: str
) -> None:
    assert main(["plan", str(ROOT / "sweeps" / "toyfaces.yaml"), "--set", setting]) == 2
    assert capsys.readouterr().err.startswith(sentence)


def test_as_json_of_a_model_that_is_not_at_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "sweeps" / "toyfaces.yaml"), "--json", "--set", "model=./nowhere"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"] is None and found["disk"]["parts_bytes"] is None and found["disk"]["total_bytes"] is None
    assert found["not_counted"].startswith("model './nowhere' is not there: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--samples", "-1"], "argument --samples: got '-1'; allowed: an integer from 0 to 1000"),
        (["--samples", "x"], "argument --samples: got 'x'; allowed: an integer from 0 to 1000"),
        (["--samples", "1001"], "argument --samples: got '1001'; allowed: an integer from 0 to 1000"),
        (
            ["--price-per-hour", "-1"],
            "argument --price-per-hour: got '-1'; allowed: a number of 0 or more, such as 2.5",
        ),
        (
            ["--price-per-hour", "nan"],
            "argument --price-per-hour: got 'nan'; allowed: a number of 0 or more, such as 2.5",
        ),
        (["--price-per-hour", "x"], "argument --price-per-hour: got 'x'; allowed: a number of 0 or more, such as 2.5"),
    ],
)
def test_what_is_asked_of_a_plan_is_checked(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["plan", str(ROOT / "sweeps" / "toyfaces.yaml"), *[f"{arguments[0]}={arguments[1]}"]])
    assert capsys.readouterr().err.strip().endswith(sentence)


@pytest.mark.slow
def test_a_dry_run_is_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--dry-run", str(ROOT / "sweeps" / "toyfaces.yaml")]) == 0
    assert row_of(capsys.readouterr().out, "identity")


def test_names_are_not_markup() -> None:
    assert row_of(text_of(sweep_with(model="[bold]x[/bold]")), "model") == ["model", "[bold]x[/bold]"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_that_ship_are_planned(path: Path) -> None:
    assert row_of(text_of(load(path)), "name") == ["name", path.stem]


@pytest.mark.slow
def test_what_follows_from_the_file_loads_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from orchestrator.plan.dry_run import describe; from orchestrator.spec import load\n"
        "Console(file=open('/dev/null', 'w')).print(describe(load(Path('sweeps/celeba.yaml'))))\n"
        "print(*[m for m in 'torch ray mlflow diffusers deepspeed'.split() if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_a_window_that_the_model_does_not_have_is_told_by_the_plan(tmp_path: Path) -> None:
    for window, sentence in (([4000, 2000], "with 1000 >= high > low >= 0"), ([3, 2], "holds none of the chain's")):
        with pytest.raises(UserError) as caught:
            show(sweep_with(method="pca", sampler={"window": window}), Console(file=io.StringIO()), tmp_path)
        assert sentence in str(caught.value)


def test_a_second_predictor_is_told_among_what_judges() -> None:
    text = text_of(sweep_with(evaluate={"second_predictor": "a/b", "lpips": "l.safetensors"}))
    assert row_of(text, "judged by") == ["judged by", "lpips l.safetensors, second predictor a/b"]


def test_the_plan_tells_what_is_not_on_this_machine_and_what_comes_from_the_hub(tmp_path: Path) -> None:
    evaluate = {"lpips": "./lpips.safetensors", "features": "openai/clip-vit-base-patch32", "identity": "some/faces"}
    sweep = sweep_with(method="pca", evaluate=evaluate)
    console = Console(width=120, file=io.StringIO(), record=True)
    show(sweep, console, tmp_path)
    text = console.export_text()
    assert row_of(text, "evaluate.lpips") == ["evaluate.lpips", "./lpips.safetensors"]
    assert row_of(text, "evaluate.features")[1].startswith("openai/clip-vit-base-patch32, ")
    found = json.loads(as_json(sweep, console, tmp_path))
    assert found["absent"] == [{"what": "evaluate.lpips", "name": "./lpips.safetensors"}]
    assert [each["name"] for each in found["downloads"]] == ["openai/clip-vit-base-patch32", "some/faces"]
