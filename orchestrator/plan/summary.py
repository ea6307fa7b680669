"""Predict what a sweep takes, as far as its model is known: memory, disk, downloads and, where measured, time and cost.

`predict_all` computes it, `tables` shows it, `document` returns it as plain JSON.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from core.chain.schedule import Schedule, check_window
from core.errors import AbsentModelError
from core.methods.training_memory import pool_h_bytes
from core.model.denoiser import Denoiser
from orchestrator.plan import duration, probe
from orchestrator.plan.disk_use import Download, disk_parts, downloads, free_at
from orchestrator.plan.memory_table import (
    Device,
    case_of,
    devices_of,
    memory_table,
    passes_table,
    refuse_unfit,
    unet_passes,
)
from orchestrator.search.space import trials
from orchestrator.spec import TRAINED, Sweep
from orchestrator.spec.sources import Source, absent
from orchestrator.text import clock, counted, facts_table, nbytes
from orchestrator.trial.memory import Case, Footprint, choose, without_weights

_DISK = {
    "direction_sets_and_pictures": "direction sets, pictures",
    "champion": "champion",
    "mlflow_files": "MLflow's files",
    "samples_cache": "unshifted samples",
    "while_trials_run": "while trials run",
}


@dataclass(frozen=True)
class PlanSummary:
    """The predictions for one sweep. None for a part that was not possible, or not asked for."""

    sweep: Sweep
    schedule: Schedule | None
    case: Case | None
    unknown: str | None  # why memory and disk are not counted
    devices: list[Device]
    slots: int  # trials at a time
    free: int  # bytes at the root
    disk: dict[str, int] | None
    fetched: list[Download]
    measured: probe.Timings | None
    prediction: duration.Duration | None
    price_per_hour: float | None

    @property
    def cost(self) -> tuple[float, float, str] | None:
        """The result of `duration.cost`; None without a prediction or a price."""
        if self.prediction is None or self.price_per_hour is None:
            return None
        return duration.cost(self.sweep, self.prediction, self.price_per_hour)


def predict_all(
    sweep: Sweep,
    root: Path,
    console: Console,
    device_memory: str | None = None,
    measure: bool = False,
    price_per_hour: float | None = None,
) -> PlanSummary:
    """Count and, where `measure`, measure. Raises UserError where this machine cannot measure."""
    if measure:
        probe.refuse_elsewhere(sweep)
    with console.status("Reading the model's configuration ..."):
        denoiser, unknown = _model(sweep)
    schedule = None
    if denoiser is not None:
        check_window(denoiser, sweep.sampler.window)
        schedule = Schedule.ddim(denoiser, sweep.sampler.steps, sweep.sampler.eta)
        schedule.steps_in_window(sweep.sampler.window)  # refuses a window without a step
    slots = min(max(1, probe.trials_at_a_time(sweep)), trials(sweep))
    learns = bool(sweep.trained)
    with console.status("Counting ..."):
        case = case_of(sweep) if denoiser and learns else None
        disk = disk_parts(sweep, denoiser, schedule, slots) if denoiser and schedule else None
    measured = prediction = None
    if measure:
        with console.status("Measuring, about a minute ..."):
            measured = probe.measure(sweep, _side_by_side(sweep, slots))
        schedule = schedule or Schedule.ddim(without_weights(sweep), sweep.sampler.steps, sweep.sampler.eta)
        prediction = duration.predict(sweep, schedule, measured, slots)
    devices = devices_of(sweep, device_memory) if learns else []
    fetched, free = downloads(sweep, denoiser), free_at(root)
    return PlanSummary(
        sweep=sweep,
        schedule=schedule,
        case=case,
        unknown=unknown,
        devices=devices,
        slots=slots,
        free=free,
        disk=disk,
        fetched=fetched,
        measured=measured,
        prediction=prediction,
        price_per_hour=price_per_hour,
    )


def tables(plan: PlanSummary) -> Iterator[RenderableType]:
    """Yield everything as tables and lines of text."""
    sweep = plan.sweep
    if not sweep.trained:
        yield Text(f"\nNo training: only methods {' and '.join(TRAINED)} train.")
    else:
        yield passes_table(sweep, plan.schedule)
        if plan.case is None:
            yield Text(f"\nMemory of a trial of method {' or '.join(sweep.trained)} was not counted: {plan.unknown}")
        else:
            yield memory_table(plan.case, plan.devices)
    yield facts_table("Disk, at the most", _disk(plan))
    yield facts_table("To be downloaded", _fetched(plan))
    if missing := absent(sweep):
        yield facts_table(
            "Not on this machine", {key: _names(missing, key) for key in dict.fromkeys(s.key for s in missing)}
        )
    yield facts_table("Time", _time(plan))


def takes(plan: PlanSummary) -> str:
    """Return, in one line, what runs and the time, memory and disk that it takes, as far as they are known.

    Raises UserError where training does not fit this machine.
    """
    sweep = plan.sweep
    parts = [f"{counted(trials(sweep), 'trial')} of {' or '.join(sweep.methods)}, {plan.slots} at a time"]
    if plan.prediction is not None and plan.prediction.sweep is not None:
        parts.append(f"about {clock(plan.prediction.sweep)} ({probe.device_name()})")
    if sweep.budget.hours is not None:
        parts.append(f"ended after {clock(3600 * sweep.budget.hours)}")
    if plan.case is not None:
        here = [device for device in plan.devices if device.name.startswith("this")]
        refuse_unfit(plan.case, here)
        parts.append(f"{nbytes(choose(plan.case, here[0].bytes).peak)} of memory a trial")
    if plan.disk is not None:
        parts.append(f"{nbytes(sum(plan.disk.values()))} of disk")
    parts.extend(f"downloads {each.name}" for each in plan.fetched)
    return "; ".join(parts)


def _names(read: list[Source], key: str) -> str:
    return ", ".join(source.name for source in read if source.key == key)


def document(plan: PlanSummary) -> dict[str, Any]:
    """Return everything as plain JSON; what is unknown is null. Names of bytes and seconds end in their unit."""
    memory = None
    if plan.case is not None:
        case = plan.case
        beside = {"pool_h_cpu_bytes": pool_h_bytes(case.denoiser, case.schedule, case.settings)}
        memory = [_way(each, choose(case, each.bytes)) | beside for each in plan.devices]
    passes = unet_passes(plan.sweep, plan.schedule) if plan.sweep.trained else None
    return {
        "unet_passes": passes and {**asdict(passes), "total": passes.total},
        "memory": memory,
        "disk": {
            "parts_bytes": plan.disk,
            "total_bytes": plan.disk and sum(plan.disk.values()),
            "free_bytes": plan.free,
        },
        "downloads": [{"what": each.what, "name": each.name, "size_bytes": each.bytes} for each in plan.fetched],
        "absent": [{"what": source.key, "name": source.name} for source in absent(plan.sweep)],
        "time": _time_document(plan),
        "cost": _cost_document(plan),
        "not_counted": plan.unknown,
    }


def _model(sweep: Sweep) -> tuple[Denoiser | None, str | None]:
    try:
        return without_weights(sweep), None
    except AbsentModelError as error:
        return None, str(error)


def _side_by_side(sweep: Sweep, slots: int) -> int:
    """Return how many trials share the resource that one trial alone would have: the cores of a machine, or one GPU."""
    gpus = sweep.resources.gpus_per_trial
    return slots if not gpus else min(slots, max(1, int(1 / gpus + 1e-9)))


def _disk(plan: PlanSummary) -> dict[str, str]:
    if plan.disk is None:
        return {"taken": "not counted, for the model is not at hand", "free": nbytes(plan.free)}
    rows = {_DISK[name]: nbytes(value) for name, value in plan.disk.items()}
    rows["while trials run"] += f", free again afterwards ({counted(plan.slots, 'trial')} at a time)"
    total = sum(plan.disk.values())
    enough = "" if total <= plan.free else ": not enough"
    return {**rows, "in all": nbytes(total), "free": nbytes(plan.free) + enough}


def _fetched(plan: PlanSummary) -> dict[str, str]:
    rows = {
        each.what: f"{each.name}, " + (f"at most {nbytes(each.bytes)}" if each.bytes else "size unknown offline")
        for each in plan.fetched
    }
    return rows or {"nothing": "what is read from the hub is on this machine"}


def _time(plan: PlanSummary) -> dict[str, str]:
    measured, prediction = plan.measured, plan.prediction
    if measured is None or prediction is None:
        unknown = "unknown; --probe measures it on this machine"
        return {"a trial": unknown, **({} if plan.price_per_hour is None else {"cost": unknown})}
    rows = {"measured on": f"{probe.device_name()}, {counted(plan.slots, 'trial')} at a time"}
    rows["one pass"] = f"{1000 * measured.forward:.3g} ms a sample"
    if measured.iteration is not None:
        rows["one iteration"] = f"{measured.iteration:.3g} s"
    for method, seconds in prediction.trial.items():
        heaviest = prediction.heaviest[method]
        rows[f"a trial of {method}"] = (
            f"not predicted: {prediction.unknown[method]}"
            if seconds is None or heaviest is None
            else f"{clock(seconds)}, at the most {clock(heaviest)}, run to its end"
        )
    if plan.sweep.scheduler is not None and len(prediction.ends) > 1:
        rows["ASHA"] = "expected: " + ", ".join(
            f"{number:.1f} trials end at iteration {step}" for step, number in prediction.ends
        )
    return {**rows, **_whole(plan, prediction)}


def _whole(plan: PlanSummary, prediction: duration.Duration) -> dict[str, str]:
    if prediction.sweep is None:
        return {"the sweep": f"not predicted: it has trials of {' and '.join(prediction.unknown)}"}
    limited = ", when budget.hours are over" if prediction.limited else ""
    rows = {"the sweep": f"about {clock(prediction.sweep)}{limited}"}
    if plan.cost is not None:
        hours, price, what = plan.cost
        rows["cost"] = f"about {price:,.2f} ({hours:,.2f} {what} hours at {plan.price_per_hour:g})"
    return rows


def _time_document(plan: PlanSummary) -> dict[str, Any] | None:
    prediction = plan.prediction
    if prediction is None or plan.measured is None:
        return None
    measured = asdict(plan.measured)
    del measured["labels"]
    return {
        "device": probe.device_name(),
        "trials_at_a_time": plan.slots,
        "measured_seconds": measured,
        "trial_seconds": prediction.trial,
        "trial_at_most_seconds": prediction.heaviest,
        "not_predicted": prediction.unknown,
        "expected_ends": [{"iteration": step, "trials": round(number, 3)} for step, number in prediction.ends],
        "busy_seconds": prediction.busy,
        "sweep_seconds": prediction.sweep,
        "limited_by_budget_hours": prediction.limited,
    }


def _cost_document(plan: PlanSummary) -> dict[str, Any] | None:
    if plan.cost is None:
        return None
    hours, price, what = plan.cost
    return {"price_per_hour": plan.price_per_hour, "of_one": what, "hours": hours, "total": price}


def _way(device: Device, way: Footprint) -> dict[str, Any]:
    return {
        "device": device.name,
        "device_bytes": device.bytes,
        "network_bytes": way.chain.network,
        "states_bytes": way.chain.states,
        "graphs_bytes": way.chain.graphs,
        "work_bytes": way.chain.work,
        "trained_bytes": way.trained,
        "pool_bytes": way.pool,
        "training_bytes": way.training,
        "drawing_bytes": way.drawing,
        "policy": way.policy,
        "micro_batch": way.micro_batch,
        "steps": way.steps,
        "steps_kept": way.chain.kept,
        "drawn_at_a_time": way.draw_batch,
        "fits": way.fits,
    }
