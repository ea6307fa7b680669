"""What a plan counts on the model: passes and memory, device by device, and what it refuses."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from core.errors import UserError
from orchestrator.cli.main import main
from orchestrator.plan import memory_table as module
from orchestrator.plan.dry_run import PlanOptions, show
from orchestrator.plan.memory_table import Device, again, case_of, devices_of, memory_table, refuse_unfit, unet_passes
from orchestrator.spec import Sweep, load, parse
from orchestrator.trial.memory import choose

ROOT = Path(__file__).parents[3]
POOL = 1024  # the default of train.pool
PARTS = ["network", "x_t of every step", "graphs kept", "work of a step", "trained parts", "pool"]


def sweep_with(**sections: Any) -> Sweep:
    search = {"directions": {"choice": [8, 16]}}
    return parse({"name": "a", "model": "toyfaces", "search": search} | sections)


def text_of(sweep: Sweep, width: int = 160, device_memory: str | None = None) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    show(sweep, console, options=PlanOptions(device_memory=device_memory))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def row_of(text: str, name: str) -> list[str]:
    """The cells of the one row that starts with `name`."""
    [line] = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_passes_of_training_are_exact() -> None:
    sampler = {"steps": 5, "injection": "asymmetric", "window": [900, 300]}
    sweep = sweep_with(sampler=sampler, train={"iterations": 10, "batch": 4})
    schedule = case_of(sweep).schedule
    assert schedule.steps_in_window((900, 300)) == (True, True, True, False, False)
    late = sweep_with(sampler=sampler | {"window": [500, 300]}, train={"iterations": 10, "batch": 4})
    for given, steps, shifted in ((sweep, 5, 3), (late, 3, 1)):
        passes = unet_passes(given, schedule)
        assert (passes.unshifted, passes.shifted, passes.decoders) == (POOL * 5, 40 * steps, 40 * shifted)
        assert passes.total == POOL * 5 + 40 * steps and not passes.bound


def test_without_the_models_timesteps_passes_are_bounds() -> None:
    sampler = {"steps": 5, "injection": "asymmetric"}
    whole, part = sweep_with(sampler=sampler), sweep_with(sampler=sampler | {"window": [900, 300]})
    assert unet_passes(whole, None) == unet_passes(whole, case_of(whole).schedule)
    assert unet_passes(part, None).bound and unet_passes(part, None).decoders == 400 * 16 * 5
    assert unet_passes(sweep_with(), None).decoders == 0


@pytest.mark.slow
def test_kept_steps_are_not_run_again() -> None:
    sweep = sweep_with(sampler={"steps": 6}, train={"iterations": 10, "batch": 4, "pool": 32})
    case = case_of(sweep)
    for policy, times in (("full_graph", 0), ("keep_steps", 0), ("checkpoint_steps", 5), ("checkpoint_blocks", 12)):
        asked = sweep.model_copy(update={"gradient": sweep.gradient.model_copy(update={"policy": policy})})
        way = choose(module.Case(case.denoiser, case.schedule, asked, case.settings), 10**10)
        assert again(asked, way) == 40 * times


def test_devices() -> None:
    gpu = sweep_with(resources={"gpus_per_trial": 0.5})
    assert devices_of(gpu)[:4] == [
        Device("24GB", 12 * 10**9),
        Device("40GB", 20 * 10**9),
        Device("80GB", 40 * 10**9),
        Device("141GB", 705 * 10**8),
    ]
    assert Device("1GiB", 1 << 29) in devices_of(gpu, "1GiB")
    assert [device.name for device in devices_of(gpu, "40GB")][:4] == ["24GB", "40GB", "80GB", "141GB"]
    here = [device.name for device in devices_of(sweep_with(), "1GiB")]
    assert here[0] == "1GiB" and len(here) == 2 and here[1].startswith("this ")


@pytest.mark.slow
def test_memory_is_told_by_parts_for_each_device() -> None:
    sweep = sweep_with(resources={"gpus_per_trial": 1}, sampler={"steps": 6})
    text = text_of(sweep)
    assert [" ".join(row_of(text, name)[1:2]) for name in ("policy", "micro-batch", "steps kept")] == [
        "keep_steps",
        "16",
        "6 of 6",
    ]
    assert row_of(text, "fits")[1:5] == ["yes"] * 4
    parts = [float(row_of(text, name)[1]) for name in PARTS]
    assert sum(parts) == pytest.approx(float(row_of(text, "sum")[1]), abs=0.04)


@pytest.mark.slow
def test_what_does_not_fit_says_what_would() -> None:
    sweep = sweep_with(
        gradient={"policy": "full_graph"},
        train={"batch": 16, "micro_batch": 16, "pool": 32},
        sampler={"steps": 40, "batch": 4},
    )
    case = case_of(sweep)
    small, large, tiny = Device("200MB", 2 * 10**8), Device("10GB", 10**10), Device("10MB", 10**7)
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(memory_table(case, [small, large, tiny]))
    [fits] = [line for line in console.export_text().splitlines() if line.startswith("fits")]
    cells = [cell.strip() for cell in fits.split("  ") if cell.strip()]
    assert cells[1:] == [
        "does not fit: checkpoint_steps with micro_batch 16 takes 0.1 GB",
        "yes",
        "does not fit: even checkpoint_blocks with micro_batch 2 takes 0.0 GB",
    ]
    refuse_unfit(case, [small, large])
    refuse_unfit(case, [small, large], "10GB")
    with pytest.raises(UserError, match="^gradient: training does not fit 200MB: full_graph with micro_batch 16 "):
        refuse_unfit(case, [small, large], "200MB")
    with pytest.raises(UserError, match="; checkpoint_steps with micro_batch 16 takes 0.1 GB and would fit$"):
        refuse_unfit(case, [tiny, small])
    with pytest.raises(UserError, match="^gradient: training does not fit 10MB: .*; even checkpoint_blocks with mic"):
        refuse_unfit(case, [tiny])


@pytest.mark.slow
def test_the_command_refuses_a_device_that_is_too_small(capsys: pytest.CaptureFixture[str]) -> None:
    toyfaces = str(ROOT / "sweeps" / "toyfaces.yaml")
    assert main(["plan", toyfaces, "--device-memory", "0.05GB"]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("gradient: training does not fit 0.05GB: full_graph with micro_batch 16 takes 0.")
    assert "Memory of a trial of method learned, GB" in told.out and told.err.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        main(["plan", toyfaces, "--device-memory", "24gb"])
    assert "did you mean '24GB'?" in capsys.readouterr().err


def test_a_model_that_is_not_at_hand_is_planned_without_memory() -> None:
    text = text_of(sweep_with(model="./nowhere", sampler={"window": [900, 100]}))
    assert row_of(text, "shifted samples")[-1] == "at most 128,000"
    [line] = [line for line in text.splitlines() if line.startswith("Memory")]
    assert line.startswith("Memory of a trial of method learned was not counted: model './nowhere' is not there: ")


@pytest.mark.slow
def test_the_full_size_sweep_is_planned_without_network_or_weights() -> None:
    text = text_of(load(ROOT / "sweeps" / "celeba.yaml"), width=100)
    assert row_of(text, "micro-batch")[1:5] == ["4"] * 4
    assert row_of(text, "steps kept")[4] == "40 of 40" and row_of(text, "fits")[1:5] == ["yes"] * 4
    assert float(row_of(text, "sum")[1]) < 24 < float(row_of(text, "sum")[4])
    assert max(map(len, text.splitlines())) <= 100
