"""The dry run: what a sweep would do, without doing it.

Most of it follows from the file alone. For method learned memory is counted on the model's architecture, for which its
configuration is enough (`core.denoiser.Denoiser.without_weights`). Time and cost are not guessed.
"""

from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from core.errors import ModelError
from orchestrator.layout import add_row, counted, facts_table, table_of
from orchestrator.secrets import redacted
from orchestrator.space import configurations, fits, ordered, sample, size, trials
from orchestrator.spec import Choice, Distribution, Fixed, FloatRange, IntRange, Sweep, Value
from orchestrator.spec.sections import DeepSpeed


def show(sweep: Sweep, console: Console, root: Path = Path("runs"), device_memory: str | None = None) -> None:
    """Print the plan. Raises UserError where training fits no device, or not the one of `device_memory` ("24GB")."""
    console.print(describe(sweep, root=root))
    if "learned" not in sweep.methods:
        console.print("\nNo training: only method learned trains.")
        return
    from orchestrator import forecast  # loads torch

    try:
        case = forecast.case_of(sweep)
    except ModelError as error:
        console.print(forecast.passes_table(sweep, None))
        console.print(Text(f"\nMemory of a trial of method learned was not counted: {error}"))
        return
    console.print(forecast.passes_table(sweep, case.schedule))
    devices = forecast.devices_of(sweep, device_memory)
    with console.status("Counting memory ..."):
        memory = forecast.memory_table(case, devices)
    console.print(memory)
    forecast.refuse_unfit(case, devices, device_memory)


def describe(sweep: Sweep, samples: int = 5, root: Path = Path("runs")) -> RenderableType:
    """The plan: what runs, over which space, what a trial holds and does, and where the results will go."""
    parts = [
        facts_table("Sweep", _what_runs(sweep)),
        _space_table(sweep),
        _sample_table(sweep, samples),
        facts_table("One trial", _one_trial(sweep)),
        facts_table("Results", _results(sweep, root)),
    ]
    return Group(*(part for part in parts if part is not None))


def _what_runs(sweep: Sweep) -> dict[str, str]:
    sampler, window = sweep.sampler, sweep.sampler.window
    where = f" in timesteps {window[0]} to {window[1]}" if window else ""
    return {
        "name": sweep.name,
        "identity": sweep.identity()[:12],
        "model": sweep.model,
        **({"predictor": sweep.predictor} if sweep.predictor else {}),
        "method": " or ".join(sweep.methods),
        "chain": f"{sampler.steps} steps, eta {sampler.eta:g}, {sampler.injection} injection{where}",
        "objectives": ", ".join(f"{objective.metric} ({objective.mode})" for objective in sweep.objectives),
        "scheduler": _scheduler(sweep),
        "budget": _budget(sweep),
    }


def _budget(sweep: Sweep) -> str:
    count = counted(sweep.budget.trials, "trial")
    if fits(sweep) and trials(sweep) > 1:
        count = f"all {counted(trials(sweep), 'configuration')}, each once"
    return f"{count}, at most {sweep.budget.hours:g} hours" if sweep.budget.hours else count


def _scheduler(sweep: Sweep) -> str:
    if sweep.scheduler is None:
        return "none: every trial runs to its end"
    asha = sweep.scheduler.asha
    return f"ASHA on {sweep.asha_metric}: from iteration {asha.grace} on, the best 1 in {asha.reduction} go on"


def _one_trial(sweep: Sweep) -> dict[str, str]:
    resources, every = sweep.resources, sweep.evaluate_every
    learns = "learned" in sweep.methods
    held = (
        counted(resources.workers, "worker"),
        "no GPU" if not resources.gpus_per_trial else f"GPUs: {resources.gpus_per_trial:g}",
        counted(resources.workers * resources.cpus_per_worker, "CPU"),
    )
    measured = f"every {every} iterations and at the end" if learns and every < sweep.train.iterations else "at the end"
    strength = sweep.evaluate.strength
    scaled = f", every set scaled to strength {strength:g}" if strength else ""
    return {
        "resources": ", ".join(held),
        **(_training(sweep) if learns else {}),
        "evaluation": f"{measured}, on {sweep.evaluate.seeds} seeds{scaled}",
    }


def _training(sweep: Sweep) -> dict[str, str]:
    train, engine, workers = sweep.train, sweep.deepspeed, sweep.resources.workers
    share, gradient = train.batch // workers, sweep.gradient
    parts = "micro-batches that fit the device"
    if train.micro_batch:
        parts = f"{counted(share // train.micro_batch, 'micro-batch', 'micro-batches')} of {train.micro_batch}"
    cut = f"batch {train.batch}: {counted(workers, 'worker')} x {parts}"
    kept = "" if gradient.memory == "auto" else f", graphs of at most {gradient.memory}"
    return {
        "training": f"{counted(train.iterations, 'iteration')}, {cut}",
        "precision": f"denoiser {train.precision}, trained parts {engine.precision}",
        "DeepSpeed": _engine(engine),
        "gradient": f"{gradient.policy}{kept}{', lean denoiser' if gradient.lean else ''}",
    }


def _engine(engine: DeepSpeed) -> str:
    parameters = "" if engine.offload_param == "none" else f", param offload {engine.offload_param}"
    clipped = "" if engine.gradient_clipping is None else f", gradients clipped to norm {engine.gradient_clipping:g}"
    return f"ZeRO-{engine.zero}, optimizer offload {engine.offload_optimizer}{parameters}{clipped}"


def _results(sweep: Sweep, root: Path) -> dict[str, str]:
    facts = {
        "sweep": f"{root / sweep.name}",
        "best set": f"{root / sweep.name / 'champion'}",
        "tracking": f"{redacted(sweep.tracking.uri or str(root / 'mlflow.db'))}, experiment {sweep.experiment}",
    }
    if sweep.export.register_as:
        facts["registered as"] = sweep.export.register_as
    return facts


def _space_table(sweep: Sweep) -> Table:
    count = size(sweep.space)
    held = "continuous" if count is None else counted(count, "configuration")
    table = table_of(f"Search space ({held})", "parameter", "values", "only when")
    for name in ordered(sweep.space):
        distribution = sweep.space[name]
        given = name in sweep.search or (name == "method" and "method" in sweep.model_fields_set)
        values = _values(distribution) + ("" if given else " (default)")
        when = " and ".join(
            f"{other} is {' or '.join(map(_word, wanted))}" for other, wanted in distribution.when.items()
        )
        add_row(table, name, values, when)
    return table


def _values(distribution: Distribution) -> str:
    match distribution:
        case Fixed(value):
            return _word(value)
        case Choice(values):
            return ", ".join(map(_word, values))
        case IntRange(low, high, step, log):
            return f"{low} to {high}" + (f" in steps of {step}" if step > 1 else "") + (", log" if log else "")
        case FloatRange(low, high, log):
            return f"{low:g} to {high:g}" + (", log" if log else "")


def _sample_table(sweep: Sweep, samples: int) -> Table | None:
    """The first configurations, where each will be run; else some as a random search would draw them.

    The real sampler learns from the trials before.
    """
    searched = [name for name in ordered(sweep.space) if not isinstance(sweep.space[name], Fixed)]
    if not searched:
        return None
    listed = fits(sweep)
    table = table_of("The first configurations" if listed else "For example", *searched)
    for configuration in configurations(sweep.space)[:samples] if listed else sample(sweep.space, samples, sweep.seed):
        add_row(table, *(_word(configuration[name]) if name in configuration else "-" for name in searched))
    return table


def _word(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
