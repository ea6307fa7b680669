"""Print the plan of a sweep: what it would do, without doing it.

Most of it follows from the file alone. The rest is counted on the model's architecture, for which its configuration is
enough (orchestrator.plan.summary). Time is never guessed: it is measured on request, else shown as unknown.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType

from orchestrator.search.space import configurations, fits, ordered, sample, size, trials
from orchestrator.secrets import redacted, without_secrets
from orchestrator.spec import Choice, Distribution, Fixed, FloatRange, IntRange, Sweep, Value
from orchestrator.spec.model_use import ModelUse
from orchestrator.spec.sections import DeepSpeed
from orchestrator.text import Grid, add_row, counted, facts_table, table_of

_WEIGHTS = {"cpu": "in the CPU's memory", "partitioned": "partitioned over the workers"}


@dataclass(frozen=True)
class PlanOptions:
    """The options of a plan.

    device_memory: of a GPU to plan for ("24GB"); samples: how many configurations to show; probe: whether to measure on
    this machine; price_per_hour: of one GPU, or of one machine where trials hold no GPU.
    """

    device_memory: str | None = None
    samples: int = 5
    probe: bool = False
    price_per_hour: float | None = None


def show(sweep: Sweep, console: Console, root: Path = Path("runs"), options: PlanOptions = PlanOptions()) -> None:
    """Print the plan; what is being done is shown on stderr meanwhile, in a terminal.

    Raises UserError where training fits no device, or not the one of `options.device_memory`.
    """
    console.print(describe(sweep, options.samples, root))
    progress = Console(stderr=True)
    with progress.status("Loading ..."):
        from orchestrator.plan import memory_table, summary  # they load torch

    plan = summary.predict_all(
        sweep, root, progress, options.device_memory, measure=options.probe, price_per_hour=options.price_per_hour
    )
    for part in summary.tables(plan):
        console.print(part)
    if plan.case is not None:
        memory_table.refuse_unfit(plan.case, plan.devices, options.device_memory)


def as_json(sweep: Sweep, console: Console, root: Path = Path("runs"), options: PlanOptions = PlanOptions()) -> str:
    """Return what `show` prints as one JSON document; `memory[].fits` is false where `show` raises.

    sweep            name, identity, and the sweep file with every default filled in, without passwords
    space            configurations (null: continuous), parameters with their values and conditions
    samples          configurations, each a mapping of all parameters
    trials, root     their number, and the folder of their results
    unet_passes, memory, disk, downloads, absent, time, cost, not_counted        see orchestrator.plan.summary.document
    """
    with console.status("Loading ..."):
        from orchestrator.plan import summary  # loads torch

    plan = summary.predict_all(
        sweep, root, console, options.device_memory, measure=options.probe, price_per_hour=options.price_per_hour
    )
    document = {
        "format": 1,
        "sweep": {"name": sweep.name, "identity": sweep.identity(), "resolved": without_secrets(sweep.resolved())},
        "space": {
            "configurations": size(sweep.space),
            "parameters": {name: sweep.space[name].resolved() for name in ordered(sweep.space)},
        },
        "samples": _sampled(sweep, options.samples),
        "trials": trials(sweep),
        "root": str(root),
        **summary.document(plan),
    }
    return json.dumps(document, indent=2, allow_nan=False)


def _sampled(sweep: Sweep, samples: int) -> list[dict[str, Value]]:
    """Return the first configurations where each will be run, else random ones."""
    return configurations(sweep.space)[:samples] if fits(sweep) else sample(sweep.space, samples, sweep.seed)


def describe(sweep: Sweep, samples: int = PlanOptions.samples, root: Path = Path("runs")) -> RenderableType:
    """Return the plan: what runs, the search space, what a trial takes and does, and where the results will be."""
    parts: list[RenderableType | None] = [
        facts_table("Sweep", what_runs(sweep)),
        _space_table(sweep),
        _sample_table(sweep, samples),
        facts_table("One trial", _one_trial(sweep)),
        facts_table("Results", _results(sweep, root)),
    ]
    return Group(*(part for part in parts if part is not None))


def what_runs(sweep: Sweep) -> dict[str, str]:
    """Return the main keys of a sweep with their values, as text."""
    sampler, window = sweep.sampler, sweep.sampler.window
    where = f" in timesteps {window[0]} to {window[1]}" if window else ""
    return {
        "name": sweep.name,
        "identity": sweep.identity()[:12],
        "model": sweep.model,
        **_used(sweep),
        **({"predictor": sweep.predictor} if sweep.predictor else {}),
        **_judged(sweep),
        "method": " or ".join(sweep.methods),
        "chain": f"{sampler.steps} steps, eta {sampler.eta:g}, {sampler.injection} injection{where}",
        "objectives": ", ".join(f"{objective.metric} ({objective.mode})" for objective in sweep.objectives),
        "scheduler": _scheduler(sweep),
        "budget": _budget(sweep),
    }


def _used(sweep: Sweep) -> dict[str, str]:
    """Return how the model is used, where the file changes a default."""
    use, plain = sweep.denoiser.model_dump(), ModelUse().model_dump()
    words = [f"{name.replace('_', ' ')} {_listed(value)}" for name, value in use.items() if value != plain[name]]
    return {"used": ", ".join(words)} if words else {}


def _judged(sweep: Sweep) -> dict[str, str]:
    """Return the networks that measure beside the denoiser."""
    names = ("features", "inception", "lpips", "identity", "second_predictor")
    networks = {name.replace("_", " "): getattr(sweep.evaluate, name) for name in names}
    words = [f"{name} {where}" for name, where in networks.items() if where]
    return {"judged by": ", ".join(words)} if words else {}


def _listed(value: object) -> str:
    return " | ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _budget(sweep: Sweep) -> str:
    count = counted(trials(sweep), "trial")
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
    learns = bool(sweep.trained)
    held = (
        counted(resources.workers, "worker"),
        "no GPU" if not resources.gpus_per_trial else f"GPUs: {resources.gpus_per_trial:g}",
        counted(resources.workers * resources.cpus_per_worker, "CPU"),
    )
    measured = f"every {every} iterations and at the end" if learns and every < sweep.train.iterations else "at the end"
    strength = sweep.evaluate.strength
    scaled = f"every set scaled to strength {strength:g}" if strength else "each set as strong as its method made it"
    return {
        "resources": ", ".join(held),
        **(_training(sweep) if learns else {}),
        "evaluation": f"{measured}, on {sweep.evaluate.seeds} seeds, {scaled}",
    }


def _training(sweep: Sweep) -> dict[str, str]:
    train, engine, workers = sweep.train, sweep.deepspeed, sweep.resources.workers
    share, gradient = train.batch // workers, sweep.gradient
    parts = "micro-batches that fit the device"
    if train.micro_batch:
        parts = f"{counted(share // train.micro_batch, 'micro-batch', 'micro-batches')} of {train.micro_batch}"
    cut = f"batch {train.batch}: {counted(workers, 'worker')} x {parts}"
    kept = "" if gradient.memory == "auto" else f", graphs of at most {gradient.memory}"
    placed = ", lean denoiser" if gradient.lean else ""
    if gradient.weights != "device":
        placed = f", the denoiser's weights {_WEIGHTS[gradient.weights]}"
    return {
        "training": f"{counted(train.iterations, 'iteration')}, {cut}",
        "precision": f"denoiser {train.precision}, trained parts {engine.precision}",
        "DeepSpeed": _engine(engine),
        "gradient": f"{gradient.policy}{kept}{placed}",
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


def _space_table(sweep: Sweep) -> Grid:
    count = size(sweep.space)
    held = "continuous" if count is None else counted(count, "configuration")
    table = table_of(f"Search space ({held})", "parameter", "values", "only when")
    for name in ordered(sweep.space):
        distribution = sweep.space[name]
        in_file = name in sweep.search or (name == "method" and "method" in sweep.model_fields_set)
        values = spelled(distribution) + ("" if in_file else " (default)")
        when = " and ".join(
            f"{other} is {' or '.join(map(_word, wanted))}" for other, wanted in distribution.when.items()
        )
        add_row(table, name, values, when)
    return table


def spelled(distribution: Distribution) -> str:
    """Return the values that a parameter may have, as text."""
    match distribution:
        case Fixed(value):
            return _word(value)
        case Choice(values):
            return ", ".join(map(_word, values))
        case IntRange(low, high, step, log):
            return f"{low} to {high}" + (f" in steps of {step}" if step > 1 else "") + (", log" if log else "")
        case FloatRange(low, high, log):
            return f"{low:g} to {high:g}" + (", log" if log else "")


def _sample_table(sweep: Sweep, samples: int) -> Grid | None:
    """Return a table of sampled configurations. The sweep's own sampler learns from trials, so its proposals differ."""
    searched = [name for name in ordered(sweep.space) if not isinstance(sweep.space[name], Fixed)]
    if not searched:
        return None
    title = "The first configurations" if fits(sweep) else "For example"
    table = table_of(title, *searched, named=False)
    for configuration in _sampled(sweep, samples):
        add_row(table, *(_word(configuration[name]) if name in configuration else "-" for name in searched))
    return table


def _word(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
