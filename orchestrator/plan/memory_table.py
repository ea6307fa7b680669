"""Show what training takes: passes through the UNet, and memory on this machine's device and on common GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from core.chain.schedule import Schedule
from core.errors import UserError
from core.methods.training_memory import pool_h_bytes
from core.predictors.embedded import embedded_predictor
from orchestrator.spec import Sweep, size_bytes
from orchestrator.text import Grid, add_row, table_of
from orchestrator.trial.memory import (
    Case,
    Footprint,
    choose,
    device_bytes,
    heaviest,
    looks_of,
    next_fitting,
    share_of,
    usable,
    without_weights,
)
from orchestrator.trial.settings import method_of, with_names

COMMON_GPUS = ("24GB", "40GB", "80GB", "141GB")  # sizes of GPUs as vendors state them


@dataclass(frozen=True)
class Device:
    """A device, and the bytes of it that a trial may take."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Passes:
    """Forward passes of the UNet, one sample each, that training one trial to its end takes.

    With I iterations, B samples a batch, T steps of which S are shifted and F come before the first of these, and a
    pool of P unshifted samples:

        unshifted    P T          once per node: trials share the pool through the cache beside the sweeps
        shifted      I B (T - F)  chains start at the first step that is shifted
        decoders     I B S        further passes through the decoder half, under asymmetric injection

    Steps run again in the backward pass (`again`), evaluations, the slopes from which directions start, and the 32
    samples on which `learned` calibrates are not included. Where the model's timesteps are unknown, F = 0 and S = T;
    `bound` is then True if there is a window, as these are upper bounds.
    """

    unshifted: int
    shifted: int
    decoders: int
    bound: bool

    @property
    def total(self) -> int:
        """Passes through the whole UNet."""
        return self.unshifted + self.shifted


def unet_passes(sweep: Sweep, schedule: Schedule | None) -> Passes:
    """Return the passes of this sweep."""
    steps, window, chains = sweep.sampler.steps, sweep.sampler.window, sweep.train.iterations * sweep.train.batch
    inside = schedule.steps_in_window(window) if schedule else (True,) * steps
    return Passes(
        unshifted=sweep.train.pool * steps,
        shifted=chains * (steps - inside.index(True)),
        decoders=chains * sum(inside) if sweep.sampler.injection == "asymmetric" else 0,
        bound=schedule is None and window is not None,
    )


def again(sweep: Sweep, footprint: Footprint) -> int:
    """Return the passes that are run again in the backward pass.

    Blocks that keep no graph run once more than their step. Where weights are streamed, this includes those of kept
    steps.
    """
    fetched = sweep.gradient.weights != "device"
    times = 2 if footprint.gradient.by_blocks or fetched else 1
    kept = footprint.chain.kept if fetched else 0
    return sweep.train.iterations * sweep.train.batch * (footprint.again * times + kept)


def case_of(sweep: Sweep) -> Case:
    """Return the input for predicting this sweep's memory: of its methods, the one whose trained parts take most.

    Another predictor than the model's own, and a vision model, are not opened for a plan: what a gradient takes in them
    is not in it. Trials count it. Raises ModelError without the model's configuration.
    """
    denoiser = without_weights(sweep)
    schedule, own = Schedule.ddim(denoiser, sweep.sampler.steps, sweep.sampler.eta), None
    if sweep.predictor is None:
        own = embedded_predictor(sweep.model)
    settings = [
        with_names(heaviest(sweep, method, look), own) for method in sweep.trained for look in looks_of(sweep, method)
    ]
    through = {"guided": own.score_through} if own else {}
    cases = (Case(denoiser, schedule, sweep, each, through.get(method_of(each))) for each in settings)
    return max(cases, key=lambda case: case.trained(2))


def devices_of(sweep: Sweep, named: str | None = None) -> list[Device]:
    """Return the devices of a plan: common GPUs if trials hold GPUs, the named one, and this machine's own."""
    names = COMMON_GPUS if sweep.resources.gpus_per_trial else ()
    if named is not None and named not in names:
        names = (*names, named)
    devices = [Device(name, share_of(sweep, size_bytes(name))) for name in names]
    if torch.cuda.is_available():
        devices.append(Device("this GPU", device_bytes(sweep, torch.device("cuda"))))
    elif not sweep.resources.gpus_per_trial:
        devices.append(Device("this machine", device_bytes(sweep, torch.device("cpu"))))
    return devices


def passes_table(sweep: Sweep, schedule: Schedule | None) -> Grid:
    """Return a table of the passes, with their arithmetic."""
    passes = unet_passes(sweep, schedule)
    chains = f"{sweep.train.iterations} x {sweep.train.batch}"
    table = table_of(
        f"UNet passes of a trial of method {' or '.join(sweep.trained)}, run to its end", "what", "arithmetic", "passes"
    )
    bound = "at most " if passes.bound else ""
    whole = passes.shifted // (sweep.train.iterations * sweep.train.batch)
    add_row(
        table, "unshifted samples", f"{sweep.train.pool} x {sweep.sampler.steps}, once a node", f"{passes.unshifted:,}"
    )
    add_row(table, "shifted samples", f"{chains} x {whole} (iterations x batch x steps)", f"{bound}{passes.shifted:,}")
    add_row(table, "total", "evaluation and what is run again not included", f"{bound}{passes.total:,}")
    if passes.decoders:
        inside = passes.decoders // (sweep.train.iterations * sweep.train.batch)
        add_row(table, "second decoder half", f"{chains} x {inside}", f"{bound}{passes.decoders:,}")
    return table


def memory_table(case: Case, devices: Sequence[Device]) -> Grid:
    """Return a table of the peak memory by parts, and the settings chosen, for each device."""
    ways = [choose(case, device.bytes) for device in devices]
    share = case.sweep.resources.gpus_per_trial
    part = f" (of each GPU {share:g})" if 0 < share < 1 else ""
    title, headings = f"Memory of a trial of method {method_of(case.settings)}, GB{part}", map(_heading, devices)
    table = table_of(title, "", *headings, numbers=True, by_column=True)
    for name, values in _parts(ways).items():
        add_row(table, name, *values)
    beside = f"{pool_h_bytes(case.denoiser, case.schedule, case.settings) / 1e9:.2f}"
    add_row(table, "h of the pool, in the CPU's memory", *[beside] * len(ways))
    for name, values in _choices(case.sweep, ways).items():
        add_row(table, name, *values)
    add_row(table, "fits", *(_verdict(case, way) for way in ways))
    return table


def refuse_unfit(case: Case, devices: Sequence[Device], named: str | None = None) -> None:
    """Raise UserError, in one sentence, where training fits neither the named device nor, without a name, any."""
    wanted = [device for device in devices if named in (None, device.name)]
    ways = [choose(case, device.bytes) for device in wanted]
    if any(way.fits for way in ways):
        return
    largest = max(ways, key=lambda way: way.device)
    names = " or ".join(device.name for device in wanted)
    nearest = next_fitting(case, largest.device)
    advice = f"; {nearest} and would fit" if nearest.fits else f"; even {nearest}"
    room = f"{usable(largest.device) / 1e9:.1f} GB"
    raise UserError(f"gradient: training does not fit {names}: {largest}, and {room} can be planned with{advice}")


def _heading(device: Device) -> str:
    if device.name.startswith("this"):
        return f"{device.name}, {device.bytes / 1e9:.1f}"
    return device.name.replace("GB", " GB").replace("GiB", " GiB")


def _parts(ways: Sequence[Footprint]) -> dict[str, list[str]]:
    rows = {
        "network": [way.chain.network for way in ways],
        "x_t of every step": [way.chain.states for way in ways],
        "graphs kept": [way.chain.graphs for way in ways],
        "work of a step": [way.chain.work for way in ways],
        "trained parts": [way.trained for way in ways],
        "pool": [way.pool for way in ways],
        "sum": [way.training for way in ways],
        "while drawing": [way.drawing for way in ways],
    }
    return {name: [f"{value / 1e9:.2f}" for value in values] for name, values in rows.items()}


def _choices(sweep: Sweep, ways: Sequence[Footprint]) -> dict[str, list[str]]:
    return {
        "policy": [way.policy for way in ways],
        "micro-batch": [str(way.micro_batch) for way in ways],
        "steps kept": [f"{way.chain.kept} of {way.steps}" for way in ways],
        "passes run again": [f"{again(sweep, way):,}" for way in ways],
        "drawn at a time": [str(way.draw_batch) for way in ways],
    }


def _verdict(case: Case, way: Footprint) -> str:
    if way.fits:
        return "yes"
    nearest = next_fitting(case, way.device)
    return f"does not fit: {'' if nearest.fits else 'even '}{nearest}"
