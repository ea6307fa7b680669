"""What a sweep will take, as far as its model can tell: memory, disk, downloads and, where measured, time and cost.

`look_ahead` finds it out, `tables` shows it, `document` gives it as plain JSON.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from core.chain.schedule import Schedule
from core.errors import AbsentModelError
from core.methods.learned.memory import pool_h_bytes
from core.model.denoiser import Denoiser
from orchestrator.plan import duration, probe
from orchestrator.plan.disk_use import Download, disk_parts, downloads, free_at
from orchestrator.plan.memory import Device, case_of, devices_of, memory_table, passes_table, unet_passes
from orchestrator.search.space import trials
from orchestrator.spec import Sweep
from orchestrator.text import clock, counted, facts_table, nbytes
from orchestrator.trial.footprint import Case, Footprint, choose, without_weights

_DISK = {
    "direction_sets_and_pictures": "direction sets, pictures",
    "champion": "champion",
    "mlflow_files": "MLflow's files",
    "samples_cache": "unshifted samples",
    "while_trials_run": "while trials run",
}


@dataclass(frozen=True)
class PlanSummary:
    """What was counted and measured for one sweep; None where that was not possible, or not asked for."""

    sweep: Sweep
    schedule: Schedule | None
    case: Case | None
    unknown: str | None  # why nothing is counted on the model
    devices: list[Device]
    slots: int  # trials at a time
    free: int  # bytes at the root
    disk: dict[str, int] | None
    fetched: list[Download]
    measured: probe.Measured | None
    prediction: duration.Prediction | None
    price_per_hour: float | None

    @property
    def cost(self) -> tuple[float, float, str] | None:
        if self.prediction is None or self.price_per_hour is None:
            return None
        return duration.cost(self.sweep, self.prediction, self.price_per_hour)


def look_ahead(
    sweep: Sweep,
    root: Path,
    console: Console,
    device_memory: str | None = None,
    measure: bool = False,
    price_per_hour: float | None = None,
) -> PlanSummary:
    """Count, and where asked to, measure. Raises UserError where this machine cannot measure."""
    if measure:
        probe.refuse_elsewhere(sweep)
    denoiser, unknown = _model(sweep)
    schedule = Schedule.ddim(denoiser, sweep.sampler.steps, sweep.sampler.eta) if denoiser else None
    slots = min(max(1, probe.here(sweep)), trials(sweep))
    learns = "learned" in sweep.methods
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


def tables(found: PlanSummary) -> Iterator[RenderableType]:
    """All of it for a person."""
    sweep = found.sweep
    if "learned" not in sweep.methods:
        yield Text("\nNo training: only method learned trains.")
    else:
        yield passes_table(sweep, found.schedule)
        if found.case is None:
            yield Text(f"\nMemory of a trial of method learned was not counted: {found.unknown}")
        else:
            yield memory_table(found.case, found.devices)
    yield facts_table("Disk, at the most", _disk(found))
    yield facts_table("To be downloaded", _fetched(found))
    yield facts_table("Time", _time(found))


def document(found: PlanSummary) -> dict[str, Any]:
    """All of it as plain JSON; what is not known is null. Bytes and seconds say so in their names."""
    memory = None
    if found.case is not None:
        case = found.case
        beside = {"pool_h_cpu_bytes": pool_h_bytes(case.denoiser, case.schedule, case.settings)}
        memory = [_way(each, choose(case, each.bytes)) | beside for each in found.devices]
    passes = unet_passes(found.sweep, found.schedule) if "learned" in found.sweep.methods else None
    return {
        "unet_passes": passes and {**asdict(passes), "total": passes.total},
        "memory": memory,
        "disk": {
            "parts_bytes": found.disk,
            "total_bytes": found.disk and sum(found.disk.values()),
            "free_bytes": found.free,
        },
        "downloads": [{"what": each.what, "name": each.name, "size_bytes": each.bytes} for each in found.fetched],
        "time": _time_document(found),
        "cost": _cost_document(found),
        "not_counted": found.unknown,
    }


def _model(sweep: Sweep) -> tuple[Denoiser | None, str | None]:
    try:
        return without_weights(sweep), None
    except AbsentModelError as error:
        return None, str(error)


def _side_by_side(sweep: Sweep, slots: int) -> int:
    """Trials that share what one of them would have alone: the cores of a machine, or one GPU."""
    gpus = sweep.resources.gpus_per_trial
    return slots if not gpus else min(slots, max(1, int(1 / gpus + 1e-9)))


def _disk(found: PlanSummary) -> dict[str, str]:
    if found.disk is None:
        return {"taken": "not counted, for the model is not at hand", "free": nbytes(found.free)}
    told = {_DISK[name]: nbytes(value) for name, value in found.disk.items()}
    told["while trials run"] += f", free again afterwards ({counted(found.slots, 'trial')} at a time)"
    total = sum(found.disk.values())
    enough = "" if total <= found.free else ": not enough"
    return {**told, "in all": nbytes(total), "free": nbytes(found.free) + enough}


def _fetched(found: PlanSummary) -> dict[str, str]:
    told = {
        each.what: f"{each.name}, " + (f"at most {nbytes(each.bytes)}" if each.bytes else "size unknown offline")
        for each in found.fetched
    }
    return told or {"nothing": "the model and its predictor are on this machine"}


def _time(found: PlanSummary) -> dict[str, str]:
    measured, prediction = found.measured, found.prediction
    if measured is None or prediction is None:
        unknown = "unknown; --probe measures it on this machine"
        return {"a trial": unknown, **({} if found.price_per_hour is None else {"cost": unknown})}
    told = {"measured on": f"{probe.device()}, {counted(found.slots, 'trial')} at a time"}
    told["one pass"] = f"{1000 * measured.forward:.3g} ms a sample"
    if measured.iteration is not None:
        told["one iteration"] = f"{measured.iteration:.3g} s"
    for method, seconds in prediction.trial.items():
        heaviest = prediction.heaviest[method]
        told[f"a trial of {method}"] = (
            f"not predicted: {prediction.unknown[method]}"
            if seconds is None or heaviest is None
            else f"{clock(seconds)}, at the most {clock(heaviest)}, run to its end"
        )
    if found.sweep.scheduler is not None and len(prediction.ends) > 1:
        told["ASHA"] = "expected: " + ", ".join(
            f"{number:.1f} trials end at iteration {step}" for step, number in prediction.ends
        )
    return {**told, **_whole(found, prediction)}


def _whole(found: PlanSummary, prediction: duration.Prediction) -> dict[str, str]:
    if prediction.sweep is None:
        return {"the sweep": f"not predicted: it has trials of {' and '.join(prediction.unknown)}"}
    limited = ", when budget.hours are over" if prediction.limited else ""
    told = {"the sweep": f"about {clock(prediction.sweep)}{limited}"}
    if found.cost is not None:
        hours, price, what = found.cost
        told["cost"] = f"about {price:,.2f} ({hours:,.2f} {what} hours at {found.price_per_hour:g})"
    return told


def _time_document(found: PlanSummary) -> dict[str, Any] | None:
    prediction = found.prediction
    if prediction is None or found.measured is None:
        return None
    measured = asdict(found.measured)
    del measured["labels"]
    return {
        "device": probe.device(),
        "trials_at_a_time": found.slots,
        "measured_seconds": measured,
        "trial_seconds": prediction.trial,
        "trial_at_most_seconds": prediction.heaviest,
        "not_predicted": prediction.unknown,
        "expected_ends": [{"iteration": step, "trials": round(number, 3)} for step, number in prediction.ends],
        "busy_seconds": prediction.busy,
        "sweep_seconds": prediction.sweep,
        "limited_by_budget_hours": prediction.limited,
    }


def _cost_document(found: PlanSummary) -> dict[str, Any] | None:
    if found.cost is None:
        return None
    hours, price, what = found.cost
    return {"price_per_hour": found.price_per_hour, "of_one": what, "hours": hours, "total": price}


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
